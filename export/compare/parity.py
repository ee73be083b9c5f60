"""Proof that an emitted file computes what the network computes: both ends run on the same images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from neonext_ms.common.errors import ParityError
from neonext_ms.runtime.classifier import Classifier

# Float32 against float32. Measured deviations are around 1e-6; a wrong epsilon already makes 4e-5.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Parity:
    """How far two sets of logits are apart.

    Attributes:
        samples: images compared.
        max_abs: largest absolute difference of a logit.
        max_logit: largest absolute logit of the reference.
        relative_l2: norm of the difference over the norm of the reference.
        top1_agree: images whose best class is the same, or whose two best classes tie within the tolerance.
    """

    samples: int
    max_abs: float
    max_logit: float
    relative_l2: float
    top1_agree: int

    @property
    def relative_max(self) -> float:
        """`max_abs / max_logit`."""
        return self.max_abs / self.max_logit if self.max_logit else self.max_abs

    def holds(self, tolerance: float = TOLERANCE) -> bool:
        """Whether both relative deviations are within the tolerance and every best class agrees."""
        return self.top1_agree == self.samples and max(self.relative_l2, self.relative_max) <= tolerance

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {**asdict(self), "relative_max": self.relative_max}


def compare(reference: np.ndarray, candidate: np.ndarray, tolerance: float = TOLERANCE) -> Parity:
    """Compare logits.

    Args:
        reference: `(N, classes)`.
        candidate: likewise.
        tolerance: relative deviation that passes; it decides what counts as a tie.

    Raises:
        ParityError: another shape, or values that are not finite.
    """
    if reference.shape != candidate.shape:
        raise ParityError(f"the outputs have shape {candidate.shape}, expected {reference.shape}")
    for name, values in (("the network", reference), ("the emitted file", candidate)):
        if not np.isfinite(values).all():
            raise ParityError(f"{name} gives values that are not finite numbers; are the weights in order?")
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    difference = np.abs(candidate - reference)
    largest = float(difference.max(initial=0.0))
    norm = float(np.linalg.norm(reference))
    max_logit = float(np.abs(reference).max(initial=0.0))
    rows = np.arange(len(reference))
    margin = reference[rows, reference.argmax(1)] - reference[rows, candidate.argmax(1)]
    return Parity(
        samples=len(reference),
        max_abs=largest,
        max_logit=max_logit,
        relative_l2=float(np.linalg.norm(candidate - reference)) / norm if norm else largest,
        top1_agree=int((margin <= 2 * tolerance * max_logit).sum()),
    )


def noise(samples: int, image_size: tuple[int, int], seed: int) -> np.ndarray:
    """Standard normal images, float32 `(samples, 3, H, W)`, the same for the same seed."""
    return np.random.RandomState(seed).standard_normal((samples, 3, *image_size)).astype(np.float32)


def run(runtime: Classifier, images: np.ndarray) -> np.ndarray:
    """Logits of a runtime: the first image alone, the others together, so that a dynamic batch is exercised."""
    return np.concatenate([runtime.run(images[:1]), runtime.run(images[1:])])
