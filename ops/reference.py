"""NeoCell in float64 NumPy, twice: patch by patch (equation 1) and as block-diagonal products (equation 2).

Short enough to read beside the paper; every other implementation is tested against it, and each form against the
other. All arrays are converted to float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .spec import NeoCellSpec

Matrices = Sequence[np.ndarray]


def forward(x: np.ndarray, weights_a: Matrices, weights_b: Matrices, spec: NeoCellSpec, bias=None) -> np.ndarray:
    """Block-diagonal form, `Y_c = A_c X_c B_c + bias_c` (equation 2; the optional bias is that of section 3.1).

    Args:
        x: `(N, C, H, W)`.
        weights_a: one `(channels, h_out, h_in)` per group.
        weights_b: one `(channels, w_in, w_out)` per group.
        spec: the geometry.
        bias: `(C,)` or None.

    Returns:
        float64 `(N, C, H_out, W_out)`.
    """
    a, b = _matrices(x, weights_a, weights_b, spec)
    y = a @ np.asarray(x, np.float64) @ b
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None, None]


def backward(
    x: np.ndarray, weights_a: Matrices, weights_b: Matrices, spec: NeoCellSpec, dy: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Gradients of the block-diagonal form.

    dX = A' dY B', dA = sum_n dY B' X', dB = sum_n (A X)' dY; the whole-matrix gradients are then summed over the
    places that share a small matrix.

    Args:
        x, weights_a, weights_b, spec: as in `forward`.
        dy: upstream gradient `(N, C, H_out, W_out)`.

    Returns:
        float64 `dx (N, C, H, W)`, `dA` and `dB` per group in the shapes of the weights, `dbias (C,)`.
    """
    a, b = _matrices(x, weights_a, weights_b, spec)
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    d_ax = dy @ _t(b)
    d_a = (d_ax @ _t(x)).sum(0)
    d_b = (_t(a @ x) @ dy).sum(0)
    small_a = [g.axis_a.block_sum(d_a[where]) for g, where in spec.slices()]
    small_b = [_t(g.axis_b.block_sum(_t(d_b[where]))) for g, where in spec.slices()]
    return _t(a) @ d_ax, small_a, small_b, dy.sum((0, 2, 3))


def forward_patchwise(x, weights_a: Matrices, weights_b: Matrices, spec: NeoCellSpec, bias=None) -> np.ndarray:
    """Equation 1: each patch P of a channel becomes `L P R`, patches tiling the (shifted) map.

    Arguments and result as in `forward`.
    """
    x = np.asarray(x, np.float64)
    y = np.zeros((*x.shape[:2], *spec.output_size(*x.shape[2:])))
    for channel, left, right, rows, columns in _patches(spec, weights_a, weights_b, x.shape, y.shape):
        for i_in, i_out, pi, po in rows:
            for j_in, j_out, qi, qo in columns:
                patch = x[:, channel, i_in, j_in]
                y[:, channel, i_out, j_out] += left[po, pi] @ patch @ right[qi, qo]
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None, None]


def backward_patchwise(x, weights_a: Matrices, weights_b: Matrices, spec: NeoCellSpec, dy):
    """Gradients of equation 1, patch by patch; arguments and results as in `backward`."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    dx = np.zeros_like(x)
    d_a = np.zeros((spec.channels, *np.max([s[1:] for s in spec.shapes_a], axis=0)))
    d_b = np.zeros((spec.channels, *np.max([s[1:] for s in spec.shapes_b], axis=0)))
    for channel, left, right, rows, columns in _patches(spec, weights_a, weights_b, x.shape, dy.shape):
        for i_in, i_out, pi, po in rows:
            for j_in, j_out, qi, qo in columns:
                patch, upstream = x[:, channel, i_in, j_in], dy[:, channel, i_out, j_out]
                dx[:, channel, i_in, j_in] += left[po, pi].T @ upstream @ right[qi, qo].T
                d_a[channel, po, pi] += (upstream @ right[qi, qo].T @ _t(patch)).sum(0)
                d_b[channel, qi, qo] += (_t(left[po, pi] @ patch) @ upstream).sum(0)
    small_a = [d_a[where, : g.h_out, : g.h_in] for g, where in spec.slices()]
    small_b = [d_b[where, : g.w_in, : g.w_out] for g, where in spec.slices()]
    return dx, small_a, small_b, dy.sum((0, 2, 3))


def _patches(spec, weights_a, weights_b, shape_in, shape_out):
    """Per channel: its small matrices in float64 and the patches along rows and along columns."""
    spec.check_shapes([np.shape(w) for w in weights_a], [np.shape(w) for w in weights_b])
    for index, (group, where) in enumerate(spec.slices()):
        for i in range(group.channels):
            yield (
                where.start + i,
                np.asarray(weights_a[index][i], np.float64),
                np.asarray(weights_b[index][i], np.float64),
                list(_tiles(group.axis_a, int(group.axis_a.shifts[i]), shape_in[2], shape_out[2])),
                list(_tiles(group.axis_b, int(group.axis_b.shifts[i]), shape_in[3], shape_out[3])),
            )


def _tiles(axis, shift: int, size_in: int, size_out: int):
    """Tiles of one axis, clipped to the map: slices of input and output, and the parts of the matrix they meet."""
    block = -1 if shift else 0
    while block * axis.k_in + shift < size_in and block * axis.k_out + shift < size_out:
        start_in, start_out = block * axis.k_in + shift, block * axis.k_out + shift
        first_in, last_in = max(start_in, 0), min(start_in + axis.k_in, size_in)
        first_out, last_out = max(start_out, 0), min(start_out + axis.k_out, size_out)
        yield (
            slice(first_in, last_in),
            slice(first_out, last_out),
            slice(first_in - start_in, last_in - start_in),
            slice(first_out - start_out, last_out - start_out),
        )
        block += 1


def _matrices(x, weights_a, weights_b, spec):
    a = [np.asarray(w, np.float64) for w in weights_a]
    b = [np.asarray(w, np.float64) for w in weights_b]
    return spec.matrices(a, b, *np.shape(x)[2:])


def _t(matrix: np.ndarray) -> np.ndarray:
    return matrix.swapaxes(-1, -2)
