"""A `DeployGraph` as an ONNX model, through `onnx.helper`: the folded one for deployment, the unfolded one as proof.

Nodes and values carry the names of the layers. Nothing in the model depends on the time or the machine, so two
emissions are the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..errors import InputError
from .graph import INPUT, DeployGraph, Layer

DEFAULT_OPSET = 20
MIN_OPSET = 11
MAX_OPSET = 21
# Protobuf cannot write more in one piece; the names and shapes beside the weights get a margin.
MAX_BYTES = 2**31 - 2**24
PRODUCER = "neonext_ms"


def emit(
    graph: DeployGraph, batch: int | None = None, opset: int = DEFAULT_OPSET, metadata: Mapping | None = None
) -> onnx.ModelProto:
    """An ONNX model of a graph without NeoCell layers (see `fold.neocell_to_matmul`).

    Args:
        graph: folded or not.
        batch: fixed batch size, or None for a dynamic one (named `batch`).
        opset: version of the default domain, 11 to 21. From 17 on LayerNormalization is one node, from 20 on exact
            GELU is one node; before, they are chains of elementary nodes.
        metadata: written into `metadata_props`, each value as JSON.

    Returns:
        A model with the input `input`, float32 `(batch, 3, H, W)`, and the graph's outputs under their own names.

    Raises:
        InputError: an opset out of range, or a model over protobuf's 2 GB.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise InputError(f"ONNX opset {opset}: expected {MIN_OPSET} to {MAX_OPSET}")
    opsets = [helper.make_opsetid("", opset)]
    # Built in place: every copy of a message would be a copy of the weights.
    model = onnx.ModelProto(ir_version=helper.find_min_ir_version_for(opsets), producer_name=PRODUCER)
    model.opset_import.extend(opsets)
    model.graph.name = "neonext"
    if sum(array.nbytes for layer in graph.layers for array in layer.arrays.values()) > MAX_BYTES:
        raise InputError("the model is over protobuf's limit of 2 GB; export a smaller one")
    shapes = graph.shapes()
    axis = "batch" if batch is None else batch
    for values, names in ((model.graph.input, (INPUT,)), (model.graph.output, graph.outputs)):
        values.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, [axis, *shapes[n]]) for n in names)
    emitter = _Emitter(model.graph, opset, shapes)
    for layer in graph.layers:
        getattr(emitter, layer.op)(layer)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    return model


def count_nodes(graph: DeployGraph, opset: int = DEFAULT_OPSET) -> int:
    """Nodes that `emit` would write for a graph."""
    emitter = _Emitter(None, opset, graph.shapes())
    for layer in graph.layers:
        getattr(emitter, layer.op)(layer)
    return emitter.count


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to a file.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


class _Emitter:
    """One method for each kind of layer; without a `proto` it only counts nodes."""

    def __init__(self, proto: onnx.GraphProto | None, opset: int, shapes: Mapping[str, tuple[int, ...]]):
        self.proto = proto
        self.opset = opset
        self.shapes = shapes
        self.constants: set[str] = set()
        self.count = 0

    def node(self, op: str, inputs, output: str, name: str | None = None, **attributes) -> str:
        self.count += 1
        if self.proto is not None:
            node = helper.make_node(op, list(inputs), [output], name=name or output, **attributes)
            self.proto.node.append(node)
        return output

    def tensor(self, name: str, array: np.ndarray) -> str:
        if self.proto is not None:
            array = np.asarray(array)
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
        group = layer.attributes["groups"]
        self.node("Conv", inputs, layer.output, layer.name, kernel_shape=kernel, strides=kernel, group=group)

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
        if self.opset >= 20:
            self.node("Gelu", [x], layer.output, name)
            return
        y = self.node("Div", [x, self.constant("sqrt_2", np.sqrt(2), np.float32)], f"{name}.scaled")
        y = self.node("Erf", [y], f"{name}.erf")
        y = self.node("Add", [y, self.constant("one", 1, np.float32)], f"{name}.shifted")
        y = self.node("Mul", [x, y], f"{name}.product")
        self.node("Mul", [y, self.constant("half", 0.5, np.float32)], layer.output, name)

    def scale(self, layer: Layer) -> None:
        gamma = layer.arrays["gamma"]
        if layer.attributes["axis"] == 1:
            gamma = gamma[:, None, None]
        self.node("Mul", [*layer.inputs, self.tensor(f"{layer.name}.gamma", gamma)], layer.output, layer.name)

    def add(self, layer: Layer) -> None:
        self.node("Add", layer.inputs, layer.output, layer.name)

    def global_mean(self, layer: Layer) -> None:
        x = self.node("GlobalAveragePool", layer.inputs, f"{layer.name}.map")
        self.node("Flatten", [x], layer.output, layer.name)

    def layer_norm(self, layer: Layer) -> None:
        weight, bias = (self.tensor(f"{layer.name}.{key}", layer.arrays[key]) for key in ("weight", "bias"))
        (x,), name, eps = layer.inputs, layer.name, layer.attributes["eps"]
        if self.opset >= 17:
            self.node("LayerNormalization", [x, weight, bias], layer.output, name, axis=-1, epsilon=eps)
            return
        mean = self.mean(x, f"{name}.mean")
        x = self.node("Sub", [x, mean], f"{name}.centred")
        square = self.node("Pow", [x, self.constant("two", 2, np.float32)], f"{name}.square")
        variance = self.mean(square, f"{name}.variance")
        variance = self.node("Add", [variance, self.constant(f"{name}.eps", eps, np.float32)], f"{name}.stable")
        x = self.node("Div", [x, self.node("Sqrt", [variance], f"{name}.deviation")], f"{name}.normalised")
        x = self.node("Mul", [x, weight], f"{name}.scaled")
        self.node("Add", [x, bias], layer.output, name)

    def mean(self, x: str, output: str) -> str:
        """Mean over the last axis; its axes are an attribute up to opset 17 and an input from 18 on."""
        if self.opset >= 18:
            return self.node("ReduceMean", [x, self.constant("last_axis", [-1], np.int64)], output, keepdims=1)
        return self.node("ReduceMean", [x], output, axes=[-1], keepdims=1)
