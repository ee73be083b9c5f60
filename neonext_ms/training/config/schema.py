"""The configuration of a training run: one tree of dataclasses, read from YAML and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from neonext_ms.common.errors import InputError, UsageError, nearest
from neonext_ms.common.yaml_file import read_yaml

BASE = "base"


@dataclass(frozen=True)
class ModelConfig:
    """The network. Options that are left out are those of the named model.

    Attributes:
        name: a registered model (`neonext-info --list`); null for one described by the options alone.
        image_size: side of the input in pixels, or height and width; null: that of the named model.
        num_classes: outputs; null: as many as the data has classes.
        per_stage_layers: blocks in each of the four stages.
        dims: channels in each stage.
        kernel_spec: sizes of NeoCell's matrices: "7", "4+7", four of them with commas, or "default".
        shifts: shift of each stage, such as [1, 1, 1, 0].
        layer_scale_init_value: initial layer scale, 0 for no layer scale.
        linear_bias: whether the linear layers of a block have a bias.
        downsample: what lies between stages: "official" or "paper".
        drop_path: rate of the last block; it grows linearly from 0.
        conv_init: "xavier_uniform", "kaiming_normal", or null for PyTorch's default.
        neocell_init: "neoinit", or "normal" (the paper's ablation: its noise without the identity).
        init: a checkpoint to start from, official or ours.
        init_ema: take the moving average that this checkpoint holds.
        freeze: parts that keep their weights and statistics: "stem", "stage_1", "downsample_1", ...
    """

    name: str | None = None
    image_size: int | tuple[int, ...] | None = None
    num_classes: int | None = None
    per_stage_layers: tuple[int, ...] | None = None
    dims: tuple[int, ...] | None = None
    kernel_spec: str | None = None
    shifts: tuple[int, ...] | None = None
    layer_scale_init_value: float | None = None
    linear_bias: bool | None = None
    downsample: str | None = None
    drop_path: float = 0.0
    conv_init: str | None = None
    neocell_init: str = "neoinit"
    init: str | None = None
    init_ema: bool = False
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Attributes:
        dataset: digits, imagefolder, mindrecord, cifar10 or cifar100.
        path: folder of the data; for "imagefolder" the one that holds `train` and `val`, for "mindrecord" what
            `neonext-mindrecord` wrote.
        train, val: name of this part below `path` ("imagefolder", "mindrecord").
        batch_size: images of one step on one card.
        val_batch_size: images at a time in validation, on one card.
        workers: processes or threads that read and augment, on one card.
        processes: whether workers are processes; threads share memory but take turns in Python.
        cache: keep decoded images in memory (small sets).
        broken_limit: broken images that are left out, each named, before the run ends with an error.
        mean, std: of R, G, B after division by 255.
        val_crop: side of the centre crop relative to the resized image in validation.
        val_interpolation: of the resize in validation: "bilinear" or "bicubic".
        val_mode: "resize", "as-is" or "auto" (`Preprocessing.mode`).
    """

    dataset: str = "imagefolder"
    path: str | None = None
    train: str = "train"
    val: str = "val"
    batch_size: int = 128
    val_batch_size: int = 64
    workers: int = 4
    processes: bool = True
    cache: bool = False
    broken_limit: int = 10
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    val_crop: float = 0.875
    val_interpolation: str = "bilinear"
    val_mode: str = "auto"


@dataclass(frozen=True)
class AugmentationConfig:
    """What happens to a training image, in this order, and to a batch.

    Attributes:
        crop: "resized" (a random part, scaled to the input), "pad" (shifted by up to `pad` pixels), or "none".
        scale: least and largest share of the area for "resized".
        ratio: least and largest aspect ratio for "resized".
        interpolation: of the resize: "bilinear" or "bicubic".
        pad: pixels for "pad".
        flip: probability of a horizontal flip.
        randaugment_ops: operations of RandAugment on an image, 0 for none.
        randaugment_magnitude: of each, from 0 to 30.
        erasing: probability of random erasing.
        mixup, cutmix: alpha of its beta distribution, 0 for none.
        switch: probability of CutMix where both are on.
        mix_probability: share of batches that are mixed.
    """

    crop: str = "resized"
    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (0.75, 4 / 3)
    interpolation: str = "bicubic"
    pad: int = 4
    flip: float = 0.5
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    mix_probability: float = 1.0


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer.

    Attributes:
        name: adamw or sgd.
        lr: learning rate for a global batch of `reference_batch` images.
        reference_batch: images a step for which `lr` is given.
        lr_rule: how the rate follows the global batch: "linear", "sqrt" or "none".
        weight_decay: of tensors with two or more axes; bias, norm and layer scale have none.
        betas, eps: of AdamW.
        momentum, nesterov: of SGD.
        clip_norm: largest norm of all gradients together, 0 for no clipping.
        accumulate: batches whose gradients are averaged for one update.
        layer_decay: factor of the learning rate from one part of the network to the one before it, 1 for none.
    """

    name: str = "adamw"
    lr: float = 1e-3
    reference_batch: int = 1024
    lr_rule: str = "linear"
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    clip_norm: float = 0.0
    accumulate: int = 1
    layer_decay: float = 1.0


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time.

    Attributes:
        name: cosine, linear, constant or step.
        epochs: passes over the training images.
        warmup_epochs: of linear growth, step by step.
        warmup_lr: where it starts, relative to the full rate.
        final_lr: where it ends, relative to the full rate.
        milestones: for "step": epochs after which the rate is multiplied by `factor`.
        factor: for "step": see milestones.
    """

    name: str = "cosine"
    epochs: int = 300
    warmup_epochs: float = 20.0
    warmup_lr: float = 0.0
    final_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1


@dataclass(frozen=True)
class LossConfig:
    """Cross-entropy with soft targets; `smoothing` is shared by all classes."""

    smoothing: float = 0.1


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of weights and statistics, updated after every step; a decay of 0 for none."""

    decay: float = 0.9999


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats.

    Attributes:
        level: O0 (float32), O2 and O3 (float16), bf16.
        loss_scale: "auto" (dynamic with float16, none otherwise), "dynamic", "none", or a number.
        initial_scale: of dynamic scaling.
        growth_interval: steps without overflow after which a dynamic scale doubles.
    """

    level: str = "O0"
    loss_scale: float | str = "auto"
    initial_scale: float = 65536.0
    growth_interval: int = 2000


@dataclass(frozen=True)
class RunConfig:
    """The run itself.

    Attributes:
        output: its folder; null: `runs/` and the name of the configuration.
        seed: of initial weights, order, augmentation, mixing and drop path.
        device: "auto", "CPU" or "Ascend".
        jit: compile the step; off it runs operation by operation, for debugging.
        sync_batch_norm: normalise over the batch of all cards.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints; 0: one at the end of each epoch.
        keep: checkpoints that are kept, the newest ones.
        validate_every: epochs between two validations.
        stop_after: steps after which the run saves and ends, as if stopped; 0: never.
    """

    output: str | None = None
    seed: int = 0
    device: str = "auto"
    jit: bool = True
    sync_batch_norm: bool = False
    log_every: int = 10
    checkpoint_every: int = 0
    keep: int = 3
    validate_every: int = 1
    stop_after: int = 0


@dataclass(frozen=True)
class Config:
    """A whole training run; see the parts."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict:
        """Plain values for YAML and JSON."""
        return _plain(dataclasses.asdict(self))


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: a YAML file; its key `base` names another one, relative to it, whose values it changes.
        overrides: texts such as `optimizer.lr=1e-3`, applied in order.

    Raises:
        InputError: a file cannot be read, a key in it is unknown (the nearest is named), or a value is wrong.
        UsageError: the same of an override.
    """
    values = _read(Path(path), ())
    for text in overrides:
        _override(values, text)
    return make_config(values, os.fspath(path))


def make_config(values: Mapping, source: str = "config") -> Config:
    """A `Config` from nested plain values; what is left out keeps its default.

    Raises:
        InputError: a key is unknown, or a value has a wrong type or is out of its range; the message names it.
    """
    from .check import check

    config = _build(Config, values, "", source)
    check(config, source)
    return config


def known_keys() -> list[str]:
    """All keys with their dots, such as `optimizer.lr`."""
    return [f"{part.name}.{leaf.name}" for part in fields(Config) for leaf in fields(_hints(Config)[part.name])]


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    values = read_yaml(path, "configs/digits.yaml")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines 'key: value', found {type(values).__name__}; see configs/digits.yaml")
    base = values.pop(BASE, None)
    _build(Config, values, "", str(path))
    if base is None:
        return values
    if not isinstance(base, str):
        raise InputError(f"{path}: base must name a YAML file, got {base!r}")
    seen = (*seen, path.resolve())
    parent = path.parent / base
    if parent.resolve() in seen:
        raise InputError(f"{path}: base leads back to {parent}; remove one of these lines")
    return _merged(_read(parent, seen), values)


def _merged(base: dict, changes: Mapping) -> dict:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _override(values: dict, text: str) -> None:
    import yaml

    key, equals, written = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r}: expected key=value, such as optimizer.lr=1e-3")
    known = known_keys()
    if key not in known:
        ending = [name for name in known if name.rpartition(".")[2] == key]
        hint = f"; did you mean {' or '.join(ending)}?" if ending else nearest(key, known)
        raise UsageError(f"{text!r}: unknown key {key!r}{hint}")
    try:
        value = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{text!r}: the value is not valid YAML ({' '.join(str(error).split())})") from error
    part, _, leaf = key.partition(".")
    try:
        _build(Config, {part: {leaf: value}}, "", repr(text))
    except InputError as error:
        raise UsageError(str(error)) from error
    values[part] = {**(values.get(part) or {}), leaf: value}


