"""The C++ kernels as differentiable MindSpore operators: PyNative and `ms.jit`, any batch, also a dynamic one.

Ask `usable` (and `products_usable` for `pointwise`) first, inside a graph too.
"""

from __future__ import annotations

import ctypes
import inspect
import time
from functools import lru_cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..spec import NeoCellSpec
from .library import has_products, library, wanted

# Names of inputs and outputs of each kernel; tables of geometry are int32, all else is float32.
_SIGNATURES = {
    "gelu": (("x",), ("y",)),
    "gelu_grad": (("x", "dy"), ("dx",)),
    "pointwise": (("x", "weight"), ("y",)),
    "pointwise_bias": (("x", "weight", "bias"), ("y",)),
    "pointwise_grad_x": (("dy", "weight"), ("dx",)),
    "pointwise_grad_weight": (("x", "dy"), ("dweight", "dbias")),
    "batch_norm_grad": (("x", "dy", "gamma", "epsilon"), ("dx", "dgamma", "dbeta")),
    "layer_scale": (("x", "gamma"), ("y",)),
    "layer_scale_grad": (("x", "dy", "gamma"), ("dx", "dgamma")),
    "sum_of_squares": (("x", "factor"), ("sum",)),
    "scaled": (("x", "factor"), ("y",)),
    "finished": (("x",), ("y",)),
    "neo_cell": (("x", "a", "b", "table", "output"), ("y",)),
    "neo_cell_grad": (("x", "dy", "a", "b", "table"), ("dx", "da", "db")),
}
_INTEGERS = ("table", "output")
_EXPORT = inspect.unwrap(ms.export).__code__


@lru_cache(maxsize=32)
def _kernel(name: str):
    # Shapes and types are inferred in C++: MindSpore cannot call Python for them where the batch is dynamic, or where
    # a pass over the graph has copied the operator.
    inputs, outputs = _SIGNATURES[name]
    info = ops.CustomRegOp(f"neonext_{name}")
    for index, tensor in enumerate(inputs):
        info = info.input(index, tensor)
    for index, tensor in enumerate(outputs):
        info = info.output(index, tensor)
    types = [
        ops.DataType.I32_Default if tensor in _INTEGERS else ops.DataType.F32_Default for tensor in (*inputs, *outputs)
    ]
    return ops.Custom(
        f"{library()}:{name}",
        func_type="aot",
        reg_info=info.dtype_format(*types).target("CPU").get_op_info(),
    )


def available(dtype) -> bool:
    """Whether tensors of this type can go through the kernels: float32 on the CPU, with a compiler, not switched off.

    Not inside `mindspore.export`: the file would need this machine's shared object.
    """
    if dtype != ms.float32 or not wanted() or ms.get_context("device_target") != "CPU" or _exporting():
        return False
    return library() is not None


def _exporting() -> bool:
    # MindSpore does not tell what it compiles for, but it compiles on the stack of the call.
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is _EXPORT:
            return True
        frame = frame.f_back
    return False


@ops.constexpr
def usable(dtype):
    """`available`, for use inside a graph."""
    return available(dtype)


@ops.constexpr
def products_usable(dtype):
    """Whether `pointwise` can take tensors of this type."""
    return available(dtype) and has_products()


class _Gelu(nn.Cell):
    def __init__(self):
        super().__init__()
        self.kernel, self.kernel_grad = _kernel("gelu"), _kernel("gelu_grad")

    def construct(self, x):
        return self.kernel(x)

    def bprop(self, x, out, dout):
        return (self.kernel_grad(x, dout),)


class _LayerScale(nn.Cell):
    def __init__(self):
        super().__init__()
        self.kernel, self.kernel_grad = _kernel("layer_scale"), _kernel("layer_scale_grad")

    def construct(self, x, gamma):
        return self.kernel(x, gamma)

    def bprop(self, x, gamma, out, dout):
        return self.kernel_grad(x, dout, gamma)


class _Pointwise(nn.Cell):
    def __init__(self):
        super().__init__()
        self.kernel = _kernel("pointwise")
        self.grad_x, self.grad_weight = _kernel("pointwise_grad_x"), _kernel("pointwise_grad_weight")

    def construct(self, x, weight):
        return self.kernel(x, weight)

    def bprop(self, x, weight, out, dout):
        # Two kernels, so that a gradient nobody asks for is left out of a graph.
        return self.grad_x(dout, weight), self.grad_weight(x, dout)[0]


