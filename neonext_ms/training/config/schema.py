"""The keys of a training configuration: a tree of dataclasses with the type, range and meaning of every key."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_type_hints

from neonext_ms.common.cli import MIN_CROP, MIN_STD, MIN_WEIGHT_BITS, WEIGHT_BITS


@dataclass(frozen=True)
class Range:
    """An interval of numbers, as an annotation of a key.

    Attributes:
        low, high: bounds of the interval.
        open_low, open_high: whether the bound itself is excluded.
        hint: end of the description.
    """

    low: float = 0
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'>' if self.open_low else '>='} {self.low:.10g}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:.10g}, {self.high:.10g}{right}{self.hint}"


Positive = Annotated[float, Range(open_low=True)]
NonNegative = Annotated[float, Range()]
Fraction = Annotated[float, Range(0, 1)]
FractionAboveZero = Annotated[float, Range(0, 1, open_low=True)]
FractionBelowOne = Annotated[float, Range(0, 1, open_high=True)]
_LARGEST_INT = 2**31 - 1
PositiveInt = Annotated[int, Range(1, _LARGEST_INT)]
NonNegativeInt = Annotated[int, Range(0, _LARGEST_INT)]
Side = Annotated[int, Range(1, 1 << 14)]
Channels = Annotated[int, Range(1, 1 << 16)]
Blocks = Annotated[int, Range(1, 1000)]
_SCALE = ", after division by 255"
Mean = Annotated[float, Range(0, 1, hint=_SCALE)]
Deviation = Annotated[float, Range(MIN_STD, 1, hint=_SCALE)]
Interpolation = Literal["bilinear", "bicubic"]
# How the range of an activation is chosen in calibration; `export.quantize.ranges` has the sources.
CalibrationMethod = Literal["minmax", "percentile", "mse", "entropy"]
MIN_CALIBRATION, MAX_CALIBRATION = 2, 1_000_000


@dataclass(frozen=True)
class ModelConfig:
    """The network. An option that is left out keeps the value of the named model.

    Attributes:
        name: registered model (`neonext-info --list`), or null for a network described by the options alone.
        image_size: side of the input in pixels, or height and width; null keeps that of the named model.
        num_classes: number of outputs; null follows the data.
        per_stage_layers: number of blocks in each of the four stages.
        dims: number of channels in each stage.
        kernel_spec: block sizes of NeoCell: "7", "4+7", four such codes separated by commas, or "default".
        shifts: shift of each stage, such as [1, 1, 1, 0].
        layer_scale_init_value: initial layer scale; 0 means no layer scale.
        linear_bias: whether the linear layers of a block have a bias.
        downsample: layers between the stages, in the order of the official code or of the paper.
        activation: activation of the network; null keeps that of the named model, or of the checkpoint to start from.
        drop_path: drop-path rate of the last block; the rate grows linearly from 0 with depth.
        conv_init: initialisation of convolutions and linear layers; null is PyTorch's default.
        neocell_init: initialisation of NeoCell: NeoInit; "normal", the official constructor's N(0, 1/sqrt(outputs)),
            the paper's baseline; "noise", NeoInit without its identity; or "figure5", NeoInit with the smaller noise
            of the paper's Fig. 5.
        init: checkpoint to start from, official or ours.
        init_ema: whether to start from the moving average in that checkpoint.
        init_key: key or prefix of the weights in that checkpoint, if it holds several models.
        freeze: parts that keep their weights and statistics: "stem", "stage_1", "downsample_1", ...
    """

    name: str | None = None
    image_size: Side | tuple[Side, Side] | None = None
    num_classes: PositiveInt | None = None
    per_stage_layers: tuple[Blocks, ...] | None = None
    dims: tuple[Channels, ...] | None = None
    kernel_spec: str | None = None
    shifts: tuple[NonNegativeInt, ...] | None = None
    layer_scale_init_value: NonNegative | None = None
    linear_bias: bool | None = None
    downsample: Literal["official", "paper"] | None = None
    activation: Literal["gelu", "relu", "leakyrelu", "hardswish"] | None = None
    drop_path: FractionBelowOne = 0.0
    conv_init: Literal["xavier_uniform", "kaiming_normal"] | None = None
    neocell_init: Literal["neoinit", "normal", "noise", "figure5"] = "neoinit"
    init: str | None = None
    init_ema: bool = False
    init_key: str | None = None
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Attributes:
        dataset: kind of data set.
        path: folder of the data. For "imagefolder" it contains `train` and `val`, for "mindrecord" the files of
            `neonext-mindrecord`.
        train, val: name of this part below `path` ("imagefolder", "mindrecord").
        share: fraction of the training images of each class that is used, evenly spaced; at least one image of each.
        batch_size: images per batch on one card.
        val_batch_size: images per batch in validation on one card.
        workers: number of processes or threads that read and augment images on one card.
        processes: whether workers are processes; threads share memory but are limited by Python's interpreter lock.
        cache: whether to keep decoded images in memory, for small sets.
        broken_limit: number of unreadable images that are skipped before the run ends with an error.
        classes: rule that gives class folders their classes: by the labels of the checkpoint to start from, by the
            number that is their name, or in sorted order; null takes the first of these that fits.
        mean, std: mean and standard deviation of R, G and B after division by 255.
        val_crop: side of the centre crop relative to the resized image in validation.
        val_interpolation: interpolation of the resize in validation.
        val_mode: images that are resized and cropped in validation: all, none, or ("auto") those of another size.
    """

    dataset: Literal["digits", "imagefolder", "mindrecord", "cifar10", "cifar100"] = "imagefolder"
    path: str | None = None
    train: str = "train"
    val: str = "val"
    share: FractionAboveZero = 1.0
    batch_size: PositiveInt = 128
    val_batch_size: PositiveInt = 64
    workers: Annotated[int, Range(1, 256)] = 4
    processes: bool = True
    cache: bool = False
    broken_limit: NonNegativeInt = 10
    classes: Literal["by-name", "by-number", "sorted"] | None = None
    mean: tuple[Mean, Mean, Mean] = (0.485, 0.456, 0.406)
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    val_crop: Annotated[float, Range(MIN_CROP, 1)] = 0.875
    val_interpolation: Interpolation = "bilinear"
    val_mode: Literal["auto", "resize", "as-is"] = "auto"


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes to a training image, in this order, and to a batch.

    Attributes:
        crop: "resized" (a random part, scaled to the input size), "pad" (a shift by up to `pad` pixels), or "none".
        scale: smallest and largest fraction of the area for "resized".
        ratio: smallest and largest aspect ratio for "resized".
        interpolation: interpolation of the resize.
        pad: largest shift in pixels for "pad".
        flip: probability of a horizontal flip.
        randaugment_ops: number of RandAugment operations on an image, 0 for none.
        randaugment_magnitude: magnitude of each operation.
        erasing: probability of random erasing.
        mixup, cutmix: alpha of its beta distribution, 0 to disable it.
        switch: probability of CutMix if both are enabled.
        mix_probability: fraction of batches that are mixed.
    """

    crop: Literal["resized", "pad", "none"] = "resized"
    scale: tuple[FractionAboveZero, FractionAboveZero] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    interpolation: Interpolation = "bicubic"
    pad: NonNegativeInt = 4
    flip: Fraction = 0.5
    randaugment_ops: Annotated[int, Range(0, 14)] = 2
    randaugment_magnitude: Annotated[int, Range(0, 30)] = 9
    erasing: Fraction = 0.25
    mixup: NonNegative = 0.8
    cutmix: NonNegative = 1.0
    switch: Fraction = 0.5
    mix_probability: Fraction = 1.0


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer.

    Attributes:
        name: name of the optimizer.
        lr: learning rate at a global batch of `reference_batch` images.
        reference_batch: global batch size that `lr` refers to.
        lr_rule: scaling of the learning rate with the global batch size.
        weight_decay: weight decay of tensors with two or more axes; biases, norms and layer scale have none.
        betas, eps: parameters of AdamW.
        momentum, nesterov: parameters of SGD.
        clip_norm: largest global norm of the gradients, 0 for no clipping.
        accumulate: number of batches whose gradients are averaged for one update.
        layer_decay: factor of the learning rate from one layer to the one before it, 1 for none.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    reference_batch: PositiveInt = 1024
    lr_rule: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: NonNegative = 0.05
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    eps: Positive = 1e-8
    momentum: FractionBelowOne = 0.9
    nesterov: bool = False
    clip_norm: NonNegative = 0.0
    accumulate: PositiveInt = 1
    layer_decay: Annotated[float, Range(0.01, 1)] = 1.0


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate, and the activation of a fine-tuned network, over time.

    Attributes:
        name: course of the learning rate after the warm-up.
        epochs: number of passes over the training images.
        warmup_epochs: length of the linear warm-up, which changes the rate at every step.
        warmup_lr: learning rate before the warm-up relative to the full rate.
        final_lr: last learning rate relative to the full rate.
        milestones: epochs at which "step" multiplies the rate by `factor`.
        factor: multiplier of the rate at each milestone.
        blend_epochs: length of the linear change from the activation of the checkpoint to start from (`model.init`) to
            that of the network, which is at work alone afterwards; 0 means from the start.
    """

    name: Literal["cosine", "linear", "constant", "step"] = "cosine"
    epochs: PositiveInt = 300
    warmup_epochs: NonNegative = 20.0
    warmup_lr: Fraction = 0.0
    final_lr: Fraction = 0.0
    milestones: tuple[float, ...] = ()
    factor: Fraction = 0.1
    blend_epochs: NonNegative = 0.0


