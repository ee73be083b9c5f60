"""`Flavour`: how a folded network is written down, and `lower`, which prepares the graph for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from neonext_ms.common.errors import InputError

if TYPE_CHECKING:
    from ..graph import DeployGraph

DEFAULT_OPSET = 20
MIN_OPSET = 11
MAX_OPSET = 21
# ONNX gives Conv and the poolings bfloat16 from this opset on.
BFLOAT16_OPSET = 22
GELUS = ("auto", "erf", "tanh")
NEOCELLS = ("matmul", "padded", "custom")
PRECISIONS = ("float32", "float16", "bfloat16")

# Relative deviations from the float32 network that pass; docs/flavours.md has what was measured. Float32 is the
# tolerance of `parity`. A value in half precision is off by up to 2^-11 of itself, in bfloat16 by 2^-8, and about a
# hundred roundings lie between an image and its logits: 10 of these if they are independent, 20 with a margin.
_TOLERANCES = {"float32": 2e-5, "float16": 20 * 2.0**-11, "bfloat16": 20 * 2.0**-8}
# The tanh form of GELU is off by up to 4.8e-4 at one value; ten times what was measured of a whole network.
_TANH = 1e-3


@dataclass(frozen=True)
class Flavour:
    """How a folded network becomes ONNX.

    Attributes:
        opset: version of the default domain, 11 to 21; with bfloat16 it must be 22.
        gelu: "auto" is exact, one Gelu node where the opset has it and the Erf chain before; "erf" is always the
            chain; "tanh" is the approximation, off by up to 4.8e-4, as one node or a chain.
        neocell: "matmul" is two products with constant matrices; "padded" the same on maps padded to a multiple of
            16; "custom" a NeoCell node for the AscendC operator package.
        precision: of weights and arithmetic: "float32", "float16" or "bfloat16".
        float32_io: with a half precision, whether input and outputs stay float32, with a Cast at each end.
        chains: write LayerNormalization and GELU as chains of elementary nodes whatever the opset.

    Raises:
        InputError: a value out of its range, or a precision that the opset lacks.
    """

    opset: int = DEFAULT_OPSET
    gelu: str = "auto"
    neocell: str = "matmul"
    precision: str = "float32"
    float32_io: bool = True
    chains: bool = False

    def __post_init__(self):
        for name, known in (("gelu", GELUS), ("neocell", NEOCELLS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if isinstance(self.opset, bool) or not isinstance(self.opset, int):
            raise InputError(f"ONNX opset must be a whole number, got {self.opset!r}")
        if self.precision == "bfloat16" and self.neocell == "custom":
            raise InputError(
                "a custom NeoCell in bfloat16 cannot be: its parser ends at opset 18, and Conv takes bfloat16 from "
                f"{BFLOAT16_OPSET} on; give ATC a float32 file and --precision_mode_v2=mixed_bfloat16"
            )
        if self.precision == "bfloat16":
            if self.opset != BFLOAT16_OPSET:
                raise InputError(
                    f"ONNX opset {self.opset}: Conv takes bfloat16 from opset {BFLOAT16_OPSET} on; use that, or for "
                    "ATC a float32 file and --precision_mode_v2=mixed_bfloat16"
                )
        elif not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise InputError(f"ONNX opset {self.opset}: expected {MIN_OPSET} to {MAX_OPSET}")

    def with_(self, **changes) -> Flavour:
        """The same flavour with these attributes."""
        return replace(self, **changes)


# What ATC takes on every CANN release: its parsers end at opset 18 (older ones at 13 to 15), know no Gelu, and know
# LayerNormalization at 17 and 18 only. The exact GELU is the default although the documented fusion is of the tanh
# form: which of the two is faster on a device has not been measured, and the tanh form changes the network.
CANN = Flavour(opset=13, gelu="erf", chains=True)


def tolerance(precision: str, gelu: str = "auto") -> float:
    """Relative deviation from the float32 network, of the largest logit and in L2, that passes for a flavour.

    Args:
        precision: as in `Flavour`.
        gelu: as in `Flavour`.

    Raises:
        InputError: an unknown precision.
    """
    if precision not in _TOLERANCES:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return _TOLERANCES[precision] + (_TANH if gelu == "tanh" else 0.0)


def lower(graph: DeployGraph, flavour: Flavour) -> DeployGraph:
    """The graph that the emitters write for a flavour: its NeoCells and GELUs in the form that was asked for.

    Args:
        graph: a graph that `fold.fold` made.
        flavour: `neocell` and `gelu` count here, the rest when the graph is emitted.

    Returns:
        a new graph; with `neocell="custom"` its NeoCells are still NeoCells.

    Raises:
        InputError: a NeoCell that the form cannot express.
    """
    from ..fold import neocell_to_matmul, neocell_to_padded_matmul

    if flavour.neocell == "matmul":
        graph = neocell_to_matmul(graph)
    elif flavour.neocell == "padded":
        graph = neocell_to_padded_matmul(graph)
    else:
        _check_square(graph)
    if flavour.gelu == "tanh":
        layers = (
            replace(layer, attributes={**layer.attributes, "approximate": "tanh"}) if layer.op == "gelu" else layer
            for layer in graph.layers
        )
        graph = replace(graph, layers=tuple(layers))
    return graph


def _check_square(graph: DeployGraph) -> None:
    for layer in graph.layers:
        if layer.op != "neocell":
            continue
        if not all(group.axis_a.square and group.axis_b.square for group in layer.attributes["spec"].groups):
            raise InputError(
                f"{layer.name}: a NeoCell that changes the size of its map has no custom node; fold the graph first, "
                "or write NeoCells as matmul"
            )
