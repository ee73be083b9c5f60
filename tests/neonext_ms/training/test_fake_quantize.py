from __future__ import annotations

import json
import re
from dataclasses import replace

import mindspore as ms
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from mindspore import Tensor
from PIL import Image

from conftest import relative_l2
from neonext_ms import load_checkpoint, open_runtime, save_checkpoint
from neonext_ms.commands.train import main
from neonext_ms.common.errors import InputError
from neonext_ms.export.command import main as export
from neonext_ms.export.compare import parity
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import lower
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import Format
from neonext_ms.export.quantize.apply import quantizable, quantize, quantize_layer, whole_numbers
from neonext_ms.export.quantize.calibrate import calibrate
from neonext_ms.export.quantize.forms import Session, host_graph
from neonext_ms.export.quantize.images import ArrayImages
from neonext_ms.export.quantize.integers import FileEvaluator
from neonext_ms.images.images import load_images
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.neonext import NeoNeXt
from neonext_ms.models.quantizer import Quantizer
from neonext_ms.models.scales import LayerScale, Scales, read_scales
from neonext_ms.runtime.mindspore import load_mindspore
from neonext_ms.training.config.schema import OptimizerConfig
from neonext_ms.training.distributed import Cards
from neonext_ms.training.fake_quantize import FakeQuantized, _Product
from neonext_ms.training.run_state import Checkpoints, load_state, save_state
from neonext_ms.training.runlog import read_csv
from neonext_ms.training.step import TrainStep
from neonext_ms.training.validation import Evaluator
from networks import networks

load_mindspore()

CONFIG = """\
model: {shifts: [1, 1, 0, 0], image_size: 32, drop_path: 0.2}
data: {dataset: imagefolder, batch_size: 4, val_batch_size: 4, workers: 1}
augmentation: {mixup: 0.8}
optimizer: {lr: 3e-3, lr_rule: none}
schedule: {epochs: 1, warmup_epochs: 0}
ema: {decay: 0.8}
quantize: {enabled: true, calibrate: 6}
run: {jit: false, log_every: 1, seed: 3}
"""


def _arrays(architecture, seed=0):
    """Weights with statistics far from neutral."""
    rng = np.random.RandomState(seed)
    arrays = initial_arrays(architecture, rng=rng)
    for name in arrays:
        if ".norm" in name or name.endswith("gamma"):
            arrays[name] = (np.abs(rng.standard_normal(arrays[name].shape)) + 0.2).astype(np.float32)
    return arrays


def _tiny(**options):
    values = {"num_classes": 2, "per_stage_layers": (1, 1, 1, 1), "dims": (4, 6, 8, 12), "kernel_spec": "4+7",
              "shifts": (1, 1, 0, 0), "linear_bias": True, "layer_scale_init_value": 0.5}  # fmt: skip
    return make_architecture(**{**values, **options})


def _calibrated(architecture, arrays, size, skip=()):
    graph, _ = fold(original_graph(architecture, arrays, size))
    scales = calibrate(graph, ArrayImages("noise", parity.noise(3, size, 0)), "percentile", "digest", skip)
    return graph, scales.without_correction()


# The layer


