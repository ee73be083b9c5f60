"""Files for ATC's `--keep_dtype`: operators that keep their dtype, from the suspects of a comparison."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import atomic, read_lines

from .compare import Comparison
from .side import Activations


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
    compared = {layer.name for layer in comparison.layers}
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


def read_keep_dtype(path: str | os.PathLike) -> list[str]:
    """Read operator names, or operator types as `OpType::Name`, one on a line; empty lines are ignored.

    Raises:
        InputError: not a text file, or a type that is not in PascalCase.
    """
    names = [line.strip() for line in read_lines(path) if line.strip()]
    for name in names:
        if re.match(r"OpType::(?![A-Z][A-Za-z0-9]*$)", name):
            raise InputError(f"{os.fspath(path)}: {name}: expected a type in PascalCase, such as OpType::MatMul")
    return names
