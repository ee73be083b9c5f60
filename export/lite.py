"""The target `lite`: an ONNX file of the folded graph, converted by MindSpore Lite to its own format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neonext_ms.checkpoint.metadata import KEY
from neonext_ms.lite.driver import driver, missing
from neonext_ms.lite.package import VERSION
from neonext_ms.lite.session import Session

from .graph import DeployGraph
from .onnx import emitter
from .onnx.format import Format

__all__ = ["VERSION", "check_installed", "convert", "missing", "write"]


def check_installed() -> None:
    """Raise a `ToolchainError` if MindSpore Lite cannot be used here; compile our drivers for it if necessary."""
    driver()


def write(graph: DeployGraph, path: Path, batch: int | None, format: Format, metadata: Mapping[str, Any]) -> list[Path]:
    """Write a lowered graph as a MindSpore Lite file and return its path in a list.

    In float16 the weights are rounded by the converter, in a file that is float32 otherwise: what Lite makes of an
    ONNX file in float16 is wrong on a CPU (docs/lite.md).

    Raises:
        InputError: the converter fails.
        ToolchainError: MindSpore Lite is not installed.
    """
    source = path.with_suffix(".lite.onnx")
    files = emitter.save(graph, source, batch, replace(format, dtype="float32"), {KEY: metadata})
    try:
        convert(source, path, half_weights=format.dtype == "float16")
    finally:
        for file in files:
            file.unlink()
    return [path]


def convert(source: Path, path: Path, half_weights: bool = False) -> None:
    """Convert an ONNX file of this package to a MindSpore Lite file.

    Raises:
        InputError: the converter fails.
        ToolchainError: MindSpore Lite is not installed.
    """
    session = Session(path.name)
    try:
        session.convert(source, path, half_weights)
    finally:
        session.close()
