from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import lower, neocell_to_matmul
from neonext_ms.export.om import onnx_plugins, parser_support
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import CANN, Format
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays


def _network(features_only=False, downsample="official"):
    architecture = make_architecture(num_classes=3, dims=(4, 6, 8, 10), kernel_spec="2+3", downsample=downsample)
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    return original_graph(architecture, arrays, (32, 32), features_only)


def _model(*nodes, opset=13, constants=(), domain=""):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:])
    graph.initializer.extend(numpy_helper.from_array(np.zeros(1, np.float32), name) for name in constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)])


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("downsample", ["official", "paper"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gelu": "tanh"},
        {"gelu": "npu"},
        {"neocell": "padded"},
        {"neocell": "custom"},
        {"dtype": "float16"},
        *({"opset": opset} for opset in range(11, 19)),
    ],
)
def test_what_the_cann_format_writes_is_parsed(changes, downsample, features_only):
    format = CANN.with_(**changes)
    graph = lower(fold(_network(features_only, downsample))[0], format)
    findings = parser_support.check(emitter.emit(graph, format=format))
    assert not any(finding.refused for finding in findings)
    # A real ATC is known to have taken opset 17; the parser goes on to 18.
    # The second domain is there for the GELU alone.
    assert [finding.problem.split(";")[0].split(",")[0] for finding in findings] == [
        *(["the model imports a second domain"] if format.gelu == "npu" else []),
        *(["the model has opset 18"] if format.opset == 18 else []),
    ]


def test_every_operator_that_can_be_emitted_is_in_the_table():
    emitted = set()
    for format in (Format(), CANN, CANN.with_(gelu="tanh", neocell="padded", dtype="float16")):
        for features_only in (False, True):
            network = _network(features_only)
            for graph in (lower(fold(network)[0], format), neocell_to_matmul(network)):
                emitted |= {node.op_type for node in emitter.emit(graph, format=format).graph.node}
    assert emitted - {op for domain, op in onnx_plugins.parsers() if domain == "ai.onnx"} == {"Gelu"}


def test_table_of_plugins():
    parsers = onnx_plugins.parsers()
    for plugin in onnx_plugins.plugins():
        assert plugin.repository in (*onnx_plugins.COMMITS, "neonext_ms") and plugin.file and plugin.operators
        assert list(plugin.opsets) == sorted(set(plugin.opsets)) and 1 <= plugin.opsets[0] <= plugin.opsets[-1] <= 22
    names = [(p.domain, op, opset) for p in onnx_plugins.plugins() for op in p.operators for opset in p.opsets]
    # Two plugins of ops-nn register Celu, and two repositories ScatterND.
    assert {op for _, op, _ in {name for name in names if names.count(name) > 1}} == {"Celu", "ScatterND"}
    assert parsers["ai.onnx", "Conv"] == tuple(range(8, 19)) == parsers["ai.onnx", "AscendQuant"]
    assert parsers["ai.onnx", "LayerNormalization"] == (17, 18) and parsers["npu", "NPUGeluV2"] == (1,)
    assert parsers["ai.onnx", "NonMaxSuppression"][0] == 10 and ("ai.onnx", "Gelu") not in parsers
    assert sum(domain == "ai.onnx" and 13 in opsets for (domain, _), opsets in parsers.items()) > 230
    assert onnx_plugins.ranges((8, 9, 12, 14, 15)) == "8 to 9, 12 and 14 to 15" and onnx_plugins.ranges((1,)) == "1"


def _refused(model) -> list[str]:
    return [str(finding) for finding in parser_support.check(model) if finding.refused]


def _advice(model) -> list[str]:
    return [str(finding) for finding in parser_support.check(model) if not finding.refused]


def test_the_ordinary_formats_are_rejected_with_what_to_do():
    graph = neocell_to_matmul(fold(_network())[0])
    problems = _refused(emitter.emit(graph, format=Format(20)))
    gelu = next(p for p in problems if "Gelu" in p)
    assert gelu == (
        "node 'stage_1.0.ops.content.act', operator Gelu, opset 20: CANN has no parser for it; write it as a chain "
        "(--gelu erf or --gelu tanh), or as NPUGeluV2 of the domain npu (--gelu npu)"
    )
    assert any("operator Conv, opset 20" in p and "--opset 13" in p for p in problems)
    assert parser_support.check(emitter.emit(graph, format=Format(17))) == []


def test_layouts_between_convolutions():
    problems = _advice(emitter.emit(neocell_to_matmul(_network()), format=Format(13)))
    assert sum("between two convolutions" in p for p in problems) == 6
    assert all("chw2hwc" in p or "hwc2chw" in p for p in problems)


def test_domains_and_imports():
    node = helper.make_node("Relu", ["x"], ["y"], name="n")
    assert parser_support.check(_model(node)) == [] == parser_support.check(_model(node, domain="ai.onnx"))
    two = _model(node)
    two.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert not _refused(two) and "E16005" in _advice(two)[0] and "no node uses it" in _advice(two)[0]
    strange = _model(helper.make_node("FastGelu", ["x"], ["y"], name="n", domain="com.microsoft"))
    assert "domain 'com.microsoft', which the model does not import" in _refused(strange)[0]
    strange.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "no parser for it in the domain 'com.microsoft'" in _refused(strange)[0]
    assert "no parser" in _refused(_model(helper.make_node("Foo", ["x"], ["y"])))[0]
    assert _refused(_model(node, domain="npu")) == [
        "the model does not import the default domain; export it with one opset, 13"
    ]
    npu = _model(helper.make_node("NPUGeluV2", ["x"], ["y"], name="n", domain="npu"))
    npu.opset_import.append(helper.make_opsetid("npu", 1))
    assert not _refused(npu) and "leave out its nodes" in _advice(npu)[0]
    npu.opset_import[1].version = 2
    assert "takes it at opset 1; import npu 1" in _refused(npu)[0]


