"""A `DeployGraph` as an ONNX model, through `onnx.helper`.

Nodes and values carry the names of the layers. Nothing in the model depends on the time or the machine, so two
exports of one network are the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.common.errors import InputError
from neonext_ms.models.activations import LEAKY_SLOPE
from neonext_ms.ops.packing import pack, pack_channels

from ..fast_gelu import CONSTANT, END, ROOT, SCALE
from ..graph import INPUT, NCHW, NHWC, DeployGraph, Layer, as_map, neocell_bias, neocell_weights
from . import neocell_node, npu_gelu, quantized
from . import save as files
from .format import Format

PRODUCER = "neonext_ms"
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def emit(
    graph: DeployGraph,
    batch: int | None = None,
    format: Format | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Return an ONNX model of a graph, with its weights inside.

    Args:
        graph: a graph, folded or not, with its NeoCells as `lower.lower` left them. One that is still a NeoCell becomes
            a custom node, which only `neocell="custom"` allows.
        batch: fixed batch size, or None for a dynamic one (named `batch`).
        format: opset, dtype and form of the nodes; the default is `Format()`.
        metadata: entries of `metadata_props`, each value as JSON.

    Returns:
        a model with the input `input`, `(batch, 3, H, W)`, and the graph's outputs under their own names, in float32
        unless the format says otherwise.

    Raises:
        InputError: a NeoCell that was not lowered, a weight that the dtype cannot hold, or a model over protobuf's 2 GB
            (see `save`).
    """
    model, weights = _emit(graph, batch, format or Format(), metadata)
    if sum(array.nbytes for array in weights.values()) > files.MAX_BYTES:
        raise InputError(
            "the model is over protobuf's limit of 2 GB. Write it with its weights in a second file (emitter.save), or "
            "export a smaller one."
        )
    for name, array in weights.items():
        # Raw data is little-endian by definition.
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        _declare(model, name, array).raw_data = little.tobytes()
    return model


