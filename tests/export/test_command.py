from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from neonext_ms.common.errors import ParityError
from neonext_ms.export import command, source
from neonext_ms.export.compare import parity
from neonext_ms.export.onnx import emitter
from neonext_ms.export.source import Source


def _arguments(digits, output, *more, target="onnx"):
    return [
        "--checkpoint", digits, "--shifts", "1,1,0,0", "--image-size", "64", "--target", target,
        "--output", str(output), *more,
    ]  # fmt: skip


def _run(argv, capsys):
    try:
        code = command.main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_it_prints_files_folding_and_parity(digits, tmp_path, capsys):
    code, out, err = _run(_arguments(digits, tmp_path / "d"), capsys)
    assert (code, err) == (0, "")
    assert "9 BatchNorms, 5 layer scales, 3 downsampling NeoCells, 10 transposes" in out
    assert "81 before, 38 after" in out
    assert f"{tmp_path}/d/digits_64.onnx" in out and "top-1 4/4" in out


def test_json(digits, tmp_path, data, capsys):
    image = str(data / "digits" / "3" / "0023.png")
    code, out, _ = _run(_arguments(digits, tmp_path, "--json", "--name", "n", "--images", image), capsys)
    report = json.loads(out)
    assert code == 0 and report["files"][0]["file"] == "n.onnx" and report["files"][0]["parity"]["samples"] == 5


def test_output_may_be_the_file(digits, tmp_path, capsys):
    assert _run(_arguments(digits, tmp_path / "x" / "m.onnx"), capsys)[0] == 0
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["m.json", "m.onnx"]
    code, _, err = _run(_arguments(digits, tmp_path / "y" / "m.onnx", target="onnx,mindir"), capsys)
    assert code == 2 and "expected a folder" in err


def test_a_named_model_needs_no_checkpoint(tmp_path, capsys, monkeypatch):
    small = {"per_stage_layers": (1, 0, 1, 0), "dims": (8, 8, 8, 8)}
    config = source.model_config
    monkeypatch.setattr(source, "model_config", lambda name, **options: config(name, **small, **options))
    argv = ["--model", "neonext_t", "--target", "onnx", "--image-size", "64x32", "--output", str(tmp_path)]
    code, _, err = _run(argv, capsys)
    assert code == 0 and "random weights (seed 0)" in err
    assert json.loads((tmp_path / "neonext_t.json").read_text())["source"] is None


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--target", "onxx"], 2, "did you mean onnx"),
        (["--image-size", "66"], 1, "multiples of 4"),
        (["--image-size", "16"], 1, "would vanish"),
        (["--image-size", "6x"], 2, "expected a size"),
        (["--shifts", "1,1,0"], 2, "four whole numbers"),
        (["--shifts", "4,1,0,0"], 1, "smaller than its matrix"),
        (["--opset", "10"], 2, "at least 11 and at most 22"),
        (["--batch", "0"], 2, "sizes such as 8"),
        (["--name", "a/b"], 2, "without folders"),
        (["--model", "neonext_t"], 2, "either --checkpoint FILE or --model NAME"),
        (["--labels", "missing.txt"], 1, "missing.txt: no such file"),
        (["--images", "missing.png"], 1, "missing.png: no such file"),
        (["--preprocess", "missing.yaml"], 1, "missing.yaml: no such file"),
        (["--output", "/proc/neonext"], 1, "/proc/neonext"),
        (["--output", __file__], 1, "not a folder"),
        (["--output", __file__ + "/x"], 1, "is a file where a folder was expected"),
        (["--chekpoint", "x"], 2, "did you mean --checkpoint"),
    ],
)
def test_bad_input(digits, tmp_path, capsys, change, code, message):
    output = tmp_path / "out"
    argv = _arguments(digits, output)
    if change[0] in argv:
        argv[argv.index(change[0]) + 1] = change[1]
    else:
        argv += change
    found, out, err = _run(argv, capsys)
    assert (found, out) == (code, "")
    assert message in err and "Traceback" not in err
    assert not output.exists()