@dataclass(frozen=True)
class LossConfig:
    """The loss: cross-entropy with soft targets.

    Attributes:
        smoothing: probability that label smoothing spreads evenly over all classes.
    """

    smoothing: FractionBelowOne = 0.1


@dataclass(frozen=True)
class EmaConfig:
    """The moving average of weights and statistics.

    Attributes:
        decay: fraction of the old average that an update keeps, 0 for no moving average.
    """

    decay: FractionBelowOne = 0.9999


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats.

    Attributes:
        level: mixed precision: O0 is float32, O2 and O3 are float16, bf16 is bfloat16.
        loss_scale: fixed loss scale, or "auto" for a dynamic one with float16 only.
        initial_scale: first value of a dynamic loss scale.
        growth_interval: steps without overflow after which a dynamic loss scale doubles.
    """

    level: Literal["O0", "O2", "O3", "bf16"] = "O0"
    loss_scale: Positive | Literal["auto", "dynamic", "none"] = "auto"
    initial_scale: Positive = 65536.0
    growth_interval: PositiveInt = 2000


@dataclass(frozen=True)
class QuantizeConfig:
    """Fine-tuning for 8 bit (docs/quantization.md).

    Attributes:
        enabled: whether to train the network as its 8-bit file computes; it starts from `model.init`.
        calibrate: number of training images that the scales are calibrated on at the start.
        method: choice of the range of an activation in calibration.
        weight_bits: bits of the weights, which are stored in 8 in any case.
        scales: file of scales to use instead of calibrating, which neonext-export wrote for the same weights.
        skip: layers that stay in floating point: names or patterns such as "stage_4.*".
    """

    enabled: bool = False
    calibrate: Annotated[int, Range(MIN_CALIBRATION, MAX_CALIBRATION)] = 128
    method: CalibrationMethod = "percentile"
    weight_bits: Annotated[int, Range(MIN_WEIGHT_BITS, WEIGHT_BITS)] = WEIGHT_BITS
    scales: str | None = None
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParallelConfig:
    """Several cards.

    Attributes:
        bucket_mb: size in MB (2^20 bytes) of the messages in which gradients travel, those of the last layers first; a
            larger one makes fewer messages, a smaller one starts them earlier.
    """

    bucket_mb: Annotated[float, Range(0.001, 4096)] = 25.0


@dataclass(frozen=True)
class RunConfig:
    """The run itself.

    Attributes:
        output: folder of the run; null is `runs/` and the name of the configuration.
        seed: random seed of initial weights, order, augmentation, mixing and drop path.
        device: device target of MindSpore; "auto" is the one it was built for.
        jit: whether to compile the step; if false, it runs operation by operation, for debugging.
        sync_batch_norm: whether BatchNorm normalises over the batches of all cards.
        recompute: whether the backward pass computes the linear layers of the blocks again instead of keeping their
            outputs, for less memory and more time.
        log_every: steps between two lines of the log, which are also those at which the results of the steps are read:
            an overflow is reported then, and several cards stop then.
        checkpoint_every: steps between two checkpoints; 0 means one at the end of each epoch.
        keep: number of checkpoints to keep.
        validate_every: epochs between two validations.
        stop_after: step after which the run saves its state and ends, as if by a signal; 0 means never.
    """

    output: str | None = None
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    device: Literal["auto", "CPU", "Ascend"] = "auto"
    jit: bool = True
    sync_batch_norm: bool = False
    recompute: bool = False
    log_every: PositiveInt = 10
    checkpoint_every: NonNegativeInt = 0
    keep: PositiveInt = 3
    validate_every: PositiveInt = 1
    stop_after: NonNegativeInt = 0


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict:
        """Return plain nested values for YAML and JSON."""
        return {
            part: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
            for part, values in dataclasses.asdict(self).items()
        }


def annotated_keys(part: type) -> dict:
    """Return the annotation of every key of `Config` or of one of its parts, with choices and ranges."""
    return get_type_hints(part, include_extras=True)


def known_keys() -> list[str]:
    """Return all keys with their part, such as `optimizer.lr`."""
    return [f"{part}.{key}" for part, kind in annotated_keys(Config).items() for key in annotated_keys(kind)]
