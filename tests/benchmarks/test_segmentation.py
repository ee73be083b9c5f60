"""The segmentation example: its decoder of NeoCells, exported as a classifier is."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from conftest import relative_max
from neonext_ms.benchmarks.segmentation import train as training
from neonext_ms.benchmarks.segmentation.command import evaluate, main
from neonext_ms.benchmarks.segmentation.shapes import CLASSES, draw_batch, mean_iou
from neonext_ms.benchmarks.segmentation.train import make_model, segmenter_source
from neonext_ms.common.errors import InputError
from neonext_ms.export import evaluate as numpy_evaluation
from neonext_ms.export.om.options import OmOptions
from neonext_ms.export.pipeline import export
from neonext_ms.export.request import Request

SIZE = (32, 64)


@pytest.fixture(scope="module")
def source():
    rng = np.random.RandomState(0)
    model = make_model(rng)
    # Statistics and biases as after a training, so that folding has something to fold.
    for parameter in model.get_parameters():
        if parameter.name.split(".")[-1] in ("moving_mean", "moving_variance", "gamma", "beta", "0"):
            values = parameter.asnumpy() + 0.3 * np.abs(rng.standard_normal(parameter.shape))
            parameter.set_data(ms.Tensor(values.astype(np.float32)))
    return segmenter_source(model, SIZE)


def test_the_graph_is_the_network(source):
    x = np.random.RandomState(1).standard_normal((2, 3, *SIZE)).astype(np.float32)
    model = source.model()
    model.set_train(False)
    graph = source.graph(SIZE)
    logits = model(ms.Tensor(x)).asnumpy()
    assert logits.shape == (2, len(CLASSES), *SIZE)
    assert relative_max(logits, numpy_evaluation.evaluate(graph, x)["logits"]) < 1e-5
    with pytest.raises(InputError, match="multiples of 32"):
        source.graph((48, 64))


def test_it_is_exported_as_a_classifier_is(source, tmp_path):
    request = Request(["onnx", "om"], om=OmOptions("Ascend310P3", compile=False))
    report = export(source, request, tmp_path)
    assert set(report.files) == {"onnx", "onnx for om", "script for om"}
    assert all(parity.agrees() for parity in report.parity.values()) and len(report.parity) == 2
    assert report.folded.removed("batch_norm") == 9 + 4 + 4
    for target in ("onnx", "onnx for om"):
        correct, iou = evaluate(report.files[target], SIZE)
        assert 0 < iou < correct < 1


@pytest.mark.parametrize(
    ("argument", "problem"),
    [("--image-size=48", "48x48: both sides must be multiples of 32"), ("--soc=Ascend999X", "unknown device")],
)
def test_wrong_options_are_reported_before_the_training(argument, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "train", lambda *arguments: pytest.fail("trained"))
    assert main(["--output", str(tmp_path / "out"), argument]) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_shapes():
    images, classes = draw_batch(np.random.RandomState(0), 8, SIZE)
    again, _ = draw_batch(np.random.RandomState(0), 8, SIZE)
    assert np.array_equal(images, again) and images.shape == (8, 3, *SIZE) and images.dtype == np.float32
    assert set(np.unique(classes)) == set(range(len(CLASSES))) and abs(images.mean()) < 0.5
    assert mean_iou(classes, classes) == 1 and mean_iou(np.zeros_like(classes), classes) < 0.25
