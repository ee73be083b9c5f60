"""`neonext-bench claims quantize`: ConvNeXt as a cell and as a graph, in 8 bit, and the comparison of networks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from conftest import relative_l2
from neonext_ms.benchmarks.claims import command, quantize
from neonext_ms.benchmarks.networks import folded
from neonext_ms.benchmarks.networks.convnext_cell import (
    ConvNeXt,
    ConvNeXtArchitecture,
    authors_arrays,
    initial_arrays,
)
from neonext_ms.export.compare import parity
from neonext_ms.export.evaluate import evaluate
from neonext_ms.export.quantize import apply
from neonext_ms.export.quantize.calibrate import calibrate
from neonext_ms.export.quantize.images import ArrayImages
from neonext_ms.export.quantize.prove import prove
from neonext_ms.training.run_state import load_state, save_state

SIZE = (64, 64)
CONFIG = """\
model:
  dims: [4, 4, 4, 4]
  per_stage_layers: [1, 1, 1, 1]
  shifts: [1, 1, 0, 0]
  image_size: 32
  layer_scale_init_value: 0.5
data: {dataset: digits, share: 0.2, batch_size: 100, workers: 1}
augmentation: {crop: none, flip: 0, randaugment_ops: 0, erasing: 0, mixup: 0, cutmix: 0}
optimizer: {lr: 1e-2, lr_rule: none}
schedule: {epochs: 1, warmup_epochs: 0}
ema: {decay: 0.5}
run: {jit: false}
"""


@pytest.fixture(scope="module", params=["layer_norm", "batch_norm"])
def convnext(request):
    """A small ConvNeXt with norms away from neutral: architecture, arrays, and its graph node by node."""
    architecture = ConvNeXtArchitecture(
        num_classes=5,
        per_stage_layers=(1, 1, 2, 1),
        dims=(8, 12, 16, 24),
        layer_scale_init_value=0.5,
        norm=request.param,
    )
    rng = np.random.RandomState(0)
    arrays = initial_arrays(architecture, rng)
    for name, array in arrays.items():
        if name.endswith(("norm.weight", "norm.bias", "running_mean", "ln.bias")):
            array += rng.uniform(-0.3, 0.3, array.shape).astype(np.float32)
        if name.endswith("running_var"):
            array *= rng.uniform(0.5, 2, array.shape).astype(np.float32)
    options = architecture.per_stage_layers, architecture.dims, architecture.norm
    return architecture, arrays, folded.convnext("convnext", authors_arrays(arrays), SIZE, *options)


def test_the_cell_computes_what_the_graph_does(convnext):
    architecture, arrays, graph = convnext
    # What the trainings of the last test set too, which only works before the first operation.
    ms.set_device("CPU")
    model = ConvNeXt(architecture, arrays)
    assert {p.name.rpartition(".")[0] for p in model.get_parameters()} == {k.rpartition(".")[0] for k in arrays}
    model.set_train(False)
    x = parity.noise(2, SIZE, 0)
    exact = evaluate(graph, x)["logits"]
    assert relative_l2(model(ms.Tensor(x)).asnumpy(), exact) < 2e-6
    assert relative_l2(evaluate(folded.fold(graph, folded.INT8_RULES), x)["logits"], exact) < 1e-6


def test_both_forms_of_a_convnext_in_8_bit_compute_the_same_integers(convnext):
    graph = folded.fold(convnext[2], folded.INT8_RULES)
    assert not {layer.op for layer in graph.layers} & {"batch_norm", "scale", "transpose"}
    equalizable = apply.equalizable(graph)
    # As of NeoNeXt: fc_1, the downsampling and the classifier.
    assert len(equalizable) == 5 + 3 + 1
    rng = np.random.default_rng(0)
    layers = {layer.name: layer for layer in graph.layers}
    exponents = {name: rng.integers(-4, 5, layers[name].arrays["weight"].shape[1]).tolist() for name in equalizable}
    x = parity.noise(2, SIZE, 0)
    equal = apply.equalize(graph, exponents)
    assert np.array_equal(evaluate(graph, x)["logits"], evaluate(equal, x)["logits"])
    scales = calibrate(graph, ArrayImages("noise", x), "minmax", "")
    proof, exact = prove(apply.quantize(graph, scales), {}, x)
    assert proof.layers == 15 and proof.integers > 10_000
    assert relative_l2(exact, evaluate(graph, x)["logits"]) < 0.1


def test_networks_are_trained_once_and_compared(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG)
    arguments = ["quantize", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path / "out"), "--json"]
    arguments += ["--seeds", "1", "--networks", "neonext,convnext_bn", "--weight-bits", "8,2"]
    assert command.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["network"], row["seed"]) for row in result["runs"]] == [("neonext", 0), ("convnext_bn", 0)]
    assert [(entry["network"], entry["bits"]) for entry in result["summary"]] == [
        ("neonext", 8), ("neonext", 2), ("convnext_bn", 8), ("convnext_bn", 2)
    ]  # fmt: skip
    for row in result["runs"]:
        eight, two = row["bits"]["8"], row["bits"]["2"]
        assert row["images"] == 360 and set(eight["snr_db"]) == set(quantize.KINDS)
        assert eight["relative_l2"] < two["relative_l2"] and eight["snr_db"]["fc_1"] > two["snr_db"]["fc_1"] + 10
    files = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(files) == 2
    assert command.main([*arguments[:-2], "--weight-bits", "8"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["bits"]["8"] for row in again["runs"]] == [row["bits"]["8"] for row in result["runs"]]
    assert files == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert command.main([*arguments, "data.share=0.5"]) == 1
    assert "data.share: 0.2 -> 0.5" in capsys.readouterr().err
    capsys.readouterr()
    first, second = (tmp_path / "out" / f"neonext-{seed}.safetensors" for seed in range(2))
    shutil.copy(first, second)
    assert command.main([*arguments, "--seeds", "2"]) == 1
    assert "run.seed: 0 -> 1" in capsys.readouterr().err
    state, progress = load_state(first)
    classes = progress.data["classes"]
    for names, problem in ((classes[::-1], "in another order"), (["x", *classes[1:]], "class 'x' is gone")):
        part = {name: [counts[classes.index(n)] if n in classes else 1 for n in names]
                for name, counts in progress.data.items() if name != "classes"}  # fmt: skip
        save_state(first, state, replace(progress, data={"classes": names, **part}), {})
        assert command.main(arguments) == 1
        assert problem in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main([*arguments, "--networks", "resnet"])
    assert command.main([*arguments, "model.init=x.pt"]) == 2
    text = list(quantize.lines({**again, "summary": quantize.summarise(again["runs"])}))
    assert text[0].startswith("360 validation images") and any("convnext_bn" in line for line in text)
