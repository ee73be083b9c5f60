from __future__ import annotations

import json
import os

import onnx
import pytest

from neonext_ms.benchmarks import command as bench
from neonext_ms.benchmarks import networks
from neonext_ms.benchmarks.networks import command
from neonext_ms.export.om import parser_support
from neonext_ms.export.om.parser_support import Finding


def write(capsys, *argv):
    try:
        code = command.main([str(part) for part in argv])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_files_for_a_board(capsys, tmp_path):
    folder = tmp_path / "peers"
    arguments = ["resnet18", "--soc", "Ascend310P3", "--batch", "1,8", "--image-size", "64", "--output", folder]
    code, out, err = write(capsys, *arguments, "--json")
    assert code == 0, err
    rows = json.loads(out)
    stems = [f"resnet18_folded_64x64_b{n}" for n in (1, 8)]
    assert sorted(os.listdir(folder)) == ["build_om.sh", *(f"{stem}.onnx" for stem in stems)]
    assert [row["batch"] for row in rows[:2]] == [1, 8] and rows[0]["target"] == "cann"
    model = onnx.load(folder / f"{stems[1]}.onnx")
    assert model.opset_import[0].version == 13
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [8, 3, 64, 64]
    script = (folder / "build_om.sh").read_text()
    assert os.access(folder / "build_om.sh", os.X_OK)
    assert all(f"--input_shape=input:{n},3,64,64" in script for n in (1, 8)) and "--soc_version=Ascend310P3" in script


def test_what_atc_rejects_is_said(capsys, monkeypatch, tmp_path):
    findings = [
        Finding("act", "Mish", 13, "unknown", "leave it out"),
        Finding("t", "Transpose", 13, "slow", "x", False),
    ]
    monkeypatch.setattr(parser_support, "check", lambda model: findings)
    arguments = ("mobilenet_v3_large", "--target", "cann", "--image-size", "32", "--output", tmp_path)
    code, out, err = write(capsys, *arguments)
    assert code == 0 and "ATC rejects it: node 'act', operator Mish, opset 13: unknown; leave it out\n" in err
    assert "mobilenet_v3_large_plain_32x32_b1.onnx" in out
    code, _, err = write(capsys, "squeezenet1_1", "--batch", "dynamic", "--image-size", "32", "--output", tmp_path)
    assert code == 0 and not err
    assert (tmp_path / "squeezenet1_1_plain_32x32_dynamic.onnx").exists()


def test_list(capsys):
    code, out, _ = write(capsys, "--list")
    assert code == 0 and all(name in out for name in networks.names())
    rows = json.loads(write(capsys, "--list", "--json")[1])
    assert {row["name"]: row for row in rows}["inception_v3"]["image_size"] == [299, 299]
    assert bench.main(["write", "--list"]) == 0


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["resnet18", "resnet19"], 2, "network 'resnet19': unknown (did you mean"),
        (["resnet18", "--soc", "Ascend310P9"], 2, "unknown device"),
        (["densenet121", "--form", "folded"], 2, "has no folded form"),
        (["resnet18", "--soc", "Ascend310P3", "--batch", "dynamic"], 2, "build_om.sh needs batch sizes"),
        (["resnet18", "--soc", "Ascend310P3", "--target", "onnx"], 2, "--soc requires --target cann"),
        (["resnet18", "--soc", "Ascend310P3", "--precision", "mixed_bfloat16"], 2, "does not compute in bfloat16"),
        ([], 2, "expected names of networks, or --list"),
        (["resnet18", "--batch", "0"], 2, "sizes such as"),
        (["resnet18", "--image-size", "0"], 2, "size"),
    ],
)
def test_rejections_leave_nothing(capsys, tmp_path, argv, code, text):
    size = [] if "--image-size" in argv else ["--image-size", "32"]
    found, out, err = write(capsys, *argv, *size, "--output", tmp_path / "new")
    assert (found, out) == (code, "") and text in err, err
    assert not list(tmp_path.iterdir())
