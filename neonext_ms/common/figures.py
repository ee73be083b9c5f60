"""Figures with matplotlib, without a display."""

from __future__ import annotations

from pathlib import Path

from .errors import ToolchainError
from .files import atomic


def pyplot():
    """Return matplotlib's pyplot for figures that are written to files.

    Raises:
        ToolchainError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ToolchainError(
            'matplotlib is required for drawing, but not installed. Install it with: pip install "neonext_ms[plot]"'
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def literal(text: str) -> str:
    """Return a name for a figure, in which a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def save_figure(figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as staged:
        figure.savefig(staged, format="png", dpi=120)
