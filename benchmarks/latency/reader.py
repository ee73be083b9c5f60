"""Any ONNX file as a list of nodes with known shapes. Weights are not read, and their files need not be there."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import one_line
from neonext_ms.export.onnx.neocell_node import is_neocell
from neonext_ms.export.onnx.npu_gelu import is_npu_gelu
from neonext_ms.runtime.onnx_file import read_onnx, sound

# Constants up to this many numbers are read: shapes, axes, exponents.
_SMALL = 256
# Operators of Ascend's 8-bit graphs, which onnx does not know and which keep the shape of their input.
QUANT_OPS = ("AscendQuant", "AscendDequant", "AscendAntiQuant", "AscendRequant")
# Operators that exporters compute sizes with.
_SHAPE_OPS = (
    *("Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Add", "Sub", "Mul", "Div", "Mod", "Floor", "Ceil"),
    *("Reshape", "ConstantOfShape", "Range", "Equal", "Where", "ReduceProd", "Expand", "Identity", "Not", "Min", "Max"),
    "Transpose",
)


@dataclass(frozen=True)
class OnnxNode:
    """One node, named by itself or by its type and position; an omitted input is an empty string."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network that processes one batch.

    Attributes:
        name: name of the file or graph.
        nodes: nodes that compute something at run time, in order.
        shapes: shape of every value, in whole numbers.
        constants: names of values that do not depend on the input.
        numbers: contents of small constants.
        inputs, outputs: names of the network's inputs and outputs.
        batch: images of a run.
    """

    name: str
    nodes: tuple[OnnxNode, ...]
    shapes: Mapping[str, tuple[int, ...]]
    constants: frozenset[str]
    numbers: Mapping[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int

    def shape(self, value: str) -> tuple[int, ...]:
        """Return the shape of a value; () for one that is omitted."""
        return self.shapes.get(value, ())

    def variable(self, node: OnnxNode) -> list[str]:
        """Return the inputs of a node that depend on the network's input."""
        return [value for value in node.inputs if value and value not in self.constants]


def read(model: onnx.ModelProto | str | os.PathLike, batch: int | None = None) -> Graph:
    """Read the nodes and shapes of a model.

    Args:
        model: loaded model, or path of a file; external data is neither needed nor read.
        batch: images of a run (default: the model's own).

    Raises:
        InputError: not an ONNX model; a batch below 1, or different from the one that the model is fixed to; a size
            that shape inference does not find (the message names the node).
    """
    if batch is not None and batch < 1:
        raise InputError(f"batch: too small (got {batch}, expected a whole number of at least 1)")
    if isinstance(model, onnx.ModelProto):
        name = "the model"
    else:
        name, model = os.fspath(model), read_onnx(model)
    with sound(name):
        return _graph(model, name, batch)


def _graph(model: onnx.ModelProto, name: str, batch: int | None) -> Graph:
    if not model.graph.node or not model.graph.input:
        raise InputError(f"{name}: no ONNX graph in it (no nodes or no input). Expected a model exported as .onnx.")
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise InputError(
            f"{name}: an 8-bit file for hosts, which CANN has no parser for (QuantizeLinear). Estimate the file that "
            "`--target om --quantize int8` writes (NAME_cann.onnx), or the float32 file with --dtype int8."
        )
    copy = _without_weights(model)
    initializers = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in initializers]
    images = _fix_batch(name, inputs, batch)
    originals = _replace_unknown(copy)
    shapes = {**_shapes(name, copy), **initializers}
    constants, numbers = set(initializers), {}
    for tensor in copy.graph.initializer:
        numbers.update(_numbers(tensor, tensor.name))
    nodes = []
    for position, node in enumerate(copy.graph.node):
        original = originals.get(position, node)
        used = [value for value in original.input if value]
        if original.op_type == "Constant":
            numbers.update(_constant(original))
        elif original.op_type not in ("Shape", "Size") and not (_is_pure(original) and constants.issuperset(used)):
            attributes = {a.name: helper.get_attribute_value(a) for a in original.attribute}
            label = original.name or f"{original.op_type}_{position}"
            nodes.append(OnnxNode(label, original.op_type, tuple(original.input), tuple(original.output), attributes))
            continue
        constants.update(original.output)
    for kept in nodes:
        # Second outputs, such as masks, may stay unknown.
        unknown = [v for v in (*kept.inputs, *kept.outputs[:1]) if v and v not in shapes and v not in constants]
        if unknown:
            raise InputError(
                f"{name}: the shape of {unknown[0]!r} at node {kept.name!r} ({kept.op}) is not known, because onnx's "
                "shape inference does not find it. Export the model with fixed sizes."
            )
    ends = (tuple(value.name for value in inputs), tuple(value.name for value in copy.graph.output))
    return Graph(name, tuple(nodes), shapes, frozenset(constants), numbers, *ends, images)


