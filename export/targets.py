"""The table of targets: the kinds of file that an export writes, and what each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neonext_ms.common.errors import UsageError, nearest


@dataclass(frozen=True)
class Target:
    """A kind of file that an export writes.

    Attributes:
        name: name on the command line.
        suffix: end of the file's name, behind the model's name.
        summary: description in one line.
        mindspore: emitting it loads MindSpore.
        folded: it holds the folded network.
        needs: software that has to be installed.
        fixed: options of a `Request` that cannot be chosen for it.
    """

    name: str
    suffix: str
    summary: str
    mindspore: bool = False
    folded: bool = True
    needs: str = "no extra tools"
    fixed: tuple[str, ...] = ()


TARGETS = {
    target.name: target
    for target in (
        Target("onnx", ".onnx", "folded graph for onnxruntime and other ONNX tools"),
        Target("mindir", ".mindir", "folded graph for MindSpore", mindspore=True),
        Target(
            "lite",
            ".ms",
            "folded graph for MindSpore Lite on a CPU",
            needs="needs MindSpore Lite (make lite) and a C++ compiler",
            fixed=("float32_io",),
        ),
        Target(
            "om",
            ".om",
            "folded graph compiled for an Atlas board (not run on a device here)",
            needs="needs atc of the CANN toolkit, or converter_lite of MindSpore Lite",
            fixed=("dtype", "float32_io"),
        ),
        Target(
            "onnx-naive",
            "_naive.onnx",
            "original network node by node, as a baseline",
            folded=False,
            fixed=("dtype", "gelu", "neocell"),
        ),
    )
}


def resolve_targets(names: Sequence[str]) -> list[Target]:
    """Return targets by name, each once, in the order of the table.

    Raises:
        UsageError: no name, or an unknown one.
    """
    for name in names:
        if name not in TARGETS:
            raise UsageError(f"unknown target {name!r}{nearest(name, TARGETS)}; known: {', '.join(TARGETS)}")
    if not names:
        raise UsageError(f"no target given; known: {', '.join(TARGETS)}")
    return [target for target in TARGETS.values() if target.name in names]