def _hints(kind: type) -> dict:
    return typing.get_type_hints(kind)


def _build(kind: type, values: object, prefix: str, source: str):
    """An instance of the dataclass `kind` from a mapping whose keys are its fields."""
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise InputError(f"{source}: {prefix.rstrip('.')} must hold keys of its own, got {values!r}")
    hints = _hints(kind)
    made = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise InputError(f"{source}: unknown key {name!r}{_suggestion(name, prefix, hints)}")
        if dataclasses.is_dataclass(hints[key]):
            made[key] = _build(hints[key], value, f"{name}.", source)
        else:
            made[key] = _convert(value, hints[key], name, source)
    return kind(**made)


def _suggestion(name: str, prefix: str, hints: Mapping) -> str:
    leaf = name.rpartition(".")[2]
    elsewhere = [key for key in known_keys() if key.rpartition(".")[2] == leaf]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return nearest(leaf, hints) or nearest(name, known_keys()) or f"; known: {', '.join(hints)}"


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def _convert(value: object, annotation, name: str, source: str):
    """The value in the type that the annotation asks for.

    Raises:
        InputError: it is of another type.
    """
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for kind in kinds:
        converted, fits = _fit(value, kind)
        if fits:
            return converted
    expected = " or ".join(_described(kind) for kind in kinds)
    raise InputError(f"{source}: {name} must be {expected}, got {value!r}")


def _described(kind) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_NAMES[typing.get_args(kind)[0]]}"
    return _NAMES[kind]


def _fit(value: object, kind) -> tuple[object, bool]:
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if isinstance(value, str):
            # The official notation of shifts and depths.
            value = [int(part) if part.strip().lstrip("-").isdigit() else part for part in value.split(",")]
        if not isinstance(value, (list, tuple)):
            return None, False
        fitted = [_fit(item, inner) for item in value]
        return tuple(item for item, _ in fitted), all(fits for _, fits in fitted)
    if kind is float:
        if isinstance(value, str):
            # YAML 1.1 takes 1e-3 for a text, since it has no point.
            try:
                value = float(value)
            except ValueError:
                return None, False
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if fits else None, fits
    if kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return value, isinstance(value, int) and not isinstance(value, bool)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        # A kernel of 7, or a folder called 2024.
        return str(value), True
    return value, type(value) is kind


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def config_yaml(config: Config) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal one."""
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
