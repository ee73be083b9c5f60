"""Parity of an exported file with the original network: both run on the same images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from neonext_ms.common.errors import ParityError

from ..tolerances import TOLERANCES
from .difference import difference, top1_agreement

_PIECE = 1 << 22


@dataclass(frozen=True)
class Parity:
    """Deviation of two sets of logits.

    Attributes:
        samples: number of images compared.
        max_abs: largest absolute difference of a logit.
        max_logit: largest absolute logit of the reference.
        relative_l2: norm of the difference over the norm of the reference.
        top1_agree: number of images whose best class is the same, or whose two best classes tie within the tolerance.
        tolerance: relative deviation that passes.
    """

    samples: int
    max_abs: float
    max_logit: float
    relative_l2: float
    top1_agree: int
    tolerance: float = TOLERANCES["float32"]

    @property
    def relative_max(self) -> float:
        """`max_abs / max_logit`."""
        return self.max_abs / self.max_logit if self.max_logit else self.max_abs

    def agrees(self, tolerance: float | None = None) -> bool:
        """Return whether both relative deviations are within a tolerance and every best class agrees.

        Args:
            tolerance: relative deviation that passes (default: the one of the comparison).
        """
        limit = self.tolerance if tolerance is None else tolerance
        return self.top1_agree == self.samples and max(self.relative_l2, self.relative_max) <= limit

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return {**asdict(self), "relative_max": self.relative_max}


def compare(reference: np.ndarray, candidate: np.ndarray, tolerance: float = TOLERANCES["float32"]) -> Parity:
    """Compare logits.

    Args:
        reference: logits of the network, `(N, classes)`.
        candidate: logits of the exported file, likewise.
        tolerance: relative deviation that passes; it decides which classes tie.

    Raises:
        ParityError: different shapes, or values that are not finite.
    """
    if reference.shape != candidate.shape:
        raise ParityError(f"the outputs have shape {candidate.shape}, expected {reference.shape}")
    for name, values in (("the network", reference), ("the exported file", candidate)):
        if not np.isfinite(values).all():
            raise ParityError(f"{name} gives values that are not finite numbers. Check the weights.")
    apart = difference("logits", reference, candidate)
    top1 = top1_agreement(reference, candidate, tolerance)
    return Parity(apart.samples, apart.max_abs, apart.max_value, apart.relative_l2, top1, tolerance)


def noise(samples: int, image_size: tuple[int, int], seed: int) -> np.ndarray:
    """Return standard normal images, float32 `(samples, 3, H, W)`, the same for the same seed."""
    random = np.random.RandomState(seed)
    images = np.empty((samples, 3, *image_size), np.float32)
    # In pieces, which give the same numbers: a signal is handled after each, and no float64 copy of all is made.
    flat = images.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        piece[:] = random.standard_normal(piece.size)
    return images
