"""`GraphBuilder`: ONNX graphs as PyTorch's exporter writes them at opset 11, BatchNorm after a convolution folded.

The recipes of Ascend's ModelZoo-PyTorch export at opset 11, so LayerNorm and GELU are chains of elementary nodes. Nodes
and values carry the name of the module that they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size
from neonext_ms.export.graph import INPUT, LOGITS

from .weights import BATCH_NORM_EPS, STATISTICS, Weights

OPSET = 11
CLASSES = 1000
LAYER_NORM_EPS = 1e-6
# Scale of the last BatchNorm of a residual branch, so that values do not grow with depth under random weights.
BRANCH_NORM = 0.4
# Constants up to this many numbers are written even where weights are left out.
_SMALL = 64


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


class GraphBuilder:
    """A graph under construction, with the shapes of its values.

    Methods that add a node return the name of its output.

    Args:
        name: name of the network.
        batch: fixed batch size, or None for a dynamic one.
        image_size: height and width of the input in pixels.
        seed: random seed of the weights, or None to write their names and shapes without values.
        keep: keep the weights as PyTorch names and shapes them, in `weights.arrays`.

    Attributes:
        shapes: shape of every value without its batch axis.
        weights: source of the weights.
        parameters: learned numbers of the PyTorch module, before its BatchNorms were folded.
    """

    def __init__(
        self, name: str, batch: int | None, image_size: tuple[int, int], seed: int | None = 0, keep: bool = False
    ):
        self.name = name
        self.batch = batch
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: (3, *image_size)}
        self.parameters = 0
        self.weights = Weights(seed or 0, keep)
        self._values = seed is not None
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        """Return the graph, from `input` to `logits`, and drop its weights."""
        axis = "batch" if self.batch is None else self.batch
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [axis, *self.shapes[name]])
            for name in (INPUT, LOGITS)
        ]
        opsets = [helper.make_opsetid("", OPSET)]
        model = onnx.ModelProto(ir_version=helper.find_min_ir_version_for(opsets), producer_name="neonext_ms")
        model.opset_import.extend(opsets)
        model.graph.name = self.name
        model.graph.node.extend(self._nodes)
        model.graph.input.append(ends[0])
        model.graph.output.append(ends[1])
        # One at a time, so that no second copy of all weights exists.
        while self._tensors:
            model.graph.initializer.append(self._tensors.pop(next(iter(self._tensors))))
        return model

    def node(self, op: str, inputs: Sequence[str], output: str, shape: tuple[int, ...], **attributes) -> str:
        """Add a node with the name of its output."""
        if min(shape, default=1) < 1:
            size = format_size(self.shapes[INPUT][1:])
            raise InputError(
                f"{self.name}: image size {size} is too small, the map vanishes at {output}. Use a larger one, such as "
                "224x224."
            )
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        self.shapes[output] = tuple(shape)
        return output

    def tensor(self, name: str, shape: tuple[int, ...], values: Callable[[], np.ndarray], dtype=np.float32) -> str:
        """Add a constant; `values` is called only if its numbers are written."""
        if name not in self._tensors:
            tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims=shape)
            if self._values or math.prod(shape) <= _SMALL:
                array = np.asarray(values(), np.dtype(dtype).newbyteorder("<"))
                tensor.raw_data = np.broadcast_to(array, shape).tobytes()
            self._tensors[name] = tensor
        return name

    def constant(self, name: str, values, dtype=np.float32) -> str:
        """Add a small constant that is not a parameter, shared by all nodes that name it."""
        array = np.asarray(values, dtype)
        return self.tensor(name, array.shape, lambda: array, dtype)

    def parameter(self, name: str, size: int | Sequence[int], mean: float = 0.0, deviation: float = 0.1) -> str:
        """Add a learned array that is not a matrix."""
        shape = (size,) if isinstance(size, int) else tuple(size)
        self.parameters += math.prod(shape)
        return self.tensor(
            name, shape, lambda: self.weights.vector(name, math.prod(shape), mean, deviation).reshape(shape)
        )

    def conv(
        self,
        x: str,
        name: str,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        norm: str | None = None,
        norm_scale: float = 1.0,
        norm_eps: float = BATCH_NORM_EPS,
        bias: bool = True,
    ) -> str:
        """Add a convolution. The BatchNorm that `norm` names is folded into it, and replaces its bias."""
        channels_in, *map_size = self.shapes[x]
        kernels, pads, key = _pair(kernel), _pair(padding), f"{name}.bias"
        shape = (channels, channels_in // groups, *kernels)
        self.parameters += math.prod(shape) + (2 * channels if norm else channels * bias)
        folded: dict[str, np.ndarray] = {}

        def weight_values() -> np.ndarray:
            array = self.weights.matrix(f"{name}.weight", shape)
            if norm is None:
                return array
            arrays = self.weights.batch_norm(norm, channels, norm_scale)
            scale = arrays["weight"] / np.sqrt(arrays["running_var"] + np.float32(norm_eps))
            folded["bias"] = arrays["bias"] - arrays["running_mean"] * scale
            return array * scale[:, None, None, None]

        def bias_values() -> np.ndarray:
            return folded["bias"] if folded else self.weights.vector(key, channels)

        inputs = [x, self.tensor(f"{name}.weight", shape, weight_values)]
        if bias:
            inputs.append(self.tensor(key, (channels,), bias_values))
        size = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(map_size, pads, kernels, strict=True)]
        return self.node(
            "Conv", inputs, name, (channels, *size), kernel_shape=kernels, strides=[stride] * 2, pads=[*pads, *pads],
            dilations=[1, 1], group=groups,
        )  # fmt: skip

    def batch_norm(self, x: str, name: str, scale: float = 1.0) -> str:
        """Add a BatchNorm that does not directly follow a convolution."""
        channels = self.shapes[x][0]
        self.parameters += 2 * channels
        arrays = self.weights.batch_norm(name, channels, scale)
        inputs = [self.tensor(f"{name}.{key}", (channels,), partial(arrays.__getitem__, key)) for key in STATISTICS]
        return self.node("BatchNormalization", [x, *inputs], name, self.shapes[x], epsilon=BATCH_NORM_EPS)

    def relu(self, x: str, name: str) -> str:
        """Add ReLU."""
        return self.node("Relu", [x], name, self.shapes[x])

    def relu6(self, x: str, name: str) -> str:
        """Add ReLU up to 6, a Clip."""
        ends = [self.constant("zero", 0.0), self.constant("six", 6.0)]
        return self.node("Clip", [x, *ends], name, self.shapes[x])

    def sigmoid(self, x: str, name: str) -> str:
        """Add the logistic function."""
        return self.node("Sigmoid", [x], name, self.shapes[x])

    def hard_sigmoid(self, x: str, name: str) -> str:
        """Add `clip(x / 6 + 1 / 2, 0, 1)`."""
        return self.node("HardSigmoid", [x], name, self.shapes[x], alpha=1 / 6, beta=0.5)

    def swish(self, x: str, name: str) -> str:
        """Add `x * sigmoid(x)`."""
        return self.node("Mul", [x, self.sigmoid(x, f"{name}.sigmoid")], name, self.shapes[x])

    def hard_swish(self, x: str, name: str) -> str:
        """Add `x * hard_sigmoid(x)`."""
        return self.node("Mul", [x, self.hard_sigmoid(x, f"{name}.sigmoid")], name, self.shapes[x])

    def squeeze_excite(
        self, x: str, name: str, channels: int, inside: Callable[[str, str], str], gate: Callable[[str, str], str]
    ) -> str:
        """Multiply each channel by a gate computed from the means of all (arXiv 1709.01507) through `channels`."""
        outputs = self.shapes[x][0]
        y = self.node("GlobalAveragePool", [x], f"{name}.avgpool", (outputs, 1, 1))
        y = inside(self.conv(y, f"{name}.fc1", channels), f"{name}.act")
        y = gate(self.conv(y, f"{name}.fc2", outputs), f"{name}.gate")
        return self.node("Mul", [x, y], name, self.shapes[x])

    def add(self, x: str, y: str, name: str) -> str:
        """Add the sum of two values of the same shape."""
        return self.node("Add", [x, y], name, self.shapes[x])

    def pool(
        self, x: str, name: str, kind: str, kernel: int, stride: int = 1, padding: int = 0, ceil: bool = False
    ) -> str:
        """Add a pooling; `kind` is "MaxPool" or "AveragePool", `ceil` is PyTorch's `ceil_mode`."""
        channels, *map_size = self.shapes[x]
        size = []
        for n in map_size:
            count, rest = divmod(n + 2 * padding - kernel, stride)
            # PyTorch drops a window that would start in the padding on the far side.
            more = ceil and rest > 0 and (count + 1) * stride < n + padding
            size.append(count + 1 + more)
        options: dict[str, int] = {"ceil_mode": 1} if ceil else {}
        if padding and kind == "AveragePool":
            options["count_include_pad"] = 1
        return self.node(
            kind, [x], name, (channels, *size), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4,
            **options,
        )  # fmt: skip

    def concat(self, values: Sequence[str], name: str, axis: int = 1) -> str:
        """Join values along an axis, counted with the batch axis; the default joins maps in their channels."""
        shape = list(self.shapes[values[0]])
        shape[axis - 1] = sum(self.shapes[value][axis - 1] for value in values)
        return self.node("Concat", values, name, tuple(shape), axis=axis)

    def transpose(self, x: str, name: str, order: Sequence[int]) -> str:
        """Add a transpose; `order` counts the batch axis."""
        shape = tuple(self.shapes[x][i - 1] for i in order[1:])
        return self.node("Transpose", [x], name, shape, perm=list(order))

    def reshape(self, x: str, name: str, shape: Sequence[int], batch: int = 0) -> str:
        """Change the shape after the same batch axis (`batch=0`), or after an inferred one (`batch=-1`)."""
        target = self.constant(f"{name}.shape", [batch, *shape], np.int64)
        return self.node("Reshape", [x, target], name, tuple(shape))

    def slice(self, x: str, name: str, axis: int, start: int, end: int, step: int = 1) -> str:
        """Add a part of one axis, counted with the batch axis."""
        shape = list(self.shapes[x])
        shape[axis - 1] = -(-(end - start) // step)
        values = {"from": start, "to": end, "axis": axis, "step": step}
        inputs = [self.constant(f"{key}_{value}", [value], np.int64) for key, value in values.items()]
        return self.node("Slice", [x, *inputs], name, tuple(shape))

    def linear(self, x: str, name: str, outputs: int, gain: float = math.sqrt(2), bias: bool = True) -> str:
        """Add a linear layer over the last axis of more than two axes: MatMul and Add."""
        *rest, inputs = self.shapes[x]
        shape = (*rest, outputs)
        self.parameters += inputs * outputs
        key = f"{name}.weight"
        weight = self.tensor(key, (inputs, outputs), lambda: self.weights.matrix(key, (outputs, inputs), gain).T)
        if not bias:
            return self.node("MatMul", [x, weight], name, shape)
        product = self.node("MatMul", [x, weight], f"{name}.product", shape)
        return self.node("Add", [product, self.parameter(f"{name}.bias", outputs)], name, shape)

    def gemm(self, x: str, name: str, outputs: int, output: str | None = None, gain: float = math.sqrt(2)) -> str:
        """Add a linear layer on (N, C)."""
        inputs, key = self.shapes[x][0], f"{name}.weight"
        self.parameters += outputs * inputs
        weight = self.tensor(key, (outputs, inputs), lambda: self.weights.matrix(key, (outputs, inputs), gain))
        bias = self.parameter(f"{name}.bias", outputs)
        return self.node("Gemm", [x, weight, bias], output or name, (outputs,), alpha=1.0, beta=1.0, transB=1)

    def classifier(self, x: str, name: str) -> str:
        """Add the last linear layer, on (N, C): the output of the network."""
        return self.gemm(x, name, CLASSES, LOGITS, 1.0)

    def pooled(self, x: str) -> str:
        """Add the mean over the map: (N, C)."""
        return self.flatten(self.node("GlobalAveragePool", [x], "avgpool", (self.shapes[x][0], 1, 1)))

    def flatten(self, x: str) -> str:
        """Flatten to (N, C H W)."""
        return self.node("Flatten", [x], "flatten", (math.prod(self.shapes[x]),), axis=1)

    def pooled_classifier(self, x: str, name: str) -> str:
        """Add the mean over the map and the last linear layer."""
        return self.classifier(self.pooled(x), name)

    def gelu(self, x: str, name: str) -> str:
        """Add exact GELU as the exporter's chain."""
        shape = self.shapes[x]
        y = self.node("Div", [x, self.constant("sqrt_2", math.sqrt(2))], f"{name}.scaled", shape)
        y = self.node("Erf", [y], f"{name}.erf", shape)
        y = self.node("Add", [y, self.constant("one", 1.0)], f"{name}.shifted", shape)
        y = self.node("Mul", [x, y], f"{name}.product", shape)
        return self.node("Mul", [y, self.constant("half", 0.5)], name, shape)

    def layer_norm(self, x: str, name: str, axis: int = -1, eps: float = LAYER_NORM_EPS) -> str:
        """Add LayerNorm as the exporter's chain.

        `axis=-1` is `F.layer_norm`; `axis=1` normalises the channels of a map as ConvNeXt's own code does, which
        subtracts the mean twice.
        """
        shape = self.shapes[x]
        place = len(shape) - 1 if axis == -1 else axis - 1
        one = (*shape[:place], 1, *shape[place + 1 :])
        column = (shape[place],) if axis == -1 else (shape[place], 1, 1)
        mean = self.node("ReduceMean", [x], f"{name}.mean", one, axes=[axis], keepdims=1)
        centred = self.node("Sub", [x, mean], f"{name}.centred", shape)
        square = self.node("Pow", [centred, self.constant("two", 2.0)], f"{name}.square", shape)
        variance = self.node("ReduceMean", [square], f"{name}.variance", one, axes=[axis], keepdims=1)
        if axis == 1:
            centred = self.node("Sub", [x, mean], f"{name}.centred_again", shape)
        y = self.node("Add", [variance, self.constant(f"eps_{eps:g}", eps)], f"{name}.stable", one)
        y = self.node("Sqrt", [y], f"{name}.deviation", one)
        y = self.node("Div", [centred, y], f"{name}.normalised", shape)
        weight = self.parameter(f"{name}.weight", column, mean=1.0)
        y = self.node("Mul", [y, weight], f"{name}.scaled", shape)
        return self.node("Add", [y, self.parameter(f"{name}.bias", column)], name, shape)
