"""Fig. 6 of the paper: the curves of `neonext-bench claims neoinit`, of the runs that have ended so far."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from neonext_ms.common.errors import UsageError

from ..claims import neoinit


def draw(plt, args):
    """Draw loss and accuracy by epoch for each initialization."""
    if len(args.runs) != 1:
        raise UsageError(f"--figure 6: draws one comparison (got {len(args.runs)} folders)")
    summary = neoinit.summarise(neoinit.read_trials(Path(args.runs[0])))
    return neoinit.draw(plt, summary), {"summary": summary}


def describe(facts: Mapping) -> list[str]:
    """Return the facts of `draw` as lines: Table 3."""
    return list(neoinit.lines({"summary": facts["summary"], "plot": None}))
