"""Rewriting an exported model into one that onnxruntime has CPU kernels for, so that every form can be verified here.

NeoCell nodes become products, and NPUGeluV2 nodes chains of nodes; half precision becomes float32 arithmetic with each
result rounded.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from neonext_ms.common.errors import InputError
from neonext_ms.ops.packing import unpack

from .format import MAX_OPSET
from .neocell_node import is_neocell, runs_of
from .npu_gelu import expand_npu_gelu, is_npu_gelu

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def runnable_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in a form that onnxruntime has kernels for: the model itself if it is in one already.

    NeoCell nodes become products made from their own coefficients and attributes, and NPUGeluV2 nodes chains of nodes.
    bfloat16 becomes float32 arithmetic on the file's own weights with each result rounded.
    """
    if any(is_npu_gelu(node) for node in model.graph.node):
        model = expand_npu_gelu(model)
    if any(is_neocell(node) for node in model.graph.node):
        model = expand_custom(model)
    if any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        model = in_float32(model)
    return model


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of half precision as one that any CPU can run: float32 arithmetic on the file's rounded weights.

    The result of every node is rounded to the dtype of the model by a pair of Casts, as hardware does that accumulates
    in float32 and stores halves. What a device rounds inside a node is not emulated.

    Args:
        model: a model in float16 or bfloat16.

    Returns:
        a new model with float32 input and outputs and an opset of at most 21.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    half = next((tensor.data_type for tensor in result.graph.initializer if tensor.data_type in _HALVES), None)
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
        elif half is None:
            result.graph.node.append(node)
        else:
            (output,) = node.output
            exact = result.graph.node.add()
            exact.CopyFrom(node)
            exact.output[0] = f"{output}.exact"
            result.graph.node.extend(_rounding(exact.output[0], output, half))
    # Only bfloat16 needs a later opset than onnxruntime is sure to know.
    result.opset_import[0].version = min(result.opset_import[0].version, MAX_OPSET)
    return result


def _rounding(x: str, y: str, half: int | None) -> list[onnx.NodeProto]:
    if half is None:
        return [helper.make_node("Identity", [x], [y], name=f"{y}.same")]
    return [
        helper.make_node("Cast", [x], [f"{y}.half"], name=f"{y}.half", to=half),
        helper.make_node("Cast", [f"{y}.half"], [y], name=f"{y}.rounded", to=TensorProto.FLOAT),
    ]


def expand_custom(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with each NeoCell node written as two MatMuls, from its coefficients and attributes alone.

    Nothing of the graph that the file was made from is used, so that running the result verifies the file itself.
    `onnx.checker` accepts the result too; it rejects an operator that is not its own.

    Args:
        model: a model with a fixed image size; it is not changed.

    Raises:
        InputError: a NeoCell node whose coefficients and attributes contradict each other.
    """
    sizes = _map_sizes(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    replaced: set[str] = set()
    added: list[TensorProto] = []
    for node in model.graph.node:
        if is_neocell(node):
            replaced.update(node.input[1:])
            products, matrices = _products(node, tensors, sizes[node.input[0]])
            nodes += products
            added += matrices
        else:
            nodes.append(node)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in replaced]
    for field, values in (("node", nodes), ("initializer", [*kept, *added])):
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(values)
    return result


def _products(
    node: onnx.NodeProto, tensors: dict[str, TensorProto], size: tuple[int, int]
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Return the MatMuls (and Add) of a NeoCell node on a map of this size, and their constants."""
    x, coef_a, coef_b, *bias = node.input
    try:
        runs = runs_of({attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute})
        a = unpack(numpy_helper.to_array(tensors[coef_a]), runs, "a", size[0], size[0])
        b = unpack(numpy_helper.to_array(tensors[coef_b]), runs, "b", size[1], size[1]).transpose(0, 2, 1)
    except InputError as error:
        raise InputError(f"{node.name}: {error}") from error
    matrices = [
        numpy_helper.from_array(np.ascontiguousarray(matrix), f"{name}.matrix")
        for name, matrix in ((coef_a, a), (coef_b, b))
    ]
    (output,) = node.output
    left, product = f"{node.name}.left", f"{node.name}.product" if bias else output
    nodes = [
        helper.make_node("MatMul", [matrices[0].name, x], [left], name=left),
        helper.make_node("MatMul", [left, matrices[1].name], [product], name=f"{node.name}.right"),
    ]
    if bias:
        # Channels are filled up to a multiple of 16 in the file.
        column = np.asarray(numpy_helper.to_array(tensors[bias[0]]))[: len(a), None, None]
        matrices.append(numpy_helper.from_array(column, f"{bias[0]}.column"))
        nodes.append(helper.make_node("Add", [product, matrices[-1].name], [output], name=f"{node.name}.bias"))
    return nodes, matrices


def _map_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return height and width of every map, from ONNX's own shape inference."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if is_neocell(node):
            # A NeoCell keeps the shape of its input, as Identity does, which the inference knows.
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
    inferred = shape_inference.infer_shapes(plain).graph
    sizes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            sizes[value.name] = dims[2].dim_value, dims[3].dim_value
    return sizes
