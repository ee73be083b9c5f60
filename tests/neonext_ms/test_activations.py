"""Networks with every activation: against float64 in NumPy, in checkpoints, and in every kind of exported file."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import onnx
import pytest
from mindspore import Tensor, ops

from conftest import relative_l2, relative_max
from neonext_ms import NeoNeXt, export_checkpoint, load_checkpoint, open_runtime, save_checkpoint
from neonext_ms.commands import convert, info
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.export.evaluate import evaluate
from neonext_ms.export.graph import LOGITS, original_graph
from neonext_ms.export.om import parser_support
from neonext_ms.export.om.options import OmOptions
from neonext_ms.export.quantize.options import QuantizeOptions
from neonext_ms.models.activations import ACTIVATIONS, LEAKY_SLOPE
from neonext_ms.models.architecture import STATISTICS, make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.names import official_name
from neonext_ms.models.neonext import ACTIVATION_CELLS
from neonext_ms.models.registry import candidates, identify, list_models, model_config

ms.set_device("CPU")
SIZE = (32, 32)


def _network(activation, downsample="official"):
    architecture = make_architecture(
        3, (1, 0, 1, 0), (6, 8, 8, 8), kernel_spec="2+3", shifts=(1, 1, 0, 0), linear_bias=True,
        layer_scale_init_value=0.5, downsample=downsample, activation=activation,
    )  # fmt: skip
    rng = np.random.RandomState(1)
    arrays = initial_arrays(architecture, rng=rng)
    for name in arrays:
        # Wide enough that both sides of every kink occur.
        if ".norm" in name:
            arrays[name] = (2 * np.abs(rng.standard_normal(arrays[name].shape)) + 0.3).astype(np.float32)
    return architecture, arrays


def _images(count):
    return np.random.RandomState(2).standard_normal((count, 3, *SIZE)).astype(np.float32)


@pytest.mark.parametrize("downsample", ["official", "paper"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_and_gradients_are_those_of_float64(activation, downsample):
    architecture, arrays = _network(activation, downsample)
    model = NeoNeXt.from_architecture(architecture, arrays)
    model.set_train(False)
    images = _images(2)
    weighted = np.random.RandomState(3).standard_normal((2, 3)).astype(np.float32)

    def loss(x):
        return (model(x) * Tensor(weighted)).sum()

    parameters = model.trainable_params()
    gradients = ms.value_and_grad(loss, None, parameters)(Tensor(images))[1]
    gradients = {official_name(p.name): g.asnumpy() for p, g in zip(parameters, gradients, strict=True)}
    assert relative_max(model(Tensor(images)).asnumpy(), _logits(architecture, arrays, images)) < 2e-6
    # The gradient of each tensor along a random direction, against a central difference in float64.
    rng = np.random.RandomState(4)
    for name in (n for n in architecture.tensors() if not n.endswith(STATISTICS)):
        direction = rng.standard_normal(arrays[name].shape)
        step = 1e-7 * direction
        ahead, behind = (
            (_logits(architecture, {**arrays, name: arrays[name] + sign * step}, images) * weighted).sum()
            for sign in (1, -1)
        )
        expected = (ahead - behind) / 2e-7
        scale = np.linalg.norm(gradients[name]) * np.linalg.norm(direction)
        assert abs((gradients[name] * direction).sum() - expected) < 1e-4 * scale, name


def _logits(architecture, arrays, images):
    graph = original_graph(architecture, {}, SIZE)
    # `original_graph` stores float32; differences need float64.
    graph = type(graph)(
        tuple(
            type(layer)(
                layer.op, layer.name, layer.inputs, layer.output,
                {key[len(layer.name) + 1 :]: np.asarray(a, np.float64) for key, a in arrays.items()
                 if key.rpartition(".")[0] == layer.name or key.rpartition(".weight_")[0] == layer.name},
                layer.attributes,
            )
            for layer in graph.layers
        ),
        graph.image_size, graph.outputs,
    )  # fmt: skip
    return evaluate(graph, images)[LOGITS]


def test_registered_names():
    assert {"neonext_t.relu", "neonext_b.leakyrelu", "neonext_xl.hardswish"} <= set(list_models())
    relu = model_config("neonext_t.relu").architecture
    assert relu == model_config("neonext_t.released_224", activation="relu").architecture
    # Official weights fit: the same tensors, and nothing but the activation tells the networks apart.
    assert relu.tensors() == model_config("neonext_t.released_224").architecture.tensors()
    assert identify(relu) == "neonext_t.relu"
    assert "neonext_t.relu" not in candidates(model_config("neonext_t.released_224").architecture)
    with pytest.raises(InputError, match="activation must be one of gelu, relu, leakyrelu, hardswish"):
        model_config("neonext_t", activation="relu6")


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_a_checkpoint_records_it(tmp_path, suffix):
    _, arrays = _network("relu")
    path = tmp_path / f"x{suffix}"
    save_checkpoint(path, arrays, {"shifts": [1, 1, 0, 0], "activation": "relu"})
    assert load_checkpoint(path).architecture.activation == "relu"
    assert load_checkpoint(path, activation="relu").architecture.activation == "relu"
    with pytest.raises(InputError, match=r"records the activation relu \(got gelu\)"):
        load_checkpoint(path, activation="gelu")
    with pytest.raises(InputError, match="activation must be one of"):
        save_checkpoint(tmp_path / "y.pt", arrays, {"activation": "swish"})


def test_a_checkpoint_without_it_has_gelu_unless_told_otherwise(digits, tmp_path, capsys):
    assert load_checkpoint(digits).architecture.activation == "gelu"
    assert load_checkpoint(digits, activation="relu").architecture.activation == "relu"
    # It is recorded when it is known, and only then.
    for options, recorded in (([], None), (["--activation", "relu"], "relu")):
        assert convert.main([str(digits), str(tmp_path / "x.pt"), *options]) == 0
        assert load_checkpoint(tmp_path / "x.pt").metadata.get("activation") == recorded
    capsys.readouterr()
    assert info.main([str(tmp_path / "x.pt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"]["activation"] == "relu"
    assert info.main([str(tmp_path / "x.pt"), "--activation", "hardswish"]) == 1
    with pytest.raises(SystemExit, match="2"):
        info.main([str(tmp_path / "x.pt"), "--activation", "selu"])


@pytest.mark.parametrize("activation", ["relu", "leakyrelu", "hardswish"])
def test_every_exported_file(tmp_path, activation):
    architecture, arrays = _network(activation, "paper")
    save_checkpoint(tmp_path / "x.pt", arrays, {"shifts": [1, 1, 0, 0], "activation": activation})
    expected = _logits(architecture, arrays, _images(2))
    om = {"om": OmOptions("Ascend310P3"), "neocell": "padded"}
    np.save(tmp_path / "x.npy", _images(8))
    for name, targets, options in (
        ("plain", "onnx,mindir,onnx-naive", {}),
        ("old", "onnx", {"opset": 11}),
        ("half", "onnx,mindir", {"dtype": "float16"}),
        ("cann", "om", om),
        ("cann17", "om", {**om, "opset": 17}),
        # Both 8-bit forms are proved to compute the same integers.
        ("int8", "onnx,om", {"quantize": QuantizeOptions(str(tmp_path / "x.npy")), "om": OmOptions("Ascend310P3")}),
    ):
        report = export_checkpoint(tmp_path / "x.pt", targets, None, 32, tmp_path / name, **options)
        manifest = json.loads((tmp_path / name / "x.json").read_text())
        assert manifest["activation"] == manifest["architecture"]["activation"] == activation
        assert f"activation {activation}" in str(report)
        for path in (p for p in report.files.values() if p.suffix in (".onnx", ".mindir")):
            if path.name == "x_cann.onnx" and name == "int8":
                # Its AscendQuant nodes run nowhere here.
                continue
            with open_runtime(path, activation=activation) as model:
                assert relative_l2(model.run(_images(2)), expected) < {"half": 1e-2, "int8": 0.3}.get(name, 2e-6)
            with pytest.raises(UsageError, match=f"has its activation built in, and has {activation}"):
                open_runtime(path, activation="gelu")
    old, new = {"relu": ("Relu", "Relu"), "leakyrelu": ("LeakyRelu", "LeakyRelu"), "hardswish": ("Clip", "HardSwish")}[
        activation
    ]
    for name, op in (("cann", old), ("cann17", new)):
        model = onnx.load(tmp_path / name / "x_cann.onnx")
        assert not any(finding.refused for finding in parser_support.check(model))
        assert op in {node.op_type for node in model.graph.node}
    with pytest.raises(UsageError, match=f"activation of this network is {activation}"):
        export_checkpoint(tmp_path / "x.pt", "onnx", None, 32, tmp_path, gelu="tanh")


def test_the_cells_at_their_kinks():
    # Subgradients as in PyTorch: 0 at the kink of ReLU; HardSwish takes the inner slope at -3 and 3 or 0 and 1. That of
    # LeakyReLU lies between its slopes.
    x = np.array([-4, -3, -1.5, 0, 1.5, 3, 4], np.float32)
    gradient = ms.grad(lambda x: ops.relu(x).sum())(Tensor(x)).asnumpy()
    assert gradient.tolist() == [0, 0, 0, 0, 1, 1, 1]
    gradient = ms.grad(lambda x: ACTIVATION_CELLS["leakyrelu"]()(x).sum())(Tensor(x)).asnumpy()
    slope = np.float32(LEAKY_SLOPE)
    assert gradient[[0, 1, 2, 4, 5, 6]].tolist() == [slope, slope, slope, 1, 1, 1] and slope <= gradient[3] <= 1
    gradient = ms.grad(lambda x: ops.hardswish(x).sum())(Tensor(x)).asnumpy()
    assert gradient[[0, 2, 3, 4, 6]].tolist() == [0, 0, 0.5, 1, 1]
    assert gradient[1] in (0, -0.5) and gradient[5] in (1, 1.5)
