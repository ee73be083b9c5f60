"""The C++ kernels as differentiable MindSpore operators, in PyNative and under `ms.jit`, for fixed and dynamic batches.

Check `usable` (for `pointwise`, `products_usable`) before a call, also inside a graph.
"""

from __future__ import annotations

import ctypes
import inspect
import time
from functools import cache, lru_cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import signature as sig

from neonext_ms.common.errors import InputError

from ..spec import NeoCellSpec
from .library import enabled, has_products, library

# Inputs of the linear layers of a block, in the order of `mlp.cpp`.
_MLP = ("gamma", "beta", "w1", "b1", "w2", "b2", "scale", "keep")
# Activation f of a block -> its kind in `activations.h`.
ACTIVATION_KINDS = {"gelu": 0, "relu": 1, "leakyrelu": 2, "hardswish": 3}
# Names of the inputs and outputs of each kernel; "*" marks any number of tensors, "!" Parameters that it changes.
# Tables of geometry are int32, everything else is float32.
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
    "sum_of_squares": (("factor", "*x"), ("sum",)),
    "adamw": (("settings", "rates", "*gradient", "*!weight", "*!first", "*!second"), ("done",)),
    "moving_average": (("share", "*!average", "*tensor"), ("done",)),
    "scaled": (("x", "factor"), ("y",)),
    "finished": (("x",), ("y",)),
    "neo_norm": (
        ("x", "a", "b", "table", "output", "moving_mean", "moving_variance", "settings"),
        ("y", "inverse", "next_mean", "next_variance"),
    ),
    "neo_norm_grad": (("x", "dy", "y", "inverse", "added", "a", "b", "table"), ("dx", "da", "db")),
    "mlp": ((*_MLP, "x", "residual", "settings"), ("y", "hidden")),
    "mlp_grad": ((*_MLP, "x", "hidden", "dy", "settings"), ("dx", *(f"d{name}" for name in _MLP[:-1]))),
    "neo_cell": (("x", "a", "b", "table", "output"), ("y",)),
    "neo_cell_grad": (("x", "dy", "a", "b", "table"), ("dx", "da", "db")),
}
_INTEGERS = ("table", "output")
_EXPORT = inspect.unwrap(ms.export).__code__


@lru_cache(maxsize=32)
def _kernel(name: str, tensors: int = 0):
    # Shapes and types are inferred in C++. MindSpore cannot call Python for them if the batch is dynamic or if a pass
    # over the graph has copied the operator.
    signature, outputs = _SIGNATURES[name]
    written, inputs = [], []
    for tensor in signature:
        copies = range(tensors) if tensor.startswith("*") else ("",)
        inputs += [f"{tensor.strip('*!')}{i}" for i in copies]
        written += ["!" in tensor for _ in copies]
    # MindSpore registers the types of all inputs by this name.
    info = ops.CustomRegOp(f"neonext_{name}_{tensors}")
    for index, tensor in enumerate(inputs):
        info = info.input(index, tensor)
    for index, tensor in enumerate(outputs):
        info = info.output(index, tensor)
    types = [
        ops.DataType.I32_Default if tensor in _INTEGERS else ops.DataType.F32_Default for tensor in (*inputs, *outputs)
    ]
    kernel = ops.Custom(
        f"{library()}:{name}",
        func_type="aot",
        reg_info=info.dtype_format(*types).target("CPU").get_op_info(),
    )
    if any(written):
        # Without this, a graph would hand copies of the Parameters to the kernel.
        rights = [sig.sig_rw.RW_WRITE if change else sig.sig_rw.RW_READ for change in written]
        kernel.set_signatures([sig.make_sig(tensor, right) for tensor, right in zip(inputs, rights, strict=True)])
        kernel.add_prim_attr("side_effect_mem", True)
    return kernel


def available(dtype) -> bool:
    """Return True if the kernels take this dtype: float32 on the CPU, with a compiler, not switched off.

    The result is False inside `mindspore.export`, because the file would need the shared object of this machine.
    """
    if dtype != ms.float32 or not enabled() or ms.get_context("device_target") != "CPU" or _exporting():
        return False
    return library() is not None


