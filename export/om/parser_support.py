"""Operators that CANN's ONNX parsers take, by opset, and a check of a model against them before `atc` starts.

CANN's plugins register parsers as `ai.onnx::<opset>::<name>`. The opset is the one that the model imports, whatever
version of the operator that means in ONNX. Every release registers its own plugins: this table is read from the sources
of 22 August 2026, and older releases end at opset 13 or 15, which is why exports for CANN use opset 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..onnx import neocell_node

if TYPE_CHECKING:
    import onnx

MATH = "hicann/ops-math c41933244c31"
NN = "hicann/ops-nn e5c3fa9327ea"
GE = "hicann/ge ffdcbc9f7496"
_SIMILAR = "common/src/framework/similar_opp_onnx_plugin.cpp"
_OPSETS = range(8, 19)
# Opsets, repository and commit, file of the plugin, and the operators that it registers.
PLUGINS = (
    (
        *(_OPSETS, MATH, _SIMILAR),
        "Add Sub Mul Div Pow Sqrt Erf Tanh Sigmoid Relu Exp Log Abs Neg Reciprocal Identity GlobalAveragePool Expand "
        "Where PRelu Dropout",
    ),
    (range(14, 19), MATH, _SIMILAR, "HardSwish"),
    (_OPSETS, MATH, "math/cast/framework/cast_onnx_plugin.cpp", "Cast"),
    (_OPSETS, MATH, "conversion/clip_by_value/framework/clip_onnx_plugin.cpp", "Clip"),
    (_OPSETS, MATH, "conversion/concat/framework/concat_onnx_plugin.cpp", "Concat"),
    (_OPSETS, MATH, "conversion/depth_to_space/framework/depth_to_space_onnx_plugin.cpp", "DepthToSpace"),
    (_OPSETS, MATH, "common/src/framework/einsum_onnx_plugin.cpp", "Einsum"),
    (_OPSETS, MATH, "conversion/flatten/framework/flatten_onnx_plugin.cpp", "Flatten"),
    (_OPSETS, MATH, "conversion/pad_v3/framework/pad_onnx_plugin.cpp", "Pad"),
    (_OPSETS, MATH, "math/reduce_mean/framework/reduce_mean_onnx_plugin.cpp", "ReduceMean"),
    (_OPSETS, MATH, "math/reduce_sum/framework/reduce_sum_onnx_plugin.cpp", "ReduceSum"),
    (_OPSETS, MATH, "conversion/reshape/framework/reshape_onnx_plugin.cpp", "Reshape"),
    (_OPSETS, MATH, "math/shape/framework/shape_onnx_plugin.cpp", "Shape"),
    (_OPSETS, MATH, "conversion/strided_slice_v2/framework/slice_onnx_plugin.cpp", "Slice"),
    (_OPSETS, MATH, "conversion/space_to_depth/framework/space_to_depth_onnx_plugin.cpp", "SpaceToDepth"),
    (_OPSETS, MATH, "conversion/split_d/framework/split_onnx_plugin.cpp", "Split"),
    (_OPSETS, MATH, "conversion/squeeze/framework/squeeze_onnx_plugin.cpp", "Squeeze"),
    (_OPSETS, MATH, "conversion/transpose/framework/transpose_onnx_plugin.cpp", "Transpose"),
    (_OPSETS, MATH, "conversion/unsqueeze/framework/unsequeeze_onnx_plugin.cpp", "Unsqueeze"),
    (_OPSETS, NN, "common/src/framework/average_pool_onnx_plugin.cpp", "AveragePool"),
    (_OPSETS, NN, "norm/batch_norm/framework/batch_normalization_onnx_plugin.cpp", "BatchNormalization"),
    (_OPSETS, NN, "common/src/framework/constantofshape_onnx_plugin.cpp", "ConstantOfShape"),
    (_OPSETS, NN, "common/src/framework/conv_onnx_plugin.cpp", "Conv"),
    (_OPSETS, NN, "index/gather_v2/framework/gather_onnx_plugin.cpp", "Gather"),
    (_OPSETS, NN, "common/src/framework/gemm_onnx_plugin.cpp", "Gemm"),
    (_OPSETS, NN, "norm/instance_norm_v3/framework/instancenormalization_onnx_plugin.cpp", "InstanceNormalization"),
    (_OPSETS, NN, "activation/leaky_relu/framework/leaky_relu_onnx_plugin.cpp", "LeakyRelu"),
    (_OPSETS, NN, "matmul/mat_mul_v3/framework/matmul_onnx_plugin.cpp", "MatMul"),
    (_OPSETS, NN, "common/src/framework/max_pool_onnx_plugin.cpp", "MaxPool"),
    (_OPSETS, NN, "activation/softmax_v2/framework/softmax_onnx_plugin.cpp", "Softmax"),
    (range(10, 19), NN, "common/src/framework/resize_onnx_plugin.cpp", "Resize"),
    (range(17, 19), NN, "common/src/framework/layer_normalization_onnx_plugin.cpp", "LayerNormalization"),
    (range(8, 23), NN, "quant/ascend_quant/framework/ascend_quant_onnx_plugin.cpp", "AscendQuant"),
    (range(8, 23), NN, "quant/ascend_dequant/framework/ascend_dequant_onnx_plugin.cpp", "AscendDequant"),
    (_OPSETS, GE, "parser/parser/onnx/onnx_constant_parser.cc", "Constant"),
    (neocell_node.OPSETS, "this project", "ops/ascendc/framework/onnx_plugin", neocell_node.OP_TYPE),
)
PARSERS = {op: opsets for opsets, _, _, ops in PLUGINS for op in ops.split()}
# Advice for operators that have no parser at an opset.
_INSTEAD = {
    "Gelu": "write it as a chain: --gelu erf or --gelu tanh",
    "LayerNormalization": "write it as a chain, as --target om does, or export with opset 17 or 18",
    "GroupNormalization": "write it as InstanceNormalization, Mul and Add",
    "QuantizeLinear": "write AscendQuant",
    "DequantizeLinear": "write AscendDequant",
}
# Inputs that are shapes or positions and have to be constants.
_POSITIONS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1,),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Resize": (1, 2, 3),
}
_LAYOUT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "SpaceToDepth", "DepthToSpace")
# An AveragePool of our graphs is the mean over a whole map too.
_POOLING_TO_A_PIXEL = ("GlobalAveragePool", "AveragePool")
_DYNAMIC = ("Shape", "Size", "ConstantOfShape", "NonZero")
_DEFAULT_DOMAIN = ("", "ai.onnx")


def check(model: onnx.ModelProto) -> list[str]:
    """Return what would make ATC reject a model, or make it slow.

    Args:
        model: ONNX model. Its weights may be missing; only their names count.

    Returns:
        one line for each problem, with node, operator, opset and remedy.
    """
    problems = []
    imports = {entry.domain: entry.version for entry in model.opset_import}
    if len(model.opset_import) != 1:
        names = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import) or "none"
        problems.append(f"the model imports {names}: ATC takes exactly one opset (E16005); keep the default domain's")
    opset = next((imports[domain] for domain in _DEFAULT_DOMAIN if domain in imports), None)
    if opset is None:
        return [*problems, "the model does not import the default domain; export it with one opset, 13"]
    nodes = list(model.graph.node)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {output for node in nodes if node.op_type == "Constant" for output in node.output}
    for node in nodes:
        where = f"node {node.name or node.output[0]!r}, operator {node.op_type}"
        if node.domain not in _DEFAULT_DOMAIN:
            problems.append(f"{where}: domain {node.domain!r}; ATC takes the default domain only, write it without one")
        elif (problem := _unparsed(node.op_type, opset)) is not None:
            problems.append(f"{where}, opset {opset}: {problem}")
        if node.op_type in _DYNAMIC:
            problems.append(f"{where}, opset {opset}: shape arithmetic; export with a fixed image size")
        for i in _POSITIONS.get(node.op_type, ()):
            if i < len(node.input) and node.input[i] and node.input[i] not in constants:
                problems.append(
                    f"{where}, opset {opset}: input {i} ({node.input[i]}) is computed; it has to be a constant, so "
                    "export with a fixed image size"
                )
    for node in _between_convolutions(nodes):
        problems.append(
            f"node {node.name or node.output[0]!r}, operator {node.op_type}, opset {opset}: it stands between two "
            "convolutions, where ATC converts the layout of the map (TransData) twice; fold the network first"
        )
    return problems


def _unparsed(op: str, opset: int) -> str | None:
    """Return why CANN does not parse an operator at an opset, or None."""
    opsets = PARSERS.get(op)
    if opsets is not None and opset in opsets:
        return None
    instead = _INSTEAD.get(op)
    if opsets is None:
        return f"CANN has no parser for it; {instead or 'write it with other operators, or install its plugin'}"
    known = sorted(opsets)
    return (
        f"CANN's parser takes it at opsets {known[0]} to {known[-1]}; "
        f"{instead or f'export with one of these, such as --opset {13 if 13 in known else known[-1]}'}"
    )


def _between_convolutions(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return layout nodes with a convolution before and another one after them, on any path."""
    after: set[str] = set()
    for node in nodes:
        # Behind the pooling of the head, a map has one pixel and the same order of values in every layout.
        if node.op_type in _POOLING_TO_A_PIXEL:
            continue
        if node.op_type == "Conv" or after.intersection(node.input):
            after.update(node.output)
    before: set[str] = set()
    for node in reversed(nodes):
        if node.op_type == "Conv" or before.intersection(node.output):
            before.update(node.input)
    return [
        node
        for node in nodes
        if node.op_type in _LAYOUT and after.intersection(node.input) and before.intersection(node.output)
    ]
