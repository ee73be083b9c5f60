"""Matrices of a NeoCell for another block size: learned weights as a continuous function (future work of the paper).

A row of a matrix says how the inputs of a block contribute to one output. Two readings of it as a function:

`offset`  of the position of the output in its block, which stretches with the block, and of the distance of the input
          in pixels, which does not. The identity stays the identity, a filter keeps its width. For the same images and
          other blocks.
`scale`   of the positions of output and input, which both stretch: bilinear interpolation on the k x k grid. A filter
          becomes as much wider as the block, and the identity becomes a blur. For images whose resolution grows with
          the blocks.

Both interpolate the sums of the rows linearly, so that an even region keeps its brightness, and return matrices of the
same size unchanged.
"""

from __future__ import annotations

import numpy as np

from neonext_ms.common.errors import InputError

READINGS = ("offset", "scale")


def resample_matrices(matrices: np.ndarray, size: int, reading: str = "offset") -> np.ndarray:
    """Return square matrices for blocks of another size.

    Args:
        matrices: `(channels, k, k)` with outputs as rows: A, or B transposed.
        size: new number of rows and columns.
        reading: "offset" or "scale", see above.

    Returns:
        array `(channels, size, size)` of the same dtype, computed in float64.

    Raises:
        InputError: matrices that are not square, a size below 1, or an unknown reading.
    """
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise InputError(f"resample: matrices are not square (got {matrices.shape}, expected (channels, k, k))")
    if size < 1 or reading not in READINGS:
        raise InputError(
            f"resample: wrong size or reading (got {size} and {reading!r}, expected a size of at least 1 and one of "
            f"{', '.join(READINGS)})"
        )
    rows = _interpolation(matrices.shape[1], size)
    source = matrices.astype(np.float64)
    result = _by_offset(source, rows) if reading == "offset" else _by_scale(source, rows)
    return result.astype(matrices.dtype)


def _interpolation(before: int, after: int) -> np.ndarray:
    """Return `(after, before)`, the shares of the old positions in each new one: linear between centres of pixels."""
    place = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(before)))


def _by_offset(matrices: np.ndarray, rows: np.ndarray) -> np.ndarray:
    size, before = rows.shape
    result = np.zeros((len(matrices), size, size))
    for new, old in np.argwhere(rows):
        # Inputs that a smaller block lacks count as the ones at its edge.
        columns = np.clip(np.arange(before) - old + new, 0, size - 1)
        for column, target in enumerate(columns):
            result[:, new, target] += rows[new, old] * matrices[:, old, column]
    return result


def _by_scale(matrices: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # Each old input is spread over the new ones in shares that add up to 1. One that no new input is near to goes to
    # the nearest.
    columns = rows.T.copy()
    nearest = np.clip((np.arange(len(columns)) * 2 + 1) * rows.shape[0] // (2 * len(columns)), 0, rows.shape[0] - 1)
    empty = columns.sum(1) == 0
    columns[empty, nearest[empty]] = 1
    return rows @ matrices @ (columns / columns.sum(1, keepdims=True))
