"""Any ONNX file as a list of nodes with known shapes. Weights are not read: their files need not be there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained
from neonext_ms.export.onnx.neocell_node import DOMAIN, OP_TYPE

# Constants up to this many numbers are read: shapes, axes, exponents.
_SMALL = 256
# Operators of Ascend's 8-bit graphs, which onnx does not know and which keep the shape of their input.
QUANT_OPS = ("AscendQuant", "AscendDequant", "AscendAntiQuant", "AscendRequant")


# What exporters compute sizes with.
_SHAPE_OPS = (
    *("Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Add", "Sub", "Mul", "Div", "Mod", "Floor", "Ceil"),
    *("Reshape", "ConstantOfShape", "Range", "Equal", "Where", "ReduceProd", "Expand", "Identity", "Not", "Min", "Max"),
    "Transpose",
)


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        name: its own, or its type and position.
        op: ONNX operator type.
        inputs, outputs: names of values; an input left out is an empty string.
        attributes: by name.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network as it computes one batch.

    Attributes:
        name: of the file or graph.
        nodes: those that compute something at run time, in order.
        shapes: of every value, in whole numbers.
        constants: names of values that do not depend on the input.
        numbers: contents of small constants.
        inputs, outputs: of the network.
        batch: images of a run.
    """

    name: str
    nodes: tuple[Node, ...]
    shapes: Mapping[str, tuple[int, ...]]
    constants: frozenset[str]
    numbers: Mapping[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape of a value; () for one that is left out."""
        return self.shapes.get(value, ())

    def scalar(self, value: str) -> float | None:
        """The number of a constant that holds a single one."""
        held = self.numbers.get(value)
        return float(held.reshape(-1)[0]) if held is not None and held.size == 1 else None


def read(model: onnx.ModelProto | str | os.PathLike, batch: int | None = None) -> Graph:
    """Nodes and shapes of a model.

    Args:
        model: a loaded model or a file; external data is neither needed nor read.
        batch: images of a run; None: as the model says.

    Raises:
        InputError: not an ONNX model; a batch below 1 or other than the one the model is fixed to; a size that
            shape inference does not find (the message names the node).
    """
    name = "the model" if isinstance(model, onnx.ModelProto) else os.fspath(model)
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}: expected a whole number of at least 1")
    if not isinstance(model, onnx.ModelProto):
        model = _load(Path(model))
    if not model.graph.node or not model.graph.input:
        raise InputError(f"{name}: no ONNX graph in it (no nodes or no input); expected a model exported as .onnx")
    graph = _without_weights(model)
    initializers = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in initializers]
    count = _fix_batch(name, inputs, batch)
    replaced = _stand_in(graph)
    shapes = {**_shapes(name, graph), **initializers}
    constants, numbers = set(initializers), {}
    for tensor in graph.graph.initializer:
        constants.add(tensor.name)
        _keep(numbers, tensor)
    nodes = []
    for position, node in enumerate(graph.graph.node):
        original = replaced.get(position, node)
        attributes = {a.name: helper.get_attribute_value(a) for a in original.attribute}
        used = [value for value in original.input if value]
        if original.op_type == "Constant":
            numbers.update(_constant(original))
        elif original.op_type in ("Shape", "Size") or (used and all(value in constants for value in used)):
            pass
        else:
            made = original.name or f"{original.op_type}_{position}"
            nodes.append(Node(made, original.op_type, tuple(original.input), tuple(original.output), attributes))
            continue
        constants.update(original.output)
    _check(name, nodes, shapes, constants, batch)
    return Graph(
        name,
        tuple(nodes),
        shapes,
        frozenset(constants),
        numbers,
        tuple(value.name for value in inputs),
        tuple(value.name for value in graph.graph.output),
        count,
    )


def _load(path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    with explained(path):
        content = path.read_bytes()
    try:
        return onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: not an ONNX file (protobuf does not parse); expected a model as .onnx") from error


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large initializers are inputs of their shape: nothing has to be held twice."""
    small = onnx.ModelProto(ir_version=model.ir_version)
    small.opset_import.extend(model.opset_import)
    small.graph.name = model.graph.name
    small.graph.node.extend(model.graph.node)
    small.graph.input.extend(model.graph.input)
    small.graph.output.extend(model.graph.output)
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=int) <= _SMALL and _has_data(tensor):
            small.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            small.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return small


def _has_data(tensor: onnx.TensorProto) -> bool:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    return bool(tensor.raw_data) or any(
        len(getattr(tensor, name)) for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    )


