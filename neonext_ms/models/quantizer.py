"""`Quantizer`: float values as 8-bit numbers, and steps whose division and multiplication agree on every float32 value.

    q = clip(round(x / scale) + offset, -128, 127)      QuantizeLinear, rounding to nearest even
    q = clip(round(x * reciprocal + offset), -128, 127)  AscendQuant

The two differ where `x / scale` and `x * reciprocal` lie on different sides of the middle between two numbers, which
happens to about one value in 10^5 for an arbitrary scale. `Quantizer.near` takes a scale close to the wanted one for
which it happens to no float32 value at all, and an even offset, so that exact middles are rounded alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from neonext_ms.common.errors import InputError

LOWEST, HIGHEST = -128, 127
# A bias is an int32 in steps of the accumulator; the sum of the products needs the rest of its range.
MAX_BIAS = 2.0**30
# Candidates on each side of a wanted scale: at most 0.1 % of it.
_WINDOW = 1 << 12
_TRIED = 64
# The least step of weights and accumulators, far above the numbers that lose digits or that devices take for 0.
MIN_STEP = 2.0**-100
# Scales outside of these bounds have no reciprocal, or no product with a weight's scale, in float32.
MIN_SCALE, MAX_SCALE = 1e-20, 1e20


@dataclass(frozen=True)
class Quantizer:
    """The quantization of a tensor: one step, and the number that stands for 0.

    Attributes:
        scale: step between two numbers, a float32 value.
        offset: number that stands for 0.0, even, from -128 to 126.
    """

    scale: float
    offset: int

    @property
    def reciprocal(self) -> float:
        """`1 / scale`, rounded to float32."""
        return float(np.float32(1) / np.float32(self.scale))

    @classmethod
    def near(cls, scale: float, offset: int) -> Quantizer:
        """Return the quantizer closest to a wanted scale whose two forms agree on every float32 value.

        Args:
            scale: wanted step.
            offset: number that stands for 0.0.

        Raises:
            InputError: a scale or an offset out of range.
        """
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise InputError(f"scale {scale:g}: expected a number from {MIN_SCALE:g} to {MAX_SCALE:g}")
        if offset % 2 or not LOWEST <= offset < HIGHEST:
            raise InputError(f"offset {offset}: expected an even number from {LOWEST} to {HIGHEST - 1}")
        # A scale of an earlier export stays what it is, so that a later one computes the same integers.
        kept = float(np.float32(scale)) == scale and agrees(scale)
        return cls(float(scale) if kept else _agreeing_scale(scale), int(offset))

    @classmethod
    def for_range(cls, low: float, high: float) -> Quantizer:
        """Return a quantizer whose numbers reach from `low` to `high`; 0 is one of them.

        Args:
            low: smallest value to represent; at most 0 is used.
            high: largest value to represent; at least 0 is used.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        middle = 2 * round((LOWEST - low / max((high - low) / (HIGHEST - LOWEST), MIN_SCALE)) / 2)
        # An even offset makes one side longer than needed; the best one loses least.
        offsets = [offset for offset in (middle - 2, middle, middle + 2) if LOWEST <= offset < HIGHEST]
        return cls.near(*min((_covering_scale(low, high, offset), offset) for offset in offsets))

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Return float values as 8-bit numbers, as QuantizeLinear computes them; float64 inside."""
        return np.clip(np.rint(np.asarray(x, np.float64) / self.scale) + self.offset, LOWEST, HIGHEST).astype(np.int8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Return the float64 values that numbers stand for."""
        return (codes.astype(np.float64) - self.offset) * self.scale


def largest_weight(bits: int) -> int:
    """Return the largest number of a weight in some bits: 127 in 8, 7 in 4."""
    return int(2 ** (bits - 1)) - 1


def pairs_fit(bits: int) -> bool:
    """Return whether two products of uint8 numbers with weights in some bits fit into 16 bits together."""
    return 2 * (HIGHEST - LOWEST) * largest_weight(bits) < 1 << 15


def least_step(quantizer: Quantizer) -> float:
    """Return the least step of weights behind a quantizer, so that it and that of their products are normal numbers."""
    return MIN_STEP * max(1.0, 1.0 / quantizer.scale)


def _covering_scale(low: float, high: float, offset: int) -> float:
    """Return the smallest step with which the numbers around an offset reach both ends of a range."""
    below = low / (LOWEST - offset) if offset > LOWEST else 0.0 if low == 0 else np.inf
    return max(high / (HIGHEST - offset), below)


@functools.lru_cache(4096)
def _agreeing_scale(scale: float) -> float:
    """Return the closest float32 scale with `agrees`."""
    wanted = np.float32(scale).view(np.uint32)
    # An even mantissa makes exact middles of several values, which `reciprocal` cannot hit.
    bits = (np.arange(-_WINDOW, _WINDOW, 2) + int(wanted | 1)).astype(np.uint32)
    scales = bits.view(np.float32).astype(np.float64)
    reciprocals = (np.float32(1) / scales.astype(np.float32)).astype(np.float64)
    error = scales * reciprocals - 1.0
    # The one middle that no scale avoids, scale / 2, rounds down to even, so the reciprocal has to err to that side.
    order = np.argsort(np.where(error <= 0, -error, np.inf), kind="stable")[:_TRIED]
    for place in sorted(order, key=lambda i: abs(i - len(bits) // 2)):
        if agrees(float(scales[place])):
            return float(scales[place])
    raise InputError(f"scale {scale:g}: no step near it has an exact reciprocal. Choose another one.")


def agrees(scale: float) -> bool:
    """Return whether both forms give the same number for every float32 value, whatever the (even) offset.

    Both are step functions that rise where `x` passes the middle between two numbers, so the float32 values next to
    each middle decide for all others.
    """
    reciprocal = float(np.float32(1) / np.float32(scale))
    middles = np.arange(HIGHEST - LOWEST + 1) + 0.5
    nearest = (middles * scale).astype(np.float32)
    for x in (np.nextafter(nearest, np.float32(0)), nearest, np.nextafter(nearest, np.float32(np.inf))):
        exact = x.astype(np.float64)
        # Both are odd functions of x. An even offset is added after or before rounding with the same result.
        if not (np.rint(exact / scale) == np.rint(exact * reciprocal)).all():
            return False
    return True
