"""NeoCell coefficients as a vector kernel reads them: `[phase][tap][channel]`, shifts and block edges folded in.

Output row `i` of channel `c` reads rows `i - k + 1 .. i + k - 1` of the map, and which of them count, and with what
weight, repeats with `i mod k`. So a block-diagonal product is a periodic filter:

    y[c, i] = sum over t of coef[i mod k, t, c] * x[c, i + t - (K - 1)]

with rows outside the map counted as zero. `K` is the largest matrix size of the NeoCell; a group with a smaller one
uses the first `k` phases and the middle `2k - 1` taps, and the rest is zero. Both sides use the same form: A over the
rows, B over the columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .spec import Axis, NeoCellSpec


def pack(
    spec: NeoCellSpec, weights_a: Sequence[np.ndarray], weights_b: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Learned matrices as coefficients.

    Args:
        spec: the geometry; square matrices only.
        weights_a: learned A, one `(channels, k, k)` per group.
        weights_b: learned B, likewise.

    Returns:
        `coef_a` and `coef_b`, `(K, 2 K - 1, channels)` with the largest K of the side, in the dtype of the matrices.

    Raises:
        InputError: a matrix is not square, or the weights are not of this spec.
    """
    spec.check_shapes([w.shape for w in weights_a], [w.shape for w in weights_b])
    for group in spec.groups:
        if not (group.axis_a.square and group.axis_b.square):
            raise InputError(
                f"NeoCell: A of {group.h_out}x{group.h_in} and B of {group.w_in}x{group.w_out} cannot be packed; "
                "expected square matrices: fold a NeoCell that changes the size of its map into a convolution"
            )
    return (
        _pack([group.axis_a for group in spec.groups], weights_a),
        _pack([group.axis_b for group in spec.groups], [w.transpose(0, 2, 1) for w in weights_b]),
    )


def _pack(axes: Sequence[Axis], weights: Sequence[np.ndarray]) -> np.ndarray:
    largest = max(axis.k_in for axis in axes)
    channels = sum(axis.channels for axis in axes)
    coefficients = np.zeros((largest, 2 * largest - 1, channels), weights[0].dtype)
    start = 0
    for axis, small in zip(axes, weights, strict=True):
        k = axis.k_in
        channel = np.arange(axis.channels)[:, None, None]
        # Row and tap of every element of the small matrices: element (p, q) acts from row r + q - p to row r, where
        # r = (p + shift) mod k.
        p, q = np.arange(k)[:, None], np.arange(k)
        phase = (p + axis.shifts[:, None, None]) % k
        coefficients[phase, largest - 1 + q - p, start + channel] = small
        start += axis.channels
    return coefficients


def unpack(coefficients: np.ndarray, kernels: Sequence[int], channels: Sequence[int], size: int) -> np.ndarray:
    """The whole matrices that coefficients stand for.

    Args:
        coefficients: `(K, 2 K - 1, C)`, as `pack` makes them.
        kernels: matrix size of each group.
        channels: channels of each group.
        size: rows (A) or columns (B) of the map.

    Returns:
        `(C, size, size)` in the same dtype, with outputs along axis 1 and inputs along axis 2, for A and B alike.

    Raises:
        InputError: the arguments contradict each other.
    """
    coefficients = np.asarray(coefficients)
    largest = max(kernels, default=0)
    expected = (largest, 2 * largest - 1, sum(channels))
    if len(kernels) != len(channels) or min(kernels, default=0) < 1 or coefficients.shape != expected:
        raise InputError(
            f"NeoCell: coefficients {coefficients.shape} do not belong to groups of {list(channels)} channels with "
            f"matrices of {list(kernels)}; expected {expected}"
        )
    rows, columns = np.arange(size)[:, None], np.arange(size)
    tap = columns - rows + largest - 1
    inside = (tap >= 0) & (tap < 2 * largest - 1)
    whole = np.zeros((expected[2], size, size), coefficients.dtype)
    start = 0
    for k, count in zip(kernels, channels, strict=True):
        group = slice(start, start + count)
        values = coefficients[rows % k, np.where(inside, tap, 0), group].transpose(2, 0, 1)
        whole[group] = np.where(inside, values, 0)
        start += count
    return whole