def _is_pure(node: onnx.NodeProto) -> bool:
    """Return whether a node reads values, and none but its inputs; the branches of an If read any others."""
    return any(node.input) and not any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose large initializers are inputs of their shape, so that no weights are held twice."""
    small = onnx.ModelProto(ir_version=model.ir_version)
    small.opset_import.extend(model.opset_import)
    small.graph.name = model.graph.name
    small.graph.node.extend(model.graph.node)
    small.graph.input.extend(model.graph.input)
    small.graph.output.extend(model.graph.output)
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL and _has_data(tensor):
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


def _numbers(tensor: onnx.TensorProto, name: str) -> dict[str, np.ndarray]:
    """Return the contents of a tensor under a name, if it is small."""
    if not _has_data(tensor) or math.prod(tensor.dims) > _SMALL:
        return {}
    array = np.asarray(numpy_helper.to_array(tensor))
    # Texts, and the types of low precision, are no sizes.
    return {name: array} if array.dtype.kind in "fiub" else {}


def _constant(node: onnx.NodeProto) -> dict[str, np.ndarray]:
    """Return the contents of a Constant node by the name of its output, if they are small."""
    numbers: dict[str, np.ndarray] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            numbers.update(_numbers(value, node.output[0]))
        elif isinstance(value, (int, float, list)):
            numbers[node.output[0]] = np.array(value)
    return numbers


def has_dynamic_batch(path: str | os.PathLike) -> bool:
    """Return whether a file leaves the first axis of an input open."""
    graph = read_onnx(os.fspath(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in weights]
    return any(dims and dims[0].dim_value < 1 for dims in shapes)


def _fix_batch(name: str, inputs: list[onnx.ValueInfoProto], batch: int | None) -> int:
    """Write the batch into the first axis of every input; return the number of images."""
    images = None
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis or batch is None:
                remedy = "Give its batch with --batch." if not axis else "Export it with a fixed size."
                raise InputError(
                    f"{name}: input {value.name!r} has the dynamic axis {axis} ({dim.dim_param or '?'}). {remedy}"
                )
            dim.Clear()
            dim.dim_value = batch
        if dims and images is None:
            images = dims[0].dim_value
    if images is None:
        raise InputError(f"{name}: no input with a batch axis")
    if batch is not None and images != batch:
        raise InputError(
            f"{name}: fixed to batch {images}, not {batch}. Leave --batch out, or export it with a dynamic batch."
        )
    return images


def _replace_unknown(model: onnx.ModelProto) -> dict[int, onnx.NodeProto]:
    """Replace operators that onnx does not know by Identity; return the originals by position.

    The declared shapes of outputs, often with a symbolic batch, are dropped, so that they are inferred.
    """
    originals = {}
    for position, node in enumerate(model.graph.node):
        if is_neocell(node) or is_npu_gelu(node) or node.op_type in QUANT_OPS:
            originals[position] = onnx.NodeProto()
            originals[position].CopyFrom(node)
            if is_npu_gelu(node):
                # The same operator under ONNX's name.
                originals[position].op_type = "Gelu"
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    declared = {value.name: value for value in model.graph.input}
    for value in model.graph.output:
        if value.name in declared:
            value.CopyFrom(declared[value.name])
        else:
            value.type.tensor_type.ClearField("shape")
    return originals


def _shapes(name: str, model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return all shapes that can be inferred, folding what computes a shape until nothing more is found."""
    shapes: dict[str, tuple[int, ...]] = {}
    while True:
        try:
            inferred = shape_inference.infer_shapes(model).graph
        except shape_inference.InferenceError as error:
            raise InputError(f"{name}: the shapes of its values contradict each other ({one_line(error)})") from error
        known = len(shapes)
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                shapes.setdefault(value.name, tuple(d.dim_value for d in dims))
        wanted = {value for node in model.graph.node for value in node.output if value}
        if wanted <= shapes.keys() or (known and len(shapes) == known) or not _fold_sizes(model, shapes):
            return shapes


def _is_small(node: onnx.NodeProto, numbers: Mapping[str, np.ndarray]) -> bool:
    """Return whether the result of a node that makes a value of any size from a few numbers is small."""
    values = [numbers[v].astype(float).ravel() for v in node.input if v]
    if node.op_type == "ConstantOfShape":
        return bool(np.prod(values[0]) <= _SMALL)
    if node.op_type == "Expand":
        return bool(np.prod(np.maximum(values[1], 1)) * values[0].size <= _SMALL)
    if node.op_type == "Range":
        start, stop, step = (value.item() for value in values)
        return abs(stop - start) <= _SMALL * abs(step)
    return True


def _fold_sizes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Replace nodes that compute a few whole numbers from known shapes by constants; return if there were any."""
    from onnx.reference import ReferenceEvaluator

    numbers: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        numbers.update(_numbers(tensor, tensor.name))
    folded = False
    for node in model.graph.node:
        result = None
        if node.op_type == "Constant":
            numbers.update(_constant(node))
        elif node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
            result = np.array(shapes[node.input[0]], np.int64)
        elif node.op_type in _SHAPE_OPS and all(not v or v in numbers for v in node.input) and _is_small(node, numbers):
            values = {v: numbers[v] for v in node.input if v}
            ends = [
                helper.make_tensor_value_info(v, helper.np_dtype_to_tensor_dtype(array.dtype), None)
                for v, array in values.items()
            ]
            alone = helper.make_graph([node], "shape", ends, [helper.make_empty_tensor_value_info(node.output[0])])
            single = helper.make_model(alone, opset_imports=list(model.opset_import), ir_version=model.ir_version)
            # What the evaluator cannot compute stays as it is; shape inference may know it.
            with contextlib.suppress(TypeError, ValueError, IndexError, RuntimeError, AttributeError):
                result = np.asarray(ReferenceEvaluator(single).run(None, values)[0])
        if result is None or result.size > _SMALL:
            continue
        folded = True
        numbers[node.output[0]] = result
        # Replaced in place, so that the positions of all nodes stay.
        node.CopyFrom(helper.make_node("Constant", [], [node.output[0]], value=numpy_helper.from_array(result)))
    return folded