def test_shape_arithmetic_is_taken_but_not_advised():
    shape = helper.make_node("Shape", ["x"], ["s"], name="shape")
    reshape = helper.make_node("Reshape", ["x", "s"], ["y"], name="reshape")
    problems = _advice(_model(shape, reshape))
    assert "'shape', operator Shape" in problems[0] and "input 1 (s) is computed" in problems[1]
    assert not _refused(_model(shape, reshape))
    assert parser_support.check(_model(helper.make_node("Reshape", ["x", "s"], ["y"]), constants=["s"])) == []


def test_layer_normalization_at_two_opsets_only():
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"], name="n")
    assert parser_support.check(_model(node, opset=17, constants=["s"])) == []
    for opset in (13, 16, 19):
        assert "opset 17 or 18" in _refused(_model(node, opset=opset, constants=["s"]))[0]


def _node(op, inputs=("x",), outputs=("y",), name="n", **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=name, **attributes)


TENSOR = numpy_helper.from_array(np.zeros(2, np.float32))
REFUSED = {
    "Conv without attributes": (_node("Conv", ["x", "w"]), "without kernel_shape, pads, strides and dilations"),
    "Conv with a group only": (_node("Conv", ["x", "w"], group=1), "without kernel_shape"),
    "Conv with odd pads": (_node("Conv", ["x", "w"], pads=[1, 1, 1]), "odd in number"),
    "Transpose": (_node("Transpose"), "without perm"),
    "Pad with axes": (_node("Pad", ["x", "p", "v", "a"]), "no place for its input axes"),
    "Clip": (_node("Clip", ["x", "", ""]), "without minimum and maximum"),
    "MaxPool with positions": (_node("MaxPool", outputs=["y", "places"], kernel_shape=[2, 2]), "positions"),
    "Resize": (_node("Resize", ["x", "r"]), "fewer than three inputs"),
    "Split": (_node("Split", outputs=["y"], num_outputs=2), "differ in number"),
    "ScatterND": (_node("ScatterND", ["x", "i", "u"], reduction="mul"), "this reduction"),
    "Constant": (_node("Constant", [], value_float=1.0), "an empty tensor"),
    "AscendQuant": (_node("AscendQuant", offset=0.0, dst_type="INT8"), "without scale its plugin reads 0"),
    "Gelu": (_node("Gelu"), "no parser"),
    "Upsample": (_node("Upsample", ["x", "s"]), "takes it at opsets 8 to 9 and 11 to 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_plugins_refuse(case):
    node, message = REFUSED[case]
    (found,) = _refused(_model(node, opset=17, constants=["w", "p", "v", "a", "s", "r", "i", "u"]))
    assert message in found and found.startswith(f"node 'n', operator {node.op_type}, opset 17: ")


@pytest.mark.parametrize(
    "node",
    [
        _node("Conv", ["x", "w"], kernel_shape=[1, 1]),
        _node("Conv", ["x", "w"], strides=[1, 1]),
        _node("Transpose", perm=[0, 2, 3, 1]),
        _node("Pad", ["x", "p", "v"]),
        _node("Clip", ["x", "v"]),
        _node("Constant", [], value=TENSOR),
        _node("Celu"),
        _node("GridSample", ["x", "w"]),
    ],
    ids=lambda node: f"{node.op_type} {len(node.attribute)}",
)
def test_what_the_plugins_take(node):
    assert parser_support.check(_model(node, opset=16, constants=["w", "p", "v"])) == []


def test_constants_parse_at_any_opset():
    for opset in (1, 7, 20, 22):
        assert parser_support.check(_model(_node("Constant", [], value=TENSOR), opset=opset)) == []


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "a"], "'a', operator Relu, opset 13: 'a' names several nodes (E13009)"),
        (["x", "b"], "'x', operator Relu, opset 13: it is named like an input of the model (E13009)"),
        # The parser numbers nodes without a name.
        (["Relu_0", ""], "'Relu_0', operator Relu, opset 13: 'Relu_0' names several nodes"),
        (["c_Initializer_0", "b"], "'c_Initializer_0' names several nodes"),
        (["a", "b"], None),
        (["", ""], None),
        (["c", "y"], None),
    ],
)
def test_names_that_occur_twice(names, found):
    nodes = [_node("Relu", ["x"], ["t"], name=names[0]), _node("Relu", ["t"], ["y"], name=names[1])]
    refused = _refused(_model(*nodes, constants=["c"]))
    assert found is None if not refused else found in refused[0]
    assert bool(refused) == bool(found)


def test_types_that_the_parser_does_not_read():
    model = _model(_node("Relu"))
    model.graph.initializer.add(name="c", data_type=TensorProto.FLOAT8E5M2, dims=[1])
    assert "does not read the type FLOAT8E5M2 of 'c'" in _refused(model)[0]


def test_graphs_inside_nodes_are_checked():
    inner = helper.make_graph(
        [_node("Gelu")], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    )
    model = _model(_node("If", then_branch=inner, else_branch=inner))
    assert [line.split(",")[1] for line in _refused(model)] == [" operator Gelu"] * 2


def test_support_opset_by_opset():
    support = parser_support.opset_support(_model(_node("LayerNormalization", ["x", "s"]), _node("Gelu"), opset=20))
    assert (
        support[13] == ["Gelu", "LayerNormalization"]
        and support[17] == ["Gelu"]
        and list(support) == list(range(8, 19))
    )
