"""What samples of time say: percentiles, how noisy they are, and ratios of medians with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
# Two runs of a benchmark are to agree within this.
TOLERANCE = 0.05
# The difference of two runs varies sqrt(2) times as much as one run, that of two halves of a run twice as much.
ALLOWED_INTERVAL = TOLERANCE / 2**0.5
ALLOWED_HALVES = TOLERANCE * 2**0.5
FEWEST_ROUNDS = 8


@dataclass(frozen=True)
class Summary:
    """Samples of one kind, in their unit, mostly seconds.

    Attributes:
        count: number of samples.
        mean, min, p50, p90, p99: of the samples; percentiles are interpolated linearly, so with fewer than 100 samples
            p99 lies between the two largest.
        spread: distance between the quartiles over the median.
        drift: median of the second half over that of the first half, minus 1.
    """

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    spread: float
    drift: float

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def summary(samples: Sequence[float]) -> Summary:
    """Summarise samples that are in the order in which they were taken.

    Raises:
        ValueError: there are none.
    """
    values = np.asarray(samples, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected a list of samples, got shape {values.shape}")
    p25, p50, p75, p90, p99 = np.percentile(values, [25, 50, 75, 90, 99])
    half = len(values) // 2
    drift = np.median(values[half:]) / np.median(values[:half]) - 1 if half else 0.0
    return Summary(
        count=len(values),
        mean=float(values.mean()),
        min=float(values.min()),
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
        spread=float((p75 - p25) / p50),
        drift=float(drift),
    )


@dataclass(frozen=True)
class Ratio:
    """Ratio of two medians, a over b.

    Attributes:
        median_ratio: median of a over median of b.
        low, high: 95 % confidence interval.
        rounds: number of rounds behind it.
        halves: the ratio in the first and in the second half of the rounds.
    """

    median_ratio: float
    low: float
    high: float
    rounds: int
    halves: tuple[float, float]

    @property
    def sure(self) -> bool:
        """Whether another run is expected, with 95 %, to give the same within `TOLERANCE`.

        True if there are at least `FEWEST_ROUNDS` rounds, the interval reaches no further than 3.5 % from the ratio,
        and the halves of the run agree within 7 %.
        """
        first, second = self.halves
        return (
            self.rounds >= FEWEST_ROUNDS
            and self.high <= self.median_ratio * (1 + ALLOWED_INTERVAL)
            and self.low >= self.median_ratio * (1 - ALLOWED_INTERVAL)
            and max(first, second) <= min(first, second) * (1 + ALLOWED_HALVES)
        )

    @property
    def order(self) -> int:
        """-1: a is smaller; 1: a is larger; 0: they are level, or the run was too noisy to say.

        Level: the interval contains 1, or the ratio is within `TOLERANCE` of it. An interval sees what varies inside
        a run, not where a model's memory happens to lie, which moves ratios by some percent from run to run.
        """
        level = self.low <= 1 <= self.high or 1 / (1 + TOLERANCE) <= self.median_ratio <= 1 + TOLERANCE
        if level or not self.sure:
            return 0
        return -1 if self.median_ratio < 1 else 1

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {**asdict(self), "halves": list(self.halves), "sure": self.sure}


def ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Ratio:
    """Ratio of the medians of two lists of samples that belong together round by round.

    The interval is that of a bootstrap over rounds: `RESAMPLES` times, as many rounds as there are are drawn with
    replacement, the same for a and b, so that what hits a whole round cancels. They are drawn in runs of n^(1/3)
    consecutive rounds (the circular block bootstrap of Politis and Romano, 1992), because slow spells of a machine
    last longer than a round.

    Args:
        a: samples in the order of rounds.
        b: as many.
        seed: of the bootstrap; the same samples and seed give the same interval.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"expected two lists of equal length, got shapes {a.shape} and {b.shape}")
    count = len(a)
    block = max(1, round(count ** (1 / 3)))
    blocks = -(-count // block)
    starts = np.random.default_rng(seed).integers(0, count, (RESAMPLES, blocks, 1))
    rounds = ((starts + np.arange(block)) % count).reshape(RESAMPLES, -1)[:, :count]
    ratios = np.median(a[rounds], axis=1) / np.median(b[rounds], axis=1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    half = count // 2
    whole = _of_medians(a, b)
    halves = (_of_medians(a[:half], b[:half]), _of_medians(a[half:], b[half:])) if half else (whole, whole)
    # A bootstrap quantile can fall short of the ratio itself by rounding.
    return Ratio(whole, min(float(low), whole), max(float(high), whole), count, halves)


def _of_medians(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.median(a) / np.median(b))
