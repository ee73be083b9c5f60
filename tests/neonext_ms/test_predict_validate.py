"""The two commands, with a stand-in model that sees nothing but the mean colour."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from conftest import FULL
from neonext_ms.commands import info, predict, validate
from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import thread_count
from neonext_ms.images import images
from neonext_ms.images.folder import find_images, is_named, match_classes, read_labels
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.runtime.classifier import softmax

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
    # A link to the folder of all classes does not make their images images of this one.
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.png").touch()
    (tmp_path / "a" / "all").symlink_to("..")
    (tmp_path / "a" / "above").symlink_to(tmp_path.parent)
    assert find_images(tmp_path).files == ("a/1.png", "b/2.png")


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
        (["cat", "dog"], 3, ["dog", "cow", "cat"], ([2, 0], "by-name")),
        (["cat", "dog"], 2, ["dog", "cat"], ([1, 0], "by-name")),
        (["cat ", "dog"], 2, ["dog\t", " cat"], ([1, 0], "by-name")),
        (["caf\u00e9", "dog"], 2, ["dog", "cafe\u0301"], ([1, 0], "by-name")),
        (["0", "1"], 2, ["1", "0"], ([1, 0], "by-name")),
        (["n01", "n02"], 2, ["dog", "cat"], ([0, 1], "sorted")),
        (["0", "1", "10"], 3, None, ([0, 1, 2], "sorted")),
        (["0", "1", "10", "11", *"23456789"], 12, None, ([0, 1, 10, 11, *range(2, 10)], "by-number")),
        (["0", "1", "10", *"23456789"], 12, None, ([0, 1, 10, *range(2, 10)], "by-number")),
        (["0", "10", "2"], 11, None, ([0, 10, 2], "by-number")),
        (["007", "3"], 10, ["a"] * 10, ([7, 3], "by-number")),
        (["Cat", "guide_dog", "x"], 3, ["x", "guide dog", "cat"], ([2, 1, 0], "by-name")),
        (["0001", "0002"], 3, ["1", "2", "3"], ([0, 1], "by-name")),
        (["Cat", "cat", "cat "], 3, ["cat ", "cat", "Cat"], ([2, 1, 0], "by-name")),
        (["01", "02", "10"], 3, ["1", "10", "2"], ([0, 2, 1], "by-name")),
        (["class_1", "class_2"], 2, ["class 02", "class 01"], ([1, 0], "by-name")),
        (["class_1", "class_10", "class_2"], 3, None, ([0, 1, 2], "sorted")),
    ],
)
def test_match_classes(folders, classes, labels, expected):
    assert match_classes(folders, classes, labels) == expected


@pytest.mark.parametrize(
    ("folders", "labels", "rule", "message"),
    [
        (["cat", "dog"], None, None, "val: .* 2 class folders for 3 classes; no labels are recorded"),
        (
            ["cat", "dgo"],
            ["cat", "dog", "cow"],
            None,
            "1 of 2 class folders are not named .*--classes by-number(.|\n)*  dgo$",
        ),
        (["cat", "dog", "\x1b[2J"], ["cat", "dog", "cow"], None, r"\n  \\x1b\[2J$"),
        (["cat", "dog"], ["cat", "dog", "cat"], None, "label occurs twice(.|\n)*  cat$"),
        (["Cat", "cat", "dog"], ["cat", "Cat", "x"], None, "1 of 3 class folders(.|\n)*  dog$"),
        (["cat", "cat "], ["cat", "dog", "cow"], None, "two class folders have the same name"),
        (["0", "3"], None, None, "'3' is not a number from 0 to 2"),
        (["0", "-1"], None, None, "'-1' is not a number"),
        (["1", "01"], None, None, "two folders have the same number"),
        (["0", "\u00b2"], None, None, "is not a number"),
        (["1", "10", "2"], None, None, "sort them as text with --classes sorted"),
        (["class_1", "class_10", "class_2"], ["a", "b", "c"], None, "their numbers sort differently as text"),
        (["0", "1", "2"], ["01", "02", "03"], None, "1 of 3 class folders are not named (.|\n)*  0$"),
        (["cat", "dog", "cow"], None, "by-name", "no labels are recorded"),
        (["cat", "dog", "cow"], ["a", "b", "c"], "by-name", "3 of 3 class folders"),
        (["cat", "dog", "cow"], ["cat", "dog", "cow"], "by-number", "'cat' is not a number"),
        (["cat", "dog"], ["cat", "dog", "cow"], "sorted", "2 class folders for 3 classes"),
    ],
)
def test_classes_that_cannot_be_determined(folders, labels, rule, message):
    with pytest.raises(InputError, match=message):
        match_classes(folders, 3, labels, rule, "val")


def test_commands_without_the_option_do_not_name_it():
    for folders, labels in ((["cat", "dgo"], ["cat", "dog", "cow"]), (["1", "10", "2"], None)):
        with pytest.raises(InputError) as error:
            match_classes(folders, 3, labels, None, "val", None)
        assert "--classes" not in str(error.value) and "another rule" not in str(error.value)


def test_folders_that_are_named():
    assert is_named(["Cat", "cat"], ["cat", "Cat"]) and is_named(["01", "x"], ["1", "2"])
    assert not is_named(["cat", "dog"], ["cat", "cat"]) and not is_named(["cat"], [])


def test_a_rule_can_be_chosen():
    assert match_classes(["0", "1"], 2, ["1", "0"], "by-number") == ([0, 1], "by-number")
    assert match_classes(["b", "c"], 2, ["b", "a"], "sorted") == ([0, 1], "sorted")
    assert match_classes(["1", "10", "2"], 3, None, "sorted") == ([0, 1, 2], "sorted")


# Label files


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog\n", b"\xef\xbb\xbfcat\r\ndog\r\n", b"cat \ndog\t\n\n \n", b'["cat", "dog"]',
        b'{"1": "dog", "0": "cat"}',
        b'\xef\xbb\xbf{"cat": 0, "dog": 1}', b"cat\rdog", b"cat\xe2\x80\x8b\n\xef\xbb\xbfdog",
    ],
)  # fmt: skip
def test_label_files(tmp_path, content):
    (tmp_path / "l.txt").write_bytes(content)
    assert read_labels(tmp_path / "l.txt") == ["cat", "dog"]


def test_labels_that_are_numbers_of_something(tmp_path):
    (tmp_path / "l.txt").write_text("5 euro\n10 euro\n20 euro\n50 cent\n")
    assert read_labels(tmp_path / "l.txt") == ["5 euro", "10 euro", "20 euro", "50 cent"]


@pytest.mark.parametrize(
    "content", ["names:\n  1: dog\n  0: cat\nnc: 2", "nc: 2\nnames: [cat, dog]", "- cat\n- dog", "dog: 1\ncat: 0"]
)
def test_labels_of_yaml(tmp_path, content):
    (tmp_path / "data.yaml").write_text(content)
    assert read_labels(tmp_path / "data.yaml") == ["cat", "dog"]
    (tmp_path / "data.yaml").write_text("names:\n  0: cat\n  1: no")
    with pytest.raises(InputError, match=r"no labels .*False"):
        read_labels(tmp_path / "data.yaml")


def test_labels_of_a_configuration(tmp_path):
    (tmp_path / "c.json").write_text('{"id2label": {"1": "dog", "0": "cat"}, "label2id": {"cat": 0, "dog": 1}}')
    assert read_labels(tmp_path / "c.json") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no labels"),
        (b"\ncat\ndog", "label 1 is empty"),
        (b"cat\n\ndog", "label 2 is empty"),
        (b"1: cat\n2: dog", r"every line has its number besides the label \(got '1: cat'\)"),
        (b"0\tdog\n1\tcat", "its number"),
        (b"cat,0\ndog,1", "a number behind it"),
        (b"2 cat\n5 dog", "its number"),
        (b"name,index\ncat,0\ndog,1", r"a number behind it besides the label \(got 'cat,0'\)"),
        (b"names:\n  0: cat\n  1: dog", "its number"),
        (b"n01440764 cat\nn01443537 dog", "its synset"),
        (b"# animals\ncat\ndog", "begins with a comment"),
        (b'"cat",\n"dog",', "quotation marks"),
        (b"- cat\n- dog", "a dash before it"),
        (b"c\0a\0t\0\n\0d\0o\0g\0", r"label 1 has the control character '\\x00'"),
        (b"cat\n\x1b[31mdog", "control character"),
        (b"\xff\xfec\x00", "not a UTF-8 text file"),
        (b'["cat", 1]', "no labels"),
        (b"[]", "no labels"),
        (b'["cat", ""]', "label 2 is empty"),
        (b'{"0": "cat", "2": "dog"}', "wrong numbers"),
        (b'{"0": "cat", "00": "dog"}', "wrong numbers"),
        (b'{"0": "cat", "0": "dog"}', "the key '0' is given twice"),
        (b'{"0": ["n01", "cat"]}', "no labels"),
        (b"{0: 'cat'}", "not a list or map of labels"),
    ],
)
def test_label_files_that_are_rejected(tmp_path, content, message):
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "l.txt")


def test_labels_of_a_folder(tmp_path):
    for i in range(12):
        picture(tmp_path / str(i) / "x.png", (0, 0, 0))
    told: list[str] = []
    assert read_labels(tmp_path, told.append) == [str(i) for i in range(12)]
    (tmp_path / "0").rename(tmp_path / "12")
    assert read_labels(tmp_path, told.append) == sorted(map(str, range(1, 13)))
    assert [text.rpartition(" taken ")[2] for text in told] == ["by number", "in sorted order"]


def test_subset_meets_every_class(tree):
    found = find_images(tree)
    assert set(found.subset(3).folders) == {0, 1, 2}
    assert len(found.subset(5).files) == 5
    assert found.subset(100) == found.subset(None) == found


# neonext-validate


def test_validate(capsys, model, tree):
    code, out, err = ran(capsys, validate, "--model", model, tree, "--batch-size", 5, "--threads", 1)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "images  13 in 3 classes (by name), 8x8",
        "        10 used unchanged, 3 resized and cropped",
        "runtime onnxruntime, 1 thread",
        "top-1   92.31 %  (12/13)",
        "top-5   100.00 %  (13/13)",
    ]


def test_validate_json(capsys, model, tree):
    code, out, _ = ran(capsys, validate, "--model", model, tree, "--json", "--crop", 0.9)
    report = json.loads(out)
    assert (code, report["threads"]) == (0, thread_count())
    assert report["top1"] == {"correct": 12, "accuracy": 12 / 13}
    assert (report["images"], report["as_is"], report["resized"], report["skipped"]) == (13, 10, 3, [])
    assert (report["classes"], report["classes_by"], report["preprocessing"]["crop"]) == (3, "by-name", 0.9)
    assert report["activation"] is None


def test_top5_is_not_top1(capsys, tmp_path):
    path = colour_model(tmp_path / "m.onnx", order=(0, 1, 2, 0, 1, 2, 0, 1))
    for index in (0, 5, 7):
        picture(tmp_path / "val" / str(index) / "x.png", COLOURS["red"])
    report = json.loads(ran(capsys, validate, "--model", path, tmp_path / "val", "--json")[1])
    # Of a red picture, red comes first (0, 3, 6), then by the normalisation blue (2, 5) and green (1, 4, 7).
    assert (report["classes_by"], report["top1"]["correct"], report["top5"]["correct"]) == ("by-number", 1, 2)


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


def test_a_broken_image_among_others(capsys, model, tree):
    red, blue, broken = (tree / name for name in ("red/1.png", "blue/1.png", "green/1.png"))
    broken.write_bytes(b"x")
    paths = [red, broken, blue, tree / "none.png", tree]
    code, out, err = ran(capsys, predict, "--model", model, *paths, "--top", 1)
    assert code == 1 and [line.split()[0] for line in out.splitlines()[1::2]] == ["red", "blue"]
    assert "3 of 5 images cannot be read" in err
    for path, reason in ((broken, "not an image"), (tree / "none.png", "no such file"), (tree, "this is a folder")):
        assert f"skipped: {path}: {reason}" in err
    code, out, err = ran(capsys, predict, "--model", model, *paths, "--skip-broken", "--json")
    report = json.loads(out)
    assert code == 0 and [image["top"][0]["label"] for image in report["images"]] == ["red", "blue"]
    assert [image["path"] for image in report["broken"]] == [str(broken), str(tree / "none.png"), str(tree)]
    code, out, err = ran(capsys, predict, "--model", model, broken, "--skip-broken")
    assert (code, out) == (1, "") and str(broken) in err
    assert ran(capsys, predict, "--model", model, broken)[2].startswith(f"error: {broken}: not an image")


def softmax_model(path, decomposed=False, **options):
    model = onnx.load(colour_model(path, scale=0.5, **options))
    model.graph.node[-1].output[0] = "z"
    if decomposed:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
        model.graph.node.extend(
            [
                helper.make_node("Exp", ["z"], ["e"]),
                helper.make_node("ReduceSum", ["e", "axis"], ["s"]),
                helper.make_node("Div", ["e", "s"], ["logits"]),
            ]
        )
    else:
        model.graph.node.extend(
            [helper.make_node("Softmax", ["z"], ["s"]), helper.make_node("Identity", ["s"], ["logits"])]
        )
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_model_that_ends_in_a_softmax(capsys, tmp_path, tree, decomposed):
    logits = colour_model(tmp_path / "l.onnx", scale=0.5)
    probabilities = softmax_model(tmp_path / "p.onnx", decomposed)
    images = [tree / "red" / "1.png", tree / "blue" / "1.png"]
    expected, values = (
        ran(capsys, predict, "--model", path, *images, "--json", "--batch-size", 1) for path in (logits, probabilities)
    )
    text = f"note: {probabilities} ends in a softmax; its outputs are used as probabilities\n"
    assert expected[2].count("\n") == 1 and "no metadata in it" in expected[2] and values[2].endswith(text)
    for one, other in zip(*(json.loads(report[1])["images"] for report in (expected, values)), strict=True):
        assert [entry["class"] for entry in one["top"]] == [entry["class"] for entry in other["top"]]
        for a, b in zip(one["top"], other["top"], strict=True):
            assert b["probability"] == pytest.approx(a["probability"], abs=1e-6)
    target = tmp_path / "p.csv"
    code, _, err = ran(capsys, validate, "--model", probabilities, tree, "--predictions", target)
    best = json.loads(expected[1])["images"][0]["top"][0]["probability"]
    assert code == 0 and "ends in a softmax" in err and f"red/1.png,red,blue,{best:.6f}" in target.read_text()


def test_logits_that_sum_to_one_by_chance(tmp_path):
    from neonext_ms.runtime.open import open_runtime

    with open_runtime(colour_model(tmp_path / "m.onnx")) as model:
        image = np.zeros((1, 3, 8, 8), np.float32)
        image[:, 0] = 1
        outputs, probabilities = model.classify(image)
    assert outputs.tolist() == [[1, 0, 0]] and model.probabilities is False
    np.testing.assert_array_equal(probabilities, softmax(outputs))


def test_labels_of_a_file_are_escaped(capsys, tmp_path, tree):
    labels = ["a\x1b[2J", "b\nfake", "\ud800"]
    model = colour_model(tmp_path / "m.onnx", {"labels": labels})
    outputs = [
        ran(capsys, predict, "--model", model, tree / "red" / "1.png"),
        ran(capsys, info, model),
        ran(capsys, validate, "--model", model, tree, "--predictions", tmp_path / "p.csv"),
    ]
    for code, out, err in outputs:
        assert code == 0 and "\x1b" not in out + err and "\nfake" not in out + err
    assert "a\\x1b[2J" in outputs[0][1] and "b\\nfake" in outputs[1][1]
    image = json.loads(ran(capsys, predict, "--model", model, tree / "red" / "1.png", "--json")[1])["images"][0]
    assert {entry["label"] for entry in image["top"]} == set(labels)


def test_interrupted_reading_does_not_wait(monkeypatch, tree):
    release = threading.Event()
    monkeypatch.setattr(images, "read_image", lambda path: release.wait(20))
    batches = images.image_batches([tree / "red" / "0.png"], Preprocessing(), (8, 8), 1)
    main = threading.main_thread().ident
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert time.perf_counter() - start < 5
    release.set()


def test_a_pipe_is_no_image(capsys, model, tree):
    (tree / "red" / "0.png").unlink()
    os.mkfifo(tree / "red" / "0.png")
    code, _, err = ran(capsys, predict, "--model", model, tree / "red" / "0.png")
    assert code == 1 and "not a regular file" in err
    code, out, err = ran(capsys, validate, "--model", model, tree, "--skip-broken", "--json")
    assert code == 0 and json.loads(out)["skipped"] == ["red/0.png"]


def test_numbered_folders_without_labels(capsys, tmp_path):
    path = colour_model(tmp_path / "m.onnx", order=[1] * 10 + [0, 2])
    for i in range(12):
        picture(tmp_path / "val" / str(i) / "x.png", COLOURS["red" if i == 10 else "blue" if i == 11 else "green"])
    for folders in (12, 11):
        report = json.loads(ran(capsys, validate, "--model", path, tmp_path / "val", "--json")[1])
        assert (report["classes_by"], report["class_folders"]) == ("by-number", folders)
        # Green is a tie of ten classes, which goes to class 0. Classes 10 and 11 are certain.
        assert report["top1"]["correct"] == 3 - (folders == 11)
        shutil.rmtree(tmp_path / "val" / "0", ignore_errors=True)
    code, _, err = ran(capsys, validate, "--model", path, tmp_path / "val", "--classes", "sorted")
    assert code == 1 and "11 class folders for 12 classes" in err


def test_one_folder_that_no_label_names(capsys, model, tree):
    (tree / "green").rename(tree / "grun")
    code, out, err = ran(capsys, validate, "--model", model, tree)
    assert (code, out) == (1, "") and err.endswith("  grun\n") and "--classes by-number" in err
    assert "(in sorted order)" in ran(capsys, validate, "--model", model, tree, "--classes", "sorted")[1]


@pytest.mark.parametrize(
    "values", ["mean: [123.675, 116.28, 103.53]", "std: [58.395, 57.12, 57.375]", "mean: [1.5, 0, 0]"]
)
def test_values_of_the_scale_to_255(capsys, model, tree, tmp_path, values):
    (tmp_path / "p.yaml").write_text(values)
    code, _, err = ran(capsys, predict, "--model", model, tree / "red" / "1.png", "--preprocess", tmp_path / "p.yaml")
    assert code == 1 and "Divide mean and std by 255" in err
    key, _, numbers = values.partition(": ")
    recorded = colour_model(tmp_path / "r.onnx", {"preprocessing": {key: json.loads(numbers)}})
    code, _, err = ran(capsys, predict, "--model", recorded, tree / "red" / "1.png")
    assert code == 1 and "Divide mean and std by 255" in err


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
    probabilities = softmax(np.array([[1000, 999, -1000]], np.float32))
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0]], rtol=1e-14)


def test_predict_a_folder(capsys, tree):
    code, out, err = ran(capsys, predict, "--model", "missing.onnx", tree)
    assert (code, out) == (1, "") and "this is a folder" in err and "neonext-validate" in err


@pytest.mark.parametrize("command", [predict, validate])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crop", "1.5"], "a number from 0.01 to 1"),
        (["--crop", "nan"], "a number from 0.01 to 1"),
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
