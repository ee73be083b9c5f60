from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from PIL import Image

from neonext_ms import load_checkpoint, save_checkpoint
from neonext_ms.checkpoint import safetensors_file
from neonext_ms.commands import train, validate
from neonext_ms.commands.train import main
from neonext_ms.common.errors import InputError
from neonext_ms.export.command import main as export_main
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.training import distributed, reader_watch, trainer
from neonext_ms.training.config.schema import known_keys
from neonext_ms.training.data.image_sets import FolderSet, check_data, describe_data, is_description, open_folders
from neonext_ms.training.data.mindrecord import write_records
from neonext_ms.training.run_state import Checkpoints, Progress, load_state, save_state
from neonext_ms.training.runlog import read_csv
from neonext_ms.training.step import TrainStep
from neonext_ms.training.validation import Evaluator

CONFIG = """\
model: {dims: [4, 4, 4, 4], per_stage_layers: [1, 1, 1, 1], shifts: [1, 1, 0, 0], image_size: 32, drop_path: 0.2}
data: {dataset: imagefolder, batch_size: 4, val_batch_size: 4, workers: 1}
augmentation: {mixup: 0.8}
optimizer: {lr: 1e-2, lr_rule: none}
schedule: {epochs: 2, warmup_epochs: 0}
ema: {decay: 0.9}
run: {jit: false, log_every: 1, seed: 3}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with images `data/`, a configuration, and room for runs."""
    rng = np.random.RandomState(0)
    for part, count in (("train", 7), ("val", 3)):
        for name, colour in (("blue", 2), ("red", 0)):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., colour] += 120
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.png")
    (tmp_path / "small.yaml").write_text(CONFIG + "base: data.yaml\n")
    (tmp_path / "data.yaml").write_text(f"data: {{path: {tmp_path / 'data'}}}\n")
    return tmp_path


def _train(folder, run, *arguments):
    return main(["--config", str(folder / "small.yaml"), f"run.output={folder / run}", *arguments])


def _state(folder, run):
    return load_state(Checkpoints(folder / run / "checkpoints", 1).paths()[0])


