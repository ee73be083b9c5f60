from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import lower, neocell_to_matmul
from neonext_ms.export.om import parser_support
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
        {"neocell": "padded"},
        {"neocell": "custom"},
        {"dtype": "float16"},
        *({"opset": opset} for opset in range(11, 19)),
    ],
)
def test_what_the_cann_format_writes_is_parsed(changes, downsample, features_only):
    format = CANN.with_(**changes)
    graph = lower(fold(_network(features_only, downsample))[0], format)
    assert parser_support.check(emitter.emit(graph, format=format)) == []


def test_every_operator_that_can_be_emitted_is_in_the_table():
    emitted = set()
    for format in (Format(), CANN, CANN.with_(gelu="tanh", neocell="padded", dtype="float16")):
        for features_only in (False, True):
            network = _network(features_only)
            for graph in (lower(fold(network)[0], format), neocell_to_matmul(network)):
                emitted |= {node.op_type for node in emitter.emit(graph, format=format).graph.node}
    assert emitted - set(parser_support.PARSERS) == {"Gelu"}
    assert all(opsets and repository and file and ops for opsets, repository, file, ops in parser_support.PLUGINS)


def test_the_ordinary_formats_are_rejected_with_what_to_do():
    graph = neocell_to_matmul(fold(_network())[0])
    problems = parser_support.check(emitter.emit(graph, format=Format(20)))
    gelu = next(p for p in problems if "Gelu" in p)
    assert gelu == (
        "node 'stage_1.0.ops.content.act', operator Gelu, opset 20: CANN has no parser for it; write it as a chain: "
        "--gelu erf or --gelu tanh"
    )
    assert any("operator Conv, opset 20" in p and "--opset 13" in p for p in problems)
    assert parser_support.check(emitter.emit(graph, format=Format(17))) == []


def test_layouts_between_convolutions():
    problems = parser_support.check(emitter.emit(neocell_to_matmul(_network()), format=Format(13)))
    assert sum("between two convolutions" in p for p in problems) == 6
    assert all("chw2hwc" in p or "hwc2chw" in p for p in problems)


def test_domains_and_imports():
    node = helper.make_node("Relu", ["x"], ["y"], name="n")
    assert parser_support.check(_model(node)) == [] == parser_support.check(_model(node, domain="ai.onnx"))
    two = _model(node)
    two.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "E16005" in parser_support.check(two)[0]
    strange = _model(helper.make_node("FastGelu", ["x"], ["y"], name="n", domain="com.microsoft"))
    assert "domain 'com.microsoft'" in parser_support.check(strange)[0]
    assert "no parser" in parser_support.check(_model(helper.make_node("Celu", ["x"], ["y"])))[0]
    assert "default domain" in parser_support.check(_model(node, domain="npu"))[-1]


def test_shape_arithmetic():
    shape = helper.make_node("Shape", ["x"], ["s"], name="shape")
    reshape = helper.make_node("Reshape", ["x", "s"], ["y"], name="reshape")
    problems = parser_support.check(_model(shape, reshape))
    assert "'shape', operator Shape" in problems[0] and "input 1 (s) is computed" in problems[1]
    assert parser_support.check(_model(helper.make_node("Reshape", ["x", "s"], ["y"]), constants=["s"])) == []


def test_layer_normalization_at_two_opsets_only():
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"], name="n")
    assert parser_support.check(_model(node, opset=17, constants=["s"])) == []
    for opset in (13, 16, 19):
        assert "opset 17 or 18" in parser_support.check(_model(node, opset=opset, constants=["s"]))[0]