def _exporting() -> bool:
    # MindSpore does not say what it compiles a graph for, but the call to `export` is still on the stack.
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is _EXPORT:
            return True
        frame = frame.f_back
    return False


@ops.constexpr
def usable(dtype):
    """Evaluate `available` inside a graph."""
    return available(dtype)


@ops.constexpr
def products_usable(dtype):
    """Return True if `pointwise` takes this dtype."""
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
        # Two kernels, so that a graph can drop a gradient that nothing uses.
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
    """One NeoCell at one map size. A and B are the flattened matrices of all groups, concatenated."""

    def __init__(self, spec: NeoCellSpec, height: int, width: int):
        super().__init__()
        self.kernel, self.kernel_grad = _kernel("neo_cell"), _kernel("neo_cell_grad")
        self.table = Tensor(geometry(spec, height, width))
        # Shape inference in C++ sees shapes only, so an input of this shape carries the output size.
        self.output = Tensor(np.zeros(spec.output_size(height, width), np.int32))

    def construct(self, x, a, b):
        return self.kernel(x, a, b, self.table, self.output)

    def bprop(self, x, a, b, out, dout):
        return self.kernel_grad(x, dout, a, b, self.table)


class _Block(nn.Cell):
    """A block in training: the part of `block` that has a gradient."""

    def __init__(self, spec: NeoCellSpec, height: int, width: int):
        super().__init__()
        self.norm, self.norm_grad = _kernel("neo_norm"), _kernel("neo_norm_grad")
        self.mlp, self.mlp_grad = _kernel("mlp"), _kernel("mlp_grad")
        self.table = Tensor(geometry(spec, height, width))
        self.output = Tensor(np.zeros((height, width), np.int32))

    def construct(self, x, a, b, gamma, beta, w1, b1, w2, b2, scale, keep, moving_mean, moving_variance, settings):
        normal, inverse, next_mean, next_variance = self.norm(
            x, a, b, self.table, self.output, moving_mean, moving_variance, settings
        )
        y, hidden = self.mlp(gamma, beta, w1, b1, w2, b2, scale, keep, normal, x, settings)
        # The last three are for `bprop`.
        return y, next_mean, next_variance, normal, inverse, hidden

    def bprop(
        self, x, a, b, gamma, beta, w1, b1, w2, b2, scale, keep, moving_mean, moving_variance, settings, out, dout
    ):
        dy = dout[0]
        _, _, _, normal, inverse, hidden = out
        dnormal, dgamma, dbeta, dw1, db1, dw2, db2, dscale = self.mlp_grad(
            gamma, beta, w1, b1, w2, b2, scale, keep, normal, hidden, dy, settings
        )
        # The residual connection adds dy.
        dx, da, db = self.norm_grad(x, dnormal, normal, inverse, dy, a, b, self.table)
        # MindSpore expects a gradient for every input; nothing trains these.
        others = ops.zeros_like(keep), ops.zeros_like(gamma), ops.zeros_like(gamma), ops.zeros_like(settings)
        return dx, da, db, dgamma, dbeta, dw1, db1, dw2, db2, dscale, *others


def geometry(spec: NeoCellSpec, height: int, width: int) -> np.ndarray:
    """Return the table of `neo_cell.cpp`, int32 `(rows, 6)`.

    Its rows are a `Small` for A of every channel, a `Small` for B of every channel, and the `Tile`s that they refer to.
    """
    out_height, out_width = spec.output_size(height, width)
    small: list[tuple[int, ...]] = []
    tiles: list[np.ndarray] = []
    count = 2 * spec.channels
    for side, size_in, size_out in (("axis_a", height, out_height), ("axis_b", width, out_width)):
        offset = 0
        for group in spec.groups:
            axis = getattr(group, side)
            # Channels of a group with the same shift share their tiles.
            ranges = {}
            for shift, rows in axis.tiles(size_in, size_out).items():
                ranges[shift] = count, len(rows)
                tiles.append(rows)
                count += len(rows)
            for shift in axis.shifts.tolist():
                small.append((offset, axis.k_in, axis.k_out, *ranges[shift], 0))
                offset += axis.k_in * axis.k_out
    return np.concatenate([np.array(small, np.int64), *tiles]).astype(np.int32)


