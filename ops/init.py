"""NeoInit: algorithm 1 (section 3.7) of the paper, the initialisation of NeoCell's matrices."""

from __future__ import annotations

import numpy as np


def skewed_identity(rows: int, columns: int) -> np.ndarray:
    """The matrix that a NeoCell starts from, float32 `(rows, columns)`.

    Square: the identity. Wide (`columns > rows`, such as a 1x2 matrix that halves a map): row i averages the
    `round(columns / rows)` inputs that begin at i times that step. Tall: the transpose of that, each column an
    average over its outputs, as in the official code. The last step is cut off at the edge of the matrix.
    """
    small, large = sorted((rows, columns))
    step = round(large / small)
    wide = np.zeros((small, large), np.float32)
    for i in range(small):
        part = wide[i, i * step : (i + 1) * step]
        # A step that rounds up can leave the last rows nothing; they stay zero instead of 0 / 0.
        if part.size:
            part[:] = 1 / part.size
    return wide if columns >= rows else np.ascontiguousarray(wide.T)


def neo_init(shape: tuple[int, int, int], rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
    """Matrices for one channel group: skewed identity plus normal noise of deviation 1 / sqrt(rows * columns).

    Args:
        shape: `(channels, rows, columns)`.
        rng: source of the noise.

    Returns:
        float32 array of that shape.
    """
    channels, rows, columns = shape
    noise = rng.standard_normal((channels, rows, columns)).astype(np.float32)
    return skewed_identity(rows, columns) + noise / np.float32(np.sqrt(rows * columns))
