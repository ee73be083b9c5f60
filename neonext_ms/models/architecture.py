"""What a NeoNeXt is, without a framework: its options, its tensors, its maps, its cost.

The one description from which the MindSpore model is built, a checkpoint is checked, and a deployment graph is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from neonext_ms.common.errors import InputError
from neonext_ms.ops.spec import NeoCellSpec

STAGES = 4
STEM_STRIDE = 4
MLP_RATIO = 4
BATCH_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-6
DOWNSAMPLES = ("official", "paper")
DEFAULT_KERNELS = ((4, 7), (4, 7), (7,), (7,))
DEFAULT_SHIFTS = (1, 1, 1, 0)


@dataclass(frozen=True)
class Architecture:
    """Options of a NeoNeXt in the official names.

    Attributes:
        num_classes: outputs of the head.
        per_stage_layers: blocks in each of the four stages.
        dims: channels in each stage.
        kernels: sizes of the NeoCell matrices in each stage; the channels are split evenly among them, the last
            group takes the remainder.
        shifts: shift step of each stage, 0 for none; None where they are not known (a checkpoint does not say).
        layer_scale_init_value: initial layer scale, 0 for no layer scale.
        linear_bias: whether the two linear layers of a block have a bias.
        downsample: "official" (1x1 conv, NeoCell 2->1, BatchNorm) or "paper" (NeoCell 2->1, BatchNorm, GELU,
            1x1 conv, BatchNorm, GELU).
        drop_path: largest drop-path rate; it grows linearly from 0 with the depth of the block.

    Raises:
        InputError: an option out of its range.
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

    def __post_init__(self):
        for name, least in (("per_stage_layers", 0), ("dims", 1)):
            values = getattr(self, name)
            if len(values) != STAGES or any(v < least for v in values):
                raise InputError(f"{name} must be four whole numbers of at least {least}, got {values}")
        if self.num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {self.num_classes}")
        if len(self.kernels) != STAGES:
            raise InputError(f"kernels must be given for four stages, got {self.kernels}")
        if self.downsample not in DOWNSAMPLES:
            raise InputError(f"downsample must be one of {', '.join(DOWNSAMPLES)}, got {self.downsample!r}")
        if not 0 <= self.drop_path < 1:
            raise InputError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if not (math.isfinite(self.layer_scale_init_value) and self.layer_scale_init_value >= 0):
            raise InputError(f"layer_scale_init_value must be 0 or positive, got {self.layer_scale_init_value}")
        if self.shifts is not None:
            if len(self.shifts) != STAGES:
                raise InputError(f"shifts must be four whole numbers, one per stage, got {self.shifts}")
            for stage in range(STAGES):
                self.stage_spec(stage)

    @property
    def layer_scale(self) -> bool:
        return self.layer_scale_init_value > 0

    @property
    def kernel_spec(self) -> str:
        """The kernels in the official notation: one code such as `4+7` if all stages agree, else four with commas."""
        codes = ["+".join(map(str, sizes)) for sizes in self.kernels]
        if self.kernels == DEFAULT_KERNELS:
            return "default"
        return codes[0] if len(set(codes)) == 1 else ",".join(codes)

    def with_shifts(self, shifts: Sequence[int]) -> Architecture:
        """The same architecture with these shifts, one per stage."""
        return replace(self, shifts=tuple(shifts))

    def stage_spec(self, stage: int) -> NeoCellSpec:
        """The NeoCell of a block of `stage` (0 to 3); shifts that are not known count as 0."""
        sizes, channels = self.kernels[stage], self.dims[stage]
        if len(sizes) > channels:
            raise InputError(f"stage {stage + 1} has {channels} channels, too few for the kernels {sizes}")
        shift = self.shifts[stage] if self.shifts else 0
        share = channels // len(sizes)
        counts = [share] * (len(sizes) - 1) + [channels - share * (len(sizes) - 1)]
        return NeoCellSpec([{"kernel": k, "channels": c, "shift": shift} for k, c in zip(sizes, counts, strict=True)])

    def downsample_spec(self, stage: int) -> NeoCellSpec:
        """The NeoCell (2 -> 1) between `stage` (0 to 2) and the next."""
        channels = self.dims[stage + 1] if self.downsample == "official" else self.dims[stage]
        return NeoCellSpec({"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": channels})

    def drop_path_rates(self) -> list[list[float]]:
        """Drop-path rate of every block, per stage: evenly spaced from 0 to `drop_path`."""
        total = sum(self.per_stage_layers)
        rates = [self.drop_path * i / (total - 1) if total > 1 else 0.0 for i in range(total)]
        result = []
        for depth in self.per_stage_layers:
            result.append(rates[:depth])
            rates = rates[depth:]
        return result

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Official name and shape of every tensor of the state dict, in its order, without `num_batches_tracked`."""
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
        """Learned numbers: every tensor but BatchNorm's running statistics."""
        return sum(math.prod(shape) for name, shape in self._tensors() if not name.endswith(STATISTICS))

    def maps(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Height and width of the map in each stage.

        Args:
            image_size: height and width in pixels.

        Raises:
            InputError: the stem cannot divide the image, or a map vanishes on the way.
        """
        height, width = image_size
        if height < 1 or width < 1 or height % STEM_STRIDE or width % STEM_STRIDE:
            raise InputError(
                f"image size {height}x{width}: the stem cuts the image into {STEM_STRIDE}x{STEM_STRIDE} patches, so "
                f"both sides must be multiples of {STEM_STRIDE}; "
                f"try {_multiple(height)}x{_multiple(width)}"
            )
        sizes = [(height // STEM_STRIDE, width // STEM_STRIDE)]
        for stage in range(STAGES - 1):
            if min(sizes[-1]) < 2:
                least = STEM_STRIDE * 2 ** (STAGES - 1)
                raise InputError(
                    f"image size {height}x{width}: the map before downsample_{stage + 1} is "
                    f"{sizes[-1][0]}x{sizes[-1][1]} and would vanish; both sides must be at least {least}"
                )
            sizes.append(self.downsample_spec(stage).output_size(*sizes[-1]))
        return sizes

    def multiply_adds(self, image_size: tuple[int, int], padded: bool = False) -> int:
        """Multiply-adds for one image: convolutions, linear layers, and every NeoCell by equation 5.

        BatchNorm, GELU, residuals and pooling are not counted, as in the published figures.

        Args:
            image_size: height and width in pixels.
            padded: count a NeoCell as the products with its block-diagonal matrices, zeros included, which is what
                the official code computes and its README counts.
        """
        maps = self.maps(image_size)
        total = 3 * STEM_STRIDE**2 * self.dims[0] * math.prod(maps[0])
        for stage, (height, width) in enumerate(maps):
            c = self.dims[stage]
            block = self.stage_spec(stage).multiply_adds(height, width, padded) + 2 * MLP_RATIO * c * c * height * width
            total += self.per_stage_layers[stage] * block
            if stage < STAGES - 1:
                # The 1x1 convolution sees the large map in the official order, the halved one in the paper's.
                at = maps[stage] if self.downsample == "official" else maps[stage + 1]
                total += c * self.dims[stage + 1] * math.prod(at)
                total += self.downsample_spec(stage).multiply_adds(height, width, padded)
        return total + self.dims[3] * self.num_classes

    def to_dict(self) -> dict:
        """Plain values for JSON, in the official option names, but for `downsample` and whether there is layer scale.

        Its initial value is left out: a checkpoint does not tell it.
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
        }


