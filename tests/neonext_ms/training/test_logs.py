from __future__ import annotations

import builtins
import json
import struct

import pytest

from neonext_ms.commands import plot
from neonext_ms.training.runlog import RunLog, read_csv, write_run
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


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (b"abc,1\n3,0\n", 1), (b"\0\0\0\0\n", 1), (b"\xff\xfe\n", 1), (b"2,0,1.", 1),
        (b'"' + b"a" * 200_000 + b'"\n', 1),
        (b"-5,0,1,1,1,,,,\n", 1), (b"2,0,much,1,1,,,,\n", 1), (b"2,0,1,1,1,,,,\n2,0\n", 2),
    ],
)  # fmt: skip
def test_a_damaged_log_is_cut(tmp_path, capsys, damage, kept):
    folder = _log(tmp_path / "run", [1])
    with open(folder / "steps.csv", "ab") as file:
        file.write(damage)
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"event": "st')
    log = RunLog(folder, 5)
    assert ("steps.csv: line" in capsys.readouterr().err) == (damage != b"2,0,1.")
    log.step({"step": 6, "epoch": 0, "loss": 0.5})
    expected = ["1", "2", "6"] if kept > 1 else ["1", "6"]
    assert [row["step"] for row in read_csv(folder / "steps.csv")] == expected
    *_, part, last = (folder / "log.jsonl").read_text().splitlines()
    assert part == '{"event": "st' and json.loads(last)["step"] == 6


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1,2\n", b'step\n"' + b"a" * 200_000 + b'"\n', b"\0" * 50])
def test_a_log_without_a_readable_row_begins_anew(tmp_path, content):
    (tmp_path / "steps.csv").write_bytes(content)
    RunLog(tmp_path, 1).step({"step": 2, "loss": 0.5})
    (row,) = read_csv(tmp_path / "steps.csv")
    assert (row["step"], row["loss"]) == ("2", "0.5")


@pytest.mark.parametrize("content", [b'{"starts": 5}', b"[" * 100_000, b"\xff", b'{"starts": [1]}', b"{}", b""])
def test_a_damaged_record_of_starts_is_replaced(tmp_path, capsys, content):
    (tmp_path / "run.json").write_bytes(content)
    write_run(tmp_path, {"a": 1})
    assert json.loads((tmp_path / "run.json").read_text()) == {"starts": [{"a": 1}]}
    assert "run.json was damaged" in capsys.readouterr().err
    write_run(tmp_path, {"b": 2})
    assert json.loads((tmp_path / "run.json").read_text()) == {"starts": [{"a": 1}, {"b": 2}]}


def test_plot_of_a_damaged_log(tmp_path, capsys):
    folder = _log(tmp_path / "run")
    (folder / "steps.csv").write_bytes(b"\xff\xfe")
    assert plot.main([str(folder)]) == 1 and "steps.csv: not a UTF-8 text file" in capsys.readouterr().err


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
