"""NeoInit: the initialization of NeoCell's matrices (algorithm 1, section 3.7 of the paper)."""

from __future__ import annotations

import numpy as np


def skewed_identity(rows: int, columns: int) -> np.ndarray:
    """Return the matrix that NeoInit adds noise to, float32 `(rows, columns)`.

    A square matrix is the identity. A wide one (`columns > rows`, such as the 1x2 matrix that halves a map) averages
    in row i the `round(columns / rows)` inputs that start at i times that step. A tall one is the transpose of the
    wide one, so that each column is an average over its outputs, as in the official code. The last step is cut off at
    the edge of the matrix.
    """
    small, large = sorted((rows, columns))
    step = round(large / small)
    wide = np.zeros((small, large), np.float32)
    for i in range(small):
        part = wide[i, i * step : (i + 1) * step]
        # A step that rounds up can leave nothing for the last rows; they stay zero instead of 0 / 0.
        if part.size:
            part[:] = 1 / part.size
    return wide if columns >= rows else np.ascontiguousarray(wide.T)


def neo_init(shape: tuple[int, int, int], rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
    """Return initial matrices: the skewed identity plus normal noise of deviation 1 / sqrt(rows * columns).

    Args:
        shape: `(channels, rows, columns)` of one channel group.
        rng: source of the noise.

    Returns:
        float32 array of that shape.
    """
    channels, rows, columns = shape
    noise = rng.standard_normal((channels, rows, columns)).astype(np.float32)
    return skewed_identity(rows, columns) + noise / np.float32(np.sqrt(rows * columns))
