from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conftest import relative_l2
from neonext_ms.benchmarks import networks
from neonext_ms.benchmarks.networks import folded
from neonext_ms.benchmarks.networks.builder import GraphBuilder
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.export.evaluate import evaluate
from neonext_ms.export.lower import neocell_to_padded_matmul
from neonext_ms.export.om import parser_support
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import CANN, Format

CONVNEXT, RESNET = ((1, 2, 1, 1), (16, 24, 12, 32)), ((1, 2, 1, 1), True)
CASES = [
    ("convnext", (64, 96), CONVNEXT),
    # Maps of 25x19, 12x9, 6x4 and 3x2: the downsampling convolutions leave a row or a column out.
    ("convnext", (100, 76), CONVNEXT),
    ("resnet", (64, 64), RESNET),
    ("resnet", (65, 97), RESNET),
    ("resnet", (51, 38), ((1, 1, 2, 1), False)),
    ("resnet", (64, 64), ((1, 1, 1, 1), True, 8, 4)),
]


def images(size, count):
    return np.random.RandomState(1).standard_normal((count, 3, *size)).astype(np.float32)


def run(model: onnx.ModelProto | str, x: np.ndarray) -> np.ndarray:
    content = model if isinstance(model, str) else model.SerializeToString()
    (logits,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"input": x})
    return logits


def small(family, size, options):
    """A narrow network: its plain model, and its `DeployGraph` before folding."""
    plain = GraphBuilder(family, None, size, keep=True)
    networks.Network(family, options, 0, 0.0, "").add_to(plain)
    graph = getattr(folded, family)(family, plain.weights.arrays, size, *options)
    return plain.model(), graph


@pytest.mark.parametrize(("family", "size", "options"), CASES)
def test_folded_is_the_plain_network(family, size, options):
    plain, graph = small(family, size, options)
    x = images(size, 1)
    exact = evaluate(graph, x)["logits"]
    assert relative_l2(run(plain, x), exact) < 2e-6
    deploy = folded.fold(graph)
    assert relative_l2(evaluate(deploy, x)["logits"], exact) < 1e-6
    for format in (Format(), CANN):
        assert relative_l2(run(emitter.emit(deploy, format=format), x), exact) < 2e-6
    assert relative_l2(run(emitter.emit(graph, format=Format(17)), x), exact) < 2e-6


@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_nothing_is_left_to_fold(family):
    graph = small(family, (64, 64), CONVNEXT if family == "convnext" else RESNET)[1]
    deploy = folded.fold(graph)
    assert not {layer.op for layer in deploy.layers} & {"batch_norm", "scale", "transpose"}
    assert all(not layer.arrays for layer in deploy.layers if layer.op == "layer_norm")
    # What is folded keeps the names of the values, and a block costs no layer more than it has to.
    assert deploy.outputs == graph.outputs
    blocks = sum(layer.name.endswith(".pwconv1") for layer in graph.layers)
    assert deploy.count("conv") == graph.count("conv") + 2 * blocks + (family == "convnext")
    # Channels last became channels first.
    shapes = graph.shapes()
    assert all(sorted(shapes[name]) == sorted(shape) for name, shape in deploy.shapes().items() if name in shapes)


@pytest.mark.parametrize("name", ["convnext_t", "resnet50"])
def test_the_whole_network(name, tmp_path):
    size = (96, 64)
    x = images(size, 1)
    plain = run(networks.build(name, image_size=size), x)
    path = networks.write(name, tmp_path / f"{name}.onnx", image_size=size, batch=None)
    assert relative_l2(run(str(path), x), plain) < 1e-5
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.graph.name == name
    forms = {"convnext_t": {"Conv", "Gelu", "LayerNormalization"}, "resnet50": {"Conv", "Relu", "MaxPool"}}[name]
    shared = {"GlobalAveragePool", "Flatten", "Gemm", "Add"} | ({"Transpose"} if name == "convnext_t" else set())
    kinds = {node.op_type for node in model.graph.node}
    assert forms <= kinds <= forms | shared


def test_a_file_for_atc(tmp_path):
    path = networks.write("convnext_t", tmp_path / "t.onnx", target="cann", image_size=(64, 64))
    model = onnx.load(path)
    assert model.opset_import[0].version == CANN.opset
    # Only what it cannot do without: LayerNorm over channels lies between two transposes.
    problems = parser_support.check(model)
    assert problems and all(
        found.operator == "Transpose" and "TransData" in found.problem and not found.refused for found in problems
    )
    format = CANN.with_(opset=17, chains=False)
    at_17 = networks.build("convnext_t", form="folded", format=format, image_size=(64, 64))
    assert {found.problem for found in parser_support.check(at_17)} == {found.problem for found in problems}
    assert {"LayerNormalization", "Erf"} < {node.op_type for node in at_17.graph.node}
    assert not parser_support.check(networks.build("resnet50", form="folded", target="cann", image_size=(64, 64)))


def test_write_leaves_nothing_half_written(tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(InputError, match="file"):
        networks.write("resnet18", taken / "r.onnx", image_size=(32, 32))
    with pytest.raises(InputError, match="vanishes"):
        networks.write("squeezenet1_1", tmp_path / "s.onnx", image_size=(8, 8), form="plain")
    assert sorted(tmp_path.iterdir()) == [taken]
    plain = networks.write("resnet18", tmp_path / "r.onnx", image_size=(32, 32), form="plain")
    assert plain.read_bytes() == networks.build("resnet18", image_size=(32, 32)).SerializeToString()


def test_rejections(tmp_path):
    with pytest.raises(UsageError, match="densenet121 has no folded form; these networks have one: convnext_t"):
        networks.build("densenet121", form="folded", image_size=(32, 32))
    with pytest.raises(UsageError, match="target 'om' of a network: unknown"):
        networks.write("resnet18", tmp_path / "r.onnx", target="om")
    with pytest.raises(UsageError, match="Give a seed"):
        networks.build("resnet18", form="folded", seed=None)
    with pytest.raises(InputError, match="at least 1 image"):
        networks.build("resnet18", form="folded", batch=0)
    assert networks.names("folded")[:7] == [
        "convnext_t",
        "convnext_s",
        "convnext_b",
        *[f"resnet{n}" for n in (18, 34, 50, 101)],
    ]


def test_what_takes_only_neonext_says_so():
    deploy = folded.fold(small("resnet", (32, 32), RESNET)[1])
    with pytest.raises(InputError, match="conv1: a conv layer does not fit padded maps"):
        neocell_to_padded_matmul(deploy)
    from neonext_ms.export.mindir import DeployCell

    with pytest.raises(InputError, match=r"MindIR has no form of a conv layer of this kind\. Write ONNX"):
        DeployCell(deploy)
