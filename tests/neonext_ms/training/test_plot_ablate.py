from __future__ import annotations

import builtins
import struct

import pytest

from neonext_ms.commands import plot
from neonext_ms.common.errors import InputError
from neonext_ms.training import ablation
from neonext_ms.training.ablation import Trial, run_trials, summarise, table
from neonext_ms.training.config.schema import make_config
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


def test_summary_leaves_out_what_diverged():
    trials = [Trial("neoinit", seed, top1, 1.0, False) for seed, top1 in enumerate((0.5, 0.7))]
    trials += [Trial("normal", 0, 0.4, 1.0, False), Trial("normal", 1, 0.0, None, True)]
    summary = summarise(trials)
    assert summary["neoinit"]["mean"] == pytest.approx(0.6) and summary["neoinit"]["diverged"] == 0
    assert summary["neoinit"]["deviation"] == pytest.approx(0.2 / 2**0.5)
    assert (summary["normal"]["mean"], summary["normal"]["deviation"], summary["normal"]["diverged"]) == (0.4, None, 1)
    assert [line.split()[0] for line in table(summary)[1:]] == ["neoinit", "normal"]
    with pytest.raises(InputError, match="no runs"):
        summarise([])


def test_trials_differ_in_one_value_and_the_seed(tmp_path, monkeypatch):
    from neonext_ms.training import trainer

    seen = []

    class FakeTrainer:
        train_images = type("Images", (), {"classes": tuple("ab")})

        def __init__(self, config, *arguments):
            seen.append(config)

        def run(self):
            if seen[-1].run.seed == 1:
                raise trainer.NotFiniteError("nan")
            return {"last": {"model": {"top1": 0.9, "loss": 0.1}}}

    monkeypatch.setattr(trainer, "Trainer", FakeTrainer)
    trials = run_trials("neoinit", make_config({}), range(2), tmp_path, print, print)
    assert [(t.value, t.seed, t.diverged) for t in trials] == [
        ("neoinit", 0, False), ("normal", 0, False), ("neoinit", 1, True), ("normal", 1, True),
    ]  # fmt: skip
    assert [config.model.neocell_init for config in seen] == ["neoinit", "normal"] * 2
    assert [config.run.seed for config in seen] == [0, 0, 1, 1]
    assert len({config.run.output for config in seen}) == 4 and ablation.ABLATIONS.keys() == {"neoinit"}
