"""A `DeployGraph` as an ONNX model, through `onnx.helper`: the folded one for deployment, the unfolded one as proof.

Nodes and values carry the names of the layers. Nothing in the model depends on the time or the machine, so two
emissions are the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.common.errors import InputError
from neonext_ms.ops.packing import pack, pack_channels

from ..graph import INPUT, NCHW, NHWC, DeployGraph, Layer, conv_margins, conv_strides
from . import neocell_node
from .format import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET, Flavour
from .save import write_streamed

__all__ = [
    "DEFAULT_OPSET", "MAX_OPSET", "MIN_OPSET", "count_nodes", "emit", "in_float32", "read", "runnable", "save",
    "skeleton", "write",
]  # fmt: skip

# Protobuf cannot write more in one piece; the names and shapes beside the weights get a margin.
MAX_BYTES = 2**31 - 2**24
# In a file with external data, smaller tensors (shapes, scalars) stay inside, and larger ones start at a page.
_INSIDE, _PAGE = 1024, 4096
PRODUCER = "neonext_ms"
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emit(
    graph: DeployGraph,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping | None = None,
    flavour: Flavour | None = None,
) -> onnx.ModelProto:
    """An ONNX model of a graph.

    Args:
        graph: folded or not. Its NeoCells are written as `fold` or `flavour.lower` left them; one that is still a
            NeoCell becomes a custom node, which only `neocell="custom"` allows.
        batch: fixed batch size, or None for a dynamic one (named `batch`).
        opset: version of the default domain, 11 to 21, where no flavour is given. From 17 on LayerNormalization is
            one node, from 20 on exact GELU is one node; before, they are chains of elementary nodes.
        metadata: written into `metadata_props`, each value as JSON.
        flavour: opset, precision and form of the nodes.

    Returns:
        A model with the input `input`, `(batch, 3, H, W)`, and the graph's outputs under their own names, float32
        unless the flavour says otherwise.

    Raises:
        InputError: an opset out of range, a NeoCell that was not lowered, a weight that the precision cannot hold,
            or a model over protobuf's 2 GB (see `save`).
    """
    flavour = flavour or Flavour(opset=opset)
    itemsize = np.dtype(_DTYPES[flavour.precision]).itemsize
    if sum(array.size for layer in graph.layers for array in layer.arrays.values()) * itemsize > MAX_BYTES:
        raise InputError(
            "the model is over protobuf's limit of 2 GB; write it with its weights in a second file "
            "(onnx_emitter.save), or export a smaller one"
        )
    return _emit(graph, batch, flavour, metadata, None)


def save(
    graph: DeployGraph,
    path: str | Path,
    batch: int | None = None,
    flavour: Flavour | None = None,
    metadata: Mapping | None = None,
) -> list[Path]:
    """Emit a graph straight into a file, without a copy of its weights in a message.

    Over protobuf's 2 GB the weights go into a second file, `<name>.onnx.data`, which the first one names relative to
    its own folder: the two have to stay together.

    Args:
        graph: as for `emit`, and so are `batch`, `flavour` and `metadata`.
        path: the file.

    Returns:
        the files that were written, the model first.

    Raises:
        InputError: as `emit`, but for the size.
        OSError: a file cannot be written.
    """
    weights: dict[str, np.ndarray] = {}
    model = _emit(graph, batch, flavour or Flavour(), metadata, weights)
    return _write(model, weights, Path(path))


def read(path: str | Path) -> onnx.ModelProto:
    """A model that `save` or `write` wrote, with its weights."""
    return onnx.load(path)


def write(model: onnx.ModelProto, path: str | Path) -> list[Path]:
    """Write a model to a file, as `save` does.

    Args:
        model: with its initializers inside; it is not changed.
        path: the file.

    Returns:
        the files that were written, the model first.

    Raises:
        OSError: a file cannot be written.
    """
    path = Path(path)
    if sum(_bytes(tensor) for tensor in model.graph.initializer) > MAX_BYTES:
        light = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
        light.opset_import.extend(model.opset_import)
        light.metadata_props.extend(model.metadata_props)
        light.graph.name = model.graph.name
        for field in ("node", "input", "output", "value_info"):
            getattr(light.graph, field).extend(getattr(model.graph, field))
        return _write(light, _Initializers(model), path)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())
    return [path]


def skeleton(graph: DeployGraph, batch: int | None = None, flavour: Flavour | None = None) -> onnx.ModelProto:
    """The model that `save` would write, with the names of its weights but not their values."""
    weights: dict[str, np.ndarray] = {}
    model = _emit(graph, batch, flavour or Flavour(), None, weights)
    for name, array in weights.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.initializer.add(name=name, data_type=kind, dims=array.shape)
    return model


def count_nodes(graph: DeployGraph, opset: int = DEFAULT_OPSET, flavour: Flavour | None = None) -> int:
    """Nodes that `emit` would write for a graph."""
    emitter = _Emitter(None, flavour or Flavour(opset=opset), graph)
    emitter.run()
    return emitter.count


def in_float32(model: onnx.ModelProto, rounded: bool = True) -> onnx.ModelProto:
    """A model of half precision as one that any CPU can run: float32 arithmetic on the file's own rounded weights.

    Args:
        model: in float16 or bfloat16.
        rounded: round what every node gives to the model's precision, by a pair of Casts, as hardware does that
            accumulates in float32 and stores halves. It is an emulation: what a device rounds in between is its own.

    Returns:
        a new model with float32 input and outputs, opset at most 21.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kinds = {t.data_type for t in result.graph.initializer} & set(_HALVES)
    half = kinds.pop() if kinds else None
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type in _HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in result.graph.initializer:
        if tensor.data_type in _HALVES:
            array = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    del result.graph.node[:]
    for node in model.graph.node:
        if node.op_type == "Cast":
            result.graph.node.extend(_rounding(node.input[0], node.output[0], half))
        elif not rounded or half is None:
            result.graph.node.append(node)
        else:
            (output,) = node.output
            raw = f"{output}.exact"
            result.graph.node.add().CopyFrom(node)
            result.graph.node[-1].output[0] = raw
            result.graph.node.extend(_rounding(raw, output, half))
    result.opset_import[0].version = min(result.opset_import[0].version, MAX_OPSET)
    return result


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model in a form that onnxruntime has kernels for: itself, if it is in one already.

    NeoCell nodes become products made from their own coefficients and attributes; bfloat16 becomes float32
    arithmetic on the file's own weights with each result rounded.
    """
    if any(node.op_type == neocell_node.OP_TYPE for node in model.graph.node):
        model = neocell_node.expand_custom(model)
    if any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        model = in_float32(model)
    return model


def _rounding(x: str, y: str, half: int | None) -> list[onnx.NodeProto]:
    if half is None:
        return [helper.make_node("Identity", [x], [y], name=f"{y}.same")]
    return [
        helper.make_node("Cast", [x], [f"{y}.half"], name=f"{y}.half", to=half),
        helper.make_node("Cast", [f"{y}.half"], [y], name=f"{y}.rounded", to=TensorProto.FLOAT),
    ]


def _emit(graph, batch, flavour: Flavour, metadata, weights) -> onnx.ModelProto:
    """The model; its weights go into `weights` if that is a dict."""
    opsets = [helper.make_opsetid("", flavour.opset)]
    # Built in place: every copy of a message would be a copy of the weights.
    model = onnx.ModelProto(ir_version=helper.find_min_ir_version_for(opsets), producer_name=PRODUCER)
    model.opset_import.extend(opsets)
    model.graph.name = graph.name
    shapes = graph.shapes()
    axis = "batch" if batch is None else batch
    outside = "float32" if flavour.float32_io else flavour.precision
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(_DTYPES[outside]))
    for values, names in ((model.graph.input, (INPUT,)), (model.graph.output, graph.outputs)):
        values.extend(helper.make_tensor_value_info(n, kind, [axis, *shapes[n]]) for n in names)
    _Emitter(model.graph, flavour, graph, weights).run()
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    return model


class _Initializers(Mapping):
    """The initializers of a model as arrays, each made when it is asked for."""

    def __init__(self, model: onnx.ModelProto):
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def __getitem__(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._tensors[name])

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _write(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], path: Path) -> list[Path]:
    if sum(array.nbytes for array in weights.values()) <= MAX_BYTES:
        write_streamed(model, weights, path)
        return [path]
    beside = path.with_name(f"{path.name}.data")
    inside = {}
    with open(beside, "wb") as file:
        for name, array in weights.items():
            if array.nbytes < _INSIDE:
                inside[name] = array
                continue
            file.write(bytes(-file.tell() % _PAGE))
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor = model.graph.initializer.add(name=name, data_type=kind, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", beside.name), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            # Raw data is little-endian by definition. A view as bytes, since bfloat16 has no buffer of its own.
            array = np.ascontiguousarray(array)
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(array.reshape(-1).view(np.uint8).data)
    write_streamed(model, inside, path)
    return [path, beside]


class _Emitter:
    """One method for each kind of layer; without a `proto` it only counts nodes."""

    def __init__(
        self,
        proto: onnx.GraphProto | None,
        flavour: Flavour,
        graph: DeployGraph,
        weights: dict[str, np.ndarray] | None = None,
    ):
        self.proto = proto
        self.flavour = flavour
        self.opset = flavour.opset
        self.graph = graph
        self.shapes = graph.shapes()
        self.weights = weights
        self.dtype = np.dtype(_DTYPES[flavour.precision])
        # Values that have another name between the Casts at the ends than outside.
        self.inner: dict[str, str] = {}
        if flavour.precision != "float32" and flavour.float32_io:
            self.inner = {name: f"{name}.{flavour.precision}" for name in (INPUT, *graph.outputs)}
        self.constants: set[str] = set()
        self.count = 0

    def run(self) -> None:
        half = helper.np_dtype_to_tensor_dtype(self.dtype)
        if self.inner:
            self.cast(INPUT, self.inner[INPUT], half)
        for layer in self.graph.layers:
            getattr(self, layer.op)(layer)
        if self.inner:
            for name in self.graph.outputs:
                self.cast(self.inner[name], name, TensorProto.FLOAT)

    def cast(self, x: str, y: str, kind: int) -> None:
        self.count += 1
        if self.proto is not None:
            self.proto.node.append(helper.make_node("Cast", [x], [y], name=f"{y}.cast", to=kind))

    def node(self, op: str, inputs, output: str, name: str | None = None, **attributes) -> str:
        self.count += 1
        if self.proto is not None:
            inputs = [self.inner.get(x, x) for x in inputs]
            output = self.inner.get(output, output)
            self.proto.node.append(helper.make_node(op, inputs, [output], name=name or output, **attributes))
        return output

    def tensor(self, name: str, array: np.ndarray) -> str:
        if self.proto is None:
            return name
        array = np.asarray(array)
        if array.dtype == np.float32 and self.dtype != np.float32:
            with np.errstate(over="ignore"):
                array, exact = array.astype(self.dtype), array
            if not np.isfinite(array).all() and np.isfinite(exact).all():
                raise InputError(
                    f"{name} has values up to {np.abs(exact).max():.3g}, which {self.dtype} cannot hold; "
                    "use bfloat16 or float32"
                )
        if self.weights is not None:
            self.weights[name] = array
            return name
        # Raw data is little-endian by definition.
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype.newbyteorder("="))
        self.proto.initializer.add(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        return name

    def constant(self, name: str, values, dtype) -> str:
        """A small constant shared by all layers."""
        if name not in self.constants:
            self.constants.add(name)
            self.tensor(name, np.asarray(values, dtype))
        return name

    def space_to_depth(self, layer: Layer) -> None:
        p = layer.attributes["block"]
        c, h, w = self.shapes[layer.inputs[0]]
        split = self.tensor(f"{layer.name}.split_shape", np.array([-1, c, h // p, p, w // p, p], np.int64))
        merged = self.tensor(f"{layer.name}.merged_shape", np.array([-1, c * p * p, h // p, w // p], np.int64))
        x = self.node("Reshape", [layer.inputs[0], split], f"{layer.name}.split")
        x = self.node("Transpose", [x], f"{layer.name}.transposed", perm=[0, 1, 3, 5, 2, 4])
        self.node("Reshape", [x, merged], layer.output, layer.name)

    def conv(self, layer: Layer) -> None:
        kernel = list(layer.arrays["weight"].shape[2:])
        inputs = [*layer.inputs, *(self.tensor(f"{layer.name}.{key}", a) for key, a in layer.arrays.items())]
        before, after = conv_margins(layer)
        pads = {"pads": [*before, *after]} if any(after) else {}
        strides, group = list(conv_strides(layer)), layer.attributes["groups"]
        self.node("Conv", inputs, layer.output, layer.name, kernel_shape=kernel, strides=strides, group=group, **pads)

    def neocell(self, layer: Layer) -> None:
        if self.flavour.neocell != "custom":
            raise InputError(f"{layer.name}: a NeoCell has to be lowered before it is emitted; see flavour.lower")
        spec, arrays = layer.attributes["spec"], layer.arrays
        a, b = ([arrays[f"weight_{side}.{i}"] for i in range(len(spec.groups))] for side in "ab")
        coef_a, coef_b = pack(spec, a, b)
        inputs = [self.tensor(f"{layer.name}.coef_a", coef_a), self.tensor(f"{layer.name}.coef_b", coef_b)]
        if "bias" in arrays:
            inputs.append(self.tensor(f"{layer.name}.bias", pack_channels(arrays["bias"])))
        attributes = neocell_node.attributes(spec)
        self.node(neocell_node.OP_TYPE, [*layer.inputs, *inputs], layer.output, layer.name, **attributes)

    def left(self, layer: Layer) -> None:
        matrix = self.tensor(f"{layer.name}.matrix", layer.arrays["matrix"])
        self.node("MatMul", [matrix, *layer.inputs], layer.output, layer.name)

    def right(self, layer: Layer) -> None:
        matrix = self.tensor(f"{layer.name}.matrix", layer.arrays["matrix"])
        self.node("MatMul", [*layer.inputs, matrix], layer.output, layer.name)

    def shift(self, layer: Layer) -> None:
        bias = self.tensor(f"{layer.name}.bias", layer.arrays["bias"][:, None, None])
        self.node("Add", [*layer.inputs, bias], layer.output, layer.name)

    def batch_norm(self, layer: Layer) -> None:
        keys = ("weight", "bias", "running_mean", "running_var")
        inputs = [*layer.inputs, *(self.tensor(f"{layer.name}.{key}", layer.arrays[key]) for key in keys)]
        self.node("BatchNormalization", inputs, layer.output, layer.name, epsilon=layer.attributes["eps"])

    def transpose(self, layer: Layer) -> None:
        self.node("Transpose", layer.inputs, layer.output, layer.name, perm=list(layer.attributes["order"]))

    def linear(self, layer: Layer) -> None:
        weight, bias = layer.arrays["weight"], layer.arrays.get("bias")
        if len(self.shapes[layer.inputs[0]]) == 1:
            inputs = [*layer.inputs, *(self.tensor(f"{layer.name}.{key}", a) for key, a in layer.arrays.items())]
            self.node("Gemm", inputs, layer.output, layer.name, transB=1)
            return
        weight = self.tensor(f"{layer.name}.weight", weight.T)
        if bias is None:
            self.node("MatMul", [*layer.inputs, weight], layer.output, layer.name)
            return
        x = self.node("MatMul", [*layer.inputs, weight], f"{layer.name}.product")
        self.node("Add", [x, self.tensor(f"{layer.name}.bias", bias)], layer.output, layer.name)

    def gelu(self, layer: Layer) -> None:
        (x,), name = layer.inputs, layer.name
        tanh = layer.attributes.get("approximate") == "tanh"
        if self.opset >= 20 and not self.flavour.chains and (tanh or self.flavour.gelu != "erf"):
            self.node("Gelu", [x], layer.output, name, **({"approximate": "tanh"} if tanh else {}))
        elif tanh:
            self.gelu_tanh(x, layer.output, name)
        else:
            y = self.node("Div", [x, self.constant("sqrt_2", np.sqrt(2), np.float32)], f"{name}.scaled")
            y = self.node("Erf", [y], f"{name}.erf")
            y = self.node("Add", [y, self.constant("one", 1, np.float32)], f"{name}.shifted")
            y = self.node("Mul", [x, y], f"{name}.product")
            self.node("Mul", [y, self.constant("half", 0.5, np.float32)], layer.output, name)

    def gelu_tanh(self, x: str, output: str, name: str) -> None:
        """The chain that CANN's GeluFusionPass replaces by one Gelu: its first pattern, inputs in its order."""
        y = self.node("Pow", [x, self.constant("three", 3, np.float32)], f"{name}.cube")
        y = self.node("Mul", [y, self.constant("gelu_cubic", 0.044715, np.float32)], f"{name}.cubic")
        y = self.node("Add", [x, y], f"{name}.polynomial")
        y = self.node("Mul", [y, self.constant("sqrt_2_over_pi", np.sqrt(2 / np.pi), np.float32)], f"{name}.argument")
        y = self.node("Tanh", [y], f"{name}.tanh")
        y = self.node("Add", [y, self.constant("one", 1, np.float32)], f"{name}.shifted")
        y = self.node("Mul", [y, self.constant("half", 0.5, np.float32)], f"{name}.halved")
        self.node("Mul", [x, y], output, name)

    def relu(self, layer: Layer) -> None:
        self.node("Relu", layer.inputs, layer.output, layer.name)

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
        ends = self.tensor(f"{layer.name}.ends", np.array(layer.attributes["size"], np.int64))
        starts, axes = self.constant("origin", [0, 0], np.int64), self.constant("map_axes", [2, 3], np.int64)
        self.node("Slice", [*layer.inputs, starts, ends, axes], layer.output, layer.name)

    def layer_norm(self, layer: Layer) -> None:
        (x,), name, output = layer.inputs, layer.name, layer.output
        if layer.attributes.get("axis", -1) == 1:
            # Both transposes are free where a convolution is next to them: onnxruntime's blocked layout is converted
            # to either order.
            x = self.node("Transpose", [x], f"{name}.nhwc", perm=list(NHWC))
            x = self.last_axis_norm(layer, x, f"{name}.normalised")
            self.node("Transpose", [x], output, f"{name}.nchw", perm=list(NCHW))
            return
        self.last_axis_norm(layer, x, output)

    def last_axis_norm(self, layer: Layer, x: str, output: str) -> str:
        name, eps, affine = layer.name, layer.attributes["eps"], "weight" in layer.arrays
        if self.opset >= 17 and not self.flavour.chains:
            channels = self.shapes[layer.inputs[0]][0]
            weight = layer.arrays["weight"] if affine else np.ones(channels, np.float32)
            inputs = [x, self.tensor(f"{name}.weight", weight)]
            if affine:
                inputs.append(self.tensor(f"{name}.bias", layer.arrays["bias"]))
            return self.node("LayerNormalization", inputs, output, name, axis=-1, epsilon=eps)
        mean = self.mean(x, f"{name}.mean")
        x = self.node("Sub", [x, mean], f"{name}.centred")
        square = self.node("Pow", [x, self.constant("two", 2, np.float32)], f"{name}.square")
        variance = self.mean(square, f"{name}.variance")
        variance = self.node("Add", [variance, self.constant(f"{name}.eps", eps, np.float32)], f"{name}.stable")
        deviation = self.node("Sqrt", [variance], f"{name}.deviation")
        if not affine:
            return self.node("Div", [x, deviation], output, name)
        x = self.node("Div", [x, deviation], f"{name}.quotient")
        x = self.node("Mul", [x, self.tensor(f"{name}.weight", layer.arrays["weight"])], f"{name}.scaled")
        return self.node("Add", [x, self.tensor(f"{name}.bias", layer.arrays["bias"])], output, name)

    def mean(self, x: str, output: str) -> str:
        """Mean over the last axis; its axes are an attribute up to opset 17 and an input from 18 on."""
        if self.opset >= 18:
            return self.node("ReduceMean", [x, self.constant("last_axis", [-1], np.int64)], output, keepdims=1)
        return self.node("ReduceMean", [x], output, axes=[-1], keepdims=1)
