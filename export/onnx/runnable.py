"""Rewriting an exported model into one that onnxruntime has CPU kernels for, so that every form can be verified here.

NeoCell nodes become products, and NPUGeluV2 nodes chains of nodes; AscendQuant and AscendDequant around a convolution
become its integer form; half precision becomes float32 arithmetic with each result rounded.
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

    NeoCell nodes become products made from their own coefficients and attributes, NPUGeluV2 nodes chains of nodes, and
    8-bit layers in the form of CANN ConvInteger nodes. bfloat16 becomes float32 arithmetic on the file's own weights
    with each result rounded.
    """
    if any(is_npu_gelu(node) for node in model.graph.node):
        model = expand_npu_gelu(model)
    if any(is_neocell(node) for node in model.graph.node):
        model = expand_custom(model)
    if any(node.op_type == "AscendQuant" for node in model.graph.node):
        model = expand_ascend(model)
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


def expand_ascend(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its 8-bit layers, AscendQuant, Conv and AscendDequant, written in ONNX's own operators.

    The integers are the same: `x * scale` is quantized with step 1, ConvInteger subtracts the offset, and the int32
    bias is added to its sums. Onnxruntime takes uint8 numbers there, which are the int8 ones plus 128.

    Args:
        model: a model that `emitter.emit` made; it is not changed.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("node")
    zeros: dict[str, str] = {}
    replaced: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "AscendQuant":
            zeros[node.output[0]] = f"{node.name}.zero"
            nodes, added = _quantize(node)
        elif node.op_type == "Conv" and node.input[0] in zeros:
            nodes, added = _integer_conv(node, zeros[node.input[0]], tensors[node.input[2]])
            replaced.add(node.input[2])
        elif node.op_type == "AscendDequant":
            nodes, added = _dequantize(node, tensors[node.input[1]])
            replaced.add(node.input[1])
        else:
            nodes, added = [node], []
        result.graph.node.extend(nodes)
        result.graph.initializer.extend(added)
    kept = [tensor for tensor in result.graph.initializer if tensor.name not in replaced]
    result.graph.ClearField("initializer")
    result.graph.initializer.extend(kept)
    return result


_ADVICE = "Use a file that neonext-export wrote."
# What AscendQuant and AscendDequant of other programs may ask for besides.
_PLAIN = {"dst_type": b"INT8", "round_mode": b"Round", "sqrt_mode": 0, "relu_flag": 0}


def _plain_attributes(node: onnx.NodeProto) -> dict:
    """Return the attributes of a node of CANN; raise an `InputError` for what the operators here do not compute."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for key, plain in _PLAIN.items():
        if attributes.get(key, plain) != plain:
            raise InputError(
                f"{node.name}: {node.op_type} with {key} cannot be computed here (got {attributes[key]!r}, expected "
                f"{plain!r}). {_ADVICE}"
            )
    return attributes


def _quantize(node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    attributes = _plain_attributes(node)
    if attributes["offset"] not in range(-128, 128):
        raise InputError(
            f"{node.name}: wrong offset (got {attributes['offset']:g}, expected a whole number from -128 to 127). "
            f"{_ADVICE}"
        )
    name, (x,), (y,) = node.name, node.input, node.output
    constants = {
        "scale": np.float32(attributes["scale"]),
        "one": np.float32(1),
        "zero": np.uint8(int(attributes["offset"]) + 128),
    }
    nodes = [
        helper.make_node("Cast", [x], [f"{name}.float"], name=f"{name}.float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [f"{name}.scaled"], name=f"{name}.scaled"),
        helper.make_node("QuantizeLinear", [f"{name}.scaled", f"{name}.one", f"{name}.zero"], [y], name=name),
    ]
    return nodes, [numpy_helper.from_array(np.asarray(v), f"{name}.{key}") for key, v in constants.items()]


def _integer_conv(node: onnx.NodeProto, zero: str, bias: TensorProto) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    column = numpy_helper.from_array(numpy_helper.to_array(bias)[:, None, None], f"{bias.name}.column")
    sums = f"{node.name}.sums"
    product = helper.make_node("ConvInteger", [node.input[0], node.input[1], zero], [sums], name=node.name)
    product.attribute.extend(node.attribute)
    return [product, helper.make_node("Add", [sums, column.name], node.output, name=f"{node.name}.biased")], [column]


def _dequantize(node: onnx.NodeProto, packed: TensorProto) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    half, values = _plain_attributes(node).get("dtype") == 1, numpy_helper.to_array(packed)
    if values.dtype != np.uint64 or (values >> np.uint64(32)).any():
        raise InputError(
            f"{node.name}: AscendDequant with a shift or an offset of weights cannot be computed here. {_ADVICE}"
        )
    steps = values.astype(np.uint32).view(np.float32)
    column = numpy_helper.from_array(steps[:, None, None], f"{packed.name}.column")
    name, kind = node.name, TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", [node.input[0]], [f"{name}.float"], name=f"{name}.float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.float", column.name], [f"{name}.scaled"], name=f"{name}.scaled"),
        helper.make_node("Cast", [f"{name}.scaled"], node.output, name=name, to=kind),
    ]
    return nodes, [column]


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
        if is_neocell(node) or node.op_type in ("AscendQuant", "AscendDequant"):
            # They keep the shape of their input, as Identity does, which the inference knows.
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
