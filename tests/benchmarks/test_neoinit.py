"""`neonext-bench claims neoinit`: runs differ in initialisation and seed, resume, and are summarised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from neonext_ms.benchmarks.claims import command, neoinit, trials
from neonext_ms.common.errors import InputError
from neonext_ms.ops.init import INITIALIZATIONS
from neonext_ms.training import trainer
from neonext_ms.training.config.load import config_yaml, make_config
from neonext_ms.training.config.schema import ModelConfig, annotated_keys
from neonext_ms.training.run_state import Progress
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
    arguments += ["--seeds", "1", "--initialization", "neoinit,figure5"]
    assert command.main([*arguments, "run.stop_after=2"]) == 130
    assert command.main(arguments) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)["summary"]
    assert [row["runs"] for row in summary.values()] == [1, 1] and list(summary) == ["neoinit", "figure5"]
    (trial,) = summary["neoinit"]["trials"]
    assert [(row["epoch"], row["top1"]) for row in trial["epochs"]] == [(1, pytest.approx(trial["top1"], abs=1e-6))]
    assert "resumed from" in printed.err and len(read_csv(tmp_path / "out" / "neoinit-0" / "steps.csv")) == 3
    checkpoints = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/checkpoints/*")}
    assert command.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == summary
    assert checkpoints == {path: path.read_bytes() for path in (tmp_path / "out").glob("*/checkpoints/*")}
    assert command.main([*arguments, "data.share=0.5"]) == 1
    assert "data.share: 1.0 -> 0.5" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main([*arguments, "--initialization", "none"])


def _trial(value, seed, top1, diverged=False):
    epochs = [{"epoch": 1, "loss": 2.0, "top1": top1 / 2}, {"epoch": 2, "loss": 1.0, "top1": top1}]
    return {
        "value": value, "seed": seed, "top1": top1, "loss": None if diverged else 1.0, "diverged": diverged,
        "epochs": epochs[:1] if diverged else epochs,
    }  # fmt: skip


def test_summary_leaves_out_what_diverged():
    done = [_trial("neoinit", seed, top1) for seed, top1 in enumerate((0.5, 0.7))]
    done += [_trial("normal", 0, 0.4), _trial("normal", 1, 0.0, diverged=True)]
    summary = neoinit.summarise(done)
    assert summary["neoinit"]["mean"] == pytest.approx(0.6) and summary["neoinit"]["diverged"] == 0
    assert summary["neoinit"]["deviation"] == pytest.approx(0.2 / 2**0.5)
    assert [point["mean"] for point in summary["neoinit"]["curve"]] == pytest.approx([0.3, 0.6])
    assert [point["deviation"] for point in summary["neoinit"]["curve"]] == pytest.approx([0.1 / 2**0.5, 0.2 / 2**0.5])
    assert (summary["normal"]["mean"], summary["normal"]["deviation"], summary["normal"]["diverged"]) == (0.4, None, 1)
    assert [point["mean"] for point in summary["normal"]["curve"]] == [0.2, 0.4]
    table = list(neoinit.lines({"summary": summary, "plot": None}))
    assert [line.split() for line in table[1:]] == [
        ["neoinit", "2", "0", "60.00", "%", "14.14", "%", "+20.00", "1.000", "0.000"],
        ["normal", "2", "1", "40.00", "%", "-", "-", "1.000", "-"],
    ]  # fmt: skip


def test_trials_differ_in_initialisation_and_seed(tmp_path, monkeypatch):
    seen = []

    class FakeTrainer:
        train_images = type("Images", (), {"classes": tuple("ab")})
        progress = Progress(data={"classes": ["a", "b"], "train": [1, 1], "val": [1, 1]})

        def __init__(self, config, *arguments):
            seen.append(config)

        def run(self):
            folder = Path(seen[-1].run.output)
            folder.mkdir()
            (folder / "config.yaml").write_text(config_yaml(seen[-1]))
            if seen[-1].run.seed == 1:
                raise trainer.NotFiniteError("nan")
            return {"last": {"model": {"top1": 0.9, "loss": 0.1}}}

    monkeypatch.setattr(trainer, "Trainer", FakeTrainer)
    monkeypatch.setattr(trials._Images, "of", lambda self, config: FakeTrainer.progress.data)
    done = neoinit.run_trials(make_config({}), ("neoinit", "normal"), range(2), tmp_path)
    assert [(t["value"], t["seed"], t["diverged"]) for t in done] == [
        ("neoinit", 0, False), ("normal", 0, False), ("neoinit", 1, True), ("normal", 1, True),
    ]  # fmt: skip
    assert [config.model.neocell_init for config in seen] == ["neoinit", "normal"] * 2
    assert [config.run.seed for config in seen] == [0, 0, 1, 1]
    assert len({config.run.output for config in seen}) == 4
    again = neoinit.run_trials(make_config({}), ("neoinit", "normal"), range(2), tmp_path)
    assert again == done and len(seen) == 4
    read = neoinit.read_trials(tmp_path)
    assert [(t["value"], t["seed"]) for t in read] == [("neoinit", 0), ("neoinit", 1), ("normal", 0), ("normal", 1)]


def _once(folder):
    return neoinit.run_trials(make_config({}), ("normal",), range(1), folder)


def test_a_recorded_result_is_that_of_its_run(tmp_path, monkeypatch):
    data = {"classes": ["a", "b"], "train": [3, 3], "val": [1, 1]}
    monkeypatch.setattr(trials._Images, "of", lambda self, config: data)
    folder = tmp_path / "normal-0"
    folder.mkdir()
    result = folder / "result.json"
    begun = replace(make_config({}).run, output=str(folder))
    config = replace(make_config({}), run=begun, model=replace(make_config({}).model, neocell_init="normal"))
    (folder / "config.yaml").write_text(config_yaml(config))
    result.write_text(json.dumps({**_trial("normal", 0, 0.5), "data": data}))
    assert _once(tmp_path)[0]["top1"] == 0.5
    # Other images, whose results must not be mixed with these, although `data.path` may change.
    data["classes"] = ["a", "c"]
    with pytest.raises(InputError, match="class 'b' is gone"):
        _once(tmp_path)
    for trial in (_trial("noise", 0, 0.5), _trial("normal", 1, 0.5)):
        result.write_text(json.dumps(trial))
        with pytest.raises(InputError, match="is of another run"):
            _once(tmp_path)
    for bad in ({"classes": [1]}, {"classes": ["a"], "train": [1, 2]}, {"train": [1]}, []):
        result.write_text(json.dumps({**_trial("normal", 0, 0.5), "data": bad}))
        with pytest.raises(InputError, match="damaged"):
            _once(tmp_path)
    result.write_text(json.dumps(_trial("normal", 0, 0.5)))
    (folder / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"has no config\.yaml beside it"):
        _once(tmp_path)


def test_names_of_initializations_agree():
    (accepted,) = (get_args(kind) for key, kind in annotated_keys(ModelConfig).items() if key == "neocell_init")
    assert accepted == tuple(INITIALIZATIONS) == neoinit.INITIALIZATIONS


def test_rounds_do_not_apply(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit, match="2"):
        command.main(["neoinit", "--config", str(tmp_path / "small.yaml"), "--rounds", "3"])
    assert "unrecognized arguments: --rounds" in capsys.readouterr().err
