"""`neonext-bench claims neoinit`: runs differ in initialisation and seed, resume, and are summarised."""

from __future__ import annotations

import json

import pytest

from neonext_ms.benchmarks.claims import command, neoinit
from neonext_ms.training import trainer
from neonext_ms.training.config.load import make_config
from neonext_ms.training.runlog import read_csv

CONFIG = """\
model: {dims: [4, 4, 4, 4], per_stage_layers: [1, 1, 1, 1], shifts: [1, 1, 0, 0], image_size: 32}
data: {dataset: digits, batch_size: 479, val_batch_size: 360, workers: 1}
augmentation: {crop: none, flip: 0, randaugment_ops: 0, erasing: 0, mixup: 0, cutmix: 0}
optimizer: {lr: 1e-2, lr_rule: none}
schedule: {epochs: 1, warmup_epochs: 0}
ema: {decay: 0}
run: {jit: false, log_every: 1}
"""


def test_an_interrupted_comparison_resumes(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG)
    arguments = ["neoinit", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path / "out"), "--json"]
    arguments += ["--seeds", "1"]
    assert command.main([*arguments, "run.stop_after=2"]) == 130
    assert command.main(arguments) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)["summary"]
    assert [row["runs"] for row in summary.values()] == [1, 1] and list(summary) == ["neoinit", "normal"]
    assert "resumed from" in printed.err and len(read_csv(tmp_path / "out" / "neoinit-0" / "steps.csv")) == 3
    checkpoints = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/checkpoints/*")}
    assert command.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == summary
    assert checkpoints == {path: path.read_bytes() for path in (tmp_path / "out").glob("*/checkpoints/*")}


def test_summary_leaves_out_what_diverged():
    def trial(value, seed, top1, diverged=False):
        return {"value": value, "seed": seed, "top1": top1, "loss": None if diverged else 1.0, "diverged": diverged}

    trials = [trial("neoinit", seed, top1) for seed, top1 in enumerate((0.5, 0.7))]
    trials += [trial("normal", 0, 0.4), trial("normal", 1, 0.0, diverged=True)]
    summary = neoinit.summarise(trials)
    assert summary["neoinit"]["mean"] == pytest.approx(0.6) and summary["neoinit"]["diverged"] == 0
    assert summary["neoinit"]["deviation"] == pytest.approx(0.2 / 2**0.5)
    assert (summary["normal"]["mean"], summary["normal"]["deviation"], summary["normal"]["diverged"]) == (0.4, None, 1)
    table = list(neoinit.lines({"summary": summary, "plot": None}))
    assert [line.split() for line in table[1:]] == [
        ["neoinit", "2", "0", "60.00", "%", "14.14", "%"], ["normal", "2", "1", "40.00", "%", "-"],
    ]  # fmt: skip


def test_trials_differ_in_initialisation_and_seed(tmp_path, monkeypatch):
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
    trials = neoinit.run_trials(make_config({}), range(2), tmp_path)
    assert [(t["value"], t["seed"], t["diverged"]) for t in trials] == [
        ("neoinit", 0, False), ("normal", 0, False), ("neoinit", 1, True), ("normal", 1, True),
    ]  # fmt: skip
    assert [config.model.neocell_init for config in seen] == ["neoinit", "normal"] * 2
    assert [config.run.seed for config in seen] == [0, 0, 1, 1]
    assert len({config.run.output for config in seen}) == 4


def test_rounds_do_not_apply(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit, match="2"):
        command.main(["neoinit", "--config", str(tmp_path / "small.yaml"), "--rounds", "3"])
    assert "unrecognized arguments: --rounds" in capsys.readouterr().err