@pytest.mark.parametrize("side", [1, 2])
def test_a_layer_and_its_gradients_by_hand(side, cpu_operations):
    rng = np.random.default_rng(0)
    scale = LayerScale(Quantizer.near(0.02, -20), (1, -2, 0))
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    weight, bias = rng.standard_normal((4, 3, side, side)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    product, dy = _Product(scale, 4, side), rng.standard_normal((2, 4, 4 // side, 4 // side)).astype(np.float32)
    gradient = ms.grad(lambda *inputs: (product(*inputs) * Tensor(dy)).sum(), (0, 1, 2))
    y = product(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
    dx, dweight, dbias = (part.asnumpy() for part in gradient(Tensor(x), Tensor(weight), Tensor(bias)))
    factor = 2.0 ** np.array(scale.exponents)[:, None, None]
    numbers = np.rint(x / factor / scale.quantizer.scale) - 20
    inside, values = np.abs(numbers + 0.5) <= 127.5, scale.quantizer.values(numbers.clip(-128, 127))
    assert 0.1 < 1 - inside.mean() < 0.9
    scaled = weight * factor
    step = np.abs(scaled).max((1, 2, 3)) / 127
    rounded = whole_numbers(scaled / step[:, None, None, None]) * step[:, None, None, None]
    accumulator = step * scale.quantizer.scale
    shifted = np.rint(bias / accumulator) * accumulator
    patches = values.reshape(2, 3, 4 // side, side, 4 // side, side)
    assert relative_l2(y, np.einsum("nchpwq,ocpq->nohw", patches, rounded) + shifted[:, None, None]) < 1e-6
    # Straight through: the gradients of the product of the rounded values, and 0 where a number is clipped.
    back = np.einsum("nohw,ocpq->nchpwq", dy, rounded).reshape(x.shape)
    assert relative_l2(dx, back / factor * inside) < 1e-6
    assert relative_l2(dweight, np.einsum("nohw,nchpwq->ocpq", dy, patches) * factor) < 1e-6
    assert relative_l2(dbias, dy.sum((0, 2, 3))) < 1e-6


def test_the_weights_are_those_of_the_file():
    architecture = _tiny()
    graph, scales = _calibrated(architecture, _arrays(architecture), (32, 32))
    for layer in quantizable(graph):
        scale = replace(scales.layers[layer.name], exponents=())
        expected = quantize_layer(layer, scale).arrays["weight_step"]
        weight, bias = layer.arrays["weight"], layer.arrays["bias"]
        step = _Product(scale, len(weight)).steps(Tensor(weight.reshape(len(weight), -1)), Tensor(bias)).asnumpy()
        assert np.abs(step / expected - 1).max() < 1e-6
    # A channel without weights keeps its bias.
    product, empty = _Product(LayerScale(Quantizer.near(0.5, 0)), 2), np.zeros((2, 3), np.float32)
    step = product.steps(Tensor(empty), Tensor(np.array([0, 2.0**30], np.float32))).asnumpy()
    assert np.abs(step - [1, 2]).max() < 1e-6


# The network


@given(networks())
@settings(max_examples=8, deadline=None)
def test_random_networks_compute_as_their_files(network):
    architecture, arrays, size = network
    try:
        graph, scales = _calibrated(architecture, arrays, size, skip=("downsample_2.conv",))
    except InputError as error:
        assert "everywhere in calibration" in str(error)
        return
    images = parity.noise(2, size, 1)
    format = Format()
    model = emitter.emit(lower(host_graph(quantize(graph, scales)), format), None, format)
    expected = FileEvaluator(model).run(images)[0]
    # A value next to the middle between two numbers may fall to the other side in float32; all else is exact.
    network = NeoNeXt.from_architecture(architecture, arrays)
    network.set_train(False)
    names = [parameter.name for parameter in network.get_parameters()]
    logits = FakeQuantized(network, scales)(Tensor(images)).asnumpy()
    assert relative_l2(logits, expected) < 0.01
    assert [parameter.name for parameter in network.get_parameters()] == names


def test_scales_of_another_network():
    architecture = _tiny()
    network = NeoNeXt.from_architecture(architecture)
    with pytest.raises(InputError, match=r"it has no layer 'head.fd' \(did you mean head.fc"):
        FakeQuantized(network, Scales("", {"head.fd": LayerScale(Quantizer.near(1.0, 0))}))
    with pytest.raises(InputError, match=r"stem.conv has 3 channels, not 4"):
        FakeQuantized(network, Scales("", {"stem.conv": LayerScale(Quantizer.near(1.0, 0), (0, 0, 0, 1))}))
    corrected = LayerScale(Quantizer.near(1.0, 0), (), (0.5, 0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="with bias correction"):
        FakeQuantized(network, Scales("", {"stem.conv": corrected}))


def test_a_compiled_step_is_that_without_compilation():
    architecture = _tiny(per_stage_layers=(1, 0, 0, 0))
    arrays = _arrays(architecture)
    _, scales = _calibrated(architecture, arrays, (32, 32))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 3, 32, 32)).astype(np.float32)
    targets = rng.dirichlet(np.ones(2), 3).astype(np.float32)
    results = []
    for jit in (False, True):
        step = TrainStep(
            NeoNeXt.from_architecture(architecture, arrays), OptimizerConfig(), 0.9, jit=jit, scales=scales
        )
        outcome = step([(images, targets)], 1e-3)
        results.append((outcome.loss, outcome.norm, step.weights()))
    (loss, norm, weights), (other_loss, other_norm, others) = results
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert norm == pytest.approx(other_norm, rel=1e-3)
    for name, values in weights.items():
        assert np.array_equal(values, arrays[name]) == ("running_" in name), name
        assert np.abs(values - others[name]).max() < 2.1e-3
    # The loss is that of the 8-bit network.
    logits = Session(host_graph(quantize(_calibrated(architecture, arrays, (32, 32))[0], scales))).run(images)["logits"]
    logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert loss == pytest.approx(-(targets * logits).sum(1).mean(), rel=0.02)


# The run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images `data/`, a network `init.safetensors`, a configuration, and a run of it."""
    folder, rng = tmp_path_factory.mktemp("fine_tuning"), np.random.RandomState(0)
    for part, count in (("train", 7), ("val", 4)):
        for name, colour in (("blue", 2), ("red", 0)):
            (folder / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., colour] += 120
                Image.fromarray(pixels).save(folder / "data" / part / name / f"{i}.png")
    # A layer of each kind; each more is computed operation by operation in every run.
    architecture = _tiny(per_stage_layers=(1, 0, 1, 0))
    metadata = {"shifts": [1, 1, 0, 0], "image_size": 32, "labels": ["blue", "red"]}
    save_checkpoint(folder / "init.safetensors", _arrays(architecture), metadata)
    (folder / "small.yaml").write_text(CONFIG + "base: data.yaml\n")
    (folder / "data.yaml").write_text(f"data: {{path: {folder / 'data'}}}\n")
    assert _train(folder, "run") == 0
    return folder


def _train(folder, run, *arguments, init="init.safetensors"):
    start = [] if init is None else ["--init", str(folder / init)]
    return main(["--config", str(folder / "small.yaml"), f"run.output={folder / run}", *start, *arguments])


def _export(folder, checkpoint, output, *arguments):
    start = ["--checkpoint", str(checkpoint), "--target", "onnx", "--output", str(folder / output)]
    return export([*start, "--quantize", "int8", *arguments])


@pytest.mark.parametrize("name, ema", [("final", False), ("final_ema", True)])
def test_the_exported_file_is_the_network_that_was_trained(folder, name, ema):
    assert _export(folder, folder / "run" / f"{name}.safetensors", name) == 0
    files = sorted((folder / "data" / "val").glob("*/*.png"))
    images = load_images(files, Preprocessing(), (32, 32))
    checkpoint = load_checkpoint(folder / "run" / f"{name}.safetensors")
    scales = Scales("", read_scales(folder / name / f"{name}.scales.json").layers)
    evaluator = Evaluator(checkpoint.architecture, Cards(), False, scales)
    batch = [(images, np.arange(8) // 4, np.arange(8), [])]
    training = evaluator(checkpoint.float32(), batch, 8)
    logits = FakeQuantized(evaluator.model, scales)(Tensor(images)).asnumpy()
    exact = FileEvaluator(onnx.load(folder / name / f"{name}.onnx")).run(images)[0]
    with open_runtime(folder / name / f"{name}.onnx") as model:
        onnxruntime = model.run(images)
    for other in (exact, onnxruntime):
        assert other.argmax(1).tolist() == training.predicted.tolist() == logits.argmax(1).tolist()
        assert relative_l2(logits, other) < 2e-3
    # The validation of the run itself is that of the 8-bit network.
    row = read_csv(folder / "run" / "epochs.csv")[-1]
    assert float(row["ema_loss" if ema else "loss"]) == pytest.approx(training.loss, abs=2e-6)


def test_statistics_stay_and_weights_do_not(folder):
    before, after = (load_checkpoint(folder / name).arrays for name in ("init.safetensors", "run/final.safetensors"))
    for name in before:
        assert np.array_equal(before[name], after[name]) == ("running_" in name), name


def test_a_stopped_run_goes_on_bit_for_bit(folder, capsys):
    assert _train(folder, "stopped", "run.stop_after=2") == 130
    # Neither images nor a file are calibrated with again.
    assert _train(folder, "stopped", "--resume", "auto", "quantize.method=minmax", "run.stop_after=0") == 0
    assert "configuration changed" not in capsys.readouterr().err
    whole, other = (load_state(Checkpoints(folder / run / "checkpoints", 1).paths()[0]) for run in ("run", "stopped"))
    assert all(np.array_equal(array, other[0][name]) for name, array in whole[0].items())
    assert whole[1].scales == other[1].scales
    assert len(whole[1].scales["layers"]) == 9
    best = [load_checkpoint(folder / run / "best.safetensors") for run in ("run", "stopped")]
    assert best[0].metadata == best[1].metadata
    assert best[0].metadata["scales"] == whole[1].scales
    capsys.readouterr()
    assert _train(folder, "stopped", "--resume", "auto", "quantize.enabled=false") == 1
    assert "a run with quantize.enabled. Set it" in capsys.readouterr().err
    plain = folder / "float" / "step-000000003.safetensors"
    save_state(plain, whole[0], replace(whole[1], scales={}), best[0].metadata)
    assert _train(folder, "stopped", "--resume", str(plain)) == 1
    assert "a run without quantize.enabled" in capsys.readouterr().err


def test_scales_of_a_file_start_the_training(folder):
    calibrated = ["--calibrate", str(folder / "data" / "val"), "--quantize-skip", "head.fc"]
    assert _export(folder, folder / "init.safetensors", "start", *calibrated) == 0
    scales = folder / "start" / "init.scales.json"
    assert _train(folder, "from_file", f"quantize.scales={scales}", "run.stop_after=1") == 130
    (path,) = Checkpoints(folder / "from_file" / "checkpoints", 1).paths()
    recorded = load_state(path)[1].scales
    assert recorded["layers"] == read_scales(scales).without_correction().to_dict()["layers"]
    assert len(recorded["layers"]) == 8
    assert recorded["calibration"]["fine_tuned"]


def test_exports_of_a_fine_tuned_checkpoint(folder, capsys):
    best = folder / "run" / "best.safetensors"
    assert _export(folder, best, "best") == 0
    manifest = json.loads((folder / "best" / "best.json").read_text())
    assert manifest["int8"]["calibration"] == {
        "method": "percentile", "images": 6, "source": "the training images", "image_size": [32, 32],
        "preprocessing": manifest["preprocessing"], "fine_tuned": True,
    }  # fmt: skip
    assert "6 images of the training images; then fine-tuned" in capsys.readouterr().out
    assert _export(folder, best, "again", "--calibrate", str(folder / "data" / "val")) == 0
    assert "the scales that the checkpoint was fine-tuned with are not used" in capsys.readouterr().err
    arguments = ["--checkpoint", str(best), "--target", "onnx", "--output", str(folder / "float_file")]
    assert export(arguments) == 0
    assert "this is the network in floating point" in capsys.readouterr().err
    assert _export(folder, folder / "init.safetensors", "none") == 2
    assert "got neither; the checkpoint records no scales" in capsys.readouterr().err
    assert _export(folder, best, "none", "--calibrate-count", "4") == 2
    assert "only valid with --calibrate" in capsys.readouterr().err
    assert not (folder / "none").exists()


def test_feature_maps_of_a_fine_tuned_checkpoint(folder, capsys):
    best = folder / "run" / "best.safetensors"
    assert _export(folder, best, "features", "--features-only") in (0, 1)
    error = capsys.readouterr().err
    # Scales of a stream that is an output now do not apply any more.
    assert (folder / "features" / "best.onnx").exists() or "cannot be scaled in this one" in error


def test_a_channel_that_has_all_but_vanished():
    product = _Product(LayerScale(Quantizer.near(0.03, 0)), 2)
    weight, bias = np.ones((2, 4), np.float32), np.zeros(2, np.float32)
    weight[0] = 1e-40
    y = product(Tensor(np.full((1, 4, 2, 2), 0.9, np.float32)), Tensor(weight), Tensor(bias)).asnumpy()
    assert not y[:, 0].any()
    assert np.abs(y[:, 1] - 3.6).max() < 0.02


def test_scales_reach_the_other_cards():
    first, sent = Cards(), []

    class Other(Cards):
        def broadcast(self, arrays):
            name, array = next(iter(arrays.items()))
            expected = sent[name == "text"]
            assert np.shape(array) == expected.shape
            return {name: expected.astype(np.float32)}

    text = json.dumps(Scales("", {"stem.conv": LayerScale(Quantizer.near(1.0, 2))}).to_dict())
    codes = np.frombuffer(text.encode(), np.uint8)
    sent += [np.array([len(codes)]), codes]
    assert first.broadcast_text(text) == Other(1, 2).broadcast_text("") == text


@pytest.mark.parametrize(
    "arguments, problem, code",
    [
        (["quantize.calibrate=1"], "expected a whole number in [2, 1000000]", 2),
        (["quantize.method=max"], "expected one of minmax, percentile, mse, entropy", 2),
        (["quantize.skip=[head]"], "quantize.skip 'head': no 8-bit layer has this name", 1),
        (["quantize.scales=nowhere.json"], "nowhere.json: no such file", 1),
        (["precision.level=O2"], "precision.level", 1),
        (["run.sync_batch_norm=true"], "Leave out run.sync_batch_norm", 2),
        (["schedule.blend_epochs=1"], "scales are those of one activation", 2),
    ],
)
def test_bad_configurations(folder, arguments, problem, code, capsys):
    assert _train(folder, "bad", *arguments) == code
    assert problem in capsys.readouterr().err
    assert not (folder / "bad").exists()


def test_a_network_that_was_not_trained(folder, capsys):
    assert _train(folder, "bad", "model.dims=[4,4,4,4]", init=None) == 2
    assert "fine-tunes a trained network" in capsys.readouterr().err


def test_damaged_scales_in_a_checkpoint(folder, tmp_path):
    best = load_checkpoint(folder / "run" / "best.safetensors")
    metadata = json.loads(json.dumps(best.metadata))
    metadata["scales"]["layers"]["stem.conv"]["scale"] = -1
    path = tmp_path / "damaged.safetensors"
    with pytest.raises(InputError, match=re.escape("scales: stem.conv: scale -1, expected")):
        save_checkpoint(path, best.arrays, metadata)
