from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import goldens, relative_max
from neonext_ms import load_checkpoint
from neonext_ms.common.errors import InputError, ParityError, UsageError
from neonext_ms.export import pipeline, verify
from neonext_ms.export.command import main
from neonext_ms.export.compare import parity
from neonext_ms.export.compare.compare import compare_activations, tolerance_for
from neonext_ms.export.compare.open import open_activations
from neonext_ms.export.evaluate import evaluate
from neonext_ms.export.graph import original_graph
from neonext_ms.export.onnx import save
from neonext_ms.export.onnx.emitter import emit
from neonext_ms.export.request import Request
from neonext_ms.export.source import Source
from neonext_ms.export.tolerances import tolerance
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.runtime.open import open_runtime
from networks import networks

SHIFTS = (1, 1, 0, 0)


def _export(source, targets, output, size=None, **options):
    return pipeline.export(source, Request(targets, [size] if size else (), **options), output)


def _digits(digits):
    return Source.from_checkpoint(digits, SHIFTS)


@pytest.mark.parametrize("case", goldens("NeoNeXt"))
def test_exports_give_the_official_logits(case, tmp_path):
    source = Source.from_checkpoint(str(case.checkpoint), case.options.get("shifts", (1, 1, 1, 0)))
    report = _export(source, ["onnx", "onnx-naive", "mindir"], tmp_path, case.image_size)
    for path in report.files.values():
        with open_runtime(path) as runtime:
            assert relative_max(runtime.run(case.load("_input.npy")), case.load("_logits64.npy")) < 1e-5


@pytest.mark.parametrize("case", goldens("neonext_t"))
def test_t_exports_give_the_official_logits(case, tmp_path):
    entry = case.entry
    source = Source.from_checkpoint(str(case.checkpoint), entry["kwargs"]["shifts"])
    report = _export(source, ["onnx"], tmp_path, case.image_size, batch=(1,))
    assert report.parity["onnx"].relative_l2 < 3e-6
    x = np.random.RandomState(entry["input_seed"]).standard_normal(entry["input_shape"]).astype(np.float32)
    with open_runtime(report.files["onnx"]) as runtime:
        assert runtime.batch == 1
        assert relative_max(runtime.run(x), case.load("_logits64.npy")) < 1e-5


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20, 21])
def test_every_opset_is_valid_and_equal(digits, tmp_path, opset):
    report = _export(_digits(digits), ["onnx", "onnx-naive"], tmp_path, (64, 64), opset=opset)
    for path in report.files.values():
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]