def _same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_run_leaves_everything_that_is_needed_afterwards(folder, capsys):
    assert _train(folder, "run", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    run = folder / "run"
    assert result["steps"] == 6 and len(read_csv(run / "steps.csv")) == 6 and len(read_csv(run / "epochs.csv")) == 2
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000000003.safetensors", "step-000000006.safetensors",
    ]  # fmt: skip
    events = [json.loads(line)["event"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert events == (["step"] * 3 + ["epoch"]) * 2
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    assert start["versions"]["mindspore"] and "--json" in start["command"]
    # What travels inside is all that the other commands need.
    for name in ("final", "final_ema", "best"):
        checkpoint = load_checkpoint(run / f"{name}.safetensors")
        assert checkpoint.architecture.shifts == (1, 1, 0, 0) and checkpoint.metadata["labels"] == ["blue", "red"]
        assert checkpoint.metadata["image_size"] == [32, 32] and checkpoint.metadata["preprocessing"]["crop"] == 0.875
    whole = load_checkpoint(run / "checkpoints" / "step-000000006.safetensors", ema=True)
    assert _same(whole.arrays, load_checkpoint(run / "final_ema.safetensors").arrays)
    export = ["--checkpoint", str(run / "best.safetensors"), "--target", "onnx", "--output", str(folder / "build")]
    assert export_main(export) == 0
    capsys.readouterr()
    # The export agrees with the training's own validation, image by image.
    predictions = ["--predictions", str(folder / "predictions.csv"), "--json", str(folder / "data" / "val")]
    assert validate.main(["--model", str(folder / "build" / "best.onnx"), *predictions]) == 0
    assert json.loads(capsys.readouterr().out)["top1"]["accuracy"] == result["best"]["top1"]
    validated = read_csv(folder / "predictions.csv")
    assert [{**row} for row in read_csv(run / "best_predictions.csv")] == [
        {key: row[key] for key in ("path", "label", "predicted")} for row in validated
    ]
    assert all(float(row["images_per_second"]) > 0 for row in read_csv(run / "epochs.csv"))
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


def test_the_resolved_configuration_repeats_the_run(folder):
    _train(folder, "run", "schedule.epochs=1", "optimizer.weight_decay=0.3")
    again = ["--config", str(folder / "run" / "config.yaml"), f"run.output={folder / 'again'}"]
    assert main(again) == 0
    assert _same(_state(folder, "run")[0], _state(folder, "again")[0])


@pytest.mark.parametrize("more", [[], ["optimizer.accumulate=2", "data.batch_size=2", "optimizer.name=sgd"]])
def test_a_stopped_run_goes_on_bit_for_bit(folder, capsys, more):
    assert _train(folder, "whole", *more) == 0
    assert _train(folder, "parts", "--resume", "auto", "run.stop_after=2", *more) == 130
    assert "saved" in capsys.readouterr().err
    assert _train(folder, "parts", "--resume", "auto", "run.stop_after=4", "data.workers=2", *more) == 130
    assert _train(folder, "parts", "--resume", "auto", *more) == 0
    assert _same(_state(folder, "whole")[0], _state(folder, "parts")[0])
    steps = [[row["loss"] for row in read_csv(folder / run / "steps.csv")] for run in ("whole", "parts")]
    assert steps[0] == steps[1] and len(steps[0]) == 6
    assert {row["skipped"] for row in read_csv(folder / "whole" / "steps.csv")} == {"0"}
    for name in ("final", "best"):
        files = [load_checkpoint(folder / run / f"{name}.safetensors").arrays for run in ("whole", "parts")]
        assert _same(*files)


def test_a_change_of_activation(folder, capsys):
    architecture = make_architecture(2, dims=(4, 4, 4, 4), shifts=(1, 1, 0, 0))
    save_checkpoint(folder / "gelu.pt", initial_arrays(architecture), {"shifts": [1, 1, 0, 0]})
    init = [f"model.init={folder / 'gelu.pt'}"]
    blend = [*init, "model.activation=relu", "schedule.blend_epochs=1.5"]
    assert _train(folder, "whole", *blend) == 0
    assert "activations differ: gelu in" in capsys.readouterr().err
    # It is resumed exactly, in the middle of the change, and differs from a run that starts with ReLU.
    assert _train(folder, "parts", "run.stop_after=2", *blend) == 130
    # And after it, in the step that is rebuilt with ReLU alone.
    assert _train(folder, "parts", "--resume", "auto", "run.stop_after=5", *blend) == 130
    assert _train(folder, "parts", "--resume", "auto", *blend) == 0
    assert _same(_state(folder, "whole")[0], _state(folder, "parts")[0])
    assert _state(folder, "whole")[1].config["schedule"]["blend_epochs"] == 1.5
    assert _train(folder, "relu", *init, "model.activation=relu") == 0
    assert not _same(_state(folder, "whole")[0], _state(folder, "relu")[0])
    for name in ("final", "final_ema", "best"):
        assert load_checkpoint(folder / "whole" / f"{name}.safetensors").architecture.activation == "relu"
    # Weights of another activation can be resumed from nowhere else: their configuration says which.
    assert _train(folder, "whole", "--resume", "auto", *init) == 0
    assert "model.activation: relu -> None" in capsys.readouterr().err
    for wrong, message in (
        (["model.activation=relu"], "no activation to change from"),
        (init, "both have the activation gelu"),
    ):
        assert _train(folder, "wrong", "schedule.blend_epochs=1", *wrong) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_the_run(folder, monkeypatch, capsys, number):
    compute = TrainStep.__call__

    def step(self, *arguments):
        if self.updates == 1:
            signal.raise_signal(number)
        return compute(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", step)
    assert _train(folder, "run") == 130
    assert f"stopped: {signal.Signals(number).name} after step 2: saved" in capsys.readouterr().err
    assert _state(folder, "run")[1].step == 2


def test_a_signal_does_not_wait_for_the_validation(folder, monkeypatch, capsys):
    batches = trainer.validation_batches

    def signalled(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return batches(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "validation_batches", signalled)
        assert _train(folder, "run") == 130
    assert "stopped: SIGTERM after step" in capsys.readouterr().err
    assert not (folder / "run" / "epochs.csv").exists()
    before = _state(folder, "run")[1]
    assert (before.epoch, before.best) == (0, {})
    # The resumed run begins with the validation that is missing.
    assert _train(folder, "run", "--resume", "auto", f"run.stop_after={before.step + 1}") == 130
    assert len((folder / "run" / "epochs.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_signal_ends_a_run_whose_images_block(folder, monkeypatch, capsys, part):
    read, release, main_thread = FolderSet.read, threading.Event(), threading.main_thread().ident

    def blocked(self, index):
        # Read ahead for the next epoch, it would send a signal to the next test.
        if f"/{part}/" in self.name(index) and index == 2 and not began:
            threading.Timer(0.5, lambda: signal.pthread_kill(main_thread, signal.SIGTERM)).start()
            began.append(time.monotonic())
            release.wait(30)
        return read(self, index)

    began, ended = [], []
    monkeypatch.setattr(FolderSet, "read", blocked)
    monkeypatch.setattr(train, "_end_now", ended.append)
    try:
        assert _train(folder, "run", "data.processes=false") == 130
        # It did not wait for the image.
        assert time.monotonic() - began[0] < 25 and ended == [130]
    finally:
        release.set()
    assert "SIGTERM after step" in capsys.readouterr().err
    assert len(list((folder / "run" / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("moment", ["step", "validation"])
def test_a_killed_reader_is_reported(folder, monkeypatch, capsys, moment):
    """MindSpore sends SIGTERM to its process when one that reads images was killed, and its own errors say little."""
    children = []

    def killed():
        pid = os.fork()
        if not pid:
            signal.pause()
        children.append(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    call, evaluate = TrainStep.__call__, Evaluator.__call__

    def step(self, *arguments):
        if moment == "step" and not children:
            killed()
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, *arguments)

    def validate_images(self, *arguments, **options):
        if moment == "validation":
            killed()
            raise RuntimeError("Exception thrown from dataset pipeline. Refer to the error message.")
        return evaluate(self, *arguments, **options)

    monkeypatch.setattr(TrainStep, "__call__", step)
    monkeypatch.setattr(Evaluator, "__call__", validate_images)
    try:
        assert _train(folder, "run") == 1
    finally:
        os.waitpid(children[0], 0)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: a process that reads images was killed (SIGKILL)") and "--resume auto" in error
    assert ("after step 1 is saved" in error) == (moment == "step")
    monkeypatch.undo()
    assert _train(folder, "run", "--resume", "auto") == 0


@pytest.mark.parametrize("stuck", [True, False])
def test_a_run_that_waits_for_a_killed_reader_ends(monkeypatch, stuck):
    monkeypatch.setattr(reader_watch, "_PATIENCE", 0.2)
    pid = os.fork()
    if not pid:
        signal.pause()
    os.kill(pid, signal.SIGKILL)
    try:
        killed = []
        steps = itertools.repeat(1) if stuck else itertools.count()
        with reader_watch.watch_readers(steps.__next__, killed.append):
            deadline = time.monotonic() + (30 if stuck else 0.5)
            while not killed and time.monotonic() < deadline:
                time.sleep(0.05)
        assert killed == [signal.SIGKILL] * stuck
    finally:
        os.waitpid(pid, 0)


def test_a_scheduler_says_that_a_worker_has_gone(monkeypatch):
    from mindspore import communication

    def init():
        raise RuntimeError("The total number of timed out node is 2.\n\n----\n- C++ Call Stack\n----\nmin")

    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    monkeypatch.setattr(communication, "init", init)
    with pytest.raises(InputError, match=r"ended or was killed \(MindSpore: The total .* node is 2\.\)\. See the logs"):
        distributed.start("CPU")


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(folder, capsys):
    _train(folder, "run")
    newest, before = Checkpoints(folder / "run" / "checkpoints", 1).paths()
    content, expected = newest.read_bytes(), {name: array.copy() for name, array in load_state(newest)[0].items()}
    for damaged in (content[:-1000], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        newest.write_bytes(damaged)
        capsys.readouterr()
        assert _train(folder, "run", "--resume", "auto") == 0
        errors = capsys.readouterr().err
        assert (
            str(newest) in errors and "Trying the previous checkpoint" in errors and f"resumed from {before}" in errors
        )
        assert _same(load_state(newest)[0], expected)
    for path in (newest, before):
        path.write_bytes(b"")
    assert _train(folder, "run", "--resume", "auto") == 1
    assert "all 2 checkpoints are damaged" in capsys.readouterr().err


def test_a_run_is_not_overwritten(folder, capsys):
    _train(folder, "run", "run.stop_after=1")
    before = _state(folder, "run")
    assert _train(folder, "run") == 2
    assert "contains a run already" in capsys.readouterr().err
    assert _same(before[0], _state(folder, "run")[0])


def test_nan_ends_the_run_with_step_files_and_state(folder, capsys):
    assert _train(folder, "run", "optimizer.lr=1e30", "augmentation.mixup=0") == 1
    error = capsys.readouterr().err
    assert "step 2 (epoch 0): the loss is not a finite number" in error
    failed = folder / "run" / "failed"
    files = (failed / "step-000000002.txt").read_text().splitlines()
    assert len(files) == 4 and all(Path(file).exists() for file in files)
    assert load_state(failed / "step-000000002.safetensors")[1].step == 1


def test_results_that_are_read_late_change_nothing(folder, capsys):
    for every in (1, 2):
        assert _train(folder, f"every-{every}", f"run.log_every={every}") == 0
    assert _same(*(_state(folder, f"every-{every}")[0] for every in (1, 2)))
    steps = {every: read_csv(folder / f"every-{every}" / "steps.csv") for every in (1, 2)}
    # Every second step, and the last one of an epoch of three.
    assert [row["step"] for row in steps[2]] == ["2", "3", "4", "6"]
    losses = [float(row["loss"]) for row in steps[1]]
    assert float(steps[2][0]["loss"]) == pytest.approx(np.mean(losses[:2])) and float(steps[2][1]["loss"]) == losses[2]
    # Step 2 fails, and step 3 has started already when that is read.
    failing = ["optimizer.lr=1e30", "augmentation.mixup=0", "run.log_every=100"]
    assert _train(folder, "failing", *failing) == 1
    assert "step 2 (epoch 0): the loss is not a finite number" in capsys.readouterr().err
    _train(folder, "stopped", *failing, "run.stop_after=1")
    arrays, progress = load_state(folder / "failing" / "failed" / "step-000000002.safetensors")
    assert progress.step == 1 and _same(arrays, _state(folder, "stopped")[0])


def test_an_overflow_skips_the_step_and_says_so(folder, capsys):
    # In float32 too, gradients overflow with a loss scale that is large enough.
    scaling = ["precision.loss_scale=dynamic", "precision.initial_scale=1.6e38", "schedule.epochs=1"]
    assert _train(folder, "run", *scaling) == 0
    error = capsys.readouterr().err
    assert "overflowed and is skipped; loss scale 1.6e+38 -> 8e+37" in error
    events = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    skipped = [event["step"] for event in events if event["event"] == "overflow"]
    rows = read_csv(folder / "run" / "steps.csv")
    assert skipped and int(rows[-1]["skipped"]) == len(skipped) and float(rows[-1]["scale"]) < 1.6e38


def test_a_configuration_that_changed_is_listed(folder, capsys):
    assert _train(folder, "run", "run.stop_after=1") == 130
    assert _train(folder, "run", "--resume", "auto", "optimizer.lr=0.02", "run.log_every=2", "schedule.epochs=1") == 0
    error = capsys.readouterr().err
    assert "optimizer.lr: 0.01 -> 0.02" in error and "schedule.epochs: 2 -> 1" in error and "log_every" not in error


WORKER = """\
import sys
from neonext_ms.training.config.load import load_config
from neonext_ms.training.trainer import Trainer
Trainer(load_config(sys.argv[1], sys.argv[2:]), shard=(0, 1)).run()
"""


def test_two_workers_with_one_shard_are_one_worker(folder, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = ["-m", "mindspore.parallel.cluster.run", "--worker_num=2", "--local_worker_num=2", "--join=True"]
    launcher += [f"--master_port={port}", f"--log_dir={tmp_path / 'logs'}"]
    arguments = [str(folder / "small.yaml"), "schedule.epochs=1", "optimizer.lr_rule=none"]
    # msrun starts what `python` is on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "worker.py"), *arguments, f"run.output={folder / 'two'}"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert _train(folder, "one", "schedule.epochs=1") == 0
    assert _same(*(_state(folder, run)[0] for run in ("one", "two")))
    (row,) = read_csv(folder / "two" / "epochs.csv")
    assert 0 < float(row["communication"]) <= 1 and read_csv(folder / "one" / "epochs.csv")[0]["communication"] == ""


def test_broken_images_end_the_run_beyond_the_limit(folder, capsys):
    for i in range(2):
        (folder / "data" / "train" / "red" / f"{i}.png").write_bytes(b"x")
    assert _train(folder, "run", "data.broken_limit=2") == 0
    assert capsys.readouterr().err.count("skipped:") == 2
    assert _train(folder, "other", "data.broken_limit=1") == 1
    assert "2 images cannot be read, more than data.broken_limit=1" in capsys.readouterr().err


def test_a_full_disk_leaves_the_checkpoints_before(folder, monkeypatch, capsys):
    save, calls = safetensors_file.save_file, []

    def full(tensors, path, metadata):
        if "checkpoints" in str(path) and len(calls) == 1:
            Path(path).write_bytes(b"half")
            raise safetensors.SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")
        calls.append(path) if "checkpoints" in str(path) else None
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors_file, "save_file", full)
    assert _train(folder, "run") == 1
    error = capsys.readouterr().err
    assert "step-000000006.safetensors: the disk is full; free some space" in error
    assert "The last checkpoint is" in error and "step-000000003.safetensors" in error
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["step-000000003.safetensors"]
    assert _state(folder, "run")[1].step == 3


def _rename(folder, old, new):
    for part in ("train", "val"):
        (folder / "data" / part / old).rename(folder / "data" / part / new)


def test_a_run_is_resumed_with_its_own_images_only(folder, capsys):
    assert _train(folder, "run", "run.stop_after=1") == 130
    assert "14 training and 6 validation images in 2 classes (in sorted order)" in capsys.readouterr().err
    _rename(folder, "blue", "z")
    before = sorted((folder / "run").rglob("*"))
    assert _train(folder, "run", "--resume", "auto") == 1
    error = capsys.readouterr().err
    assert "class 'blue' is gone\n  class 'z' is new" in error and "--init" in error
    _rename(folder, "z", "blue")
    (folder / "data" / "train" / "red" / "6.png").rename(folder / "data" / "train" / "blue" / "7.png")
    (folder / "data" / "val" / "red" / "2.png").unlink()
    assert _train(folder, "run", "--resume", "auto") == 1
    error = capsys.readouterr().err
    for text in (
        "'blue' had 7 images in train, now 8",
        "'red' had 7 images in train, now 6",
        "'red' had 3 images in val",
    ):
        assert text in error
    assert sorted((folder / "run").rglob("*")) == before


def test_images_that_changed_their_class_are_noticed(tmp_path):
    """Class folders that swapped their names have the same classes and the same number of images."""
    names = ("train/red/1", "train/red/2", "train/blue/3", "train/blue/4", "val/red/5", "val/blue/6")
    for number, name in enumerate(names):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)

    def described():
        return describe_data(*open_folders(tmp_path))

    before = described()
    assert is_description(before)
    check_data(before, described(), "run")
    check_data({key: value for key, value in before.items() if "_names" not in key}, described(), "run")
    for old, new in (("red", "x"), ("blue", "red"), ("x", "blue")):
        (tmp_path / "train" / old).rename(tmp_path / "train" / new)
    with pytest.raises(InputError, match="in train differ: class 'blue' has those of class 'red'"):
        check_data(before, described(), "run")
    before = described()
    (tmp_path / "val" / "red" / "5.png").rename(tmp_path / "val" / "red" / "7.png")
    with pytest.raises(InputError, match="in val differ: class 'red' has others now"):
        check_data(before, described(), "run")


def test_the_order_of_the_classes_of_a_run_is_kept(folder, capsys):
    """A run of an earlier version, with its classes in another order than that of the folders."""
    assert _train(folder, "run", "run.stop_after=1") == 130
    (path,) = Checkpoints(folder / "run" / "checkpoints", 1).paths()
    arrays, progress = load_state(path)
    metadata = {"labels": ["red", "blue"], "shifts": [1, 1, 0, 0]}
    record = {key: value for key, value in vars(progress).items() if key != "data"}
    texts = {
        "neonext_ms": json.dumps(metadata),
        "neonext_ms_training": json.dumps({**record, "sha256": _old_digest(arrays)}),
    }
    safetensors_file.write(path, arrays, texts)
    assert load_state(path)[1].data == {"classes": ["red", "blue"]}
    capsys.readouterr()
    assert _train(folder, "run", "--resume", "auto", "data.classes=sorted", "schedule.epochs=1") == 0
    assert "2 classes (by name)" in capsys.readouterr().err
    for name in ("final", "best"):
        assert load_checkpoint(folder / "run" / f"{name}.safetensors").metadata["labels"] == ["red", "blue"]
    rows = read_csv(folder / "run" / "best_predictions.csv")
    assert all(row["path"].startswith(row["label"]) for row in rows) and len(rows) == 6


def _old_digest(arrays):
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"step": "abc"}, {"step": -5}, {"step": True}, {"epoch": 1e300}, {"done": 1 << 70}, {"seed": "x"}, {"world": 0},
        {"best": [1]}, {"best": {"top1": 2, "epoch": 1, "step": 1, "weights": "ema"}}, {"config": [1]},
        {"config": {"run": 1}},
        {"best": {"top1": 0.5, "epoch": 1, "step": 1, "weights": []}}, {"data": 1}, {"data": {"classes": "ab"}},
        {"data": {"classes": ["a"], "train": [1, 2]}}, {"data": {"classes": ["a"], "val": [-1]}},
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_is_rejected(tmp_path, change):
    path = tmp_path / "step-000000003.safetensors"
    save_state(path, {"a": np.zeros(1, np.float32)}, Progress(**{"step": 3, **change}), {})
    with pytest.raises(InputError, match=rf"its training record is damaged: (data |best )?{next(iter(change))}"):
        load_state(path)


def test_a_record_is_covered_by_the_checksum(tmp_path):
    path = tmp_path / "step-000000003.safetensors"
    save_state(path, {"a": np.zeros(1, np.float32)}, Progress(step=33333), {})
    path.write_bytes(path.read_bytes().replace(b"33333", b"33334"))
    with pytest.raises(InputError, match="its checksum is wrong"):
        load_state(path)


def test_damaged_logs_do_not_stop_a_resume(folder, capsys):
    assert _train(folder, "run", "run.stop_after=2") == 130
    for name in ("steps.csv", "epochs.csv", "run.json", "log.jsonl"):
        (folder / "run" / name).write_bytes(b"\xff\xfe\0")
    assert _train(folder, "run", "--resume", "auto", "run.stop_after=3") == 130
    error = capsys.readouterr().err
    assert "steps.csv: line" not in error and "run.json was damaged" in error
    assert [row["step"] for row in read_csv(folder / "run" / "steps.csv")] == ["3"]


def test_numbered_classes_are_in_the_order_of_their_numbers(folder, capsys):
    _rename(folder, "blue", "1")
    _rename(folder, "red", "00")
    assert _train(folder, "run", "schedule.epochs=1") == 0
    assert "2 classes (by number)" in capsys.readouterr().err
    assert load_checkpoint(folder / "run" / "final.safetensors").metadata["labels"] == ["00", "1"]


def test_fine_tuning_matches_the_classes_by_name(folder, capsys):
    arrays = initial_arrays(make_architecture(num_classes=2, dims=(4, 4, 4, 4), shifts=(1, 1, 0, 0)))
    metadata = {"shifts": [1, 1, 0, 0], "labels": ["red ", "blue"]}
    save_checkpoint(folder / "two.safetensors", arrays, metadata)
    start = ["--init", str(folder / "two.safetensors"), "schedule.epochs=1", "run.stop_after=1"]
    assert _train(folder, "run", *start) == 130
    assert "2 classes (by name)" in capsys.readouterr().err
    assert _state(folder, "run")[1].data["classes"] == ["red", "blue"]
    save_checkpoint(folder / "two.safetensors", arrays, {**metadata, "labels": ["red", "green"]})
    assert _train(folder, "other", *start) == 1
    assert "1 of 2 class folders are not named" in (error := capsys.readouterr().err) and "\n  blue" in error
    assert _train(folder, "other", *start, "data.classes=sorted") == 130
    assert "2 classes (in sorted order)" in capsys.readouterr().err
    # Labels of another task do not keep folders, numbered from 1 here, from being sorted.
    save_checkpoint(folder / "two.safetensors", arrays, {**metadata, "labels": ["cat", "dog"]})
    _rename(folder, "red", "2")
    _rename(folder, "blue", "10")
    assert _train(folder, "third", *start) == 130
    error = capsys.readouterr().err
    assert "its labels are those of other classes" in error and "2 classes (in sorted order)" in error


def test_checkpoints_keep_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (9, 10, 100):
        checkpoints.save({"a": np.ones(1, np.float32)}, Progress(step=step), {})
    assert [load_state(path)[1].step for path in checkpoints.paths()] == [100, 10]


def test_a_checkpoint_of_another_architecture_is_refused(folder, capsys):
    _train(folder, "run", "run.stop_after=1")
    path = str(Checkpoints(folder / "run" / "checkpoints", 1).paths()[0])
    assert _train(folder, "other", "--resume", path, "model.dims=[4,4,4,8]") == 1
    difference = f"{path}: a checkpoint of another architecture: dims [4, 4, 4, 4] (this run: [4, 4, 4, 8]). "
    assert f"error: {difference}Resume with the configuration of that run.\n" in capsys.readouterr().err
    assert _train(folder, "other", "--init", path, "model.dims=[4,4,4,8]") == 1
    assert (
        f"error: {difference}Leave out the options under model to use those of the checkpoint.\n"
        in capsys.readouterr().err
    )
    assert _train(folder, "other", "--resume", path, "ema.decay=0") == 1
    assert "does not match this configuration (" in capsys.readouterr().err
    assert not (folder / "other").exists()


def test_weights_alone_cannot_be_resumed(folder, capsys):
    arrays = initial_arrays(make_architecture(num_classes=2, dims=(4, 4, 4, 4), shifts=(1, 1, 0, 0)))
    save_checkpoint(folder / "weights.safetensors", arrays)
    assert _train(folder, "run", "--resume", str(folder / "weights.safetensors")) == 1
    assert "Start from it with --init" in capsys.readouterr().err


def test_fine_tuning_renews_the_head_for_other_classes_and_sizes(folder, capsys):
    arrays = initial_arrays(make_architecture(num_classes=5, dims=(4, 4, 4, 4), shifts=(1, 1, 0, 0)))
    save_checkpoint(folder / "five.pt", arrays, {"shifts": [1, 1, 0, 0]})
    options = ["model.image_size=48", "optimizer.lr=1e-30", "ema.decay=0", "model.freeze=[stem,stage_1]"]
    assert _train(folder, "run", "--init", str(folder / "five.pt"), "schedule.epochs=1", *options) == 0
    error = capsys.readouterr().err
    assert "has 5 classes, the data 2" in error and "are initialised anew" in error
    after = load_checkpoint(folder / "run" / "final.safetensors")
    assert after.metadata["image_size"] == [48, 48] and after.architecture.num_classes == 2
    for name, array in after.arrays.items():
        moving = name.endswith(("running_mean", "running_var")) and not name.startswith(("stem.", "stage_1."))
        if not moving and not name.startswith("head.fc."):
            np.testing.assert_allclose(array, arrays[name], atol=1e-6, err_msg=name)


def test_the_network_of_a_checkpoint_needs_no_description(folder, capsys):
    (folder / "bare.yaml").write_text("base: data.yaml\n")
    arrays = initial_arrays(make_architecture(num_classes=2, dims=(4, 5, 6, 7), shifts=(1, 1, 0, 0)))
    save_checkpoint(folder / "start.safetensors", arrays, {"shifts": [1, 1, 0, 0], "image_size": 32})
    command = ["--config", str(folder / "bare.yaml"), "--init", str(folder / "start.safetensors"), "run.jit=false"]
    more = ["data.batch_size=4", "data.workers=1", "run.stop_after=1", f"run.output={folder / 'run'}"]
    assert main([*command, *more]) == 130
    assert _state(folder, "run")[0]["model.head.fc.weight"].shape == (2, 7)
    assert main([*command[:2], *more, f"run.output={folder / 'other'}"]) == 2
    assert "has no network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (["optimizer.lrr=1"], "did you mean optimizer.lr", 2),
        (["precision.level=O2"], "not supported on CPU, where MindSpore's convolutions compute in float32 only", 1),
        (["data.batch_size=100"], "are 100 images per update, but there are only 14", 1),
        (["model.num_classes=3"], "model.num_classes is 3, but the data has 2 classes", 1),
        (["model.image_size=30"], "multiples of 4", 2),
        (["run.device=Ascend"], "MindSpore cannot use it here", 1),
        (["data.path=null"], "data.path is not set", 2),
        (["--resume", "nowhere"], "nowhere: no such file", 1),
    ],
)
def test_mistakes_are_found_before_anything_is_written(folder, capsys, arguments, expected, code):
    assert _train(folder, "run", *arguments) == code
    assert expected in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_records_train_as_the_folder_does(folder):
    write_records(folder / "data", folder / "records", shards=2)
    _train(folder, "folder", "schedule.epochs=1")
    records = ["data.dataset=mindrecord", f"data.path={folder / 'records'}"]
    assert _train(folder, "records", "schedule.epochs=1", *records) == 0
    assert _same(_state(folder, "folder")[0], _state(folder, "records")[0])
    one, other = ((folder / run / "best_predictions.csv").read_text() for run in ("folder", "records"))
    assert one == other and "blue/0.png,blue," in one


def test_keys_are_listed_with_their_meaning(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--keys"])
    listed = capsys.readouterr().out
    assert all(f"  {key}=" in listed for key in known_keys())
    assert (
        "  data.batch_size=128  (a whole number in [1, 2147483647])\n        images per batch on one card.\n" in listed
    )


def test_the_digits_can_be_written(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--write-digits", str(tmp_path / "digits")])
    assert len(list((tmp_path / "digits" / "val").glob("*/*.png"))) == 360
    (tmp_path / "file").write_text("")
    assert main(["--write-digits", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "plot", "mindrecord"])
def test_help_imports_nothing_heavy(command):
    script = (
        f"import sys\nfrom neonext_ms.commands.{command} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(bool({'numpy', 'mindspore', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
