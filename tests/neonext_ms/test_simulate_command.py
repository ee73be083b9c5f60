"""neonext-ops simulate: results, differences, counts, and what it rejects."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from neonext_ms.commands import ops
from neonext_ms.ops import NeoCellSpec, reference
from neonext_ms.ops.twin import neo_cell

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the simulator needs g++")
SPEC = '{"kernel": 4, "channels": 20, "shift": 1}'


def test_result_difference_and_counts(tmp_path, capsys):
    out = tmp_path / "run.npz"
    options = ["--map", "9x13", "--batch", "2", "--dtype", "float32", "--gradients", "--bias", "--output", str(out)]
    assert ops.main(["simulate", "--spec", SPEC, *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["not_a_device"] and report["x"] == report["y"] == [2, 20, 9, 13]
    assert [operator["operator"].split()[0] for operator in report["operators"]] == [
        "NeoCell",
        "NeoCell",
        "NeoCellGrad",
    ]
    for operator in report["operators"]:
        assert all(value["difference"] <= 1e-5 for value in operator["outputs"].values())
        assert operator["counts"]["totals"]["V"]["repeats"] > 0
        assert len(operator["counts"]["cores"]) == operator["tiling"]["cores"]
    arrays = np.load(out)
    spec = NeoCellSpec(json.loads(SPEC))
    wanted = reference.forward(arrays["x"], [arrays["weight_a.0"]], [arrays["weight_b.0"]], spec, arrays["bias"])
    np.testing.assert_allclose(arrays["y"], wanted, atol=1e-5)


def test_text_of_a_named_model_and_of_a_file(tmp_path, capsys):
    assert ops.main(["simulate", "--model", "neonext_t.released_224", "--stage", "4", "--soc", "Ascend910B3"]) == 0
    assert "not a device" in capsys.readouterr().out
    path = tmp_path / "cell.json"
    path.write_text(f"[{SPEC}]")
    assert ops.main(["simulate", "--spec", str(path), "--map", "8", "--blocks", "1"]) == 0
    assert "NeoCell: 1 core, strips of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--spec", SPEC], 2, "--spec requires --map"),
        (["--spec", '{"kernel": 7', "--map", "8"], 2, "--spec: not a NeoCell"),
        (["--spec", "[1]", "--map", "8"], 2, "or a list of them (got [1])"),
        (["--spec", "none.json", "--map", "8"], 1, "none.json: no such file"),
        (["--spec", '{"kernel": 70, "channels": 4}', "--map", "8"], 1, "larger than 32"),
        (["--model", "neonext_t"], 2, "--model and --stage must be used together"),
        (["--model", "neonext_q", "--stage", "1"], 2, "neonext_q"),
        (["--model", "neonext_t", "--stage", "1", "--soc", "Ascend310P9"], 2, "unknown device"),
        (["--model", "neonext_t", "--stage", "1", "--dtype", "bfloat16"], 2, "Ascend310P3 has no bfloat16"),
        (["--spec", SPEC, "--map", "8", "--output", "run.txt"], 2, "ends in .npz"),
    ],
)
def test_bad_input(arguments, code, text, capsys):
    assert ops.main(["simulate", *arguments]) == code
    assert text in capsys.readouterr().err


def test_a_batch_of_nothing(capsys):
    with pytest.raises(SystemExit) as caught:
        ops.main(["simulate", "--model", "neonext_t", "--stage", "1", "--batch", "0"])
    assert caught.value.code == 2
    assert "--batch: expected a whole number of at least 1 and at most 65536, got '0'" in capsys.readouterr().err


def test_a_wrong_kernel_exits_with_4(tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(neo_cell.PROJECT, tmp_path / "ascendc")
    kernel = folder / "op_kernel" / "neo_cell.cpp"
    right = "coefficients[rowsA_ * NEO_CELL_LANES], t.runB"
    assert right in kernel.read_text()
    kernel.write_text(kernel.read_text().replace(right, "coefficients, t.runB"))
    monkeypatch.setattr(neo_cell, "PROJECT", folder)
    assert ops.main(["simulate", "--spec", SPEC, "--map", "8", "--dtype", "float32"]) == 4
    assert "the kernel differs from the reference: y by" in capsys.readouterr().err


def test_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert ops.main(["simulate", "--spec", SPEC, "--map", "8"]) == 3
    assert "no-such-compiler" in capsys.readouterr().err