def test_a_broken_image_stops_it(digits, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    code, _, err = _run(_arguments(digits, tmp_path / "out", "--images", str(broken)), capsys)
    assert code == 1 and "broken.png" in err and not (tmp_path / "out").exists()


def test_shifts_are_required(digits, tmp_path, capsys):
    argv = _arguments(digits, tmp_path / "out")
    at = argv.index("--shifts")
    code, _, err = _run(argv[:at] + argv[at + 2 :], capsys)
    assert code == 2 and "--shifts" in err and "cannot be detected from the weights" in err


def test_a_failed_comparison_exits_with_4(digits, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise ParityError("digits_64.onnx: outputs differ from the original network")

    monkeypatch.setattr(parity, "compare", refuse)
    code, _, err = _run(_arguments(digits, tmp_path / "out"), capsys)
    assert code == 4 and "outputs differ" in err and not (tmp_path / "out").exists()


def test_a_tolerance_that_nothing_meets(digits, tmp_path, capsys):
    code, _, err = _run(_arguments(digits, tmp_path / "out", "--tolerance", "1e-12"), capsys)
    assert code == 4 and "Nothing was written" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EFBIG, errno.EACCES])
def test_a_disk_that_fails(digits, tmp_path, capsys, monkeypatch, reason):
    def fail(graph, path, *_):
        path.write_bytes(b"part of it")
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(emitter, "save", fail)
    code, _, err = _run(_arguments(digits, tmp_path / "out"), capsys)
    assert code == 1 and err.startswith(f"error: {tmp_path}/out/digits_64.onnx: ")
    assert not (tmp_path / "out").exists()


def test_weights_that_make_nan(digits, tmp_path, capsys, monkeypatch):
    read = Source.from_checkpoint

    def spoiled(*arguments):
        source = read(*arguments)
        source.arrays["head.fc.weight"] = np.full_like(source.arrays["head.fc.weight"], 3e38)
        return source

    monkeypatch.setattr(Source, "from_checkpoint", spoiled)
    code, _, err = _run(_arguments(digits, tmp_path / "out"), capsys)
    assert code == 4 and "not finite" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(digits, tmp_path, number):
    output = tmp_path / "out"
    # A slow comparison gives the signal a moment at which files are staged; a test run in the background may have
    # inherited that Ctrl-C is ignored.
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from neonext_ms.export import command, pipeline; "
        "pipeline._expected = lambda *_: time.sleep(60); sys.exit(command.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *_arguments(digits, output)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(output.glob(".neonext-*/*.onnx")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 1 and "interrupted" in err
    assert not output.exists()


def test_two_runs_write_the_same_bytes(digits, tmp_path):
    for folder in ("a", "a/longer/path"):
        run = [sys.executable, "-m", "neonext_ms.export.command", *_arguments(digits, tmp_path / folder)]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    one, two = (tmp_path / folder / "digits_64.onnx" for folder in ("a", "a/longer/path"))
    assert one.read_bytes() == two.read_bytes()


def test_two_exports_into_one_folder_do_not_mix(digits, tmp_path):
    arguments = [sys.executable, "-m", "neonext_ms.export.command", *_arguments(digits, tmp_path)]
    processes = [subprocess.Popen([*arguments, "--batch", batch], stdout=subprocess.PIPE) for batch in "1234"]
    assert [process.wait() for process in processes] == [0] * 4
    batch = json.loads((tmp_path / "digits_64.json").read_text())["batch"]
    model = onnx.load(tmp_path / "digits_64.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits_64.json", "digits_64.onnx"]
    for process in processes:
        process.stdout.close()


@pytest.mark.parametrize("name", ["export", "compare", "convert", "predict", "validate", "info", "ops"])
def test_help_is_quick_because_it_imports_nothing_heavy(name):
    rooms = {"export": "neonext_ms.export.command", "compare": "neonext_ms.export.compare.command"}
    module = rooms.get(name, f"neonext_ms.commands.{name}")
    code = (
        f"import sys, {module} as m\n"
        "try:\n    m.main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print(sorted({'numpy', 'mindspore', 'onnx', 'onnxruntime', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and f"neonext-{name}" in done.stdout
