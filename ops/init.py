"""NeoInit, the initialization of NeoCell's matrices (algorithm 1, section 3.7 of the paper), and its rivals."""

from __future__ import annotations

import numpy as np

# Name -> whether the skewed identity is added, and the reciprocal of the deviation of the noise, of matrices with that
# many rows, columns and outputs. "normal" is the baseline of the paper's Table 3 and the default of the official
# constructor, "noise" is NeoInit without the identity. The matrices printed in Fig. 5 have the noise of "figure5", not
# that of algorithm 1 and of the official code.
INITIALIZATIONS = {
    "neoinit": (True, lambda rows, columns, outputs: np.sqrt(rows * columns)),
    "normal": (False, lambda rows, columns, outputs: np.sqrt(outputs)),
    "noise": (False, lambda rows, columns, outputs: np.sqrt(rows * columns)),
    "figure5": (True, lambda rows, columns, outputs: rows * columns),
}


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
    return initial_matrices(shape, rng, "neoinit", "a")


def initial_matrices(
    shape: tuple[int, int, int], rng: np.random.Generator | np.random.RandomState, name: str, side: str
) -> np.ndarray:
    """Return initial matrices by a name of `INITIALIZATIONS`; all of them take the same numbers from `rng`.

    Args:
        shape: `(channels, rows, columns)` of one channel group.
        rng: source of the noise.
        name: name of the initialization.
        side: "a" for matrices A, whose outputs are their rows, "b" for matrices B, whose outputs are their columns.

    Returns:
        float32 array of that shape.
    """
    channels, rows, columns = shape
    identity, divisor = INITIALIZATIONS[name]
    noise = rng.standard_normal((channels, rows, columns)).astype(np.float32)
    noise /= np.float32(divisor(rows, columns, rows if side == "a" else columns))
    return skewed_identity(rows, columns) + noise if identity else noise
