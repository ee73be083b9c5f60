"""Figures with matplotlib, which is an optional dependency (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path

from .errors import ToolchainError
from .files import atomic


def pyplot():
    """Import matplotlib's pyplot for files, without a display.

    Raises:
        ToolchainError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ToolchainError(
            'matplotlib is not installed, and drawing needs it. Install it with: pip install "neonext_ms[plot]"'
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as staged:
        figure.savefig(staged, format="png", dpi=120)