_CELLS = {"gelu": _Gelu, "layer_scale": _LayerScale, "pointwise": _Pointwise, "pointwise_bias": _PointwiseBias}
_cached_neo_cell = lru_cache(maxsize=256)(_NeoCell)
_cached_block = lru_cache(maxsize=256)(_Block)


@ops.constexpr
def _multi_kernel(name, tensors):
    return _kernel(name, tensors)


# Each cell exists once: MindSpore compiles the graph of a new cell again.
_cached_cell = cache(lambda name: _CELLS[name]())


def _check_channels(what, channels, expected):
    # The kernels trust their shapes. -1 is a size that is only known at run time.
    if channels not in (expected, -1):
        raise InputError(
            f"{what}: wrong number of channels (got {channels}, expected {expected}). Give the layer a map with as "
            "many channels as its weights have."
        )


@ops.constexpr
def _cell(name, channels=-1, expected=-1):
    _check_channels(name, channels, expected)
    return _cached_cell(name)


@ops.constexpr
def _neo_cell(spec, height, width):
    return _cached_neo_cell(spec if isinstance(spec, NeoCellSpec) else NeoCellSpec(spec), height, width)


@ops.constexpr
def _block(spec, shape, factors):
    images, channels, height, width = shape
    spec = spec if isinstance(spec, NeoCellSpec) else NeoCellSpec(spec)
    _check_channels("block", channels, spec.channels)
    if images != -1 and factors not in (1, images, -1):
        raise InputError(
            f"drop path: wrong number of factors (got {factors}, expected 1 or {images}). Use the batch size of the "
            "training step, or another network."
        )
    return _cached_block(spec, height, width)


def gelu(x):
    """Return GELU in its exact form, for float32 of any shape."""
    return _cell("gelu")(x)


def layer_scale(x, gamma):
    """Multiply every channel of float32 `(N, C, H, W)` by its factor in gamma, `(C,)`."""
    return _cell("layer_scale", x.shape[1], gamma.shape[0])(x, gamma)


def pointwise(x, weight, bias=None):
    """Return `weight` times the channels of every pixel, plus the bias.

    Args:
        x: float32 `(N, I, H, W)`.
        weight: float32 `(O, I)`.
        bias: float32 `(O,)` or None.

    Returns:
        float32 `(N, O, H, W)`.

    Raises:
        InputError: another number of channels than the weight has.
    """
    if bias is None:
        return _cell("pointwise", x.shape[1], weight.shape[1])(x, weight)
    return _cell("pointwise_bias", x.shape[1], weight.shape[1])(x, weight, bias)


def batch_norm_grad(x, dy, gamma, epsilon):
    """Return the gradients of BatchNorm in training with respect to `x`, gamma and beta.

    Args:
        x: input, float32 `(N, C, H, W)`.
        dy: upstream gradient, float32 `(N, C, H, W)`.
        gamma: float32 `(C,)`.
        epsilon: float32 `(1,)`.
    """
    return _kernel("batch_norm_grad")(x, dy, gamma, epsilon)


def sum_of_squares(tensors, factor):
    """Return the sum of squares of float32 tensors of any shape times `factor`, float32 `(1,)`."""
    return _multi_kernel("sum_of_squares", len(tensors))(factor, *tensors)


def adamw(settings, rates, gradients, weights, first, second):
    """Update Parameters by AdamW, in place.

    Args:
        settings: factor of the gradients, learning rate, both betas, epsilon and factor of the weight decay, `(6,)`.
        rates: factor of the learning rate and weight decay of every tensor, `(n, 2)`.
        gradients: n float32 tensors; 0 as their factor stands for zeros, even for NaN in them.
        weights, first, second: n Parameters each, the weights and both moments.

    Returns:
        float32 `(1,)` without meaning.
    """
    return _multi_kernel("adamw", len(weights))(settings, rates, *gradients, *weights, *first, *second)


def moving_average(share, averages, tensors):
    """Move averages towards tensors by `share`, float32 `(1,)`, in place."""
    return _multi_kernel("moving_average", len(averages))(share, *averages, *tensors)


