"""The one table of targets: what can be emitted, and what each needs. Nothing heavy is imported before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neonext_ms.common.errors import ToolchainError, UsageError, nearest


@dataclass(frozen=True)
class Target:
    """A kind of file that can be emitted.

    Attributes:
        name: as `--target` takes it.
        suffix: of the file, behind the model's name.
        summary: one line for a person.
        mindspore: whether emitting it loads MindSpore.
        folded: whether it holds the folded network.
        needs: what has to be installed.
        without: options of a `Request` that it has no choice of.
    """

    name: str
    suffix: str
    summary: str
    mindspore: bool = False
    folded: bool = True
    needs: str = "nothing more"
    without: tuple[str, ...] = ()

    def here(self) -> str:
        """Whether what it needs is here, in words."""
        if self.name != "om":
            return "here"
        from neonext_ms.common import external_tools

        from .om.target import COMPILERS

        found = []
        for compiler in COMPILERS.values():
            try:
                found.append(str(external_tools.find(compiler.tool)))
            except ToolchainError:
                continue
        return f"here: {', '.join(found)}" if found else "not here; the ONNX file and build_om.sh are written instead"


TARGETS = {
    target.name: target
    for target in (
        Target("onnx", ".onnx", "folded graph for onnxruntime and other ONNX tools"),
        Target(
            "mindir",
            ".mindir",
            "folded graph for MindSpore and MindSpore Lite",
            mindspore=True,
        ),
        Target(
            "om",
            ".om",
            "folded graph compiled for an Atlas board (not run on a device here)",
            needs="atc of the CANN toolkit, or converter_lite of MindSpore Lite",
            without=("dtype",),
        ),
        Target(
            "onnx-naive",
            "_naive.onnx",
            "the network node by node, as a baseline",
            folded=False,
            without=("dtype", "gelu", "neocell"),
        ),
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
