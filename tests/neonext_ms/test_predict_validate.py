"""The two commands, with a stand-in model that sees nothing but the mean colour."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from conftest import FULL
from neonext_ms.commands import predict, validate
from neonext_ms.common.errors import InputError
from neonext_ms.images.folder import class_indices, find_images

DATA = Path(__file__).parents[1] / "data"
COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def colour_model(path, metadata=None, order=(0, 1, 2), size=8, scale=1.0, batch="n", bias=0.0):
    """Logits are the mean channels (0 R, 1 G, 2 B) in this order, of images of `size` pixels."""
    weight = np.eye(3, dtype=np.float32)[list(order)].reshape(len(order), 3, 1, 1) * np.float32(scale)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(order)])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.full(len(order), bias, np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        helper.set_model_props(model, {"neonext_ms": json.dumps(metadata)})
    onnx.save(model, path)
    return str(path)


def picture(path, colour, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return str(path)


@pytest.fixture
def tree(tmp_path):
    """Four images of each colour, one of them larger, and one blue image among the red."""
    root = tmp_path / "val"
    for name, colour in COLOURS.items():
        for i in range(4):
            picture(root / name / f"{i}.png", colour, 8 if i else 20)
    picture(root / "red" / "wrong.png", COLOURS["blue"])
    return root


@pytest.fixture
def model(tmp_path):
    return colour_model(tmp_path / "m.onnx", {"labels": ["red", "green", "blue"]})


def ran(capsys, command, *argv):
    try:
        code = command.main([str(arg) for arg in argv])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


# The folder


def test_find_images(tmp_path):
    names = ["b/2.PNG", "b/10.jpeg", "b/deep/er/1.JpG", "a/x.webp", "c/y.ppm", "c/notes.txt", "c/.hidden.png"]
    for name in [*names, ".git/z.png", "a/.cache/q.png", "stray.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert found.files == ("a/x.webp", "b/10.jpeg", "b/2.PNG", "b/deep/er/1.JpG", "c/y.ppm")
    assert found.folders == (0, 1, 1, 1, 2)


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "a" / "sub" / "up").symlink_to(tmp_path / "a")
    assert find_images(tmp_path).files == ("a/1.png",)


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="none: no such file or folder"):
        find_images(tmp_path / "none")
    with pytest.raises(InputError, match="it is empty"):
        find_images(tmp_path)
    (tmp_path / "x.png").touch()
    with pytest.raises(InputError, match=r"x\.png: this is a file"):
        find_images(tmp_path / "x.png")
    with pytest.raises(InputError, match="images lie directly in it"):
        find_images(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"no images in 2 of 3 class folders(.|\n)*  b\n  c"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("folders", "classes", "labels", "expected"),
    [
        (["cat", "dog"], 3, ["dog", "cow", "cat"], ([2, 0], "labels")),
        (["cat", "dog"], 2, ["dog", "cat"], ([1, 0], "labels")),
        (["n01", "n02"], 2, ["dog", "cat"], ([0, 1], "sorted")),
        (["0", "1", "10"], 3, None, ([0, 1, 2], "sorted")),
        (["0", "10", "2"], 11, None, ([0, 10, 2], "numbers")),
        (["007", "3"], 10, ["a"] * 10, ([7, 3], "numbers")),
    ],
)
def test_class_indices(folders, classes, labels, expected):
    assert class_indices(folders, classes, labels) == expected


@pytest.mark.parametrize(
    ("folders", "labels", "message"),
    [
        (["cat", "dog"], None, "val: .* 2 class folders, but the model has 3 classes; the model has no labels"),
        (["cat", "dgo"], ["cat", "dog", "cow"], "1 folders are not named .* such as 'dgo'"),
        (["cat", "dog"], ["cat", "dog", "cat"], "such as 'cat'"),
        (["0", "3"], None, "'3' is not a number from 0 to 2"),
        (["0", "-1"], None, "'-1' is not a number"),
        (["1", "01"], None, "two folders have the same number"),
        (["0", "²"], None, "'²' is not a number"),
    ],
)
def test_classes_that_cannot_be_determined(folders, labels, message):
    with pytest.raises(InputError, match=message):
        class_indices(folders, 3, labels, "val")


def test_subset_meets_every_class(tree):
    found = find_images(tree)
    assert set(found.subset(3).folders) == {0, 1, 2}
    assert len(found.subset(5).files) == 5
    assert found.subset(100) == found.subset(None) == found


# neonext-validate


def test_validate(capsys, model, tree):
    code, out, err = ran(capsys, validate, "--model", model, tree, "--batch-size", 5)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "images  13 in 3 classes (by label), 8x8",
        "        10 taken as they are, 3 resized and cropped",
        "top-1   92.31 %  (12/13)",
        "top-5   100.00 %  (13/13)",
    ]


def test_validate_json(capsys, model, tree):
    code, out, _ = ran(capsys, validate, "--model", model, tree, "--json", "--crop", 0.9)
    report = json.loads(out)
    assert code == 0
    assert report["top1"] == {"correct": 12, "accuracy": 12 / 13}
    assert (report["images"], report["as_is"], report["resized"], report["skipped"]) == (13, 10, 3, [])
    assert (report["classes"], report["classes_by"], report["preprocessing"]["crop"]) == (3, "labels", 0.9)


def test_top5_is_not_top1(capsys, tmp_path):
    path = colour_model(tmp_path / "m.onnx", order=(0, 1, 2, 0, 1, 2, 0, 1))
    for index in (0, 5, 7):
        picture(tmp_path / "val" / str(index) / "x.png", COLOURS["red"])
    report = json.loads(ran(capsys, validate, "--model", path, tmp_path / "val", "--json")[1])
    # Of a red picture, red comes first (0, 3, 6), then by the normalisation blue (2, 5) and green (1, 4, 7).
    assert (report["classes_by"], report["top1"]["correct"], report["top5"]["correct"]) == ("numbers", 1, 2)


def test_predictions(capsys, model, tree, tmp_path):
    target = tmp_path / "new" / "p.csv"
    assert ran(capsys, validate, "--model", model, tree, "--predictions", target)[0] == 0
    with open(target, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "predicted", "confidence"]
    assert [row["path"] for row in rows] == list(find_images(tree).files)
    assert [row["path"] for row in rows if row["label"] != row["predicted"]] == ["red/wrong.png"]
    assert all(0.34 < float(row["confidence"]) <= 1 for row in rows)
    assert [path.name for path in target.parent.iterdir()] == ["p.csv"]


def test_predictions_are_whole_or_absent(capsys, model, tree, tmp_path):
    (tree / "red" / "3.png").write_bytes(b"broken")
    target = tmp_path / "out" / "p.csv"
    assert ran(capsys, validate, "--model", model, tree, "--predictions", target)[0] == 1
    assert not target.parent.exists()
    code, _, err = ran(capsys, validate, "--model", model, tree, "--predictions", tmp_path)
    assert code == 1 and "this is a folder" in err


def test_broken_image(capsys, model, tree):
    (tree / "green" / "1.png").write_bytes(b"")
    code, out, err = ran(capsys, validate, "--model", model, tree)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and "green/1.png" in err and err.count("\n") == 1
    code, out, err = ran(capsys, validate, "--model", model, tree, "--skip-broken", "--json")
    report = json.loads(out)
    assert (code, report["images"], report["top1"]["correct"], report["skipped"]) == (0, 12, 11, ["green/1.png"])
    assert "skipped" in err and "green/1.png" in err
    assert "1 skipped" in ran(capsys, validate, "--model", model, tree, "--skip-broken")[1]


def test_nothing_but_broken_images(capsys, model, tmp_path):
    for name in COLOURS:
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "x.png").write_bytes(b"?")
    code, _, err = ran(capsys, validate, "--model", model, tmp_path / "val", "--skip-broken")
    assert code == 1 and "none of its 3 images can be read" in err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(capsys, tmp_path, tree, bad):
    path = colour_model(tmp_path / "m.onnx", bias=bad)
    code, out, err = ran(capsys, validate, "--model", path, tree)
    assert (code, out) == (1, "") and "blue/0.png are not finite" in err
    assert ran(capsys, predict, "--model", path, tree / "red" / "0.png")[0] == 1


def test_limit(capsys, model, tree):
    report = json.loads(ran(capsys, validate, "--model", model, tree, "--limit", 6, "--json")[1])
    assert report["images"] == 6


def test_classes_in_sorted_order_are_noted(capsys, tmp_path, tree):
    path = colour_model(tmp_path / "m.onnx", {"labels": ["A", "B", "C"]}, order=(2, 1, 0))
    code, out, err = ran(capsys, validate, "--model", path, tree)
    assert code == 0 and "92.31 %" in out and "in sorted order" in err


def test_fixed_batch(capsys, tmp_path, tree):
    path = colour_model(tmp_path / "m.onnx", order=(2, 1, 0), batch=4)
    assert "92.31 %" in ran(capsys, validate, "--model", path, tree, "--batch-size", 3, "--threads", 1)[1]


def test_preprocessing_flags_go_before_metadata(capsys, tmp_path, tree):
    metadata = {"labels": ["red", "green", "blue"], "preprocessing": {"crop": 0.5, "mode": "resize", "std": [1, 1, 1]}}
    path = colour_model(tmp_path / "m.onnx", metadata)

    def used(*flags):
        code, out, err = ran(capsys, validate, "--model", path, tree, "--json", *flags)
        assert code == 0, err
        report = json.loads(out)
        return {**report["preprocessing"], "resized": report["resized"]}

    values = used()
    assert (values["crop"], values["mode"], values["std"], values["resized"]) == (0.5, "resize", [1, 1, 1], 13)
    values = used("--preprocess", "auto", "--crop", "0.75", "--interpolation", "bicubic")
    assert (values["crop"], values["mode"], values["interpolation"], values["resized"]) == (0.75, "auto", "bicubic", 3)
    config = tmp_path / "p.yaml"
    config.write_text("crop: 0.25\nmode: auto\n")
    values = used("--preprocess", config)
    assert (values["crop"], values["mode"], values["std"], values["resized"]) == (0.25, "auto", [1, 1, 1], 3)
    assert used("--preprocess", config, "--crop", 1)["crop"] == 1


def test_as_is_rejects_another_size(capsys, model, tree):
    code, _, err = ran(capsys, validate, "--model", model, tree, "--preprocess", "as-is", "--skip-broken")
    assert code == 1 and "blue/0.png: 20x20 pixels" in err


# neonext-predict


def test_predict(capsys, model, tree):
    paths = [tree / "green" / "0.png", tree / "red" / "1.png"]
    code, out, err = ran(capsys, predict, "--model", model, *paths, "--top", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [lines[0], lines[3]] == [str(path) for path in paths]
    assert [lines[1].split()[0], lines[4].split()[0]] == ["green", "red"]
    assert all(line.startswith("   ") and line.endswith(" %") for line in lines[1:3])
    assert len(lines) == 6


def test_predict_json(capsys, tmp_path, tree):
    path = colour_model(tmp_path / "m.onnx", size=8, scale=1000)
    code, out, _ = ran(capsys, predict, "--model", path, "--json", tree / "blue" / "2.png", "--top", 99)
    (image,) = json.loads(out)["images"]
    assert code == 0 and image["path"].endswith("2.png")
    assert [entry["label"] for entry in image["top"]] == ["2", "1", "0"] or image["top"][0]["class"] == 2
    assert abs(sum(entry["probability"] for entry in image["top"]) - 1) < 1e-12


@pytest.mark.parametrize("command", [predict, validate])
def test_another_runtime(capsys, model, tree, command):
    pytest.importorskip("openvino")
    place = tree / "red" / "1.png" if command is predict else tree
    for runtime in ("onnxruntime", "openvino"):
        code, out, _ = ran(capsys, command, "--model", model, "--runtime", runtime, "--json", place)
        report = json.loads(out)
        assert code == 0 and report["runtime"] == runtime
        if command is validate:
            assert report["top1"]["correct"] == 12
    code, _, err = ran(capsys, command, "--model", model, "--runtime", "pyacl", place)
    assert code == 2 and "pyacl takes no .onnx file; these do: onnxruntime" in err
    code, _, err = ran(capsys, command, "--model", "net.om", place)
    assert code == 3 and "install CANN" in err


def test_softmax_is_double():
    probabilities = predict.softmax(np.array([[1000, 999, -1000]], np.float32))
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0]], rtol=1e-14)


def test_predict_a_folder(capsys, tree):
    code, out, err = ran(capsys, predict, "--model", "missing.onnx", tree)
    assert (code, out) == (1, "") and "this is a folder" in err and "neonext-validate" in err


@pytest.mark.parametrize("command", [predict, validate])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crop", "1.5"], "above 0 and up to 1"),
        (["--crop", "nan"], "above 0 and up to 1"),
        (["--preprocess", "rezise"], "did you mean resize"),
        (["--interpolation", "cubic"], "invalid choice"),
        (["--batch-size", "0"], "at least 1"),
        (["--shifts", "1,1"], "four whole numbers"),
        (["--image-size", "a"], "a size such as 224"),
        (["--imagesize", "8"], "did you mean --image-size"),
    ],
)
def test_bad_command_lines(capsys, model, tree, command, flags, message):
    target = tree if command is validate else tree / "red" / "0.png"
    code, out, err = ran(capsys, command, "--model", model, target, *flags)
    assert (code, out) == (2, "") and message in err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model", "m.txt"], 2, "unknown kind of model"),
        (["--model", "none.onnx"], 1, "none.onnx: no such file"),
        (["--image-size", "16"], 2, "8x8, so images of 16x16 do not fit"),
        (["--ema"], 2, "--ema is for checkpoints"),
        (["--preprocess", "none.yaml"], 1, "none.yaml: no such file"),
    ],
)
def test_bad_models_and_files(capsys, model, tree, flags, code, message):
    argv = ["--model", model, tree / "red" / "0.png", *flags]
    assert ran(capsys, predict, *argv)[0] == code
    assert message in ran(capsys, predict, *argv)[2]


def test_missing_image(capsys, model):
    code, _, err = ran(capsys, predict, "--model", model, "none.png")
    assert (code, err) == (1, "error: none.png: no such file or folder; check the path\n")


def test_file_names_of_other_encodings(capsys, model, tree):
    name = tree / "red" / "caf\udce9.png"
    try:
        shutil.copy(tree / "red" / "1.png", name)
    except OSError:
        pytest.skip("this file system has Unicode names only")
    target = tree.parent / "p.csv"
    assert ran(capsys, validate, "--model", model, tree, "--predictions", target)[0] == 0
    assert "red/café.png".encode("latin-1") in target.read_bytes()
    assert json.loads(ran(capsys, predict, "--model", model, "--json", name)[1])["images"][0]["path"] == str(name)


@pytest.mark.parametrize("name", ["predict", "validate"])
def test_help_is_quick(name):
    code = (
        f"import sys; from neonext_ms.commands import {name}; {name}.build_parser().format_help();"
        "sys.exit(bool({'numpy', 'PIL', 'mindspore', 'onnxruntime', 'yaml'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.perf_counter() - start < 3


# The trained digits


def test_digits(capsys):
    checkpoint = DATA / "digits_64.pt"
    flags = ["--model", checkpoint, "--shifts", "1,1,0,0", "--image-size", "64"]
    code, out, err = ran(capsys, validate, *flags, DATA / "digits", "--json")
    assert code == 0, err
    report = json.loads(out)
    golden = np.load(DATA / "digits_20.npz")
    correct = int((golden["logits"].argmax(1) == golden["labels"]).sum())
    assert (report["images"], report["as_is"], report["top1"]["correct"]) == (20, 20, correct)


@pytest.mark.skipif(FULL is None, reason="NEONEXT_GOLDEN is not set")
@pytest.mark.parametrize("kind", ["checkpoint", "onnx", "mindir"])
def test_all_digits(capsys, tmp_path, kind):
    flags = ["--model", DATA / "digits_64.pt", "--shifts", "1,1,0,0", "--image-size", "64"]
    if kind != "checkpoint":
        from neonext_ms.export import pipeline
        from neonext_ms.export.request import Request
        from neonext_ms.export.source import Source

        source = Source.from_checkpoint(str(DATA / "digits_64.pt"), (1, 1, 0, 0))
        flags = ["--model", pipeline.export(source, Request([kind], [(64, 64)]), tmp_path).files[kind]]
    code, out, err = ran(capsys, validate, *flags, FULL / "digits" / "val", "--json")
    assert code == 0, err
    assert json.loads(out)["top1"]["correct"] == 355
