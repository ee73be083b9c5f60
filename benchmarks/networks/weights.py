"""Seeded random weights by name: the same for every form of a network, whatever order they are asked for in."""

from __future__ import annotations

import math
import zlib

import numpy as np

BATCH_NORM_EPS = 1e-5
STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Weights:
    """Random float32 arrays whose values stay of order one through a deep network, in float16 too.

    Args:
        seed: of all of them.
    """

    def __init__(self, seed: int = 0):
        self._seed = seed

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])

    def matrix(self, name: str, shape: tuple[int, ...], gain: float = math.sqrt(2)) -> np.ndarray:
        """Weights `(out, in, ...)` of a linear layer or convolution: normal, of deviation `gain / sqrt(inputs)`."""
        deviation = gain / math.sqrt(math.prod(shape[1:]))
        return self._generator(name).standard_normal(shape, np.float32) * np.float32(deviation)

    def vector(self, name: str, size: int, mean: float = 0.0, deviation: float = 0.1) -> np.ndarray:
        """A bias, a scale or an embedding: normal."""
        values = self._generator(name).standard_normal(size, np.float32)
        return values * np.float32(deviation) + np.float32(mean)

    def batch_norm(self, name: str, channels: int, scale: float = 1.0) -> dict[str, np.ndarray]:
        """The four arrays of a BatchNorm by their names in PyTorch, away from neutral, around `scale`."""
        weight = self.vector(f"{name}.weight", channels, scale, 0.2 * scale)
        variance = np.abs(self.vector(f"{name}.running_var", channels, 1.0, 0.2)) + np.float32(0.2)
        bias, mean = (self.vector(f"{name}.{key}", channels) for key in ("bias", "running_mean"))
        return dict(zip(STATISTICS, (weight, bias, mean, variance), strict=True))
