"""Figures with matplotlib, without a display."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import InputError, ToolchainError
from .files import atomic, private_folder


def pyplot():
    """Return matplotlib's pyplot for figures that are written to files.

    Raises:
        ToolchainError: matplotlib is not installed.
    """
    _spare_home()
    try:
        import matplotlib
    except ImportError as error:
        raise ToolchainError(
            'matplotlib is required for drawing, but not installed. Install it with: pip install "neonext_ms[plot]"'
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _spare_home() -> None:
    """Let matplotlib keep its list of fonts in a temporary folder, unless its user has one below the home folder."""
    if "MPLCONFIGDIR" in os.environ:
        return
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "matplotlib")
    if not os.access(cache, os.W_OK):
        with contextlib.suppress(InputError):
            os.environ["MPLCONFIGDIR"] = str(private_folder())


def literal(text: str) -> str:
    """Return a name for a figure, in which a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def save_figure(figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as staged:
        figure.savefig(staged, format="png", dpi=120)
