"""What can be asked of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from neonext_ms.common.errors import UsageError
from neonext_ms.images.preprocessing import Preprocessing

from .om.options import VIAS, OmOptions
from .onnx.format import BFLOAT16_OPSET, CANN, DEFAULT_OPSET, Flavour
from .targets import Target, resolve_targets

# Options of a `Request` that a target may have no choice of.
_DEFAULTS = {"gelu": "auto", "neocell": "matmul", "dtype": "float32"}


@dataclass(frozen=True)
class Request:
    """An export: which files, for which inputs, in which form.

    Attributes:
        targets: names from `targets.TARGETS`.
        image_sizes: heights and widths; none for the source's own. Each gets files of its own.
        batch: none for a dynamic batch, one for a fixed one; several are for OM files, the others are dynamic then.
        opset: of the ONNX files; None for the target's own default.
        gelu: "auto", "erf" or "tanh".
        neocell: "matmul", "padded" or "custom".
        dtype: of weights and arithmetic in ONNX files: "float32", "float16" or "bfloat16".
        float32_io: with a half precision, whether input and outputs stay float32.
        features_only: the outputs are those of the four stages.
        name: of the files, before their suffixes; None for the source's own.
        labels: class names, one for each class; None for the source's own.
        preprocessing: what travels with the files; None for the source's own, or the official one.
        images: image files to compare on, besides noise.
        seed: of the noise.
        tolerance: largest relative deviation that passes; None for that of the form (`flavour.tolerance`).
        om: for the target `om`.
        command: the command line, for the manifest.

    Raises:
        UsageError: an unknown target, or options that do not go together.
        InputError: a value out of its range.
    """

    targets: Sequence[str]
    image_sizes: Sequence[tuple[int, int]] = ()
    batch: Sequence[int] = ()
    opset: int | None = None
    gelu: str = "auto"
    neocell: str = "matmul"
    dtype: str = "float32"
    float32_io: bool = True
    features_only: bool = False
    name: str | None = None
    labels: Sequence[str] | None = None
    preprocessing: Preprocessing | None = None
    images: Sequence[str] = ()
    seed: int = 0
    tolerance: float | None = None
    om: OmOptions | None = None
    command: str | None = None
    chosen: tuple[Target, ...] = field(init=False, default=())

    def __post_init__(self):
        chosen = tuple(resolve_targets(self.targets))
        object.__setattr__(self, "chosen", chosen)
        om = any(target.name == "om" for target in chosen)
        if om and self.om is None:
            raise UsageError("target om needs the device that it is for, such as --soc Ascend310P3")
        if self.om is not None and not om:
            raise UsageError("--soc and the options beside it are for the target om; add it to --target")
        if self.om is not None and self.om.via not in VIAS:
            raise UsageError(f"via {self.om.via!r}: expected {' or '.join(VIAS)}")
        if len(self.batch) > 1 and not om:
            raise UsageError("several batch sizes are for the target om; give one, or leave the batch dynamic")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise UsageError(f"tolerance {self.tolerance}: expected a number of at least 0")
        for target in chosen:
            self.flavour(target)
            for option in target.without:
                if getattr(self, option) != _DEFAULTS[option] and len(chosen) == 1:
                    raise UsageError(f"target {target.name} has no choice of {option}; leave it out")

    def flavour(self, target: Target) -> Flavour:
        """The form in which a target is written; what a target has no choice of keeps its default there.

        Raises:
            InputError: values that do not go together.
        """
        asked = {
            option: default if option in target.without else getattr(self, option)
            for option, default in _DEFAULTS.items()
        }
        if target.name == "om":
            gelu = CANN.gelu if asked["gelu"] == "auto" else asked["gelu"]
            opset = CANN.opset if self.opset is None else self.opset
            return CANN.with_(opset=opset, gelu=gelu, neocell=asked["neocell"], precision=asked["dtype"])
        opset = self.opset
        if opset is None:
            # A custom node is for CANN, whose parsers end before the default.
            opset = CANN.opset if asked["neocell"] == "custom" else DEFAULT_OPSET
            opset = BFLOAT16_OPSET if asked["dtype"] == "bfloat16" else opset
        return Flavour(opset, asked["gelu"], asked["neocell"], asked["dtype"], self.float32_io)

    def fixed_batch(self) -> int | None:
        """The batch of files that have one axis for it: the only size, or None for a dynamic one."""
        return self.batch[0] if len(self.batch) == 1 else None