STATISTICS = (".running_mean", ".running_var")
BATCH_COUNTER = ".num_batches_tracked"


def _batch_norm(prefix: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.{name}", (channels,)


def _neocell(prefix: str, spec: NeoCellSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    for side, shapes in (("a", spec.shapes_a), ("b", spec.shapes_b)):
        for i, shape in enumerate(shapes):
            yield f"{prefix}.weight_{side}.{i}", shape


def _multiple(pixels: int) -> int:
    return max(STEM_STRIDE, round(pixels / STEM_STRIDE) * STEM_STRIDE)


def parse_kernel_spec(kernel_spec: str | Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The official `kernel_spec` as matrix sizes per stage.

    Args:
        kernel_spec: "default" (4+7 in stages 1 and 2, 7 in stages 3 and 4), a code such as "7" or "4+7" for all
            stages, or four codes, as a sequence or separated by commas.

    Raises:
        InputError: it is none of these.
    """
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
            f"kernel_spec {kernel_spec!r}: expected 'default', matrix sizes such as '7' or '4+7', or four of them "
            "separated by commas"
        )
    return kernels


def parse_whole_numbers(value: str | Sequence[int], name: str) -> tuple[int, ...]:
    """A sequence of whole numbers, or the official string form `"1,1,1,0"`.

    Raises:
        InputError: a part is not a whole number; the message names the option.
    """
    parts = value.split(",") if isinstance(value, str) else list(value)
    try:
        numbers = tuple(int(part) for part in parts)
        if any(isinstance(part, float) and part != int(part) for part in parts):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{name} must be whole numbers, got {value!r}") from None
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
) -> Architecture:
    """An `Architecture` from the official keyword arguments, whose strings (`shifts="1,1,1,0"`) are accepted too."""
    return Architecture(
        num_classes=int(num_classes),
        per_stage_layers=parse_whole_numbers(per_stage_layers, "per_stage_layers"),
        dims=parse_whole_numbers(dims, "dims"),
        kernels=parse_kernel_spec(kernel_spec),
        shifts=None if shifts is None else parse_whole_numbers(shifts, "shifts"),
        layer_scale_init_value=float(layer_scale_init_value),
        linear_bias=bool(linear_bias),
        downsample=downsample,
        drop_path=float(drop_path),
    )
