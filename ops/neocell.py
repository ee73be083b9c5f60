"""NeoCell as MindSpore operations: differentiable, in PyNative and under `ms.jit`, for any batch.

On Ascend the AscendC operator takes their place when its package is installed (`ascend.py`), on the CPU a C++ kernel
where there is a compiler (`cpu/`).

The whole matrices are built by `(U_out @ small @ U_in) * mask` with constants from `spec.Axis.placement`, which is
cheaper than a gather in both directions, and multiplied with the maps by `tile` and BatchMatMul, which on the CPU is
twice as fast as the broadcasting `ops.matmul`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from mindspore import Tensor, ops

from neonext_ms.common.errors import InputError

from .ascend import chosen
from .ascend import neo_cell as _ascend_neo_cell
from .cpu import operators
from .spec import Axis, NeoCellSpec

_bmm = ops.BatchMatMul()


@lru_cache(maxsize=64)
def _constants(k_in: int, k_out: int, shift: int, channels: int, size_in: int, size_out: int, transposed: bool):
    parts = Axis(k_in, k_out, shift, channels).placement(size_in, size_out)
    if transposed:
        parts = [np.ascontiguousarray(part.swapaxes(1, 2)) for part in reversed(parts[:2])] + [
            np.ascontiguousarray(parts[2].swapaxes(1, 2))
        ]
    return tuple(Tensor(part) for part in parts)


@ops.constexpr
def _axis_constants(axis, size_in, size_out, transposed):
    return _constants(*axis, size_in, size_out, transposed)


@ops.constexpr
def _by_operator(spec, dtype):
    return chosen(spec if isinstance(spec, NeoCellSpec) else NeoCellSpec(spec), dtype)


@ops.constexpr
def _plan(spec, channels, height, width, shapes_a, shapes_b):
    """The geometry as plain tuples of whole numbers, which graph compilation can carry; checks the shapes."""
    if not isinstance(spec, NeoCellSpec):
        spec = NeoCellSpec(spec)
    if height < 0 or width < 0:
        raise InputError("neo_cell: height and width must be static, since the matrices depend on them; fix them")
    if channels not in (spec.channels, -1):
        raise InputError(f"neo_cell: the spec has {spec.channels} channels, the input has {channels}")
    spec.check_shapes(shapes_a, shapes_b)
    axes = tuple(
        tuple((axis.k_in, axis.k_out, axis.shift, axis.channels) for axis in (group.axis_a, group.axis_b))
        for group in spec.groups
    )
    return axes, spec.output_size(height, width)


def _whole(small, constants):
    left, right, mask = constants
    left = ops.cast(left, small.dtype)
    right = ops.cast(right, small.dtype)
    return _bmm(_bmm(left, small), right) * ops.cast(mask, small.dtype)


def _shapes(weights):
    shapes = ()
    for weight in weights:
        shapes = (*shapes, weight.shape)
    return shapes


def neo_cell(x, weights_a, weights_b, spec, bias=None):
    """`Y_c = A_c X_c B_c + bias_c` for every channel c (equation 2, bias of section 3.1).

    Args:
        x: Tensor `(N, C, H, W)`, float; N may be dynamic, H and W must be static.
        weights_a: learned A, a sequence of one Tensor `(channels, h_out, h_in)` per group, dtype of `x`.
        weights_b: learned B, a sequence of one Tensor `(channels, w_in, w_out)` per group, dtype of `x`.
        spec: a `NeoCellSpec`, or what its constructor takes.
        bias: Tensor `(C,)` or None.

    Returns:
        Tensor `(N, C, H_out, W_out)` with the sizes of `spec.output_size(H, W)`.

    Raises:
        InputError: the shapes do not belong to the spec, or the output would be empty. Under `ms.jit` MindSpore may
            wrap it.
    """
    if _by_operator(spec, x.dtype):
        return _ascend_neo_cell(x, weights_a, weights_b, spec, bias)
    _, channels, height, width = x.shape
    axes, out_size = _plan(spec, channels, height, width, _shapes(weights_a), _shapes(weights_b))
    if operators.usable(x.dtype):
        y = operators.neo_cell(x, weights_a, weights_b, spec)
    else:
        y = _by_products(x, weights_a, weights_b, axes, out_size)
    if bias is not None:
        y = y + bias.reshape(1, -1, 1, 1)
    return y


def _by_products(x, weights_a, weights_b, axes, out_size):
    _, _, height, width = x.shape
    a = ()
    b = ()
    for i in range(len(axes)):
        a = (*a, _whole(weights_a[i], _axis_constants(axes[i][0], height, out_size[0], False)))
        b = (*b, _whole(weights_b[i], _axis_constants(axes[i][1], width, out_size[1], True)))
    whole_a = a[0] if len(axes) == 1 else ops.concat(a, 0)
    whole_b = b[0] if len(axes) == 1 else ops.concat(b, 0)
    batch = (x.shape[0], 1, 1, 1)
    return _bmm(_bmm(ops.tile(whole_a.expand_dims(0), batch), x), ops.tile(whole_b.expand_dims(0), batch))
