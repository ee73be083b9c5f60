"""Seeded random weights by name: the same for every form of a network, in whatever order they are requested."""

from __future__ import annotations

import math
import zlib

import numpy as np

BATCH_NORM_EPS = 1e-5
STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Weights:
    """Random float32 arrays that keep the values of a deep network far from the limits of float16.

    Args:
        seed: random seed of all arrays.
        keep: keep the arrays in `arrays`.

    Attributes:
        arrays: every array that was requested, by name: the state dict of the PyTorch module.
    """

    def __init__(self, seed: int = 0, keep: bool = False):
        self._seed, self._keep = seed, keep
        self.arrays: dict[str, np.ndarray] = {}

    def _normal(self, name: str, shape, deviation: float, mean: float = 0.0) -> np.ndarray:
        generator = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        array = generator.standard_normal(shape, np.float32)
        array *= np.float32(deviation)
        array += np.float32(mean)
        if self._keep:
            self.arrays[name] = array
        return array

    def matrix(self, name: str, shape: tuple[int, ...], gain: float = math.sqrt(2)) -> np.ndarray:
        """Return `(out, in, ...)` of a linear layer or convolution: normal, of deviation `gain / sqrt(inputs)`."""
        return self._normal(name, shape, gain / math.sqrt(math.prod(shape[1:])))

    def vector(self, name: str, size: int, mean: float = 0.0, deviation: float = 0.1) -> np.ndarray:
        """Return a bias, a scale or an embedding: normal."""
        return self._normal(name, size, deviation, mean)

    def batch_norm(self, name: str, channels: int, scale: float = 1.0) -> dict[str, np.ndarray]:
        """Return the four arrays of a BatchNorm by their names in PyTorch, away from neutral, around `scale`."""
        weight = self.vector(f"{name}.weight", channels, scale, 0.2 * scale)
        variance = self.vector(f"{name}.running_var", channels, 1.0, 0.2)
        np.maximum(variance, np.float32(0.2), out=variance)
        bias, mean = (self.vector(f"{name}.{key}", channels) for key in ("bias", "running_mean"))
        return dict(zip(STATISTICS, (weight, bias, mean, variance), strict=True))
