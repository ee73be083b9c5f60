"""The architecture of a NeoNeXt without a framework: its options, tensors, maps and multiply-adds.

The MindSpore model is built from it, checkpoints are checked against it, and the exporter makes its graph from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size
from neonext_ms.ops.spec import NeoCellSpec

from .activations import ACTIVATIONS, GELU

STAGES = 4
# Names of the outputs of a network that ends at its stages.
STAGE_OUTPUTS = tuple(f"stage_{stage + 1}" for stage in range(STAGES))
STEM_STRIDE = 4
# Pixels of the image along a side for one value of the last stage.
STRIDE = STEM_STRIDE * 2 ** (STAGES - 1)
MLP_RATIO = 4
BATCH_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-6
STATISTICS = (".running_mean", ".running_var")
BATCH_COUNTER = ".num_batches_tracked"
DOWNSAMPLES = ("official", "paper")
DEFAULT_KERNELS = ((4, 7), (4, 7), (7,), (7,))
DEFAULT_SHIFTS = (1, 1, 1, 0)


@dataclass(frozen=True)
class Architecture:
    """The options of a NeoNeXt under their official names.

    Attributes:
        num_classes: outputs of the head.
        per_stage_layers: blocks in each of the four stages.
        dims: channels in each stage.
        kernels: sizes of the NeoCell matrices in each stage; the channels are split evenly among them, and the last
            group takes the remainder.
        shifts: shift of each stage, 0 for none; None if unknown, because a checkpoint may not record them.
        layer_scale_init_value: initial layer scale, 0 for no layer scale.
        linear_bias: whether the two linear layers of a block have a bias.
        downsample: "official" (1x1 convolution, NeoCell 2 -> 1, BatchNorm) or "paper" (NeoCell 2 -> 1, BatchNorm,
            GELU, 1x1 convolution, BatchNorm, GELU).
        drop_path: largest drop-path rate; the rate grows linearly from 0 with the depth of the block.
        activation: "gelu", "relu", "leakyrelu" or "hardswish", wherever the official code has GELU. It changes no
            tensor.

    Raises:
        InputError: an option is out of range.
    """

    num_classes: int = 1000
    per_stage_layers: tuple[int, ...] = (1, 1, 1, 1)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    kernels: tuple[tuple[int, ...], ...] = DEFAULT_KERNELS
    shifts: tuple[int, ...] | None = DEFAULT_SHIFTS
    layer_scale_init_value: float = 0.0
    linear_bias: bool = False
    downsample: str = "official"
    drop_path: float = 0.0
    activation: str = GELU

    def __post_init__(self):
        scale = self.layer_scale_init_value
        for name, valid, expected in (
            ("num_classes", self.num_classes >= 1, "at least 1"),
            ("per_stage_layers", _is_per_stage(self.per_stage_layers, 0), "four whole numbers of at least 0"),
            ("dims", _is_per_stage(self.dims, 1), "four whole numbers of at least 1"),
            ("kernels", len(self.kernels) == STAGES, "one tuple of sizes for each of the four stages"),
            ("downsample", self.downsample in DOWNSAMPLES, f"one of {', '.join(DOWNSAMPLES)}"),
            ("activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
            ("drop_path", 0 <= self.drop_path < 1, "in [0, 1)"),
            ("layer_scale_init_value", math.isfinite(scale) and scale >= 0, "0 or positive"),
            ("shifts", self.shifts is None or len(self.shifts) == STAGES, "four whole numbers, one per stage"),
        ):
            if not valid:
                raise InputError(f"{name} must be {expected} (got {getattr(self, name)!r})")
        if self.shifts is not None:
            # A shift has to be smaller than its matrices, which only the NeoCell's specification knows.
            for stage in range(STAGES):
                self.stage_spec(stage)

    @property
    def layer_scale(self) -> bool:
        return self.layer_scale_init_value > 0

    @property
    def kernel_spec(self) -> str:
        """The kernels in the official notation: "default", one code such as `4+7`, or four codes with commas."""
        codes = ["+".join(map(str, sizes)) for sizes in self.kernels]
        if self.kernels == DEFAULT_KERNELS:
            return "default"
        return codes[0] if len(set(codes)) == 1 else ",".join(codes)

    def with_shifts(self, shifts: Sequence[int]) -> Architecture:
        """Return the same architecture with these shifts, one per stage."""
        return replace(self, shifts=tuple(shifts))

    def with_activation(self, activation: str) -> Architecture:
        """Return the same architecture with this activation."""
        return replace(self, activation=activation)

    def stage_spec(self, stage: int) -> NeoCellSpec:
        """Return the NeoCell of a block in `stage` (0 to 3); unknown shifts count as 0."""
        sizes, channels = self.kernels[stage], self.dims[stage]
        if len(sizes) > channels:
            raise InputError(f"stage {stage + 1}: too few channels for the kernels {sizes} (got {channels})")
        shift = self.shifts[stage] if self.shifts else 0
        share = channels // len(sizes)
        counts = [share] * (len(sizes) - 1) + [channels - share * (len(sizes) - 1)]
        return NeoCellSpec([{"kernel": k, "channels": c, "shift": shift} for k, c in zip(sizes, counts, strict=True)])

    def downsample_spec(self, stage: int) -> NeoCellSpec:
        """Return the NeoCell (2 -> 1) between `stage` (0 to 2) and the next."""
        channels = self.dims[stage + 1] if self.downsample == "official" else self.dims[stage]
        return NeoCellSpec({"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": channels})

    def drop_path_rates(self) -> list[list[float]]:
        """Return the drop-path rate of every block, per stage: evenly spaced from 0 to `drop_path`."""
        last = sum(self.per_stage_layers) - 1
        rates = iter([self.drop_path * i / last if last else 0.0 for i in range(last + 1)])
        return [[next(rates) for _ in range(depth)] for depth in self.per_stage_layers]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return official name -> shape of every tensor in the order of the state dict, without batch counters."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        dims = self.dims
        yield "stem.conv.weight", (dims[0], 3 * STEM_STRIDE**2, 1, 1)
        yield from _batch_norm("stem.norm", dims[0])
        for stage in range(STAGES):
            c = dims[stage]
            for block in range(self.per_stage_layers[stage]):
                prefix = f"stage_{stage + 1}.{block}.ops.content"
                yield from _neocell(f"{prefix}.neocell", self.stage_spec(stage))
                yield from _batch_norm(f"{prefix}.norm", c)
                for name, inputs, outputs in (("fc_1", c, MLP_RATIO * c), ("fc_2", MLP_RATIO * c, c)):
                    yield f"{prefix}.{name}.weight", (outputs, inputs)
                    if self.linear_bias:
                        yield f"{prefix}.{name}.bias", (outputs,)
                if self.layer_scale:
                    yield f"{prefix}.layer_scale.gamma", (c,)
            if stage < STAGES - 1:
                prefix, after = f"downsample_{stage + 1}", dims[stage + 1]
                if self.downsample == "official":
                    yield f"{prefix}.conv.weight", (after, c, 1, 1)
                    yield from _neocell(f"{prefix}.neocell", self.downsample_spec(stage))
                    yield from _batch_norm(f"{prefix}.norm_1", after)
                else:
                    yield from _neocell(f"{prefix}.neocell", self.downsample_spec(stage))
                    yield from _batch_norm(f"{prefix}.norm_1", c)
                    yield f"{prefix}.conv.weight", (after, c, 1, 1)
                    yield from _batch_norm(f"{prefix}.norm_2", after)
        yield "head.ln.weight", (dims[3],)
        yield "head.ln.bias", (dims[3],)
        yield "head.fc.weight", (self.num_classes, dims[3])
        yield "head.fc.bias", (self.num_classes,)

    def parameters(self) -> int:
        """Count the learned numbers: every tensor except the running statistics of BatchNorm."""
        return sum(math.prod(shape) for name, shape in self._tensors() if not name.endswith(STATISTICS))

    def maps(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the height and width of the map in each stage.

        Args:
            image_size: height and width in pixels.

        Raises:
            InputError: a side of the image is not a multiple of 4, or a map vanishes before the last stage.
        """
        size = format_size(image_size)
        if any(side < 1 or side % STEM_STRIDE for side in image_size):
            near = format_size([max(STEM_STRIDE, round(side / STEM_STRIDE) * STEM_STRIDE) for side in image_size])
            raise InputError(f"image size {size}: both sides must be multiples of {STEM_STRIDE}. Try {near}.")
        sizes = [(image_size[0] // STEM_STRIDE, image_size[1] // STEM_STRIDE)]
        for stage in range(STAGES - 1):
            if min(sizes[-1]) < 2:
                raise InputError(
                    f"image size {size}: the map before downsample_{stage + 1} is {format_size(sizes[-1])} and would "
                    f"vanish. Both sides must be at least {STRIDE}."
                )
            sizes.append(self.downsample_spec(stage).output_size(*sizes[-1]))
        return sizes

    def multiply_adds(self, image_size: tuple[int, int], padded: bool = False) -> int:
        """Count the multiply-adds of one image: convolutions, linear layers, and every NeoCell by equation 5.

        BatchNorm, activations, residuals and pooling are not counted, as in the published figures.

        Args:
            image_size: height and width in pixels.
            padded: whether a NeoCell counts as products with its block-diagonal matrices, zeros included, which is
                what the official code computes and its README counts.
        """
        maps = self.maps(image_size)
        total = 3 * STEM_STRIDE**2 * self.dims[0] * math.prod(maps[0])
        for stage, (height, width) in enumerate(maps):
            c = self.dims[stage]
            block = self.stage_spec(stage).multiply_adds(height, width, padded) + 2 * MLP_RATIO * c * c * height * width
            total += self.per_stage_layers[stage] * block
            if stage < STAGES - 1:
                # The official 1x1 convolution reads the large map, the paper's reads the halved one.
                read = maps[stage] if self.downsample == "official" else maps[stage + 1]
                total += c * self.dims[stage + 1] * math.prod(read)
                total += self.downsample_spec(stage).multiply_adds(height, width, padded)
        return total + self.dims[3] * self.num_classes

    def summary(self) -> str:
        """Return the options on one line, such as `dims 24,48,96,192; blocks 1,1,2,1; kernels 4+7; ...`."""
        dims, blocks, shifts = (
            ",".join(map(str, values)) if values else "unknown"
            for values in (self.dims, self.per_stage_layers, self.shifts)
        )
        text = f"dims {dims}; blocks {blocks}; kernels {self.kernel_spec}; shifts {shifts}; "
        text += f"{self.downsample} downsample; {self.activation}; {self.num_classes} classes"
        return text + "; linear bias" * self.linear_bias + "; layer scale" * self.layer_scale

    def to_dict(self) -> dict:
        """Return plain values for JSON, under the official option names plus `downsample`, `activation` and
        `layer_scale`.

        The initial value of the layer scale is left out, because a checkpoint does not record it.
        """
        return {
            "num_classes": self.num_classes,
            "per_stage_layers": list(self.per_stage_layers),
            "dims": list(self.dims),
            "kernel_spec": self.kernel_spec,
            "shifts": list(self.shifts) if self.shifts is not None else None,
            "layer_scale": self.layer_scale,
            "linear_bias": self.linear_bias,
            "downsample": self.downsample,
            "activation": self.activation,
        }


def _is_per_stage(values: tuple[int, ...], least: int) -> bool:
    return len(values) == STAGES and min(values) >= least


def _batch_norm(prefix: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.{name}", (channels,)


def _neocell(prefix: str, spec: NeoCellSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    for side, shapes in (("a", spec.shapes_a), ("b", spec.shapes_b)):
        for i, shape in enumerate(shapes):
            yield f"{prefix}.weight_{side}.{i}", shape


def _parse_kernels(kernel_spec: str | Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Parse the official `kernel_spec` into the matrix sizes of each stage."""
    if kernel_spec == "default":
        return DEFAULT_KERNELS
    codes = kernel_spec.split(",") if isinstance(kernel_spec, str) else [str(code) for code in kernel_spec]
    if len(codes) == 1:
        codes = codes * STAGES
    try:
        kernels = tuple(tuple(int(size) for size in code.split("+")) for code in codes)
    except ValueError:
        kernels = ()
    if len(kernels) != STAGES or any(size < 1 for sizes in kernels for size in sizes):
        raise InputError(
            f"kernel_spec: not a list of matrix sizes (got {kernel_spec!r}, expected 'default', sizes such as '7' or "
            "'4+7', or four of them separated by commas)"
        )
    return kernels


def _parse_whole_numbers(value: str | Sequence[int], name: str) -> tuple[int, ...]:
    """Parse a sequence of whole numbers, or the official text form `"1,1,1,0"`."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    try:
        numbers = tuple(int(part) for part in parts)
        if any(isinstance(part, float) and part != int(part) for part in parts):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{name} must be whole numbers (got {value!r})") from None
    return numbers


def make_architecture(
    num_classes: int = 1000,
    per_stage_layers: str | Sequence[int] = (1, 1, 1, 1),
    dims: str | Sequence[int] = (96, 192, 384, 768),
    drop_path: float = 0.0,
    shifts: str | Sequence[int] | None = DEFAULT_SHIFTS,
    layer_scale_init_value: float = 0.0,
    linear_bias: bool = False,
    kernel_spec: str | Sequence[str] = "default",
    downsample: str = "official",
    activation: str = GELU,
) -> Architecture:
    """Make an `Architecture` from the official keyword arguments.

    Args:
        num_classes: see `Architecture`, as for the other arguments.
        per_stage_layers: numbers or a text such as `"3,3,9,3"`, as for `dims` and `shifts`.
        kernel_spec: "default" (4+7 in stages 1 and 2, 7 in stages 3 and 4), a code such as "7" or "4+7" for all
            stages, or four codes, as a sequence or separated by commas.

    Raises:
        InputError: an option is malformed or out of range.
    """
    return Architecture(
        num_classes=int(num_classes),
        per_stage_layers=_parse_whole_numbers(per_stage_layers, "per_stage_layers"),
        dims=_parse_whole_numbers(dims, "dims"),
        kernels=_parse_kernels(kernel_spec),
        shifts=None if shifts is None else _parse_whole_numbers(shifts, "shifts"),
        layer_scale_init_value=float(layer_scale_init_value),
        linear_bias=bool(linear_bias),
        downsample=downsample,
        drop_path=float(drop_path),
        activation=activation,
    )
