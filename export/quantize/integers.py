"""Proof that both forms of file compute the same integers: each is evaluated node by node from its own constants.

Only the nodes of the file are used, never the graph that it was written from. 8-bit layers are evaluated in exact
integers; everything else in float64, and rounded to float32 where a layer quantizes it, as a file stores it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neonext_ms.common.errors import InputError, ParityError

from ..evaluate import erf, windows
from ..graph import INPUT
from ..onnx.neocell_node import is_neocell
from ..onnx.npu_gelu import expand_npu_gelu, is_npu_gelu
from ..onnx.runnable import expand_custom

# An int32 accumulator; the sums of every layer have to stay inside.
_INT32 = 2**31


@dataclass(frozen=True)
class Integers:
    """The integers of an 8-bit layer for some images.

    Attributes:
        codes: the 8-bit numbers of its input, int8, as patches `(N, C p q, H / p, W / q)`, or `(N, C)`.
        accumulated: the int32 sums of its products and its bias, channels on axis 1.
    """

    codes: np.ndarray
    accumulated: np.ndarray


@dataclass(frozen=True)
class _Quantized:
    """A value between QuantizeLinear and the layer behind it.

    Attributes:
        numbers: whole numbers, counted from that of 0.
        step: their step, for each channel or for all.
        offset: number that stands for 0.
    """

    numbers: np.ndarray
    step: np.ndarray
    offset: int = 0


class FileEvaluator:
    """An 8-bit ONNX model in NumPy.

    Args:
        model: a model that `emitter.emit` made, with a fixed image size.

    Attributes:
        integers: integers of each 8-bit layer by its name, of the last run.
    """

    def __init__(self, model: onnx.ModelProto):
        if any(is_npu_gelu(node) for node in model.graph.node):
            model = expand_npu_gelu(model)
        if any(is_neocell(node) for node in model.graph.node):
            model = expand_custom(model)
        self._nodes = model.graph.node
        self._constants = {t.name: np.asarray(numpy_helper.to_array(t)) for t in model.graph.initializer}
        self._outputs = [value.name for value in model.graph.output]
        self.integers: dict[str, Integers] = {}
        self._map: tuple[int, ...] = ()

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for float32 images `(N, 3, H, W)`, float64, and fill `integers`."""
        self.integers = {}
        values: dict[str, object] = {INPUT: np.asarray(images, np.float64)}
        readers: dict[str, int] = {}
        for node in self._nodes:
            for name in node.input:
                readers[name] = readers.get(name, 0) + 1
        for node in self._nodes:
            inputs = [values[name] if name in values else self._constants[name] for name in node.input]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = self._evaluate(node, inputs, attributes)
            for name in node.input:
                readers[name] -= 1
                if not readers[name] and name not in self._outputs:
                    values.pop(name, None)
        return [np.asarray(values[name]) for name in self._outputs]

    def _evaluate(self, node: onnx.NodeProto, inputs: list, attributes: Mapping) -> object:
        quantized = any(isinstance(value, _Quantized) for value in inputs)
        if node.op_type in ("Conv", "Gemm") and quantized:
            return self._product(node, inputs, attributes)
        if node.op_type == "Reshape" and inputs[0].ndim > len(inputs[1]) == 2:
            # Patches of a map become rows: (N, H / p, W / q, C, ...) before.
            self._map = inputs[0].shape[:3]
        if node.op_type == "Cast":
            return inputs[0]
        if node.op_type not in _NODES:
            raise InputError(f"{node.name}: no rule evaluates {node.op_type} in exact integers")
        return _NODES[node.op_type](attributes, *inputs)

    def _product(self, node: onnx.NodeProto, inputs: list, attributes: Mapping) -> np.ndarray:
        """Return the output of an 8-bit layer, and record its integers."""
        x, weight, bias = inputs
        if node.op_type == "Conv":
            sums = _conv(attributes, x.numbers, np.asarray(weight.numbers, np.float64))
            codes = _patches(attributes, x.numbers, weight.numbers.shape)[:, 0]
        else:
            sums, codes = x.numbers @ weight.numbers.T, x.numbers
        sums = sums + _channels(bias.numbers, sums.ndim)
        if np.abs(sums).max(initial=0) >= _INT32:
            raise ParityError(
                f"{node.name}: its sums do not fit into 32 bits. Leave it out with --quantize-skip {node.name}."
            )
        integers = ((codes + x.offset).astype(np.int8), sums.astype(np.int32))
        self.integers[node.name] = Integers(*map(self._as_map, integers))
        step = (np.float32(x.step) * weight.step.astype(np.float32)).astype(np.float64)
        return sums * _channels(step, sums.ndim)

    def _as_map(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of patches as a map, channels on axis 1; a vector for each image stays one."""
        if rows.ndim > 2 or not self._map or len(rows) != math.prod(self._map):
            return rows
        return rows.reshape(*self._map, -1).transpose(0, 3, 1, 2)


class AscendEvaluator(FileEvaluator):
    """An ONNX model in the form of CANN: AscendQuant, Conv with int8 weights, AscendDequant."""

    def _evaluate(self, node: onnx.NodeProto, inputs: list, attributes: Mapping) -> object:
        if node.op_type == "AscendQuant":
            if attributes["dst_type"] != b"INT8" or not attributes.get("scale"):
                raise InputError(f"{node.name}: expected a scale and dst_type INT8")
            x = np.asarray(inputs[0]).astype(np.float32).astype(np.float64)
            numbers = np.clip(
                np.rint(x * np.float64(np.float32(attributes["scale"])) + attributes["offset"]), -128, 127
            )
            return _Quantized(numbers - attributes["offset"], np.zeros(0), int(attributes["offset"]))
        if node.op_type == "Conv" and isinstance(inputs[0], _Quantized):
            x, weight, bias = inputs
            if weight.dtype != np.int8 or bias.dtype != np.int32:
                raise InputError(f"{node.name}: expected int8 weights and an int32 bias")
            sums = _conv(attributes, x.numbers, weight.astype(np.float64))
            sums = sums + _channels(bias.astype(np.float64), 4)
            if np.abs(sums).max(initial=0) >= _INT32:
                raise ParityError(f"{node.name}: its sums do not fit into 32 bits")
            codes = (_patches(attributes, x.numbers, weight.shape)[:, 0] + x.offset).astype(np.int8)
            self.integers[node.name] = Integers(codes, sums.astype(np.int32))
            return sums
        if node.op_type == "AscendDequant":
            sums, steps = inputs
            if steps.dtype != np.uint64 or (steps >> np.uint64(32)).any():
                raise InputError(f"{node.name}: expected steps in the low half of uint64")
            step = steps.astype(np.uint32).view(np.float32).astype(np.float64)
            return sums * _channels(step, sums.ndim)
        return super()._evaluate(node, inputs, attributes)


def evaluator(model: onnx.ModelProto) -> FileEvaluator:
    """Return the evaluator of an 8-bit model, by its nodes."""
    ascend = any(node.op_type == "AscendQuant" for node in model.graph.node)
    return AscendEvaluator(model) if ascend else FileEvaluator(model)


def compare_integers(a: FileEvaluator, b: FileEvaluator) -> dict[str, int]:
    """Return the number of integers that differ in each 8-bit layer after both have run on the same images.

    Raises:
        ParityError: the two have other layers, or layers of other sizes.
    """
    if a.integers.keys() != b.integers.keys():
        only = sorted(a.integers.keys() ^ b.integers.keys())
        raise ParityError(f"the two forms have different 8-bit layers: {', '.join(only[:5])}")
    apart = {}
    for name, one in a.integers.items():
        other, count = b.integers[name], 0
        for x, y in ((one.codes, other.codes), (one.accumulated, other.accumulated)):
            x, y = _common(x, y)
            if x.shape != y.shape:
                raise ParityError(f"{name}: the two forms have integers of shapes {x.shape} and {y.shape}")
            count += int((x != y).sum())
        apart[name] = count
    return apart


def _common(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the part that two maps have in common: one may be padded, and a vector may be a map of one pixel."""
    if x.ndim != y.ndim:
        x, y = (array.reshape(array.shape[:2]) if array.ndim == 4 else array for array in (x, y))
    if x.ndim == 4 and x.shape[:2] == y.shape[:2]:
        height, width = np.minimum(x.shape[2:], y.shape[2:])
        x, y = x[:, :, :height, :width], y[:, :, :height, :width]
    return x, y


def _channels(values: np.ndarray, dimensions: int) -> np.ndarray:
    """Return one number for each channel, in a shape that is added to a value with channels on axis 1."""
    return values.reshape(-1, *[1] * (dimensions - 2))


def _conv(attributes: Mapping, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return a convolution; whole numbers stay whole in float64."""
    patches = _patches(attributes, x, weight.shape)
    n, groups, _, rows, columns = patches.shape
    outputs = len(weight)
    y = weight.reshape(groups, outputs // groups, -1) @ patches.reshape(*patches.shape[:3], -1)
    return y.reshape(n, outputs, rows, columns)


def _patches(attributes: Mapping, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the patches that a kernel of a shape reads, `(N, groups, C p q, rows, columns)`."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    groups, (_, inputs, p, q), strides = attributes.get("group", 1), shape, attributes["strides"]
    x = windows(np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))), (p, q), strides)
    n, _, rows, columns = x.shape[:4]
    x = x.reshape(n, groups, inputs, rows, columns, p, q).transpose(0, 1, 2, 5, 6, 3, 4)
    return x.reshape(n, groups, -1, rows, columns)


def _quantize_linear(attributes, x, scale, zero):
    x = np.asarray(x).astype(np.float32).astype(np.float64)
    low, high = (0, 255) if zero.dtype == np.uint8 else (-128, 127)
    numbers = np.clip(np.rint(x / np.float64(scale)) + int(zero), low, high) - int(zero)
    return _Quantized(numbers, np.asarray(scale, np.float64), int(zero) - (128 if zero.dtype == np.uint8 else 0))


def _dequantize_linear(attributes, x, scale, zero):
    if isinstance(x, _Quantized):
        return x
    if zero.any():
        raise InputError("weights and biases with an offset are not evaluated here")
    return _Quantized(x.astype(np.float64), np.asarray(scale, np.float64))


def _plain_conv(attributes, x, weight, bias=None):
    y = _conv(attributes, x, weight.astype(np.float64))
    return y if bias is None else y + _channels(bias.astype(np.float64), 4)


def _gelu(attributes, x):
    # The constants of the chains are float32, and both forms have to give the same number.
    if attributes.get("approximate") == b"tanh":
        inner = (x + x**3 * np.float64(np.float32(0.044715))) * np.float64(np.float32(np.sqrt(2 / np.pi)))
        return x * ((np.tanh(inner) + 1) * 0.5)
    return x * (erf(x / np.float64(np.float32(np.sqrt(2)))) + 1) * 0.5


def _hardswish(attributes, x):
    return x * np.clip(x + 3, 0, 6) / 6


def _layer_norm(attributes, x, weight, bias=None):
    x = x - x.mean(-1, keepdims=True)
    eps = np.float64(np.float32(attributes["epsilon"]))
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight.astype(np.float64)
    return x if bias is None else x + bias.astype(np.float64)


def _average_pool(attributes, x):
    height, width = attributes["kernel_shape"]
    return x[:, :, :height, :width].mean((2, 3), keepdims=True)


def _slice(attributes, x, starts, ends, axes):
    place = [slice(None)] * x.ndim
    for axis, start, end in zip(axes, starts, ends, strict=True):
        place[axis] = slice(int(start), int(end))
    return x[tuple(place)]


def _reduce_mean(attributes, x, axes=None):
    chosen = attributes["axes"] if axes is None else axes.tolist()
    return x.mean(tuple(chosen), keepdims=bool(attributes.get("keepdims", 1)))


def _gemm(attributes, x, weight, bias):
    return x @ weight.astype(np.float64).T + bias.astype(np.float64)


_NODES: Mapping[str, Callable] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "Conv": _plain_conv,
    "Gemm": _gemm,
    "MatMul": lambda attributes, x, y: np.asarray(x, np.float64) @ np.asarray(y, np.float64),
    "Add": lambda attributes, x, y: np.asarray(x, np.float64) + np.asarray(y, np.float64),
    "Sub": lambda attributes, x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64),
    "Mul": lambda attributes, x, y: np.asarray(x, np.float64) * np.asarray(y, np.float64),
    "Div": lambda attributes, x, y: np.asarray(x, np.float64) / np.asarray(y, np.float64),
    "Pow": lambda attributes, x, y: np.asarray(x, np.float64) ** np.asarray(y, np.float64),
    "Sqrt": lambda attributes, x: np.sqrt(x),
    "Erf": lambda attributes, x: erf(x),
    "Tanh": lambda attributes, x: np.tanh(x),
    "Abs": lambda attributes, x: np.abs(x),
    "Gelu": _gelu,
    "Relu": lambda attributes, x: np.maximum(x, 0),
    "LeakyRelu": lambda attributes, x: np.where(x < 0, x * np.float64(attributes["alpha"]), x),
    "HardSwish": _hardswish,
    "Clip": lambda attributes, x, low, high: np.clip(x, np.float64(low), np.float64(high)),
    "LayerNormalization": _layer_norm,
    "ReduceMean": _reduce_mean,
    "GlobalAveragePool": lambda attributes, x: x.mean((2, 3), keepdims=True),
    "AveragePool": _average_pool,
    "Flatten": lambda attributes, x: x.reshape(len(x), -1),
    "Reshape": lambda attributes, x, shape: x.reshape(shape),
    "Transpose": lambda attributes, x: x.transpose(attributes["perm"]),
    "Slice": _slice,
}
