"""`neonext-export --check FILE.onnx`: will ATC's parser take this file, and if not, which node, and what to do?"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from neonext_ms.common.text import plural, printable, visible
from neonext_ms.runtime.onnx_file import DATA_FIELDS, raw_bytes, read_onnx, sound

from .onnx_plugins import COMMITS, domain_of, ranges
from .parser_support import Finding, check, graphs, of_model, opset_support

if TYPE_CHECKING:
    import onnx


class FileCheck(NamedTuple):
    """The findings of ATC's parser about an ONNX file.

    Attributes:
        path: the file.
        opsets: domains and their opsets, as the file imports them.
        nodes: number of nodes of the main graph.
        findings: what the parser refuses, and advice.
        support: opset -> operators of the default domain that have no parser there.
    """

    path: str
    opsets: dict[str, int]
    nodes: int
    findings: list[Finding]
    support: dict[int, list[str]]

    @property
    def refused(self) -> list[Finding]:
        """Return the findings for which the parser refuses the file."""
        return [finding for finding in self.findings if finding.refused]

    def to_dict(self) -> dict[str, Any]:
        """Return the report in plain values."""
        return {
            "file": self.path,
            "taken": not self.refused,
            "opsets": self.opsets,
            "nodes": self.nodes,
            "findings": [finding._asdict() for finding in self.findings],
            "operators_without_parser": self.support,
            "sources": COMMITS,
        }

    def __str__(self) -> str:
        imports = ", ".join(f"{printable(domain)} {opset}" for domain, opset in self.opsets.items())
        lines = [f"{self.path}: {plural(self.nodes, 'node')}, opset {imports}"]
        for word, refused in (("refused", True), ("advice", False)):
            groups: dict[tuple, list[Finding]] = {}
            for finding in self.findings:
                if finding.refused == refused:
                    groups.setdefault((*finding[1:3], finding.problem, finding.remedy), []).append(finding)
            lines += [f"{word:9}{_together(group)}" for group in groups.values()]
        complete = tuple(opset for opset, missing in self.support.items() if not missing)
        if complete:
            lines.append(f"parsers  every operator has one at opset {ranges(complete)}")
        else:
            lines.append(f"parsers  at no opset for all; at 13 without {', '.join(map(printable, self.support[13]))}")
        taken = "taken by the parser; kernels and fusion are not checked here"
        lines.append(f"verdict  {'refused by the parser' if self.refused else taken}")
        return visible("\n".join(lines))


def check_file(path: str | os.PathLike) -> FileCheck:
    """Check an ONNX file of any exporter.

    Raises:
        InputError: no such file, or not a sound ONNX model.
    """
    model = read_onnx(path)
    with sound(os.fspath(path)):
        imports = {domain_of(entry.domain): entry.version for entry in model.opset_import}
        findings = [*_weights(model, Path(path).parent), *check(model)]
        return FileCheck(os.fspath(path), imports, len(model.graph.node), findings, opset_support(model))


def _weights(model: onnx.ModelProto, folder: Path) -> Iterator[Finding]:
    """Yield what is missing of the weights of a model, one finding for each file."""
    from onnx import TensorProto

    ends: dict[str, list[int]] = {}
    empty: list[str] = []
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            start, length = (place.get(key, "0") for key in ("offset", "length"))
            if not (start.isdecimal() and length.isdecimal()):
                yield of_model(f"where {tensor.name!r} lies in its file is not a number", "export the model again")
                continue
            ends.setdefault(place["location"], []).append(int(start) + (int(length) or raw_bytes(tensor)))
        elif math.prod(tensor.dims) and not any(len(getattr(tensor, field)) for field in DATA_FIELDS):
            empty.append(tensor.name)
    for location, needed in ends.items():
        if problem := _missing(folder, location, max(needed)):
            remedy = "put it beside the model, or export the model again"
            yield of_model(f"{plural(len(needed), 'tensor')} cannot be read: {problem}", remedy)
    if empty:
        names = f"{', '.join(map(repr, empty[:3]))}{' ...' if len(empty) > 3 else ''}"
        problem = f"{plural(len(empty), 'tensor has', 'tensors have')} no values ({names})"
        yield of_model(problem, "export the model again with its weights")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the constants of a model, those of its nodes included."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _missing(folder: Path, location: str, end: int) -> str:
    """Return what is wrong with a file of weights of which `end` bytes are read; empty if nothing is."""
    name = f"the file {location!r}"
    if os.path.isabs(location):
        return f"{name} is named by an absolute path, and CANN looks for it beside the model"
    try:
        size = (folder / location).stat().st_size
    except (OSError, ValueError):
        return f"{name} is missing"
    return f"{name} has {size:,} bytes, and {end:,} are read" if size < end else ""


def _together(group: Sequence[Finding]) -> str:
    """Return one line for findings that differ in their node only."""
    text = str(group[0])
    if len(group) > 1 and group[0].node:
        names = ", ".join(repr(finding.node) for finding in group[:3])
        more = f" and {len(group) - 3} more" if len(group) > 3 else ""
        text = text.replace(f"node {group[0].node!r}", f"nodes {names}{more}", 1)
    return text
