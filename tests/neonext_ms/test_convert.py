"""neonext-convert: every direction, what it prints, and what it rejects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.checkpoint import pytorch
from neonext_ms.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from neonext_ms.commands.convert import main
from neonext_ms.export.command import main as export_main


def error_of(capsys, code: int, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("error") == 1
    return captured.err


def test_there_and_back_keeps_every_bit(tmp_path, digits, capsys):
    names = ["a.ckpt", "b.safetensors", "c.pt"]
    previous = digits
    for name in names:
        shifts = ["--shifts", "1,1,0,0"] if previous == digits else []
        assert main([previous, str(tmp_path / name), *shifts]) == 0
        previous = str(tmp_path / name)
    original = {name.removeprefix("module."): array for name, array in pytorch.read(digits)[0].items()}
    back = pytorch.read(tmp_path / "c.pt")[0]
    assert list(back) == list(original)
    assert all(back[name].tobytes() == array.tobytes() for name, array in original.items())
    assert load_checkpoint(tmp_path / "c.pt").architecture.shifts == (1, 1, 0, 0)
    captured = capsys.readouterr()
    assert "dims 24,48,96,192; blocks 1,1,2,1; kernels 4+7; shifts 1,1,0,0" in captured.out
    assert "(PyTorch)" in captured.out and "(MindSpore)" in captured.out and captured.err == ""


def test_json_and_labels(tmp_path, digits, capsys):
    (tmp_path / "labels.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    out = tmp_path / "new" / "x.safetensors"
    assert main([digits, str(out), "--json", "--labels", str(tmp_path / "labels.txt")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["input_format"] == "PyTorch" and report["output_format"] == "safetensors"
    assert report["tensors"] == 95 and report["dtypes"] == ["float32"] and report["model"] is None
    assert report["architecture"]["shifts"] is None and report["recorded"] == ["labels"]
    assert report["output_bytes"] == out.stat().st_size
    assert "the shifts are unknown" in report["notes"][0]
    assert load_checkpoint(out).metadata == {"labels": [f"digit {i}" for i in range(10)]}


def test_labels_do_not_move_to_other_classes(tmp_path, digits, capsys):
    (tmp_path / "labels.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    labels = ["--labels", tmp_path / "labels.txt"]
    labelled = tmp_path / "a.safetensors"
    assert main([str(word) for word in (digits, labelled, "--shifts", "1,1,0,0", *labels)]) == 0
    capsys.readouterr()
    (tmp_path / "labels.txt").write_text("".join(f"digit {i}\n" for i in (0, 1, 2, 3, 4, 5, 6, 7, 9, 8)))
    message = "('digit 9' is class 9, got 8). Leave the labels out"
    assert message in error_of(capsys, 1, labelled, tmp_path / "b.pt", *labels)
    export = ["--checkpoint", labelled, "--image-size", "64", "--target", "onnx", "--output", tmp_path / "out"]
    assert export_main([str(word) for word in (*export, *labels)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b.pt").exists() and not (tmp_path / "out").exists()
    (tmp_path / "labels.txt").write_text("".join(f"Ziffer {i}\n" for i in range(10)))
    assert main([str(word) for word in (labelled, tmp_path / "b.pt", *labels)]) == 0
    assert load_checkpoint(tmp_path / "b.pt").metadata["labels"][9] == "Ziffer 9"


def test_average(tmp_path, digits, capsys):
    """The mean of weights and statistics; metadata that differ are errors."""
    first = load_checkpoint(digits, shifts=(1, 1, 0, 0))
    labels = [f"digit {i}" for i in range(10)]
    parts = []
    for number, factor in enumerate((1, 2, 6)):
        arrays = {name: array * np.float32(factor) for name, array in first.arrays.items()}
        parts.append(str(tmp_path / f"{number}.safetensors"))
        save_checkpoint(parts[-1], arrays, {"shifts": [1, 1, 0, 0], "labels": labels if number else None})
    out = tmp_path / "mean.safetensors"
    assert main([parts[0], str(out), "--average", *parts[1:]]) == 0
    assert capsys.readouterr().out.count("read ") == 3
    mean = load_checkpoint(out)
    assert mean.metadata == {"shifts": [1, 1, 0, 0], "labels": labels} and mean.dtypes == ["float32"]
    assert all(np.array_equal(mean.arrays[name], 3 * array) for name, array in first.arrays.items())
    out.unlink()

    def rejected(metadata, *more) -> str:
        other = tmp_path / "other.safetensors"
        save_checkpoint(other, first.arrays, metadata)
        return error_of(capsys, 1, parts[1], out, "--average", parts[2], other, *more)

    assert "is another network" in rejected({"shifts": [1, 1, 1, 0]})
    assert "shifts unknown" in rejected({})
    assert "labels differs" in rejected({"shifts": [1, 1, 0, 0], "labels": labels[::-1]})
    assert not out.exists()


def test_float16(tmp_path, digits, capsys):
    half = tmp_path / "half.safetensors"
    assert main([digits, str(half), "--dtype", "float16", "--shifts", "1,1,0,0"]) == 0
    assert "float16, " in capsys.readouterr().out and half.stat().st_size < 0.6 * Path(digits).stat().st_size
    original, rounded = load_checkpoint(digits).float32(), load_checkpoint(half)
    assert rounded.dtypes == ["float16"] and rounded.architecture.shifts == (1, 1, 0, 0)
    for name, array in rounded.float32().items():
        np.testing.assert_array_equal(array, original[name].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [("head.weight", 1e5, "beyond the range of float16"), ("stem.1.running_var", 1e-9, "that is 0 in float16")],
)
def test_values_that_float16_cannot_hold(tmp_path, digits, capsys, name, value, problem):
    checkpoint = load_checkpoint(digits)
    name = next(key for key in checkpoint.arrays if key.endswith(name.split(".", 1)[1]))
    arrays = {**checkpoint.arrays, name: np.full_like(checkpoint.arrays[name], value)}
    save_checkpoint(tmp_path / "x.safetensors", arrays)
    error = error_of(capsys, 1, tmp_path / "x.safetensors", tmp_path / "half.pt", "--dtype", "float16")
    assert name in error and problem in error and not (tmp_path / "half.pt").exists()


def test_rejected_command_lines(tmp_path, digits, capsys):
    copy = tmp_path / "x.pt"
    copy.write_bytes(Path(digits).read_bytes())
    (tmp_path / "link.pt").symlink_to(copy)
    (tmp_path / "labels.txt").write_text("one\n")
    out = tmp_path / "out.pt"
    assert "the output is the same file as an input" in error_of(capsys, 2, copy, copy)
    assert "the output is the same file as an input" in error_of(capsys, 2, copy, tmp_path / "link.pt")
    assert "unknown suffix (got '.onnx'" in error_of(capsys, 2, copy, tmp_path / "x.onnx")
    assert "no such file" in error_of(capsys, 1, tmp_path / "y.pt", out)
    assert "shifts 1,1,0,9" in error_of(capsys, 1, copy, out, "--shifts", "1,1,0,9")
    assert "bare state dict" in error_of(capsys, 1, copy, out, "--ema")
    assert "1 labels for 10 classes" in error_of(capsys, 1, copy, out, "--labels", tmp_path / "labels.txt")
    with pytest.raises(SystemExit) as caught:
        main([str(copy), str(out), "--shifts", "1,2"])
    assert caught.value.code == 2
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["labels.txt", "link.pt", "x.pt"]
    assert main([str(copy), str(tmp_path / "recorded.pt"), "--shifts", "1,1,0,0"]) == 0
    capsys.readouterr()
    assert "records the shifts 1,1,0,0" in error_of(capsys, 1, tmp_path / "recorded.pt", out, "--shifts", "1,1,1,0")


def test_help_is_quick():
    code = (
        "import sys\nfrom neonext_ms.commands.convert import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'mindspore')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "neonext-convert training.pth weights.safetensors --ema" in done.stdout