def save(
    graph: DeployGraph,
    path: str | Path,
    batch: int | None = None,
    format: Format | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Emit a graph straight into a file, without a copy of its weights in a message.

    Args:
        graph: deployment graph; `batch`, `format` and `metadata` are those of `emit`.
        path: path of the file.

    Returns:
        the files that were written, the model first; over 2 GB the weights are in `<name>.onnx.data`.

    Raises:
        InputError: as for `emit`, but of any size.
        OSError: a file cannot be written.
    """
    model, weights = _emit(graph, batch, format or Format(), metadata)
    return files.write_weights(model, weights, Path(path))


def skeleton(graph: DeployGraph, batch: int | None = None, format: Format | None = None) -> onnx.ModelProto:
    """Return the model that `save` would write, with names and shapes of its weights but not their values."""
    model, weights = _emit(graph, batch, format or Format(), None)
    for name, array in weights.items():
        if array.dtype == np.int64:
            # The shape of a Reshape decides the shapes of all values behind it.
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        else:
            _declare(model, name, array)
    return model


def count_nodes(graph: DeployGraph, format: Format | None = None) -> int:
    """Return the number of nodes that `emit` would write for a graph.

    A NeoCell that is not lowered yet counts as its products, whose large matrices are not built for that.
    """
    format = format or Format()
    cells = [layer for layer in graph.layers if layer.op == "neocell" and format.neocell != "custom"]
    emitter = Emitter(onnx.GraphProto(), format, graph)
    emitter.run(layer for layer in graph.layers if layer not in cells)
    return len(emitter.proto.node) + sum(2 if neocell_bias(cell) is None else 3 for cell in cells)


def _declare(model: onnx.ModelProto, name: str, array: np.ndarray) -> TensorProto:
    """Add an initializer without its values."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return model.graph.initializer.add(name=name, data_type=kind, dims=array.shape)


def _emit(
    graph: DeployGraph, batch: int | None, format: Format, metadata: Mapping[str, Any] | None
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the model without its weights, and the weights."""
    opsets = [helper.make_opsetid("", format.opset)]
    model = onnx.ModelProto(ir_version=helper.find_min_ir_version_for(opsets), producer_name=PRODUCER)
    model.opset_import.extend(opsets)
    if format.gelu == "npu":
        # Only for this node: older releases of CANN take one import.
        model.opset_import.append(helper.make_opsetid(npu_gelu.DOMAIN, npu_gelu.VERSION))
    model.graph.name = graph.name
    shapes = graph.shapes()
    axis = "batch" if batch is None else batch
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(_DTYPES["float32" if format.float32_io else format.dtype]))
    for values, names in ((model.graph.input, (INPUT,)), (model.graph.output, graph.outputs)):
        values.extend(helper.make_tensor_value_info(n, kind, [axis, *shapes[n]]) for n in names)
    emitter = Emitter(model.graph, format, graph)
    emitter.run(graph.layers)
    for key, value in (metadata or {}).items():
        # A class name that is not UTF-8, such as that of a folder, stays one that JSON can hold.
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        model.metadata_props.add(key=key, value=text)
    return model, emitter.weights


class Emitter:
    """The nodes of a graph under construction, with one method for each kind of layer.

    Args:
        proto: the ONNX graph to fill.
        format: opset, dtype and form of the nodes.
        graph: the graph to emit.

    Attributes:
        weights: constants by name, in the dtype of the file; `proto` has the nodes only.
    """

    def __init__(self, proto: onnx.GraphProto, format: Format, graph: DeployGraph):
        self.proto, self.format, self.opset = proto, format, format.opset
        self.graph, self.shapes = graph, graph.shapes()
        self.weights: dict[str, np.ndarray] = {}
        self.dtype = np.dtype(_DTYPES[format.dtype])
        # Between the Casts at its ends, a graph with float32 ends has other names for its input and outputs.
        self.inner: dict[str, str] = {}
        if format.dtype != "float32" and format.float32_io:
            self.inner = {name: f"{name}.{format.dtype}" for name in (INPUT, *graph.outputs)}

    def run(self, layers: Iterable[Layer]) -> None:
        """Emit these layers, and Casts at the ends where the format asks for them."""
        if self.inner:
            self.cast(INPUT, self.inner[INPUT], helper.np_dtype_to_tensor_dtype(self.dtype))
        for layer in layers:
            getattr(self, layer.op)(layer)
        if self.inner:
            for name in self.graph.outputs:
                self.cast(self.inner[name], name, TensorProto.FLOAT)

    def cast(self, x: str, y: str, kind: int) -> None:
        self.proto.node.append(helper.make_node("Cast", [x], [y], name=f"{y}.cast", to=kind))

    def node(self, op: str, inputs: Sequence[str], output: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output; the node is named like its output by default."""
        inputs = [self.inner.get(x, x) for x in inputs]
        output_ = self.inner.get(output, output)
        self.proto.node.append(helper.make_node(op, inputs, [output_], name=name or output_, **attributes))
        return output

    def tensor(self, name: str, array: np.ndarray) -> str:
        """Add a constant, in the dtype of the file, and return its name."""
        self.weights[name] = self.rounded(name, np.asarray(array))
        return name

    def rounded(self, name: str, array: np.ndarray) -> np.ndarray:
        """Return a float32 array in the dtype of the file; shapes and other whole numbers stay as they are."""
        if array.dtype != np.float32 or self.dtype == np.float32:
            return array
        with np.errstate(over="ignore"):
            half = array.astype(self.dtype)
        if not np.isfinite(half).all() and np.isfinite(array).all():
            raise InputError(
                f"{name} has values up to {np.abs(array).max():.3g}, which {self.dtype} cannot hold. "
                "Use bfloat16 or float32."
            )
        return half

    def tensors(self, layer: Layer, *keys: str) -> list[str]:
        """Add the arrays of a layer under their own names (all by default) and return the names."""
        return [self.tensor(f"{layer.name}.{key}", layer.arrays[key]) for key in keys or layer.arrays]

    def constant(self, name: str, values: Any, dtype: type = np.float32) -> str:
        """Add a small constant that all layers share and return its name."""
        return name if name in self.weights else self.tensor(name, np.asarray(values, dtype))

    def space_to_depth(self, layer: Layer) -> None:
        p = layer.attributes["block"]
        c, h, w = self.shapes[layer.inputs[0]]
        # -1 stands for the batch, which may be dynamic.
        split = self.tensor(f"{layer.name}.split_shape", np.array([-1, c, h // p, p, w // p, p], np.int64))
        merged = self.tensor(f"{layer.name}.merged_shape", np.array([-1, c * p * p, h // p, w // p], np.int64))
        x = self.node("Reshape", [layer.inputs[0], split], f"{layer.name}.split")
        x = self.node("Transpose", [x], f"{layer.name}.transposed", perm=[0, 1, 3, 5, 2, 4])
        self.node("Reshape", [x, merged], layer.output, layer.name)

    def conv(self, layer: Layer) -> None:
        inputs = [*layer.inputs, *self.tensors(layer)]
        self.node("Conv", inputs, layer.output, layer.name, **quantized.conv_attributes(layer))

    def conv_int8(self, layer: Layer) -> None:
        quantized.emit(self, layer)

    linear_int8 = conv_int8

    def to_rows(self, layer: Layer) -> None:
        quantized.emit_rows(self, layer)

    def to_map(self, layer: Layer) -> None:
        quantized.emit_map(self, layer)

    def neocell(self, layer: Layer) -> None:
        if self.format.neocell != "custom":
            raise InputError(f"{layer.name}: a NeoCell has to be lowered before it is emitted. Call lower.lower.")
        spec = layer.attributes["spec"]
        coef_a, coef_b = pack(spec, *neocell_weights(layer))
        inputs = [self.tensor(f"{layer.name}.coef_a", coef_a), self.tensor(f"{layer.name}.coef_b", coef_b)]
        if "bias" in layer.arrays:
            inputs.append(self.tensor(f"{layer.name}.bias", pack_channels(layer.arrays["bias"])))
        attributes = neocell_node.attributes(spec)
        self.node(neocell_node.OP_TYPE, [*layer.inputs, *inputs], layer.output, layer.name, **attributes)

    def left(self, layer: Layer) -> None:
        self.node("MatMul", [*self.tensors(layer), *layer.inputs], layer.output, layer.name)

    def right(self, layer: Layer) -> None:
        self.node("MatMul", [*layer.inputs, *self.tensors(layer)], layer.output, layer.name)

    def shift(self, layer: Layer) -> None:
        bias = self.tensor(f"{layer.name}.bias", as_map(layer.arrays["bias"]))
        self.node("Add", [*layer.inputs, bias], layer.output, layer.name)

    def batch_norm(self, layer: Layer) -> None:
        inputs = [*layer.inputs, *self.tensors(layer, "weight", "bias", "running_mean", "running_var")]
        self.node("BatchNormalization", inputs, layer.output, layer.name, epsilon=layer.attributes["eps"])

    def transpose(self, layer: Layer) -> None:
        self.node("Transpose", layer.inputs, layer.output, layer.name, perm=list(layer.attributes["order"]))

    def linear(self, layer: Layer) -> None:
        if len(self.shapes[layer.inputs[0]]) == 1:
            # The classifier: Gemm has the bias in the same node, and takes one axis of features only.
            self.node("Gemm", [*layer.inputs, *self.tensors(layer)], layer.output, layer.name, transB=1)
            return
        inputs = [*layer.inputs, self.tensor(f"{layer.name}.weight", layer.arrays["weight"].T)]
        if "bias" not in layer.arrays:
            self.node("MatMul", inputs, layer.output, layer.name)
            return
        x = self.node("MatMul", inputs, f"{layer.name}.product")
        self.node("Add", [x, *self.tensors(layer, "bias")], layer.output, layer.name)

    def gelu(self, layer: Layer) -> None:
        (x,), form = layer.inputs, layer.attributes.get("approximate")
        tanh = form == "tanh"
        if form == "fast":
            self.gelu_fast(x, layer)
        elif self.format.gelu == "npu":
            attributes = {"domain": npu_gelu.DOMAIN, **npu_gelu.ATTRIBUTES}
            self.node(npu_gelu.OP_TYPE, [x], layer.output, layer.name, **attributes)
        elif self.opset >= 20 and not self.format.chains and (tanh or self.format.gelu != "erf"):
            attributes = {"approximate": "tanh"} if tanh else {}
            self.node("Gelu", [x], layer.output, layer.name, **attributes)
        elif tanh:
            self.gelu_tanh(x, layer.output, layer.name)
        else:
            self.gelu_erf(x, layer.output, layer.name)

    def gelu_erf(self, x: str, output: str, name: str) -> None:
        """Emit `0.5 x (1 + erf(x / sqrt(2)))`, the chain that onnxruntime fuses into one Gelu."""
        y = self.node("Div", [x, self.constant("sqrt_2", np.sqrt(2))], f"{name}.scaled")
        y = self.node("Erf", [y], f"{name}.erf")
        y = self.node("Add", [y, self.constant("one", 1)], f"{name}.shifted")
        y = self.node("Mul", [x, y], f"{name}.product")
        self.node("Mul", [y, self.constant("half", 0.5)], output, name)

    def gelu_tanh(self, x: str, output: str, name: str) -> None:
        """Emit `x (0.5 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))))`.

        CANN's GeluFusionPass replaces this chain by one Gelu: it is the first pattern of the pass, inputs in its order.
        """
        y = self.node("Pow", [x, self.constant("three", 3)], f"{name}.cube")
        y = self.node("Mul", [y, self.constant("gelu_cubic", 0.044715)], f"{name}.cubic")
        y = self.node("Add", [x, y], f"{name}.polynomial")
        y = self.node("Mul", [y, self.constant("sqrt_2_over_pi", np.sqrt(2 / np.pi))], f"{name}.argument")
        y = self.node("Tanh", [y], f"{name}.tanh")
        y = self.node("Add", [y, self.constant("one", 1)], f"{name}.shifted")
        y = self.node("Mul", [y, self.constant("half", 0.5)], f"{name}.halved")
        self.node("Mul", [x, y], output, name)

    def gelu_fast(self, x: str, layer: Layer) -> None:
        """Emit `relu(u) - t^4 (ROOT - t)` with `t = relu(END - |u|)`, of `fast_gelu`, as nodes that CANN joins."""
        name, output, scaled = layer.name, layer.output, "scaled" in layer.attributes
        if not scaled:
            x = self.node("Mul", [x, self.constant("gelu_scale", SCALE)], f"{name}.scaled")
            output = f"{name}.product"
        y = self.node("Abs", [x], f"{name}.magnitude")
        y = self.node("Sub", [self.constant(CONSTANT, END), y], f"{name}.rest")
        t = self.node("Relu", [y], f"{name}.inside")
        y = self.node("Mul", [t, t], f"{name}.square")
        y = self.node("Mul", [y, y], f"{name}.fourth")
        root = self.node("Sub", [self.constant("gelu_root", ROOT), t], f"{name}.root")
        y = self.node("Mul", [y, root], f"{name}.bump")
        x = self.node("Relu", [x], f"{name}.positive")
        y = self.node("Sub", [x, y], output, name if scaled else None)
        if not scaled:
            self.node("Mul", [y, self.constant("gelu_unscale", 1 / SCALE)], layer.output, name)

    def relu(self, layer: Layer) -> None:
        self.node("Relu", layer.inputs, layer.output, layer.name)

    def leakyrelu(self, layer: Layer) -> None:
        self.node("LeakyRelu", layer.inputs, layer.output, layer.name, alpha=LEAKY_SLOPE)

    def hardswish(self, layer: Layer) -> None:
        (x,), name = layer.inputs, layer.name
        if self.opset >= 14:
            self.node("HardSwish", [x], layer.output, name)
            return
        # Nodes that CANN parses at every opset and, in this order, joins to the convolution in front of them
        # (TbeConv2dAddClipMulDivFusionPass). Dividing first would lose subnormals in half.
        y = self.node("Add", [x, self.constant("three", 3)], f"{name}.shifted")
        six = self.constant("six", 6)
        y = self.node("Clip", [y, self.constant("zero", 0), six], f"{name}.clipped")
        y = self.node("Mul", [x, y], f"{name}.product")
        self.node("Div", [y, six], layer.output, name)

    def max_pool(self, layer: Layer) -> None:
        kernel, stride, padding = (layer.attributes[key] for key in ("kernel", "stride", "padding"))
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        self.node("MaxPool", layer.inputs, layer.output, layer.name, **window)

    def scale(self, layer: Layer) -> None:
        gamma = layer.arrays["gamma"]
        if layer.attributes["axis"] == 1:
            gamma = gamma[:, None, None]
        self.node("Mul", [*layer.inputs, self.tensor(f"{layer.name}.gamma", gamma)], layer.output, layer.name)

    def add(self, layer: Layer) -> None:
        self.node("Add", layer.inputs, layer.output, layer.name)

    def global_mean(self, layer: Layer) -> None:
        if "size" in layer.attributes:
            # One window over the upper left part; the stride is too large for a second one.
            part = list(layer.attributes["size"])
            stride = [w - p + 1 for w, p in zip(self.shapes[layer.inputs[0]][1:], part, strict=True)]
            x = self.node("AveragePool", layer.inputs, f"{layer.name}.map", kernel_shape=part, strides=stride)
        else:
            x = self.node("GlobalAveragePool", layer.inputs, f"{layer.name}.map")
        self.node("Flatten", [x], layer.output, layer.name)

    def crop(self, layer: Layer) -> None:
        # From opset 10 on, Slice takes its bounds as inputs.
        ends = self.tensor(f"{layer.name}.ends", np.array(layer.attributes["size"], np.int64))
        starts, axes = self.constant("origin", [0, 0], np.int64), self.constant("map_axes", [2, 3], np.int64)
        self.node("Slice", [*layer.inputs, starts, ends, axes], layer.output, layer.name)

    def layer_norm(self, layer: Layer) -> None:
        (x,), name = layer.inputs, layer.name
        if layer.attributes.get("axis", -1) != 1:
            self.norm(layer, x, layer.output)
            return
        # Both transposes are free where a convolution is next to them: onnxruntime converts its blocked layout to
        # either order.
        x = self.node("Transpose", [x], f"{name}.nhwc", perm=list(NHWC))
        x = self.norm(layer, x, f"{name}.normalised")
        self.node("Transpose", [x], layer.output, f"{name}.nchw", perm=list(NCHW))

    def norm(self, layer: Layer, x: str, output: str) -> str:
        """Emit a LayerNorm over the last axis."""
        if self.opset < 17 or self.format.chains:
            return self.norm_chain(layer, x, output)
        if "weight" in layer.arrays:
            constants = self.tensors(layer, "weight", "bias")
        else:
            # The operator requires its scale.
            channels = self.shapes[layer.inputs[0]][0]
            constants = [self.tensor(f"{layer.name}.weight", np.ones(channels, np.float32))]
        attributes = {"axis": -1, "epsilon": layer.attributes["eps"]}
        return self.node("LayerNormalization", [x, *constants], output, layer.name, **attributes)

    def norm_chain(self, layer: Layer, x: str, output: str) -> str:
        """Emit a LayerNorm as elementary nodes.

        One Sub serves both of its readers, axes are negative and constants scalar: what CANN's
        LayerNormONNXFusionPass asks for.
        """
        name = layer.name
        x = self.node("Sub", [x, self.mean(x, f"{name}.mean")], f"{name}.centred")
        if self.format.fusable:
            square = self.node("Pow", [x, self.constant("two", 2)], f"{name}.square")
        else:
            square = self.node("Mul", [x, x], f"{name}.square")
        variance = self.mean(square, f"{name}.variance")
        variance = self.node("Add", [variance, self.constant(f"{name}.eps", layer.attributes["eps"])], f"{name}.stable")
        deviation = self.node("Sqrt", [variance], f"{name}.deviation")
        if "weight" not in layer.arrays:
            return self.node("Div", [x, deviation], output, name)
        x = self.node("Div", [x, deviation], f"{name}.quotient")
        x = self.node("Mul", [x, *self.tensors(layer, "weight")], f"{name}.scaled")
        return self.node("Add", [x, *self.tensors(layer, "bias")], output, name)

    def mean(self, x: str, output: str) -> str:
        """Emit the mean over the last axis; its axes are an attribute up to opset 17 and an input from 18 on."""
        if self.opset >= 18:
            return self.node("ReduceMean", [x, self.constant("last_axis", [-1], np.int64)], output, keepdims=1)
        return self.node("ReduceMean", [x], output, axes=[-1], keepdims=1)
