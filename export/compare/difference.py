"""The formulas of every comparison: how far two arrays are apart, and how often their best classes agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from neonext_ms.common.errors import InputError

# Numbers that are compared at once.
_SLICE = 1 << 22


@dataclass(frozen=True)
class Difference:
    """Deviation of one named value from its reference.

    Attributes:
        name: name of the value.
        shape: shape without the batch axis.
        samples: number of images compared.
        max_abs: largest absolute difference; infinite unless all numbers are finite.
        max_value: largest absolute number of the reference.
        relative_l2: norm of the difference over the norm of the reference; infinite likewise.
        cosine: cosine similarity of the two; 0 likewise.
        not_finite: count of numbers on either side that are not finite.
        sources: compared values that this one is computed from.
        before: largest `relative_l2` of `sources`.
        after: largest `relative_l2` of the compared values that are computed from this one; None if there are none.
    """

    name: str
    shape: tuple[int, ...]
    samples: int
    max_abs: float
    max_value: float
    relative_l2: float
    cosine: float
    not_finite: int = 0
    before: float = 0.0
    after: float | None = None
    sources: tuple[str, ...] = ()

    @property
    def added(self) -> float:
        """Deviation that the layer itself adds, `sqrt(relative_l2^2 - before^2)`, as far as it lasts."""
        if not math.isfinite(self.before):
            return 0.0
        return self._lasting(math.sqrt(max(self.relative_l2**2 - self.before**2, 0.0)))

    @property
    def lasting(self) -> float:
        """`relative_l2` as far as it lasts."""
        return self._lasting(self.relative_l2)

    def _lasting(self, deviation: float) -> float:
        # The mean inside a LayerNorm is close to 0 and far off relative to that, but none of it reaches the next value.
        return deviation if self.after is None else min(deviation, self.after)

    def to_dict(self) -> dict:
        """Return plain values for JSON, with null for numbers that are not finite."""
        numbers = {
            "max_abs": self.max_abs,
            "max_value": self.max_value,
            "relative_l2": self.relative_l2,
            "cosine": self.cosine,
            "before": self.before,
            "added": self.added,
        }
        return {
            "name": self.name,
            "shape": list(self.shape),
            "samples": self.samples,
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "not_finite": self.not_finite,
        }


def difference(name: str, reference: np.ndarray, value: np.ndarray) -> Difference:
    """Compare two arrays of the same shape, batch axis first, in float64.

    Raises:
        InputError: different shapes.
    """
    if reference.shape != value.shape:
        raise InputError(f"{name}: shapes {reference.shape} and {value.shape} cannot be compared")
    squares = np.zeros(3)
    product = max_abs = max_value = 0.0
    not_finite = 0
    # A few images at once, because float64 copies of whole batches of maps take gigabytes.
    step = max(1, _SLICE // max(reference[:1].size, 1))
    for start in range(0, len(reference), step):
        one, other = (side[start : start + step].astype(np.float64) for side in (reference, value))
        not_finite += int(one.size - np.isfinite(one).sum() + other.size - np.isfinite(other).sum())
        max_value = max(max_value, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
        if not_finite:
            continue
        error = other - one
        squares += [np.vdot(error, error), np.vdot(one, one), np.vdot(other, other)]
        product += float(np.vdot(one, other))
        max_abs = max(max_abs, float(np.abs(error).max(initial=0.0)))
    shape, samples = reference.shape[1:], len(reference)
    if not_finite:
        return Difference(name, shape, samples, math.inf, max_value, math.inf, 0.0, not_finite)
    error_norm, norm, other_norm = map(math.sqrt, squares)
    relative = error_norm / norm if norm else error_norm
    return Difference(
        name=name,
        shape=shape,
        samples=samples,
        max_abs=max_abs,
        max_value=max_value,
        # Squares of float64 numbers can overflow; NaN would compare as no deviation.
        relative_l2=math.inf if math.isnan(relative) else relative,
        cosine=min(product / (norm * other_norm), 1.0) if norm and other_norm else float(error_norm == 0),
    )


def top1_agreement(reference: np.ndarray, value: np.ndarray, tolerance: float = 0.0) -> int:
    """Count the images whose best class is the same, or whose two best classes tie within the tolerance.

    Args:
        reference: logits (N, classes).
        value: logits to compare, likewise.
        tolerance: relative deviation that passes. Each of two logits may be off by that much of the largest.
    """
    reference = reference.astype(np.float64)
    rows = np.arange(len(reference))
    margin = reference[rows, reference.argmax(1)] - reference[rows, value.argmax(1)]
    return int((margin <= 2 * tolerance * np.abs(reference).max(initial=0.0)).sum())