def scaled(x, factor):
    """Return float32 `x` of any shape times `factor`, float32 `(1,)`; zeros if the factor is 0, even for NaN in `x`."""
    return _kernel("scaled")(x, factor)


def finished(x):
    """Return float32 `x` of one axis or more unchanged, and wake `Finish`: the last operation of a graph."""
    return _kernel("finished")(x)


class Finish:
    """A wait, asleep, for a graph that ends with `finished`.

    `Tensor.asnumpy` waits too, but keeps a processor busy that the kernels of the graph could use.
    Create the object before the call of the graph and call `wait` after it. Graphs finish in the order of their calls.

    Args:
        graphs: number of graphs to wait for.
    """

    # What `finished_count` will be when all graphs that were called have run.
    _expected = 0

    # Python handles signals between two slices.
    _SLICE_MS = 200
    # A graph that fails never reaches `finished`; `asnumpy` then raises its error.
    _LONGEST_SECONDS = 30

    def __init__(self, graphs: int = 1):
        self._library = _finish_library() if available(ms.float32) else None
        if self._library is not None:
            Finish._expected = max(Finish._expected, self._library.finished_count()) + graphs
        self._target = Finish._expected

    def wait(self) -> None:
        """Return when the graph has run, at once without the kernels, and after half a minute in any case."""
        if self._library is None:
            return
        end = time.monotonic() + self._LONGEST_SECONDS
        while not self._library.finished_wait(self._target, self._SLICE_MS):
            if time.monotonic() > end:
                self.give_up()
                return

    @staticmethod
    def give_up() -> None:
        """Stop counting on graphs that were called: one has failed, and will not finish."""
        Finish._expected = 0


@lru_cache(maxsize=1)
def _finish_library():
    kernels = ctypes.CDLL(str(library()))
    kernels.finished_count.restype = ctypes.c_int64
    kernels.finished_wait.argtypes = (ctypes.c_int64, ctypes.c_int)
    return kernels


def neo_cell(x, weights_a, weights_b, spec):
    """Compute `neocell.neo_cell` without a bias, for arguments that it has checked."""
    _, _, height, width = x.shape
    return _neo_cell(spec, height, width)(x, _flat(weights_a), _flat(weights_b))


def block(x, weights_a, weights_b, spec, linear, keep, moving_mean, moving_variance, settings):
    """Compute a block in training: `x + keep * scale * (W2 f(W1 norm(neo_cell(x)) + b1) + b2)`.

    Args:
        x: float32 `(N, C, H, W)`.
        weights_a, weights_b: matrices of NeoCell, as in `neocell.neo_cell`.
        spec: `NeoCellSpec` that keeps the size of the map.
        linear: gamma and beta of the BatchNorm `(C,)`, W1 `(I, C)`, b1 `(I,)`, W2 `(C, I)`, b2 and scale `(C,)`.
        keep: factors of drop path, `(N,)`, or `(1,)` for all images.
        moving_mean, moving_variance: statistics of the BatchNorm, `(C,)`.
        settings: epsilon of the BatchNorm, the share of the statistics that is kept, the activation's kind
            (`ACTIVATION_KINDS`), and its slope for negative numbers if it has one, `(4,)`.

    Returns:
        float32 `(N, C, H, W)`, and the next moving mean and variance.
    """
    matrices = _flat(weights_a), _flat(weights_b)
    inputs = (x, *matrices, *_values(linear), keep, moving_mean, moving_variance, settings)
    y, next_mean, next_variance, _, _, _ = _block(spec, x.shape, keep.shape[0])(*inputs)
    return y, next_mean, next_variance


def _values(parameters):
    """Return what Parameters hold.

    A compiled graph copies a Parameter each time if a cell takes it and reads it in both passes. It reads an operand
    of a reshape once, and drops a reshape that changes nothing.
    """
    values: tuple = ()
    for parameter in parameters:
        values = (*values, parameter.reshape(parameter.shape))
    return values


def _flat(weights):
    parts: tuple = ()
    for weight in weights:
        parts = (*parts, weight.reshape(-1))
    return parts[0] if len(parts) == 1 else ops.concat(parts, 0)
