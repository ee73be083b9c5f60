"""Interleaved timing: several things measured round by round in one process, compared by their medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(work: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` of each after `warm_up` that do not count.

    Taking turns lets a slow spell of the machine hit all alike.
    """
    for _ in range(warm_up):
        for call in work.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Ratio of the medians, and the quartiles of the ratios round by round."""
    rounds = sorted(s / f for s, f in zip(slow, fast, strict=True))
    low, _, high = statistics.quantiles(rounds, n=4)
    return statistics.median(slow) / statistics.median(fast), low, high