class _PointwiseBias(nn.Cell):
    def __init__(self):
        super().__init__()
        self.kernel = _kernel("pointwise_bias")
        self.grad_x, self.grad_weight = _kernel("pointwise_grad_x"), _kernel("pointwise_grad_weight")

    def construct(self, x, weight, bias):
        return self.kernel(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        dweight, dbias = self.grad_weight(x, dout)
        return self.grad_x(dout, weight), dweight, dbias


class _NeoCell(nn.Cell):
    """One NeoCell at one size of the map; A and B are flat, all groups one after the other."""

    def __init__(self, spec: NeoCellSpec, height: int, width: int):
        super().__init__()
        self.kernel, self.kernel_grad = _kernel("neo_cell"), _kernel("neo_cell_grad")
        self.table = Tensor(geometry(spec, height, width))
        # Its shape tells the kernel the size of the output.
        self.output = Tensor(np.zeros(spec.output_size(height, width), np.int32))

    def construct(self, x, a, b):
        return self.kernel(x, a, b, self.table, self.output)

    def bprop(self, x, a, b, out, dout):
        return self.kernel_grad(x, dout, a, b, self.table)


def geometry(spec: NeoCellSpec, height: int, width: int) -> np.ndarray:
    """The table of `neo_cell.cpp`, int32 `(rows, 6)`: `Small` for A and for B of every channel, then `Tile`."""
    out_height, out_width = spec.output_size(height, width)
    small: list[tuple[int, ...]] = []
    tiles: list[np.ndarray] = []
    count = 2 * spec.channels
    for side, size_in, size_out in (("axis_a", height, out_height), ("axis_b", width, out_width)):
        offset = 0
        for group in spec.groups:
            axis = getattr(group, side)
            places = {}
            for shift, rows in axis.tiles(size_in, size_out).items():
                places[shift] = count, len(rows)
                tiles.append(rows)
                count += len(rows)
            for shift in axis.shifts.tolist():
                small.append((offset, axis.k_in, axis.k_out, *places[shift], 0))
                offset += axis.k_in * axis.k_out
    return np.concatenate([np.array(small, np.int64), *tiles]).astype(np.int32)


_cached_gelu = lru_cache(maxsize=1)(_Gelu)
_cached_layer_scale = lru_cache(maxsize=1)(_LayerScale)
_cached_pointwise = lru_cache(maxsize=1)(_Pointwise)
_cached_pointwise_bias = lru_cache(maxsize=1)(_PointwiseBias)
_cached_neo_cell = lru_cache(maxsize=256)(_NeoCell)


@ops.constexpr
def _gelu():
    return _cached_gelu()


@ops.constexpr
def _layer_scale():
    return _cached_layer_scale()


@ops.constexpr
def _pointwise():
    return _cached_pointwise()


@ops.constexpr
def _pointwise_bias():
    return _cached_pointwise_bias()


@ops.constexpr
def _neo_cell(spec, height, width):
    return _cached_neo_cell(spec if isinstance(spec, NeoCellSpec) else NeoCellSpec(spec), height, width)


def gelu(x):
    """GELU in its exact form; float32 of any shape to the same."""
    return _gelu()(x)


def layer_scale(x, gamma):
    """Every channel times its factor: float32 `(N, C, H, W)` and `(C,)` to `(N, C, H, W)`."""
    return _layer_scale()(x, gamma)


def pointwise(x, weight, bias=None):
    """`weight` times every pixel's channels, plus bias.

    Args:
        x: float32 `(N, I, H, W)`.
        weight: float32 `(O, I)`.
        bias: float32 `(O,)` or None.

    Returns:
        float32 `(N, O, H, W)`.
    """
    if bias is None:
        return _pointwise()(x, weight)
    return _pointwise_bias()(x, weight, bias)


def batch_norm_grad(x, dy, gamma, epsilon):
    """Gradients of BatchNorm in training with respect to `x`, gamma and beta.

    Args:
        x, dy: float32 `(N, C, H, W)`.
        gamma: float32 `(C,)`.
        epsilon: float32 `(1,)`.
    """
    return _kernel("batch_norm_grad")(x, dy, gamma, epsilon)


def sum_of_squares(x, factor):
    """The sum of squares of float32 `x` of any shape times `factor`, float32 `(1,)`."""
    return _kernel("sum_of_squares")(x, factor)


def scaled(x, factor):
    """float32 `x` of any shape times `factor`, float32 `(1,)`; zeros for the factor 0, even where `x` is not finite."""
    return _kernel("scaled")(x, factor)


def finished(x):
    """float32 `x`, with one axis or more, as it is, noted for `Finish`: the last operation of a graph."""
    return _kernel("finished")(x)


class Finish:
    """Sleeps until a graph that ends with `finished` has run.

    `Tensor.asnumpy` waits, too, but keeps a processor busy that the graph's kernels could use.
    Make one before the graph is called, ask it to `wait` after that.
    """

    # Python handles signals between two pieces of waiting.
    _SLICE_MS = 200
    # A graph that fails does not end with `finished`; `asnumpy` then has the error.
    _LONGEST_SECONDS = 30

    def __init__(self):
        self._library = _finish_library() if available(ms.float32) else None
        self._wanted = 0 if self._library is None else self._library.finished_count() + 1

    def wait(self) -> None:
        """Return when the graph is done; at once without the kernels, and after half a minute in any case."""
        if self._library is None:
            return
        end = time.monotonic() + self._LONGEST_SECONDS
        while not self._library.finished_wait(self._wanted, self._SLICE_MS) and time.monotonic() < end:
            pass


@lru_cache(maxsize=1)
def _finish_library():
    loaded = ctypes.CDLL(str(library()))
    loaded.finished_count.restype = ctypes.c_int64
    loaded.finished_wait.argtypes = (ctypes.c_int64, ctypes.c_int)
    return loaded


def neo_cell(x, weights_a, weights_b, spec):
    """`neocell.neo_cell` without a bias, for arguments that it has checked."""
    _, _, height, width = x.shape
    return _neo_cell(spec, height, width)(x, _flat(weights_a), _flat(weights_b))


def _flat(weights):
    parts = ()
    for weight in weights:
        parts = (*parts, weight.reshape(-1))
    return parts[0] if len(parts) == 1 else ops.concat(parts, 0)
