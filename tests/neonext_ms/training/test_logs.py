from __future__ import annotations

import builtins
import struct

import pytest

from neonext_ms.commands import plot
from neonext_ms.training.runlog import RunLog, read_csv
from neonext_ms.training.tensorboard import EventFile, crc32c


def _log(folder, steps=(1, 2, 3)):
    folder.mkdir()
    log = RunLog(folder)
    for step in steps:
        log.step({"step": step, "epoch": 0, "loss": 2 / step, "accuracy": 0.5, "rate": 0.1, "norm": None})
    log.epoch({"step": steps[-1], "epoch": 0, "loss": 1.0, "top1": 0.7})
    return folder


def test_rows_after_a_checkpoint_are_taken_out(tmp_path):
    folder = _log(tmp_path / "run")
    with open(folder / "steps.csv", "a") as file:
        file.write("4,0,1.")
    assert [row["step"] for row in read_csv(folder / "steps.csv")] == ["1", "2", "3"]
    RunLog(folder, 2)
    assert [row["step"] for row in read_csv(folder / "steps.csv")] == ["1", "2"]
    assert read_csv(folder / "epochs.csv") == []


def test_event_files_are_tensorboards(tmp_path, monkeypatch):
    assert crc32c(b"123456789") == 0xE3069283
    monkeypatch.setattr("time.time", lambda: 1.5)
    events = EventFile(tmp_path, 7)
    events.scalars(300, {"train/loss": 0.25, "é": -1.0})
    content, found = events.path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        found.append(content[12 : 12 + size].hex())
        content = content[16 + size :]
    # As TensorBoard's own classes serialise them: version, start of a session, two scalars.
    assert found == [
        "09000000000000f83f1a0d627261696e2e4576656e743a32",
        "09000000000000f83f10073a020801",
        "09000000000000f83f10ac022a1e0a110a0a747261696e2f6c6f7373150000803e0a090a02c3a915000080bf",
    ]


def test_plot_writes_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = [str(_log(tmp_path / name)) for name in ("one", "two")]
    assert plot.main([*runs, "--output", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.png")


def test_plot_without_a_log_or_matplotlib(tmp_path, capsys, monkeypatch):
    assert plot.main([str(tmp_path), "--json"]) == 1
    assert "expected the folder of a training run" in capsys.readouterr().err
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert plot.main([str(_log(tmp_path / "run"))]) == 3
    assert 'pip install "neonext_ms[plot]"' in capsys.readouterr().err
