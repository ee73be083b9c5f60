"""`Request`: the options of an export, and the format of each target that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from neonext_ms.common.errors import UsageError
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.ops.soc import soc

from .om.onnx_plugins import LAST_OPSET
from .om.options import NPU_GELU_FAMILIES, VIAS, OmOptions
from .onnx.format import BFLOAT16_OPSET, CANN, DEFAULT_OPSET, LITE, QDQ_OPSET, Format
from .quantize.options import QuantizeOptions
from .targets import Target, resolve_targets
from .tolerances import check_tolerance

# Options of a `Request` that cannot be chosen for every target, with their defaults.
_DEFAULTS: dict[str, Any] = {"gelu": "auto", "neocell": "matmul", "dtype": "float32", "float32_io": True}


@dataclass(frozen=True)
class Request:
    """The options of an export.

    Attributes:
        targets: names of targets, keys of `targets.TARGETS`.
        image_sizes: heights and widths, each with files of its own; empty for the source's own size.
        batch: batch sizes: none for a dynamic batch, one for a fixed one; several for OM files only, where other files
            have a dynamic batch.
        opset: opset of the ONNX files; None for the default of each target.
        gelu: form of GELU: "auto", "erf", "tanh", "npu" or "fast".
        neocell: form of NeoCells: "matmul", "padded" or "custom".
        dtype: dtype of weights and arithmetic: "float32", "float16" or "bfloat16".
        float32_io: keep input and outputs in float32 where `dtype` is half precision.
        features_only: end at the four stages, whose maps are the outputs.
        name: base name of the files; None for the source's name.
        labels: class names, one for each class; None for those of the source.
        preprocessing: preprocessing recorded in the files; None for that of the source, or the official one.
        images: image files to compare on, besides noise.
        seed: random seed of the noise.
        tolerance: largest relative deviation that passes; None for that of the format (`tolerances.tolerance`).
        om: options of the target `om`.
        quantize: options of 8-bit files; None for files in floating point.
        command: the command line, for the manifest.

    Raises:
        UsageError: an unknown target, a value out of its range, or options that do not go together.
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
    quantize: QuantizeOptions | None = None
    command: str | None = None
    chosen: tuple[Target, ...] = field(init=False, default=())

    def __post_init__(self):
        chosen = tuple(resolve_targets(self.targets))
        object.__setattr__(self, "chosen", chosen)
        for name, kind in (("om", OmOptions), ("quantize", QuantizeOptions)):
            if not isinstance(getattr(self, name), (kind, type(None))):
                raise UsageError(f"{name}: got {getattr(self, name)!r}, expected {kind.__name__}(...) or None")
        om = any(target.name == "om" for target in chosen)
        if om and self.om is None:
            raise UsageError("--target om requires --soc, for example --soc Ascend310P3")
        if self.om is not None and not om:
            raise UsageError("--soc and its options: only valid with --target om. Add om to --target.")
        if self.om is not None:
            # An unknown device is reported before any work.
            soc(self.om.soc)
        if self.om is not None and self.om.via not in VIAS:
            raise UsageError(f"--via {self.om.via!r}: expected {' or '.join(VIAS)}")
        if self.om is not None and self.om.via == "lite":
            _check_lite(self.neocell, "float32")
        if self.gelu == "npu":
            self._check_npu_gelu()
        if len(self.batch) > 1 and not om:
            raise UsageError("--batch: several sizes need the target om. Pass one size, or leave the batch dynamic.")
        if self.tolerance is not None:
            check_tolerance(self.tolerance)
        if self.quantize is not None and self.quantize.max_drop is not None and self.features_only:
            raise UsageError("--max-drop needs logits, which a file with features only does not have. Drop one.")
        if self.quantize is not None and self.quantize.max_drop is not None and len(self.image_sizes) > 1:
            raise UsageError(
                "--max-drop: the loss is measured at one size, and may be another at the others. Export each image "
                "size by itself."
            )
        if self.quantize is not None and self.om is not None and self.om.via == "lite":
            raise UsageError("--quantize: the converter of MindSpore Lite does not know AscendQuant. Use --via atc.")
        for target in chosen:
            format = self.format(target)
            if self.quantize is not None:
                _check_int8(target, format)
            for option in target.fixed:
                if self.quantize is not None and (target.name, option) == ("om", "dtype"):
                    continue
                if getattr(self, option) != _DEFAULTS[option] and len(chosen) == 1:
                    name = "half-io" if option == "float32_io" else option
                    raise UsageError(f"--{name} cannot be chosen for the target {target.name}. Leave it out.")
        if not self.float32_io and self.dtype == "float32":
            raise UsageError("--half-io: the files are in float32. Add --dtype, or leave it out.")

    def _check_npu_gelu(self) -> None:
        """Raise a `UsageError` unless CANN reads all files, on a device that has the operator."""
        others = [t.name for t in self.chosen if t.name not in ("onnx", "om") and "gelu" not in t.fixed]
        if others:
            raise UsageError(f"--gelu npu is a node for ATC only. Leave {others[0]} out of --target, or --gelu out.")
        if self.om is not None and self.om.via != "atc":
            raise UsageError("--gelu npu is a node for ATC only. Use --via atc, or leave --gelu out.")
        if self.om is not None and soc(self.om.soc).family not in NPU_GELU_FAMILIES:
            raise UsageError(f"--gelu npu: {self.om.soc} does not have the operator. Leave --gelu out.")

    def format(self, target: Target) -> Format:
        """Return the format that a target is written in; options that it fixes keep their defaults.

        Raises:
            UsageError: values that do not go together.
        """
        gelu, neocell, dtype = (
            _DEFAULTS[option] if option in target.fixed else getattr(self, option)
            for option in ("gelu", "neocell", "dtype")
        )
        if self.quantize is not None and target.name == "om":
            # What lies between 8-bit layers has a dtype of its own in the file.
            dtype = self.dtype
        opset = self.opset
        if target.name == "om":
            gelu = CANN.gelu if gelu == "auto" else gelu
            opset = CANN.opset if opset is None else opset
            _check_cann_opset(opset, "the target om")
            return CANN.with_(opset=opset, gelu=gelu, neocell=neocell, dtype=dtype)
        if target.name == "mindir":
            _check_mindir(neocell, dtype)
        if target.name == "lite":
            _check_lite(neocell, dtype)
            return LITE.with_(opset=LITE.opset if opset is None else opset, gelu=gelu, neocell=neocell, dtype=dtype)
        if opset is None:
            # A custom node is for CANN, whose parsers end before the default.
            opset = CANN.opset if neocell == "custom" or gelu == "npu" else DEFAULT_OPSET
            opset = BFLOAT16_OPSET if dtype == "bfloat16" else opset
        format = Format(opset, gelu, neocell, dtype, self.float32_io)
        if format.for_cann_only:
            _check_cann_opset(opset, f"a file with {format.cann_nodes[0]} nodes")
        return format

    def batch_of(self, target: Target) -> int | None:
        """Return the batch size of a target's file, or None for a dynamic one."""
        if target.name == "om" and not self.batch:
            return 1
        return self.fixed_batch

    @property
    def host_gelu(self) -> str:
        """The form of GELU that computes the same on a host."""
        return "auto" if self.gelu == "npu" else self.gelu

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size, or None for a dynamic batch."""
        return self.batch[0] if len(self.batch) == 1 else None


def _check_int8(target: Target, format: Format) -> None:
    """Reject a target or a format that has no 8-bit form.

    Raises:
        UsageError: there is none.
    """
    if target.name not in ("onnx", "om"):
        raise UsageError(f"--quantize: the target {target.name} has no 8-bit form. Use onnx or om.")
    if format.dtype == "bfloat16":
        raise UsageError("--quantize: bfloat16 between 8-bit layers has no form. Use float32, or float16 with om.")
    if target.name == "om":
        return
    if format.dtype != "float32":
        raise UsageError(
            f"--quantize: files of the target onnx compute in float32 between their 8-bit layers (got {format.dtype}). "
            "Leave out --dtype, or export the target om by itself."
        )
    if format.opset < QDQ_OPSET:
        raise UsageError(f"--quantize: opset {format.opset} has no scales for channels. Use {QDQ_OPSET} or later.")
    if format.for_cann_only or format.neocell != "matmul":
        option = f"--neocell {format.neocell}" if format.neocell != "matmul" else f"--gelu {format.gelu}"
        raise UsageError(
            f"--quantize: {option} is for CANN, which does not take the 8-bit form of the target onnx. Use --target om "
            f"by itself, or leave out {option.split()[0]}."
        )


def _check_cann_opset(opset: int, what: str) -> None:
    """Raise a `UsageError` for an opset at which CANN's parser takes no operator of a network."""
    if opset > LAST_OPSET:
        raise UsageError(
            f"--opset {opset}: CANN's parser takes no operator above opset {LAST_OPSET}, and {what} is for it. Use "
            f"{CANN.opset}, or leave --opset out."
        )


def _check_mindir(neocell: str, dtype: str) -> None:
    """Raise a `UsageError` for what MindIR has not, or MindSpore on a CPU cannot verify."""
    if neocell == "custom":
        raise UsageError("--neocell custom: MindIR has no NeoCell operator. Use matmul or padded, or the target onnx.")
    if dtype == "bfloat16":
        raise UsageError(
            "--dtype bfloat16: MindSpore cannot run it on a CPU, so a MindIR file could not be verified. Use float32 "
            "or float16, or the target onnx."
        )


def _check_lite(neocell: str, dtype: str) -> None:
    """Raise a `UsageError` for what MindSpore Lite has not."""
    if neocell == "custom":
        raise UsageError("--neocell custom: MindSpore Lite has no NeoCell operator. Use matmul or padded.")
    if dtype == "bfloat16":
        raise UsageError("--dtype bfloat16: MindSpore Lite has none. Use float32 or float16.")
