"""Streaming statistics of one value of a network: extremes, a histogram that grows, and the mean of its patches."""

from __future__ import annotations

import math

import numpy as np

# Between the extremes lie at least a quarter of the bins, 8 for each of the 256 numbers.
BINS = 1 << 13
# The least edge: far below any scale, and its bins have a reciprocal in float32.
_LEAST_EDGE = 2.0**-100
# Elements that are counted at once.
_PIECE = 1 << 20


class Histogram:
    """The distribution of values that arrive in pieces, in bins from `-edge` to `edge`.

    Attributes:
        counts: int64 `(BINS,)`, number of values in each bin.
        edge: a power of two above every value, or 0 before the first one that is not 0.
        low, high: the extremes.
    """

    def __init__(self):
        self.counts = np.zeros(BINS, np.int64)
        self.edge = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: np.ndarray) -> bool:
        """Count float32 values of any shape; return whether all are finite, without counting any if not."""
        flat = np.ascontiguousarray(values).reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not math.isfinite(low) or not math.isfinite(high):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        if not self.edge:
            self.counts[BINS // 2] += flat.size
            return True
        factor = np.float32(BINS / (2 * self.edge))
        for start in range(0, flat.size, _PIECE):
            places = (flat[start : start + _PIECE] * factor + np.float32(BINS // 2)).astype(np.int32)
            self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)
        return True

    def _grow(self, largest: float) -> None:
        """Double the edge until it is above a value; two bins become one each time."""
        if largest and not self.edge:
            # What was counted before is 0, whatever the edge.
            self.edge = max(2.0 ** math.floor(math.log2(largest) + 1), _LEAST_EDGE)
        while largest >= self.edge > 0:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.edge *= 2

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64."""
        return (np.arange(BINS) + 0.5 - BINS // 2) * (2 * self.edge / BINS)

    def quantile(self, share: float) -> float:
        """Return the value below which a share of all values lies, interpolated inside its bin."""
        below = np.cumsum(self.counts)
        wanted = share * below[-1]
        place = int(np.searchsorted(below, wanted))
        inside = (wanted - (below[place] - self.counts[place])) / max(self.counts[place], 1)
        value = (place + inside - BINS // 2) * (2 * self.edge / BINS)
        return min(max(value, self.low), self.high)


class PatchMean:
    """The mean of the patches that a layer multiplies with its weights.

    Args:
        kernel: height and width of a convolution whose stride is the size of its kernel; None for a linear layer.
    """

    def __init__(self, kernel: tuple[int, int] | None):
        self.kernel = kernel
        self._sum = np.zeros(())
        self._count = 0

    def add(self, values: np.ndarray) -> None:
        """Add values `(N, C, H, W)`, or `(N, C)` for a linear layer."""
        if self.kernel is None:
            total, count = values.sum(0, np.float64), len(values)
        else:
            (n, c, h, w), (kh, kw) = values.shape, self.kernel
            patches = values[:, :, : h // kh * kh, : w // kw * kw].reshape(n, c, h // kh, kh, w // kw, kw)
            # NumPy adds neighbours in float32 pairwise; pieces of a row are summed in float64.
            total, count = patches.sum((2, 4), np.float64).sum(0), n * (h // kh) * (w // kw)
        self._sum = self._sum + total
        self._count += count

    @property
    def mean(self) -> np.ndarray:
        """The mean, float64 `(C, height, width)` or `(C,)`: the shape of a row of weights."""
        return self._sum / self._count
