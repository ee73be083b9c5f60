"""`Format`: the form in which a folded network is written to a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from neonext_ms.common.errors import UsageError

DEFAULT_OPSET, MIN_OPSET, MAX_OPSET = 20, 11, 21
# ONNX gives Conv and the poolings bfloat16 from this opset on.
BFLOAT16_OPSET = 22
GELUS = ("auto", "erf", "tanh", "npu", "fast")
NEOCELLS = ("matmul", "padded", "custom")
DTYPES = ("float32", "float16", "bfloat16")
# Forms of 8-bit layers, see `quantized`; the first needs one scale for each channel, which this opset brought.
INT8_FORMS, QDQ_OPSET = ("qdq", "ascend"), 13


@dataclass(frozen=True)
class Format:
    """The form of an exported file.

    Attributes:
        opset: version of ONNX's default domain, 11 to 21; with bfloat16 it must be 22.
        gelu: form of GELU. "auto" is exact, one Gelu node where the opset has it and the Erf chain otherwise; "erf" is
            always the chain; "tanh" is the approximation, off by up to 4.8e-4, as one node or a chain; "npu" is exact,
            one NPUGeluV2 node of the domain npu, which only CANN knows; "fast" is an approximation of ordinary vector
            operations, off by up to 3.1e-3 (`fast_gelu`).
        neocell: form of NeoCells. "matmul" is two products with constant matrices; "padded" the same on maps padded to
            a multiple of 16; "custom" a NeoCell node for the AscendC operator package.
        dtype: dtype of weights and arithmetic, "float32", "float16" or "bfloat16".
        float32_io: keep input and outputs in float32 where `dtype` is half precision, with a Cast at each end.
        int8: form of layers that compute in 8 bit, "qdq" for hosts or "ascend" for CANN.
        chains: write LayerNormalization and GELU as chains of elementary nodes, whatever the opset.
        fusable: write the chain of LayerNormalization as compilers expect it, so that they make one operator of it.

    Raises:
        UsageError: a value out of its range, or a dtype that the opset lacks.
    """

    opset: int = DEFAULT_OPSET
    gelu: str = "auto"
    neocell: str = "matmul"
    dtype: str = "float32"
    float32_io: bool = True
    chains: bool = False
    int8: str = "qdq"
    fusable: bool = True

    def __post_init__(self):
        for name, known in (("gelu", GELUS), ("neocell", NEOCELLS), ("dtype", DTYPES), ("int8", INT8_FORMS)):
            if getattr(self, name) not in known:
                raise UsageError(f"--{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if isinstance(self.opset, bool) or not isinstance(self.opset, int):
            raise UsageError(f"--opset must be a whole number, got {self.opset!r}")
        instead = "give ATC a float32 file and --precision_mode_v2=mixed_bfloat16"
        if self.dtype == "bfloat16" and self.for_cann_only:
            raise UsageError(
                f"--dtype bfloat16: {self.cann_nodes[0]} nodes cannot be written in it, because CANN's parsers end at "
                f"opset 18 and Conv takes bfloat16 from {BFLOAT16_OPSET} on. Instead, {instead}."
            )
        if self.dtype == "bfloat16" and self.opset != BFLOAT16_OPSET:
            raise UsageError(
                f"--opset {self.opset}: Conv takes bfloat16 from opset {BFLOAT16_OPSET} on. Use that, or {instead}."
            )
        if self.dtype != "bfloat16" and not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(f"--opset {self.opset}: expected {MIN_OPSET} to {MAX_OPSET}")

    @property
    def cann_nodes(self) -> list[str]:
        """Return the operators of a file that only CANN's parser knows."""
        return [*(["NeoCell"] if self.neocell == "custom" else []), *(["NPUGeluV2"] if self.gelu == "npu" else [])]

    @property
    def for_cann_only(self) -> bool:
        """Return whether a file has nodes that only CANN's parser knows."""
        return bool(self.cann_nodes)

    def with_(self, **changes: Any) -> Format:
        """Return the same format with other values of some attributes."""
        return replace(self, **changes)


# What ATC takes on every CANN release: its parsers end at opset 18 (older ones at 13 to 15), know no Gelu, and know
# LayerNormalization at 17 and 18 only. The exact GELU is the default although the documented fusion is of the tanh
# form: which of the two is faster on a device has not been measured, and the tanh form changes the network.
CANN = Format(opset=13, gelu="erf", chains=True, int8="ascend")

# What MindSpore Lite 2.0.0 computes right (docs/lite.md): it drops the epsilon of a LayerNormalization node, and what
# it fuses a chain into subtracts squares, which cancel.
LITE = Format(opset=13, chains=True, fusable=False)
