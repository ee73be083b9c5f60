"""NeoCell as MindSpore operations: differentiable, in PyNative and under `ms.jit`, for any batch size.

`neo_cell` picks one of three implementations. On Ascend it calls the AscendC operator if its package is installed
(`ascend.py`), on the CPU a C++ kernel if there is a compiler (`cpu/`), and otherwise plain MindSpore operations. The
last build the full matrices as `(U_out @ small @ U_in) * mask` with constants from `spec.Axis.placement` and multiply
them with the maps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from mindspore import Tensor, ops

from neonext_ms.common.errors import InputError

from . import ascend
from .cpu import operators
from .spec import Axis, NeoCellSpec

_bmm = ops.BatchMatMul()


# `ms.jit` cannot compile NumPy code, but it calls a constexpr while it compiles and keeps the result as a constant.
@ops.constexpr
@lru_cache(maxsize=64)
def _placement(axis, size_in, size_out, transposed):
    left, right, mask = Axis(*axis).placement(size_in, size_out)
    if transposed:
        left, right, mask = (np.ascontiguousarray(part.swapaxes(1, 2)) for part in (right, left, mask))
    return Tensor(left), Tensor(right), Tensor(mask)


@ops.constexpr
@lru_cache(maxsize=64)
def _repetition(axis, size_in, size_out, transposed):
    ones = Axis(*axis).repetition(size_in, size_out)
    return Tensor(np.ascontiguousarray(ones.swapaxes(1, 2)) if transposed else ones)


@ops.constexpr
def _use_ascendc(spec, dtype):
    return ascend.operator_available(spec if isinstance(spec, NeoCellSpec) else NeoCellSpec(spec), dtype)


@ops.constexpr
def _checked_geometry(spec, channels, height, width, shapes_a, shapes_b):
    """Check the shapes; return the axes of every group and the output size as tuples, which a graph can hold."""
    if not isinstance(spec, NeoCellSpec):
        spec = NeoCellSpec(spec)
    if height < 0 or width < 0:
        raise InputError(
            "neo_cell: the height and width of the input must be static because the matrices depend on them. "
            "Fix both sizes."
        )
    # -1 is a size that is only known at run time.
    if channels not in (spec.channels, -1):
        raise InputError(f"neo_cell: the spec has {spec.channels} channels, the input has {channels}")
    spec.check_shapes(shapes_a, shapes_b)
    axes = tuple(
        tuple((axis.k_in, axis.k_out, axis.shift, axis.channels) for axis in (group.axis_a, group.axis_b))
        for group in spec.groups
    )
    return axes, spec.output_size(height, width)


def _shapes(weights):
    # `ms.jit` compiles this function too, hence a plain tuple.
    shapes: tuple = ()
    for weight in weights:
        shapes = (*shapes, weight.shape)
    return shapes


def neo_cell(x, weights_a, weights_b, spec, bias=None):
    """Return `Y_c = A_c X_c B_c + bias_c` for every channel c (equation 2).

    Args:
        x: Tensor `(N, C, H, W)`, float. N may be dynamic; H and W must be static.
        weights_a: learned A, one Tensor `(channels, h_out, h_in)` per group, in the dtype of `x`.
        weights_b: learned B, one Tensor `(channels, w_in, w_out)` per group, in the dtype of `x`.
        spec: `NeoCellSpec`, or an argument of its constructor.
        bias: Tensor `(C,)`; or a tuple with one Tensor `(channels, h_out, w_out)` per group, which is added to every
            output patch (section 3.1); or None.

    Returns:
        Tensor `(N, C, H_out, W_out)` with the sizes of `spec.output_size(H, W)`.

    Raises:
        InputError: the shapes do not match the spec, or the output would be empty. Under `ms.jit`, MindSpore may
            raise an error of its own that contains this one.
    """
    _, channels, height, width = x.shape
    axes, out_size = _checked_geometry(spec, channels, height, width, _shapes(weights_a), _shapes(weights_b))
    by_patch = isinstance(bias, (tuple, list))
    if _use_ascendc(spec, x.dtype):
        y = ascend.neo_cell(x, weights_a, weights_b, spec, None if by_patch else bias)
    elif operators.usable(x.dtype):
        y = operators.neo_cell(x, weights_a, weights_b, spec)
    else:
        y = _by_products(x, weights_a, weights_b, axes, out_size)
    if by_patch:
        y = y + _bias_map(bias, axes, (height, width), out_size)
    elif bias is not None and not _use_ascendc(spec, x.dtype):
        y = y + bias.reshape(1, -1, 1, 1)
    return y


def _bias_map(biases, axes, size, out_size):
    """Repeat the bias of each group over the output patches: `(1, C, H_out, W_out)`."""
    maps: tuple = ()
    for i in range(len(axes)):
        rows = ops.cast(_repetition(axes[i][0], size[0], out_size[0], False), biases[i].dtype)
        columns = ops.cast(_repetition(axes[i][1], size[1], out_size[1], True), biases[i].dtype)
        maps = (*maps, _bmm(_bmm(rows, biases[i]), columns))
    return (maps[0] if len(maps) == 1 else ops.concat(maps, 0)).expand_dims(0)


def _by_products(x, weights_a, weights_b, axes, out_size):
    _, _, height, width = x.shape
    a: tuple = ()
    b: tuple = ()
    for i in range(len(axes)):
        a = (*a, _full_matrix(weights_a[i], _placement(axes[i][0], height, out_size[0], False)))
        # An Axis describes B transposed.
        b = (*b, _full_matrix(weights_b[i], _placement(axes[i][1], width, out_size[1], True)))
    full_a = a[0] if len(axes) == 1 else ops.concat(a, 0)
    full_b = b[0] if len(axes) == 1 else ops.concat(b, 0)
    # On the CPU, `tile` and BatchMatMul take half the time of the broadcasting `ops.matmul`.
    batch = (x.shape[0], 1, 1, 1)
    return _bmm(_bmm(ops.tile(full_a.expand_dims(0), batch), x), ops.tile(full_b.expand_dims(0), batch))


def _full_matrix(small, constants):
    # Products with constants are cheaper than a gather, in the gradient too, which would be a scatter.
    left, right, mask = constants
    left = ops.cast(left, small.dtype)
    right = ops.cast(right, small.dtype)
    return _bmm(_bmm(left, small), right) * ops.cast(mask, small.dtype)
