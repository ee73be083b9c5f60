"""Ranges of activations from their histograms: which part of the values 256 numbers should stand for.

minmax      every value that was seen
percentile  all but a share of `TAIL` at either end (H. Wu et al., "Integer Quantization for Deep Learning
            Inference", arXiv 2004.09602, section 4: 99.999 % is among the best on every network there)
mse         least mean square error of the quantized values (M. Nagel et al., "A White Paper on Neural Network
            Quantization", arXiv 2106.08295, section 3.1)
entropy     least Kullback-Leibler divergence of the quantized distribution (S. Migacz, "8-bit Inference with
            TensorRT", GTC 2017; without the peak at 0, as in NVIDIA's TensorRT/tools/pytorch-quantization)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neonext_ms.models.quantizer import HIGHEST, LOWEST

from .histogram import BINS, Histogram

TAIL = 1e-5
# Shares of the whole range that a search tries.
_SHARES = np.linspace(1.0, 0.05, 96)
_ROUNDS = 3


def minmax(histogram: Histogram) -> tuple[float, float]:
    """Return the extremes."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> tuple[float, float]:
    """Return the range without a share of `TAIL` at either end."""
    return histogram.quantile(TAIL), histogram.quantile(1 - TAIL)


def mse(histogram: Histogram) -> tuple[float, float]:
    """Return the range of least square error: first both ends are moved together, then each in turn."""
    return _search(histogram, _square_error, alternate=True)


def entropy(histogram: Histogram) -> tuple[float, float]:
    """Return the range of least divergence, with one threshold for both signs as in the source.

    Every range has a number for 0 itself, but the divergence spreads the zeros behind an activation over all that is
    rounded to 0, and would cut off half of the values for a smaller step. The bins at 0 count as much as those beside.
    """
    counts, zero = histogram.counts.copy(), slice(BINS // 2 - 1, BINS // 2 + 1)
    counts[zero] = np.minimum(counts[zero], max(counts[zero.start - 1], counts[zero.stop]))
    width = 2 * histogram.edge / BINS

    def loss(counts: np.ndarray, centres: np.ndarray, low: float, high: float) -> float:
        # Numbers finer than the bins have no divergence, whatever they are worth, nor has a range with a single bin.
        kept = counts[(centres >= low) & (centres <= high)].sum()
        if (high - low) / (HIGHEST - LOWEST) < width or kept < counts.sum() / 2:
            return np.inf
        return _divergence(counts, centres, low, high)

    return _search(histogram, loss, alternate=False, counts=counts)


def _search(
    histogram: Histogram,
    loss: Callable[[np.ndarray, np.ndarray, float, float], float],
    alternate: bool,
    counts: np.ndarray | None = None,
) -> tuple[float, float]:
    all_counts = histogram.counts if counts is None else counts
    occupied = np.flatnonzero(all_counts)
    counts, centres = all_counts[occupied].astype(np.float64), histogram.centres[occupied]
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    threshold = max(-low, high)
    ends = [(max(low, -share * threshold), min(high, share * threshold)) for share in _SHARES]
    best = min(ends, key=lambda pair: loss(counts, centres, *pair))
    for _ in range(_ROUNDS if alternate else 0):
        before = best
        best = min(((share * low, best[1]) for share in _SHARES), key=lambda pair: loss(counts, centres, *pair))
        best = min(((best[0], share * high) for share in _SHARES), key=lambda pair: loss(counts, centres, *pair))
        if best == before:
            break
    return best


def _numbers(centres: np.ndarray, low: float, high: float) -> tuple[np.ndarray, float]:
    """Return the numbers of values, counted from that of 0, and the step between them."""
    step = (high - low) / (HIGHEST - LOWEST)
    if step == 0:
        return np.zeros_like(centres), 0.0
    return np.clip(np.rint(centres / step), np.rint(low / step), np.rint(high / step)), step


def _square_error(counts: np.ndarray, centres: np.ndarray, low: float, high: float) -> float:
    numbers, step = _numbers(centres, low, high)
    return float(counts @ (centres - numbers * step) ** 2)


def _divergence(counts: np.ndarray, centres: np.ndarray, low: float, high: float) -> float:
    """Return the divergence of the quantized distribution from the one whose outliers lie at the ends of the range."""
    numbers, step = _numbers(centres, low, high)
    if step == 0:
        return np.inf
    inside = (centres >= low) & (centres <= high)
    if not inside.any():
        return np.inf
    kept = np.where(inside, counts, 0.0)
    clipped = kept.copy()
    first, last = np.flatnonzero(inside)[[0, -1]]
    clipped[first] += counts[centres < low].sum()
    clipped[last] += counts[centres > high].sum()
    # Within a number, the quantized distribution is flat over the bins that have values.
    groups = (numbers - numbers.min()).astype(np.int64)
    totals = np.bincount(groups, kept)
    bins = np.bincount(groups, inside)
    flat = np.where(inside, totals[groups] / np.maximum(bins[groups], 1), 0.0)
    p, q = clipped / clipped.sum(), flat / flat.sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))).sum())


RANGES: dict[str, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
