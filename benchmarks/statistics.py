"""Statistics of timing samples: percentiles, noise, and ratios of medians with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
# Relative difference within which two runs of a benchmark are to agree.
TOLERANCE = 0.05
# The difference of two runs varies sqrt(2) times as much as one run, that of two halves of a run twice as much.
ALLOWED_INTERVAL = TOLERANCE / 2**0.5
ALLOWED_HALVES = TOLERANCE * 2**0.5
FEWEST_ROUNDS = 8


@dataclass(frozen=True)
class Summary:
    """Summary of samples, in their unit.

    Attributes:
        count: number of samples.
        mean, min, p50, p90, p99: mean, minimum and percentiles, interpolated linearly: with fewer than 100 samples p99
            lies between the two largest.
        spread: interquartile range over the median.
        drift: median of the second half over the median of the first half, minus 1.
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
        """Return plain values for JSON."""
        return asdict(self)


def summary(samples: Sequence[float]) -> Summary:
    """Summarise samples, given in the order in which they were taken.

    Raises:
        ValueError: there are no samples.
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
    """Ratio of two medians, a over b, with its uncertainty.

    Attributes:
        median_ratio: median of a over median of b.
        low, high: 95 % confidence interval.
        rounds: number of rounds.
        halves: ratio in the first and in the second half of the rounds.
    """

    median_ratio: float
    low: float
    high: float
    rounds: int
    halves: tuple[float, float]

    @property
    def sure(self) -> bool:
        """Return whether another run is expected, with 95 % confidence, to agree within `TOLERANCE`.

        This requires at least `FEWEST_ROUNDS` rounds, an interval of at most 3.5 % to either side of the ratio, and
        halves of the run that agree within 7 %.
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
        """Return -1 if a is smaller, 1 if a is larger, and 0 if they are level or the run was too noisy.

        They are level if the interval contains 1 or the ratio is within `TOLERANCE` of 1. An interval covers only what
        varies inside a run. The place of a model's memory, which differs from run to run, moves ratios by some percent.
        """
        level = self.low <= 1 <= self.high or 1 / (1 + TOLERANCE) <= self.median_ratio <= 1 + TOLERANCE
        if level or not self.sure:
            return 0
        return -1 if self.median_ratio < 1 else 1

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return {**asdict(self), "halves": list(self.halves), "sure": self.sure}


def ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Ratio:
    """Return the ratio of the medians of two lists of samples that are paired by round.

    The interval is a bootstrap over rounds, with the same `RESAMPLES` draws for a and b, so that what affects a whole
    round cancels. Rounds are drawn in blocks of n^(1/3) consecutive ones (circular block bootstrap, Politis and Romano,
    1992), because slow spells of a machine last longer than a round.

    Args:
        a: samples in the order of rounds.
        b: samples of the same rounds, as many as in `a`.
        seed: random seed of the bootstrap; the same samples and seed give the same interval.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"expected two lists of equal length, got shapes {x.shape} and {y.shape}")
    count = len(x)
    block = max(1, round(count ** (1 / 3)))
    blocks = -(-count // block)
    starts = np.random.default_rng(seed).integers(0, count, (RESAMPLES, blocks, 1))
    rounds = ((starts + np.arange(block)) % count).reshape(RESAMPLES, -1)[:, :count]
    ratios = np.median(x[rounds], axis=1) / np.median(y[rounds], axis=1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    half = count // 2
    total = _median_ratio(x, y)
    halves = (_median_ratio(x[:half], y[:half]), _median_ratio(x[half:], y[half:])) if half else (total, total)
    # By rounding, a bootstrap quantile can exceed the ratio itself.
    return Ratio(total, min(float(low), total), max(float(high), total), count, halves)


def _median_ratio(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.median(a) / np.median(b))
