"""What CANN's ONNX parser takes at which opset, and a check of a model against it before `atc` is started.

An operator has a parser where CANN's plugins register `ai.onnx::<opset>::<name>`; the opset is the one that the model
imports, whatever version of the operator that means in ONNX. A release knows what its own plugins register: the table
is of the sources of 22 August 2026, and older releases end at opset 13 or 15, which is why opset 13 is the one to use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..onnx import neocell_node

if TYPE_CHECKING:
    import onnx

MATH = "hicann/ops-math c41933244c31"
NN = "hicann/ops-nn e5c3fa9327ea"
PARSER = "hicann/ge ffdcbc9f7496"
OWN = "the AscendC package of this project"


@dataclass(frozen=True)
class Parser:
    """A registered parser.

    Attributes:
        opsets: for which it is registered.
        source: repository and commit, and the file in it.
    """

    opsets: frozenset[int]
    source: str


def _rows(opsets: range, source: str, *ops: str) -> dict[str, Parser]:
    return {op: Parser(frozenset(opsets), source) for op in ops}


def _files(repository: str, files: Mapping[str, str]) -> dict[str, Parser]:
    return {op: Parser(frozenset(range(8, 19)), f"{repository}, {file}") for op, file in files.items()}


PARSERS: Mapping[str, Parser] = {
    **_rows(
        range(8, 19),
        f"{MATH}, common/src/framework/similar_opp_onnx_plugin.cpp",
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Erf", "Tanh", "Sigmoid", "Relu", "Exp", "Log", "Abs", "Neg"),
        *("Reciprocal", "Identity", "GlobalAveragePool", "Expand", "Where", "PRelu", "Dropout"),
    ),
    **_rows(range(14, 19), f"{MATH}, common/src/framework/similar_opp_onnx_plugin.cpp", "HardSwish"),
    **_files(
        MATH,
        {
            "Cast": "math/cast/framework/cast_onnx_plugin.cpp",
            "Clip": "conversion/clip_by_value/framework/clip_onnx_plugin.cpp",
            "Concat": "conversion/concat/framework/concat_onnx_plugin.cpp",
            "DepthToSpace": "conversion/depth_to_space/framework/depth_to_space_onnx_plugin.cpp",
            "Einsum": "common/src/framework/einsum_onnx_plugin.cpp",
            "Flatten": "conversion/flatten/framework/flatten_onnx_plugin.cpp",
            "Pad": "conversion/pad_v3/framework/pad_onnx_plugin.cpp",
            "ReduceMean": "math/reduce_mean/framework/reduce_mean_onnx_plugin.cpp",
            "ReduceSum": "math/reduce_sum/framework/reduce_sum_onnx_plugin.cpp",
            "Reshape": "conversion/reshape/framework/reshape_onnx_plugin.cpp",
            "Shape": "math/shape/framework/shape_onnx_plugin.cpp",
            "Slice": "conversion/strided_slice_v2/framework/slice_onnx_plugin.cpp",
            "SpaceToDepth": "conversion/space_to_depth/framework/space_to_depth_onnx_plugin.cpp",
            "Split": "conversion/split_d/framework/split_onnx_plugin.cpp",
            "Squeeze": "conversion/squeeze/framework/squeeze_onnx_plugin.cpp",
            "Transpose": "conversion/transpose/framework/transpose_onnx_plugin.cpp",
            "Unsqueeze": "conversion/unsqueeze/framework/unsequeeze_onnx_plugin.cpp",
        },
    ),
    **_files(
        NN,
        {
            "AveragePool": "common/src/framework/average_pool_onnx_plugin.cpp",
            "BatchNormalization": "norm/batch_norm/framework/batch_normalization_onnx_plugin.cpp",
            "ConstantOfShape": "common/src/framework/constantofshape_onnx_plugin.cpp",
            "Conv": "common/src/framework/conv_onnx_plugin.cpp",
            "Gather": "index/gather_v2/framework/gather_onnx_plugin.cpp",
            "Gemm": "common/src/framework/gemm_onnx_plugin.cpp",
            "InstanceNormalization": "norm/instance_norm_v3/framework/instancenormalization_onnx_plugin.cpp",
            "LeakyRelu": "activation/leaky_relu/framework/leaky_relu_onnx_plugin.cpp",
            "MatMul": "matmul/mat_mul_v3/framework/matmul_onnx_plugin.cpp",
            "MaxPool": "common/src/framework/max_pool_onnx_plugin.cpp",
            "Softmax": "activation/softmax_v2/framework/softmax_onnx_plugin.cpp",
        },
    ),
    **_rows(range(10, 19), f"{NN}, common/src/framework/resize_onnx_plugin.cpp", "Resize"),
    **_rows(range(17, 19), f"{NN}, common/src/framework/layer_normalization_onnx_plugin.cpp", "LayerNormalization"),
    **_rows(range(8, 23), f"{NN}, quant/ascend_quant/framework/ascend_quant_onnx_plugin.cpp", "AscendQuant"),
    **_rows(range(8, 23), f"{NN}, quant/ascend_dequant/framework/ascend_dequant_onnx_plugin.cpp", "AscendDequant"),
    **_rows(range(8, 19), f"{PARSER}, parser/parser/onnx/onnx_constant_parser.cc", "Constant"),
    **_rows(neocell_node.OPSETS, OWN, neocell_node.OP_TYPE),
}
# What to write instead of an operator that has no parser at an opset.
_INSTEAD = {
    "Gelu": "write it as a chain: --gelu erf or --gelu tanh",
    "LayerNormalization": "write it as a chain, as the OM format does, or export with opset 17 or 18",
    "GroupNormalization": "write it as InstanceNormalization, Mul and Add",
    "QuantizeLinear": "write AscendQuant",
    "DequantizeLinear": "write AscendDequant",
}
# Which inputs of an operator are shapes or positions, and have to be constants.
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
_DYNAMIC = ("Shape", "Size", "ConstantOfShape", "NonZero")
_DEFAULT_DOMAIN = ("", "ai.onnx")


def check(model: onnx.ModelProto) -> list[str]:
    """What would make ATC refuse a model, or make it slow.

    Args:
        model: its weights may be missing, only their names count.

    Returns:
        one line for each problem, naming node, operator and opset and what to do; empty if there is none.
    """
    problems = []
    imports = {entry.domain: entry.version for entry in model.opset_import}
    if len(model.opset_import) != 1:
        found = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import) or "none"
        problems.append(f"the model imports {found}: ATC takes exactly one opset (E16005); keep the default domain's")
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
            f"node {node.name or node.output[0]!r}, operator {node.op_type}, opset {opset}: it lies between two "
            "convolutions, where ATC converts the layout of the map (TransData) twice; fold the network first"
        )
    return problems


def _unparsed(op: str, opset: int) -> str | None:
    parser = PARSERS.get(op)
    if parser is not None and opset in parser.opsets:
        return None
    instead = _INSTEAD.get(op)
    if parser is None:
        return f"CANN has no parser for it; {instead or 'write it with other operators, or install its plugin'}"
    known = sorted(parser.opsets)
    return (
        f"CANN's parser takes it at opsets {known[0]} to {known[-1]}; "
        f"{instead or f'export with one of these, such as --opset {13 if 13 in known else known[-1]}'}"
    )


def _between_convolutions(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Layout nodes that a convolution lies before and another one behind, by any path."""
    nodes = list(nodes)
    behind: set[str] = set()
    for node in nodes:
        if node.op_type == "Conv" or behind.intersection(node.input):
            behind.update(node.output)
    readers = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    before: set[str] = set()
    for node in reversed(nodes):
        if node.op_type == "Conv" or before.intersection(node.output):
            before.update(node.input)
    return [
        node
        for node in nodes
        if node.op_type in _LAYOUT and behind.intersection(node.input) and before.intersection(node.output)
    ]
