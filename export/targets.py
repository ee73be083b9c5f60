"""The one table of targets: what can be emitted, and how. Nothing heavy is imported before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, nearest

if TYPE_CHECKING:
    from .graph import DeployGraph


@dataclass(frozen=True)
class Target:
    """A kind of file that can be emitted.

    Attributes:
        name: as `--target` takes it.
        suffix: of the file, behind the model's name.
        summary: one line for a person.
        mindspore: whether emitting it loads MindSpore.
        folded: whether it holds the folded network.
        write: writes the file: `(graph, path, batch, opset, metadata)`.
    """

    name: str
    suffix: str
    summary: str
    mindspore: bool
    folded: bool
    write: Callable[[DeployGraph, Path, int | None, int, Mapping], None]


def _write_onnx(graph, path, batch, opset, metadata):
    from ..metadata import KEY
    from . import onnx_emitter

    onnx_emitter.write(onnx_emitter.emit(graph, batch, opset, {KEY: metadata}), path)


def _write_mindir(graph, path, batch, opset, metadata):
    from . import mindir_emitter

    mindir_emitter.write(graph, path, batch)


TARGETS = {
    target.name: target
    for target in (
        Target("onnx", ".onnx", "folded graph for onnxruntime and other ONNX tools", False, True, _write_onnx),
        Target("mindir", ".mindir", "folded graph for MindSpore and MindSpore Lite", True, True, _write_mindir),
        Target("onnx-naive", "_naive.onnx", "the network node by node, as a baseline", False, False, _write_onnx),
    )
}


def resolve_targets(names: Sequence[str]) -> list[Target]:
    """Targets by name, each once, in the order of the table.

    Raises:
        UsageError: none, or an unknown one.
    """
    for name in names:
        if name not in TARGETS:
            raise UsageError(f"unknown target {name!r}{nearest(name, TARGETS)}; known: {', '.join(TARGETS)}")
    if not names:
        raise UsageError(f"no target given; known: {', '.join(TARGETS)}")
    return [target for target in TARGETS.values() if target.name in names]
