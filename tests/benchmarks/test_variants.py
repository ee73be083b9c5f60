"""The bfloat16 and the 8-bit variant: what is quantised, how far the trained digits move, bad input."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from neonext_ms.benchmarks import variants
from neonext_ms.export import evaluate
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import LOGITS, original_graph
from neonext_ms.export.lower import neocell_to_matmul
from neonext_ms.export.onnx.int8 import channels_last
from neonext_ms.export.source import Source


@pytest.fixture(scope="module")
def source():
    from conftest import DATA

    return Source.from_checkpoint(str(DATA / "digits_64.pt"), (1, 1, 0, 0))


def test_linear_form_is_the_same_network(source):
    folded = neocell_to_matmul(fold(original_graph(source.architecture, source.arrays, (64, 64)))[0])
    linear = channels_last(folded)
    assert linear.count("linear") == folded.count("linear") + 10 and linear.count("conv") == folded.count("conv") - 10
    x = np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    one, other = (evaluate.evaluate(graph, x)[LOGITS] for graph in (folded, linear))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_int8_quantises_the_mlps_alone(source, tmp_path):
    model = onnx.load(variants.write(source, (64, 64), tmp_path / "q.onnx", "int8"))
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MatMulInteger"] == 10
    assert counts["Conv"] == 4
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            assert weights[node.input[1]].data_type == onnx.TensorProto.INT8
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]


def test_deviation():
    reference = np.array([[3.0, 0.0], [0.0, 4.0]])
    found = variants.deviation(reference, np.array([[3.0, 0.0], [5.0, 4.0]]), np.array([0, 0]))
    assert [found[key] for key in ("images", "top1_changes", "correct", "correct_float32")] == [2, 1, 2, 1]
    assert found["relative_l2"] == pytest.approx(1.0)


def test_folders_have_the_classes_that_neonext_validate_gives_them(data, tmp_path, capsys):
    # As text, "10" comes before "2"; recorded labels come in any order.
    names = [str(number) for number in range(11)]
    for name in names:
        (tmp_path / name).mkdir()
        shutil.copy(next((data / "digits" / "3").iterdir()), tmp_path / name)

    def labels_of(recorded):
        metadata = {"labels": recorded}
        return variants.labelled_images(
            str(tmp_path), SimpleNamespace(metadata=metadata, architecture=SimpleNamespace(num_classes=11)), (64, 64)
        )[1].tolist()

    assert labels_of(None) == [0, 1, 10, *range(2, 10)]
    assert "taken by number" in capsys.readouterr().err
    assert labels_of(names[::-1]) == [10, 9, 0, *range(8, 0, -1)]
    assert "taken by name" in capsys.readouterr().err


def test_static_8_bit(digits, capsys):
    arguments = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--no-speed", "--batch", "40"]
    arguments += ["--variants", "qdq", "--images", "digits", "--calibrate", "digits"]
    assert variants.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["deviation"]["qdq"]
    assert found["correct"] >= 354 and found["top1_changes"] <= 2 and 1e-3 < found["relative_l2"] < 5e-2


def test_digits(digits, capsys, tmp_path):
    path = tmp_path / "int8.onnx"
    arguments = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--no-speed", "--batch", "40"]
    assert variants.main([*arguments, "--variants", "int8", "--images", "digits", "--write", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["deviation"]["int8"]
    assert found["images"] == 360 and found["correct_float32"] == 355
    assert found["top1_changes"] <= 4 and 1e-4 < found["relative_l2"] < 2e-2
    assert path.is_file()


def test_speed_is_measured_and_bfloat16_runs(digits, capsys):
    pytest.importorskip("openvino")
    arguments = ["--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--batch", "1", "--rounds", "1"]
    code = variants.main([*arguments, "--variants", "bf16", "--threads", "1", "--json"])
    printed = capsys.readouterr()
    if code == 3:
        pytest.skip(printed.err)
    (row,) = json.loads(printed.out)["speed"]
    assert set(row["milliseconds"]) == {"float32", "bf16"} and row["speedup"]["bf16"]["median_ratio"] > 0


@pytest.mark.parametrize(
    "arguments",
    [["--variants", "fp8"], ["--variants", ","], ["--batch", "0"], ["--batch", "x"], ["--threads", "0"],
     ["--variants", "bf16", "--write", "x.onnx"]],
)  # fmt: skip
def test_usage(arguments, capsys):
    try:
        code = variants.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
