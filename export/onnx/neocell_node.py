"""The NeoCell node: the interface between an exported graph, the AscendC operator package, and verification.

    y = NeoCell(x, coef_a, coef_b[, bias]) {channels, h_in, h_out, w_in, w_out, shift_a, shift_b, ...}

in the default domain. The tables below are the whole interface; `ops/packing.py` defines the coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neonext_ms.common.errors import InputError, nearest
from neonext_ms.ops.packing import RUN_ATTRIBUTES, plan
from neonext_ms.ops.spec import NeoCellSpec

if TYPE_CHECKING:
    import onnx

OP_TYPE = "NeoCell"
DOMAIN = ""
# Opsets for which the package's ONNX plugin has to register the operator: what we write and CANN's parsers take.
OPSETS = range(11, 19)
# Name -> shape; C channels, V rows of 16 coefficients, as `ops/packing.py` packs them. All have the dtype of x.
INPUTS: Mapping[str, str] = {
    "x": "(N, C, H, W)",
    "coef_a": "(V_a, 16)",
    "coef_b": "(V_b, 16)",
    "bias": "(C filled up to a multiple of 16), optional: added to every value of a channel",
}
OUTPUTS: Mapping[str, str] = {"y": "(N, C, H_out, W_out)"}
# Name -> ONNX attribute type. The first seven have one number for each run of channels that share matrix sizes and
# shifts, runs in the order of the channels.
ATTRIBUTES: Mapping[str, str] = {
    **dict.fromkeys(RUN_ATTRIBUTES, "INTS"),
    "output_size": "INTS",  # [H_out, W_out]; left out where the output has the size of the input
    "accumulate_fp32": "INT",  # 1: arithmetic in float32; left out for 0: in the dtype of x
}


def attributes(spec: NeoCellSpec) -> dict[str, list[int]]:
    """Return the attributes of the node for a NeoCell that keeps the size of its map."""
    return {name: list(values) for name, values in plan(spec).attributes.items()}


def is_neocell(node: onnx.NodeProto) -> bool:
    """Return whether a node is a NeoCell."""
    return node.op_type == OP_TYPE and node.domain == DOMAIN


def runs_of(attributes: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the runs of channels that the attributes of a node describe, as `packing.unpack` takes them.

    Raises:
        InputError: an attribute is unknown, or the node changes the size of its map, which no exported graph does.
    """
    unknown = [name for name in attributes if name not in ATTRIBUTES]
    if unknown:
        raise InputError(
            f"unknown attribute {unknown[0]!r}{nearest(unknown[0], ATTRIBUTES)}. A NeoCell node has the attributes "
            f"{', '.join(ATTRIBUTES)}."
        )
    runs = {name: list(attributes[name]) for name in RUN_ATTRIBUTES if attributes.get(name) is not None}
    resized = runs.get("h_in") != runs.get("h_out") or runs.get("w_in") != runs.get("w_out")
    if attributes.get("output_size") or resized:
        raise InputError("a NeoCell node that changes the size of its map cannot be run here. Fold it into a Conv.")
    return runs
