"""The table of operators that CANN's ONNX parser knows, by domain and opset: `onnx_plugins.csv`.

The parser asks its plugins for `<domain>::<opset>::<operator>`, where the opset is the one that the model imports,
whatever version of the operator that means in ONNX. A row of the file is what one source file of CANN registers
(REGISTER_CUSTOM_OP ... OriginOpType, FrameworkType ONNX); `COMMITS` has the commit of each repository. What is only
built with ENABLE_EXPERIMENTAL, and hicann/ops-transformer, which has no ONNX plugin, are left out. Every release
registers its own plugins: these are the sources of August 2026, and older releases end at opset 13 or 15.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..onnx import neocell_node

FILE = Path(__file__).with_name("onnx_plugins.csv")
COMMITS = {"ops-math": "c41933244c31", "ops-nn": "e5c3fa9327ea", "ops-cv": "6ae87653464d", "ge": "ffdcbc9f7496"}
DEFAULT_DOMAIN = "ai.onnx"
# The quantization operators are registered up to 22, but no operator that could stand beside them is.
LAST_OPSET = 18
# The parser has these itself (hicann/ge, parser/parser/onnx/onnx_constant_parser.cc) and does not ask for an opset.
BUILT_IN = ("Constant",)


class Plugin(NamedTuple):
    """One source file of CANN, and the operators that it registers.

    Attributes:
        repository: a key of COMMITS, or "neonext_ms".
        file: path of the file in its repository.
        domain: domain of the operators.
        opsets: opsets of that domain, ascending.
        operators: names of the operators.
    """

    repository: str
    file: str
    domain: str
    opsets: tuple[int, ...]
    operators: tuple[str, ...]


OWN = Plugin(
    *("neonext_ms", "ops/ascendc/framework/onnx_plugin/neo_cell_plugin.cc", DEFAULT_DOMAIN),
    tuple(neocell_node.OPSETS),
    (neocell_node.OP_TYPE,),
)


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Return the rows of the table, and the plugin of the operator package."""
    with open(FILE, encoding="utf-8", newline="") as file:
        rows = [
            Plugin(
                row["repository"], row["file"], row["domain"], _opsets(row["opsets"]), tuple(row["operators"].split())
            )
            for row in csv.DictReader(file)
        ]
    return (*rows, OWN)


@functools.cache
def parsers() -> Mapping[tuple[str, str], tuple[int, ...]]:
    """Return domain and operator -> the opsets of that domain, ascending, at which the operator has a parser."""
    found: dict[tuple[str, str], set[int]] = {}
    for plugin in plugins():
        for operator in plugin.operators:
            found.setdefault((plugin.domain, operator), set()).update(plugin.opsets)
    return {key: tuple(sorted(opset for opset in opsets if opset <= LAST_OPSET)) for key, opsets in found.items()}


def domain_of(name: str) -> str:
    """Return the domain of a node or an import as the parser calls it."""
    return name or DEFAULT_DOMAIN


def ranges(opsets: tuple[int, ...]) -> str:
    """Return opsets in words, such as `8 to 16 and 18`."""
    starts = [opset for opset in opsets if opset - 1 not in opsets]
    ends = [opset for opset in opsets if opset + 1 not in opsets]
    parts = [str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True)]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _opsets(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
