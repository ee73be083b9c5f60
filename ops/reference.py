"""NeoCell in float64 NumPy, twice: patch by patch (equation 1) and as block-diagonal products (equation 2).

The code is short enough to read beside the paper. Every other implementation is tested against the block-diagonal
form, and the two forms are tested against each other. All arrays are converted to float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .spec import NeoCellSpec

Matrices = Sequence[np.ndarray]


def forward(x: np.ndarray, weights_a: Matrices, weights_b: Matrices, spec: NeoCellSpec, bias=None) -> np.ndarray:
    """Return `Y_c = A_c X_c B_c + bias_c` for every channel c (equation 2).

    Args:
        x: maps `(N, C, H, W)`.
        weights_a: learned A, one `(channels, h_out, h_in)` per group.
        weights_b: learned B, one `(channels, w_in, w_out)` per group.
        spec: geometry.
        bias: `(C,)`, or one `(channels, h_out, w_out)` per group, which every output patch has (section 3.1); or None.

    Returns:
        float64 `(N, C, H_out, W_out)`.
    """
    a, b = _full_matrices(x, weights_a, weights_b, spec)
    y = a @ np.asarray(x, np.float64) @ b
    if bias is None:
        return y
    if _by_patch(bias):
        return y + spec.bias_map([np.asarray(own, np.float64) for own in bias], *np.shape(x)[2:])
    return y + np.asarray(bias, np.float64)[:, None, None]


def _by_patch(bias) -> bool:
    """Return whether a bias has a number for each value of an output patch, not one per channel."""
    return np.ndim(bias[0]) > 0


def backward(
    x: np.ndarray, weights_a: Matrices, weights_b: Matrices, spec: NeoCellSpec, dy: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return the gradients of the block-diagonal form.

    dX = A' dY B', dA = sum_n dY B' X', dB = sum_n (A X)' dY. The gradients of the full matrices are then summed over
    all places that share an element of a small matrix.

    Args:
        x, weights_a, weights_b, spec: as in `forward`.
        dy: upstream gradient `(N, C, H_out, W_out)`.

    Returns:
        float64 dX `(N, C, H, W)`, dA and dB (lists with one array per group, in the shapes of the weights), dbias
        `(C,)` of a bias by channel; `patch_bias_gradient` has that of the other kind.
    """
    a, b = _full_matrices(x, weights_a, weights_b, spec)
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    d_ax = dy @ _t(b)
    d_a = (d_ax @ _t(x)).sum(0)
    d_b = (_t(a @ x) @ dy).sum(0)
    small_a = [g.axis_a.block_sum(d_a[channels]) for g, channels in spec.slices()]
    # An Axis describes B transposed.
    small_b = [_t(g.axis_b.block_sum(_t(d_b[channels]))) for g, channels in spec.slices()]
    return _t(a) @ d_ax, small_a, small_b, dy.sum((0, 2, 3))


def patch_bias_gradient(spec: NeoCellSpec, dy: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Return the gradients of the bias of output patches (section 3.1): dY summed over images and patches.

    Args:
        spec: geometry.
        dy: upstream gradient `(N, C, H_out, W_out)`.
        height: rows of the input map.
        width: columns of the input map.

    Returns:
        float64, one `(channels, h_out, w_out)` per group.
    """
    total = np.asarray(dy, np.float64).sum(0)
    return [
        _t(group.axis_a.repetition(height, dy.shape[2]))
        @ total[channels]
        @ group.axis_b.repetition(width, dy.shape[3]).astype(np.float64)
        for group, channels in spec.slices()
    ]


def forward_patchwise(x, weights_a: Matrices, weights_b: Matrices, spec: NeoCellSpec, bias=None) -> np.ndarray:
    """Compute equation 1: each patch P of a channel becomes `L P R`, where the patches tile the (shifted) map.

    The arguments and the result are those of `forward`.
    """
    x = np.asarray(x, np.float64)
    y = np.zeros((*x.shape[:2], *spec.output_size(*x.shape[2:])))
    patch_bias = [own for group in bias for own in group] if bias is not None and _by_patch(bias) else None
    for channel, left, right, rows, columns in _patches(spec, weights_a, weights_b, x.shape, y.shape):
        for i_in, i_out, pi, po in rows:
            for j_in, j_out, qi, qo in columns:
                patch = x[:, channel, i_in, j_in]
                y[:, channel, i_out, j_out] += left[po, pi] @ patch @ right[qi, qo]
                if patch_bias is not None:
                    y[:, channel, i_out, j_out] += patch_bias[channel][po, qo]
    return y if bias is None or patch_bias is not None else y + np.asarray(bias, np.float64)[:, None, None]


def _patches(spec, weights_a, weights_b, shape_in, shape_out):
    """Yield each channel with its small matrices in float64 and its patches along the rows and along the columns."""
    spec.check_shapes([np.shape(w) for w in weights_a], [np.shape(w) for w in weights_b])
    for index, (group, channels) in enumerate(spec.slices()):
        rows = group.axis_a.tiles(shape_in[2], shape_out[2])
        columns = group.axis_b.tiles(shape_in[3], shape_out[3])
        for i in range(group.channels):
            yield (
                channels.start + i,
                np.asarray(weights_a[index][i], np.float64),
                np.asarray(weights_b[index][i], np.float64),
                _slices(rows[int(group.axis_a.shifts[i])]),
                _slices(columns[int(group.axis_b.shifts[i])]),
            )


def _slices(tiles: np.ndarray) -> list[tuple[slice, slice, slice, slice]]:
    """Return rows of `Axis.tiles` as slices of input and output and of the small matrix's columns and rows."""
    return [
        (slice(i, i + inputs), slice(o, o + outputs), slice(p, p + inputs), slice(q, q + outputs))
        for i, inputs, p, o, outputs, q in tiles.tolist()
    ]


def _full_matrices(x, weights_a, weights_b, spec):
    a = [np.asarray(w, np.float64) for w in weights_a]
    b = [np.asarray(w, np.float64) for w in weights_b]
    return spec.matrices(a, b, *np.shape(x)[2:])


def _t(matrix: np.ndarray) -> np.ndarray:
    return matrix.swapaxes(-1, -2)
