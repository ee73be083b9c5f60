"""NeoCell by its AscendC operator, from MindSpore: in PyNative and under `ms.jit` (jit_level O0), with gradients.

`neo_cell` in `neocell.py` calls this file on Ascend if the operator package is installed (docs/operator.md). Nothing
in this file has run on a device. On the CPU it is tested with an emulation in place of the operator.

The operator works on maps stored as (N, C1, H, W, 16). MindSpore gathers its coefficients from the learned matrices,
so that their gradients are those of a gather. The gradients of the operator itself are two more calls: NeoCell with
transposed matrices gives dx, and NeoCellGrad gives the gradients of the coefficients for each image.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import mindspore as ms
from mindspore import Tensor, nn, ops

from .package import PROJECT, installed_package
from .packing import LANES, RUN_ATTRIBUTES, plan
from .spec import NeoCellSpec

# Limits of the kernels (ops/ascendc/op_kernel/neo_cell_tiling.h).
MOST_RUNS = 64
LARGEST_MATRIX = 32
OPERATOR_DTYPES = (ms.float16, ms.float32, ms.bfloat16)

FORWARD = "aclnnNeoCell"
GRADIENT = "aclnnNeoCellGrad"
# Attributes of the operators in their order, each with its type for `CustomRegOp`.
OPERATOR_ATTRIBUTES = {**dict.fromkeys((*RUN_ATTRIBUTES, "output_size"), "listInt"), "accumulate_fp32": "int"}
# Sums in float32, as in the BatchMatMul that the operator replaces; only float16 has the choice.
_ACCUMULATE_FP32 = 1

_log = logging.getLogger(__name__)


def operator_available(spec: NeoCellSpec, dtype: ms.Type) -> bool:
    """Return True if `neo_cell` can call the operator; if only the package is missing, log one warning."""
    return ms.get_context("device_target") == "Ascend" and _supported(spec, dtype) and _package_or_warning()


def _supported(spec: NeoCellSpec, dtype: ms.Type) -> bool:
    runs = plan(spec).attributes
    sizes = [size for name in ("h_in", "h_out", "w_in", "w_out") for size in runs[name]]
    return dtype in OPERATOR_DTYPES and len(runs["channels"]) <= MOST_RUNS and max(sizes) <= LARGEST_MATRIX


@lru_cache(maxsize=1)
def _package_or_warning() -> bool:
    if installed_package():
        return True
    _log.warning(
        "NeoCell runs as MindSpore operations because its AscendC package is not installed. "
        "Build and install it with `neonext-ops build` and `neonext-ops install` (docs/operator.md)."
    )
    return False


def registration(name: str):
    """Return the description of an operator of the package for `ops.Custom`: inputs, attributes, outputs, dtypes."""
    gradient = name == GRADIENT
    inputs = ("x", "dy", "coef_a", "coef_b") if gradient else ("x", "coef_a", "coef_b", "bias")
    outputs = ("grad_a", "grad_b") if gradient else ("y",)
    info = ops.CustomRegOp(name)
    for index, tensor in enumerate(inputs):
        info = info.input(index, tensor, "required")
    for attribute, kind in OPERATOR_ATTRIBUTES.items():
        info = info.attr(attribute, "required", kind)
    for index, tensor in enumerate(outputs):
        info = info.output(index, tensor, "required")
    for dtype in ("float16", "float32", "bfloat16"):
        # Gradients are sums over a whole map: too long for a narrow type.
        types = [dtype] * len(inputs) + ["float32" if gradient else dtype] * len(outputs)
        info = info.dtype_format(*((name, "DefaultFormat") for name in types))
    return info.target("Ascend").get_op_info()


def forward_shape(output_size: tuple[int, int]):
    """Return `out_shape` of NeoCell for `ops.Custom`: the shape of y from the shapes of the arguments."""
    return lambda x, *others: (x[0], x[1], *output_size, x[4])


def gradient_shape(x, dy, coef_a, coef_b, *others):
    """Return the shapes of grad_a and grad_b of NeoCellGrad, with one partial sum per image."""
    return (x[0], *coef_a), (x[0], *coef_b)


@lru_cache(maxsize=256)
def _graph_forward(output_size: tuple[int, int]):
    return ops.Custom(
        FORWARD,
        out_shape=forward_shape(output_size),
        out_dtype=lambda x, *others: x,
        func_type="aot",
        reg_info=registration(FORWARD),
    )


@lru_cache(maxsize=1)
def _graph_gradient():
    return ops.Custom(
        GRADIENT,
        out_shape=gradient_shape,
        out_dtype=(ms.float32, ms.float32),
        func_type="aot",
        reg_info=registration(GRADIENT),
    )


@lru_cache(maxsize=1)
def _eager():
    """Compile the operators for PyNative on first use; return a module with `neo_cell` and `neo_cell_grad`."""
    source = PROJECT / "pynative" / "neo_cell.cc"
    return ops.CustomOpBuilder("neonext_ops", str(source), backend="Ascend").load()


class NeoCellOperator(nn.Cell):
    """The operator with its gradients, for one NeoCell and one map size.

    Inputs: x `(N, C1, H, W, 16)`; coef_a and coef_b `(V, 16)`; back_a and back_b, the coefficients of the transposed
    matrices, which only the gradient uses; bias `(C1 * 16)`, which is ignored unless `with_bias`. All have the dtype
    of x. Output: `(N, C1, H_out, W_out, 16)`.

    Args:
        spec: geometry.
        height: rows of the map.
        width: columns of the map.
        with_bias: True to add the bias.
        compiled: True for a compiled graph, False for PyNative.
    """

    def __init__(self, spec: NeoCellSpec, height: int, width: int, with_bias: bool, compiled: bool):
        super().__init__()
        size, out_size = (height, width), spec.output_size(height, width)
        self.with_bias = with_bias
        # `ops.Custom` in a compiled graph has no optional inputs: without a bias it adds zeros.
        self.needs_bias = compiled
        self.forward_attributes = _call_attributes(spec, False, out_size)
        self.back_attributes = _call_attributes(spec, True, size)
        if compiled:
            self.forward, self.back, self.gradient = _graph_forward(out_size), _graph_forward(size), _graph_gradient()
        else:
            self.forward = self.back = _eager().neo_cell
            self.gradient = _eager().neo_cell_grad

    def construct(self, x, coef_a, coef_b, back_a, back_b, bias):
        if self.with_bias or self.needs_bias:
            return self.forward(x, coef_a, coef_b, bias, *self.forward_attributes)
        return self.forward(x, coef_a, coef_b, None, *self.forward_attributes)

    def bprop(self, x, coef_a, coef_b, back_a, back_b, bias, out, dout):
        no_bias = None
        if self.needs_bias:
            no_bias = ops.zeros_like(bias)
        # The gradient of A X B with respect to X is A' dY B': the same operator on transposed matrices.
        dx = self.back(dout, back_a, back_b, no_bias, *self.back_attributes)
        grad_a, grad_b = self.gradient(x, dout, coef_a, coef_b, *self.forward_attributes)
        # Sums over batch and map in float32, whatever the dtype of the maps.
        d_bias = ops.zeros_like(bias)
        if self.with_bias:
            d_bias = ops.cast(ops.cast(dout, ms.float32).sum((0, 2, 3)).reshape(-1), bias.dtype)
        return (
            dx,
            ops.cast(grad_a.sum(0), coef_a.dtype),
            ops.cast(grad_b.sum(0), coef_b.dtype),
            ops.zeros_like(back_a),
            ops.zeros_like(back_b),
            d_bias,
        )


def _call_attributes(spec: NeoCellSpec, transposed: bool, output_size: tuple[int, int]) -> tuple:
    """Return the attributes of a call in their order."""
    runs = plan(spec, transposed).attributes
    return (*(tuple(runs[name]) for name in RUN_ATTRIBUTES), tuple(output_size), _ACCUMULATE_FP32)


class _Compiling(ops.PrimitiveWithInfer):
    """A constant that is True while a graph is compiled and False in PyNative.

    MindSpore infers the value of a primitive at compile time but calls it in PyNative.
    """

    def __init__(self):
        super().__init__("NeoNextCompiling")
        self.set_const_prim(True)

    def __infer__(self):
        return {"dtype": None, "shape": None, "value": True}

    def __call__(self):
        return False


_compiling = _Compiling()


@lru_cache(maxsize=256)
def _cached_operator(spec, height, width, with_bias, compiled):
    return NeoCellOperator(spec, height, width, with_bias, compiled)


@ops.constexpr
def _operator(spec, height, width, with_bias, compiled):
    return _cached_operator(_spec(spec), height, width, with_bias, compiled)


@lru_cache(maxsize=128)
def _cached_indices(spec, transposed):
    coefficients = plan(spec, transposed)
    return Tensor(coefficients.index_a), Tensor(coefficients.index_b)


@ops.constexpr
def _indices(spec, transposed):
    return _cached_indices(_spec(spec), transposed)


@ops.constexpr
def _channels(spec):
    return _spec(spec).channels


def _spec(spec) -> NeoCellSpec:
    return spec if isinstance(spec, NeoCellSpec) else NeoCellSpec(spec)


def to_blocks(x):
    """Convert `(N, C, H, W)` to the layout of the operator, `(N, C1, H, W, 16)`, padded with zero channels."""
    _, channels, height, width = x.shape
    blocks = (channels + LANES - 1) // LANES
    if channels % LANES:
        x = ops.pad(x, (0, 0, 0, 0, 0, blocks * LANES - channels))
    return x.reshape(-1, blocks, LANES, height, width).transpose(0, 1, 3, 4, 2)


def from_blocks(y, channels):
    """Convert `(N, C1, H, W, 16)` back to `(N, channels, H, W)`."""
    _, blocks, height, width, _ = y.shape
    y = y.transpose(0, 1, 4, 2, 3).reshape(-1, blocks * LANES, height, width)
    return y if channels == blocks * LANES else y[:, :channels]


def _flat_with_zero(weights):
    """Concatenate the flattened matrices of all groups and a zero, the element behind every unused coefficient."""
    parts: tuple = ()
    for weight in weights:
        parts = (*parts, weight.reshape(-1))
    return ops.concat((*parts, ops.zeros((1,), weights[0].dtype)), 0)


def neo_cell(x, weights_a, weights_b, spec, bias=None):
    """Compute `neocell.neo_cell` by the AscendC operator, for arguments that it has checked."""
    _, _, height, width = x.shape
    channels = _channels(spec)
    index_a, index_b = _indices(spec, False)
    back_index_a, back_index_b = _indices(spec, True)
    flat_a, flat_b = _flat_with_zero(weights_a), _flat_with_zero(weights_b)
    blocks = to_blocks(x)
    lanes = blocks.shape[1] * LANES
    if bias is None:
        padded = ops.zeros((lanes,), x.dtype)
    else:
        padded = bias if channels == lanes else ops.pad(bias, (0, lanes - channels))
    operator = _operator(spec, height, width, bias is not None, _compiling())
    y = operator(
        blocks,
        ops.gather(flat_a, index_a, 0),
        ops.gather(flat_b, index_b, 0),
        # Only dx reads these; the gradients of the matrices come through the first two.
        ops.stop_gradient(ops.gather(flat_a, back_index_a, 0)),
        ops.stop_gradient(ops.gather(flat_b, back_index_b, 0)),
        padded,
    )
    return from_blocks(y, channels)