def test_what_travels_with_the_files(digits, tmp_path):
    labels = [f"digit {i}" for i in range(10)]
    report = _export(_digits(digits), ["onnx", "mindir"], tmp_path, (64, 64), batch=(2,), labels=labels)
    manifest = json.loads((tmp_path / "digits_64.json").read_text())
    inside = json.loads(next(p.value for p in onnx.load(report.files["onnx"]).metadata_props if p.key == "neonext_ms"))
    for metadata in (manifest, inside):
        assert metadata["labels"] == labels
        assert metadata["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
        assert metadata["shifts"] == [1, 1, 0, 0] and metadata["image_size"] == [64, 64] and metadata["batch"] == 2
        assert metadata["source"]["sha256"].startswith("384f522d4fc2f764")
        assert metadata["versions"]["onnx"] == onnx.__version__
    assert manifest["folded"]["batch_norms"] == 9 and manifest["folded"]["layer_scales"] == 5
    assert manifest["files"][1]["parity"]["samples"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits_64.json", "digits_64.mindir", "digits_64.onnx"]


def test_nodes_are_counted_as_they_are_written(digits, tmp_path):
    report = _export(_digits(digits), ["onnx", "onnx-naive"], tmp_path, (64, 64))
    counts = [len(onnx.load(report.files[target]).graph.node) for target in ("onnx-naive", "onnx")]
    assert tuple(counts) == report.nodes == (81, 38)


def test_two_exports_are_the_same_bytes(digits, tmp_path):
    for folder in ("a", "b"):
        _export(_digits(digits), ["onnx"], tmp_path / folder, (64, 64))
    for name in ("digits_64.onnx", "digits_64.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_live_model_is_exported_and_not_changed(tmp_path):
    from neonext_ms import NeoNeXt, model_arrays

    model = NeoNeXt(num_classes=5, dims=(8, 8, 8, 8), kernel_spec="4+7", drop_path=0.3)
    model.set_train(True)
    before = model_arrays(model)
    report = _export(Source.from_model(model), ["onnx"], tmp_path, (64, 32))
    assert report.parity["onnx"].agrees()
    for name, array in model_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_the_papers_network_in_mindir_and_onnx(tmp_path):
    architecture = make_architecture(
        num_classes=7, dims=(6, 8, 10, 12), downsample="paper", kernel_spec="4+7,4+7,4+7,7", linear_bias=True
    )
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    source = Source(arrays, architecture, "paper")
    report = _export(source, ["onnx", "mindir"], tmp_path, (72, 40))
    assert report.folded.removed("neocell") == 3 and report.folded.after["neocell"] == 4


@pytest.mark.parametrize("target", ["onnx", "mindir"])
def test_weights_that_need_files_of_their_own(digits, tmp_path, monkeypatch, target):
    import mindspore.train.serialization as serialization

    monkeypatch.setattr(serialization, "TOTAL_SAVE", 1)
    monkeypatch.setattr(save, "MAX_BYTES", 1 << 20)
    report = _export(_digits(digits), [target], tmp_path, (64, 64))
    weights = {"onnx": "digits_64.onnx.data", "mindir": "digits_64_variables/data_0"}[target]
    assert (tmp_path / weights).stat().st_size > 2e6
    with open_runtime(report.exported[0].path) as runtime:
        assert runtime.input_size == (64, 64)
        assert runtime.run(np.zeros((2, 3, 64, 64), np.float32)).shape == (2, 10)


@pytest.mark.parametrize("target", ["onnx", "mindir"])
def test_a_file_that_deviates_is_not_published(digits, tmp_path, monkeypatch, target):
    def tampered(graph):
        layers = list(graph.layers)
        weight = layers[0].arrays["weight"] * np.float32(1.001)
        layers[0] = replace(layers[0], arrays={**layers[0].arrays, "weight": weight})
        return replace(graph, layers=tuple(layers))

    fold = pipeline.fold
    monkeypatch.setattr(pipeline, "fold", lambda graph: (tampered(fold(graph)[0]), fold(graph)[1]))
    with pytest.raises(ParityError, match="outputs differ from the original network"):
        _export(_digits(digits), [target], tmp_path / "new" / "folder", (64, 64))
    assert list(tmp_path.iterdir()) == []


def test_compare():
    reference = np.float32([[1, 2], [3, 1]])
    assert parity.compare(reference, reference) == parity.Parity(2, 0.0, 3.0, 0.0, 2)
    swapped = parity.compare(reference, reference[:, ::-1])
    assert swapped.top1_agree == 0 and not swapped.agrees(10)
    tie = np.float32([[1, 1.00001]])
    assert parity.compare(tie, tie[:, ::-1]).top1_agree == 1
    with pytest.raises(ParityError, match="not finite"):
        parity.compare(reference, np.float32([[np.nan, 2], [3, 1]]))
    with pytest.raises(ParityError, match="shape"):
        parity.compare(reference, reference[:1])


def test_bad_requests(digits, tmp_path):
    source = _digits(digits)
    with pytest.raises(UsageError, match="did you mean onnx"):
        _export(source, ["onxx"], tmp_path)
    with pytest.raises(UsageError, match="--image-size"):
        _export(source, ["onnx"], tmp_path)
    with pytest.raises(InputError, match="3 labels for 10 classes"):
        _export(source, ["onnx"], tmp_path, (64, 64), labels=["a", "b", "c"])
    with pytest.raises(UsageError, match="opset 10"):
        _export(source, ["onnx"], tmp_path, (64, 64), opset=10)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_folded_onnx_equals_the_network(data, tmp_path_factory):
    architecture, arrays, size = data.draw(networks())
    folder = tmp_path_factory.mktemp("x")
    graph, images = original_graph(architecture, arrays, size), parity.noise(pipeline.NOISE_SAMPLES, size, 1)
    # Some random networks cancel almost all of their last layer; float32 itself is beyond the tolerance there.
    exact = evaluate(graph, images)["logits"]
    assume(relative_max(verify.original_outputs(graph, images, folder), exact) < 1e-6)
    report = _export(Source(arrays, architecture, "random"), ["onnx"], folder, size, seed=1)
    assert not {"batch_norm", "scale", "transpose"} & set(report.folded.after)


def test_an_onnx_export_never_imports_mindspore(digits, tmp_path):
    code = (
        "import sys; from neonext_ms.export.command import main; "
        f"code = main(['--checkpoint', {digits!r}, '--shifts', '1,1,0,0', '--image-size', '64', '--target', 'onnx', "
        f"'--output', {str(tmp_path)!r}]); sys.exit(code or 'mindspore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_emitter_rejects_more_than_protobuf_can_hold(digits, monkeypatch):
    from neonext_ms.export.lower import neocell_to_matmul

    source = _digits(digits)
    monkeypatch.setattr(save, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="2 GB"):
        emit(neocell_to_matmul(original_graph(source.architecture, source.arrays, (64, 64))))


def test_source_of_a_checkpoint_keeps_the_architecture(digits):
    source = _digits(digits)
    assert source.architecture == load_checkpoint(digits, SHIFTS).architecture
    assert source.name == "digits_64"


def test_export_checkpoint_writes_what_the_command_writes(digits, tmp_path, capsys):
    report = pipeline.export_checkpoint(digits, "onnx,onnx-naive", (1, 1, 0, 0), 64, tmp_path / "a", batch=2, opset=17)
    argv = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", "onnx,onnx-naive"]
    assert main([*argv, "--output", str(tmp_path / "b"), "--batch", "2", "--opset", "17"]) == 0
    assert sorted(report.files) == ["onnx", "onnx-naive"] and report.missing is None
    for path in report.files.values():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    printed = capsys.readouterr().out.replace(str(tmp_path / "b"), str(tmp_path / "a"))
    assert str(report).split("seconds")[0] == printed.split("seconds")[0]
    assert re.search(r"parity \d+\.\d\d \(\d+ threads?\)$", str(report))
    with pytest.raises(UsageError, match="--image-size"):
        pipeline.export_checkpoint(digits, shifts=(1, 1, 0, 0), output=tmp_path / "c")
    with pytest.raises(TypeError, match="opsett"):
        pipeline.export_checkpoint(digits, shifts=(1, 1, 0, 0), output=tmp_path / "c", opsett=17)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_verified_file_in_half_precision_passes_neonext_compare(digits, tmp_path, dtype):
    report = _export(_digits(digits), ["onnx", "onnx-naive"], tmp_path, (64, 64), dtype=dtype)
    sides = [open_activations(report.files[target]) for target in ("onnx-naive", "onnx")]
    assert tolerance_for(*sides) == tolerance(dtype)
    assert compare_activations(*sides, parity.noise(2, (64, 64), 3)).agrees


def test_the_opset_of_bfloat16_may_be_given(digits, tmp_path):
    report = _export(_digits(digits), ["onnx"], tmp_path, (64, 64), dtype="bfloat16", opset=22)
    assert report.exported[0].details["opset"] == 22 and report.nodes == (81, 38)