def _keep(numbers: dict[str, np.ndarray], tensor: onnx.TensorProto, name: str | None = None) -> None:
    if _has_data(tensor) and np.prod(tensor.dims, dtype=int) <= _SMALL:
        numbers[name or tensor.name] = np.asarray(numpy_helper.to_array(tensor))


def _fix_batch(name: str, inputs: list[onnx.ValueInfoProto], batch: int | None) -> int:
    """Write the batch into the first axis of every input; how many images that is."""
    found = None
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis or batch is None:
                shown = dim.dim_param or "?"
                what = "give its batch with --batch" if not axis else "export it with a fixed size"
                raise InputError(f"{name}: input {value.name!r} has the dynamic axis {axis} ({shown}); {what}")
            dim.Clear()
            dim.dim_value = batch
        if dims and found is None:
            found = dims[0].dim_value
    if found is None:
        raise InputError(f"{name}: no input with a batch axis")
    if batch is not None and found != batch:
        raise InputError(
            f"{name}: fixed to batch {found}, not {batch}; leave --batch out, or export it with a dynamic batch"
        )
    return found


def _stand_in(graph: onnx.ModelProto) -> dict[int, onnx.NodeProto]:
    """Write operators that onnx does not know as Identity; the originals by position.

    The declared shapes of outputs, often with a symbolic batch, are dropped, so that they are inferred.
    """
    replaced = {}
    for position, node in enumerate(graph.graph.node):
        own = node.op_type == OP_TYPE and node.domain == DOMAIN
        if own or node.op_type in QUANT_OPS:
            replaced[position] = onnx.NodeProto()
            replaced[position].CopyFrom(node)
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
    for value in graph.graph.output:
        value.type.tensor_type.ClearField("shape")
    return replaced


def _shapes(name: str, graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all values that can be known; what computes a shape is folded until nothing more is found."""
    shapes: dict[str, tuple[int, ...]] = {}
    while True:
        try:
            inferred = shape_inference.infer_shapes(graph, data_prop=True).graph
        except shape_inference.InferenceError as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"{name}: the shapes of its values contradict each other ({text})") from error
        known = len(shapes)
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                shapes.setdefault(value.name, tuple(d.dim_value for d in dims))
        wanted = {value for node in graph.graph.node for value in node.output if value}
        if wanted <= shapes.keys() or (known and len(shapes) == known) or not _fold(graph, shapes):
            return shapes


def _fold(graph: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Write nodes that compute a few whole numbers from known shapes as constants; whether there were any."""
    from onnx.reference import ReferenceEvaluator

    numbers: dict[str, np.ndarray] = {}
    for tensor in graph.graph.initializer:
        _keep(numbers, tensor)
    folded = 0
    for node in graph.graph.node:
        made = None
        if node.op_type == "Constant":
            numbers.update(_constant(node))
        elif node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
            made = np.array(shapes[node.input[0]], np.int64)
        elif node.op_type in _SHAPE_OPS and all(not v or v in numbers for v in node.input):
            values = {v: numbers[v] for v in node.input if v}
            ends = [helper.make_tensor_value_info(v, helper.np_dtype_to_tensor_dtype(a.dtype), None)
                    for v, a in values.items()]  # fmt: skip
            alone = helper.make_graph([node], "shape", ends, [helper.make_empty_tensor_value_info(node.output[0])])
            single = helper.make_model(alone, opset_imports=list(graph.opset_import), ir_version=graph.ir_version)
            with contextlib.suppress(TypeError, ValueError, IndexError, RuntimeError, AttributeError):
                made = np.asarray(ReferenceEvaluator(single).run(None, values)[0])
        if made is None or made.size > _SMALL:
            continue
        folded += 1
        numbers[node.output[0]] = made
        # In its place, so that the positions of all nodes stay.
        constant = helper.make_node("Constant", [], [node.output[0]], value=numpy_helper.from_array(made))
        node.CopyFrom(constant)
    return bool(folded)


def _constant(node: onnx.NodeProto) -> dict[str, np.ndarray]:
    """What a Constant node holds, if it is small."""
    numbers: dict[str, np.ndarray] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            _keep(numbers, value, node.output[0])
        elif isinstance(value, (int, float, list)):
            numbers[node.output[0]] = np.array(value)
    return numbers


def _check(
    name: str,
    nodes: list[Node],
    shapes: Mapping[str, tuple[int, ...]],
    constants: set[str],
    batch: int | None,
) -> None:
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value and value not in shapes and value not in constants:
                if value in node.outputs[1:]:  # second outputs such as masks
                    continue
                raise InputError(
                    f"{name}: the shape of {value!r} at node {node.name!r} ({node.op}) is not known; onnx's shape "
                    "inference does not find it: export the model with fixed sizes"
                )
