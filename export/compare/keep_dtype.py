"""Files for ATC's `--keep_dtype`: operators that keep their dtype, from the suspects of a comparison."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from neonext_ms.common.errors import InputError, listed
from neonext_ms.common.files import atomic, explained

from ..graph import INPUT
from .compare import Comparison
from .side import Activations

OP_TYPE = "OpType::"


def suspect_nodes(comparison: Comparison, *sides: Activations) -> list[str]:
    """Return the operators that compute the suspects, by their names in a graph and in its order.

    The graph is that of the first ONNX file among the sides, else of the first side that has one, so name the side
    first that is deployed. A value that several operators compute (a GELU written as a chain) has all of them, back to
    the values that were compared, too.

    Raises:
        InputError: no side with a graph, or an operator without a name.
    """
    graphs = sorted((side for side in sides if side.nodes), key=lambda side: side.kind != "onnx")
    if not graphs:
        raise InputError("neither side has operators to name. Compare with the ONNX file that ATC takes.")
    nodes = graphs[0].nodes
    compared = {layer.name for layer in comparison.layers} | {INPUT}
    maker = {name: node for node in nodes for name in node.outputs}
    chosen = set()
    pending = [layer.name for layer in comparison.suspects if layer.name in maker]
    while pending:
        node = maker[pending.pop()]
        if node not in chosen:
            chosen.add(node)
            pending += [name for name in node.inputs if name in maker and name not in compared]
    suspects = [node for node in nodes if node in chosen and node.op != "Constant"]
    if any(not node.name for node in suspects):
        raise InputError(f"{graphs[0].path}: a suspect operator has no name. Export the model with node names.")
    return [node.name for node in suspects]


def write_keep_dtype(path: str | os.PathLike, nodes: Sequence[str]) -> None:
    """Write one operator name on a line. ATC knows no comments.

    Raises:
        InputError: no names, or a file that cannot be written.
    """
    if not nodes:
        raise InputError(f"{os.fspath(path)}: there are no operators to keep; nothing was written")
    with atomic(path) as staged:
        staged.write_text("".join(f"{name}\n" for name in dict.fromkeys(nodes)), encoding="utf-8")


def read_keep_dtype(path: str | os.PathLike, known: Iterable[str] | None = None) -> tuple[list[str], list[str]]:
    """Read a file for ATC's `--keep_dtype`.

    Args:
        path: text file with one operator name, or `OpType::Name`, on a line; empty lines are ignored.
        known: operator names of the graph. Older ATC fails on any other name.

    Returns:
        operator names, and operator types.

    Raises:
        InputError: not a text file, a type that is not in PascalCase, or a name that is not known.
    """
    source = os.fspath(path)
    try:
        with explained(path):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    lines = [line.strip() for line in lines if line.strip()]
    types = [line.removeprefix(OP_TYPE) for line in lines if line.startswith(OP_TYPE)]
    names = [line for line in lines if not line.startswith(OP_TYPE)]
    for op_type in types:
        if not (op_type.isascii() and op_type.isalnum() and op_type[0].isupper()):
            raise InputError(f"{source}: {OP_TYPE}{op_type}: expected an operator type in PascalCase, as {OP_TYPE}MatMul")
    if known is not None:
        known = set(known)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(
                f"{source}: {len(unknown)} names are not operators of this graph (comments are not allowed). Write the "
                f"list with a comparison of the same graph:\n{listed(unknown, 8)}"
            )
    return names, types
