"""NPUGeluV2, a GELU in one node that CANN's ONNX parser knows and onnxruntime does not.

    y = NPUGeluV2(x) {approximate: "none"}

in version 1 of the domain npu, the exact form (hicann/ops-nn e5c3fa9327ea, activation/gelu_v2: README.md,
op_graph/gelu_v2_proto.h and framework/npu_geluv2_onnx_plugin.cpp).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.common.errors import InputError

OP_TYPE, DOMAIN, VERSION = "NPUGeluV2", "npu", 1
ATTRIBUTES = {"approximate": "none"}
_CONSTANTS = {"npu_gelu.sqrt_2": np.sqrt(2.0), "npu_gelu.one": 1.0, "npu_gelu.half": 0.5}


def is_npu_gelu(node: onnx.NodeProto) -> bool:
    """Return whether a node is an NPUGeluV2."""
    return node.op_type == OP_TYPE and node.domain == DOMAIN


def expand_npu_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with each NPUGeluV2 written as `0.5 x (1 + erf(x / sqrt(2)))`, and without its domain.

    Args:
        model: a model in one floating-point dtype; it is not changed.

    Raises:
        InputError: an NPUGeluV2 of another form, which no exported graph has.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.ClearField("opset_import")
    result.opset_import.extend(entry for entry in model.opset_import if entry.domain != DOMAIN)
    result.graph.ClearField("node")
    for node in model.graph.node:
        result.graph.node.extend(_chain(node) if is_npu_gelu(node) else [node])
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    dtype = np.float16 if half else np.float32
    result.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype), name) for name, value in _CONSTANTS.items()
    )
    return result


def _chain(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if given.get("approximate", b"none") != b"none":
        raise InputError(f"{node.name}: an NPUGeluV2 of the form {given['approximate']!r} cannot be run here.")
    (x,), (y,), name = node.input, node.output, node.name or node.output[0]
    sqrt_2, one, half = _CONSTANTS
    scaled, erf, shifted, product = (f"{name}.{step}" for step in ("scaled", "erf", "shifted", "product"))
    return [
        helper.make_node("Div", [x, sqrt_2], [scaled], name=scaled),
        helper.make_node("Erf", [scaled], [erf], name=erf),
        helper.make_node("Add", [erf, one], [shifted], name=shifted),
        helper.make_node("Mul", [x, shifted], [product], name=product),
        helper.make_node("Mul", [product, half], [y], name=name),
    ]
