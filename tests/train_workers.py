"""Compare two workers with one: same weights from the same shard, throughput, and the end of a run if a worker dies.

python tests/train_workers.py              all of it
python tests/train_workers.py --messages   only the messages: same weights for any size, their share and their overlap
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
OPTIONS = [
    "model.drop_path=0.1",
    "schedule.epochs=2",
    "data.batch_size=32",
    "optimizer.lr_rule=none",
    "augmentation.mixup=0.8",
]
# The module behind the command msrun.
MSRUN = "mindspore.parallel.cluster.run"
_SHARE = "communication"
# Images of a worker in the runs that compare messages.
_BATCH = 16
# The script of each process. The shard `all` gives every worker all images, `own` gives it its part.
WORKER = """
import json, sys
from dataclasses import replace
from neonext_ms.training.config.load import load_config
from neonext_ms.training.trainer import Trainer
config, output, shard, *options = sys.argv[1:]
config = load_config(config, [*options, f"run.output={output}"])
trainer = Trainer(config, "auto", shard=(0, 1) if shard == "all" else None)
result = trainer.run()
if trainer.cards.first:
    print("RESULT", json.dumps(result))
"""

# Steps without messages, with one, and with several, in turns, so that the load of the machine is that of all.
TIMING = """
import json, sys, time
import numpy as np
from neonext_ms import NeoNeXt
from neonext_ms.training import distributed
from neonext_ms.training.step import TrainStep
cards, batch, rounds = distributed.start("CPU"), int(sys.argv[1]), 15
steps = {}
for name, world, size in (("none", 1, 25), ("one", cards.world, 4096), ("several", cards.world, 0.25)):
    model = NeoNeXt(10, (1, 1, 2, 1), (16, 32, 64, 128), shifts=(1, 1, 0, 0), kernel_spec="4+7", linear_bias=True)
    steps[name] = TrainStep(model, ema_decay=0.98, world=world, bucket_mb=size)
images = np.random.RandomState(cards.rank).standard_normal((batch, 3, 64, 64)).astype(np.float32)
targets = np.eye(10, dtype=np.float32)[np.arange(batch) % 10]
seconds = {name: [] for name in steps}
for _ in range(rounds + 1):
    for name, step in steps.items():
        cards.wait()
        start = time.monotonic()
        step([(images, targets)], 1e-3).wait()
        seconds[name].append(time.monotonic() - start)
rows, none = [], np.array(seconds["none"][1:])
for name in ("one", "several"):
    alone, step = cards.exchange_seconds(steps[name].messages, 15), np.array(seconds[name][1:])
    hidden = float(np.clip(1 - np.median(step - none) / alone, 0, 1))
    rows.append({"messages": len(steps[name].messages) - 1, "step": float(np.median(step)), "alone": alone,
                 "none": float(np.median(none)), "hidden": hidden})
if cards.first:
    print("RESULT", json.dumps({"rows": rows}))
"""


def _run(name: str, folder: Path, workers: int, shard: str, *options: str) -> subprocess.Popen:
    script = folder / "worker.py"
    script.write_text(WORKER)
    command = [str(script), str(ROOT / "configs" / "digits.yaml"), str(folder / name), shard, *OPTIONS, *options]
    return _start(command, workers, folder / f"{name}-logs")


def _start(command: list[str], workers: int, logs: Path) -> subprocess.Popen:
    """Start a script, under msrun if there is more than one worker."""
    if workers == 1:
        command = [sys.executable, *command]
    else:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [
            sys.executable, "-m", MSRUN, f"--worker_num={workers}", f"--local_worker_num={workers}",
            f"--master_port={port}", f"--log_dir={logs}", "--join=True", *command,
        ]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PATH": path}
    )


def _finish(process: subprocess.Popen) -> dict:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)
    (line,) = (line for line in output.splitlines() if line.startswith("RESULT"))
    return json.loads(line.partition(" ")[2])


def _speed(folder: Path) -> str:
    with open(folder / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    speed, share = (float(np.median([float(row[key] or 0) for row in rows])) for key in ("images_per_second", _SHARE))
    return f"{speed:.0f} images/s" + (f", {100 * share:.1f} % communication" if share else "")


def _same_weights(folder: Path, *runs: str) -> None:
    first, *others = (load_file(folder / run / "final_ema.safetensors") for run in runs)
    for run, weights in zip(runs[1:], others, strict=True):
        different = [key for key in first if not np.array_equal(first[key], weights[key])]
        if different:
            raise SystemExit(f"{runs[0]} and {run}: different weights: {different[:5]} ({len(different)})")


def _messages(folder: Path) -> None:
    """Compare the weights after trainings with messages of several sizes, and print what the messages take."""
    sizes = {"single": 4096, "quarters": 0.25, "quarters-again": 0.25}
    for name, size in sizes.items():
        options = [f"data.batch_size={_BATCH}", "schedule.epochs=1", f"parallel.bucket_mb={size}"]
        _finish(_run(name, folder, 2, "own", *options))
    _same_weights(folder, *sizes)
    print("2 workers: same weights, bit for bit, with messages of any size, and in a second run")
    script = folder / "timing.py"
    script.write_text(TIMING)
    for row in _finish(_start([str(script), str(_BATCH)], 2, folder / "timing-logs"))["rows"]:
        print(
            f"{row['messages']} messages: {1000 * row['step']:.0f} ms a step, {1000 * row['none']:.0f} ms without "
            f"messages; messages alone {1000 * row['alone']:.0f} ms ({100 * row['alone'] / row['step']:.1f} % of the "
            f"step), of which {100 * row['hidden']:.0f} % overlap with computation"
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if sys.argv[1:] == ["--messages"]:
            _messages(folder)
            return
        for run, workers in (("one", 1), ("two", 2)):
            _finish(_run(run, folder, workers, "all"))
        _same_weights(folder, "one", "two")
        print("2 workers with the same shard: weights and moving average are bit-identical to those of 1 worker")
        _messages(folder)
        _finish(_run("shared", folder, 2, "own", "data.batch_size=16"))
        print(
            f"32 images a step: 1 worker {_speed(folder / 'one')}; 2 workers of 16 images {_speed(folder / 'shared')} "
            f"({os.cpu_count()} processors)"
        )
        process = _run("dies", folder, 2, "own", "schedule.epochs=50")
        log = folder / "dies" / "log.jsonl"
        while not (log.exists() and "epoch" in log.read_text()):
            time.sleep(0.5)
            if process.poll() is not None:
                raise SystemExit(process.communicate()[0])
        # Of msrun's children that run the script, the first one is the scheduler and the last one a worker.
        children = subprocess.run(["pgrep", "-a", "-P", str(process.pid)], capture_output=True, text=True).stdout
        workers = [line.split()[0] for line in children.splitlines() if "worker.py" in line]
        os.kill(int(workers[-1]), signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
        if not process.returncode:
            raise SystemExit("a worker died, but the run ended with 0")
        reason = next(line for line in output.splitlines() if "exit" in line)
        print(f"a worker that dies ends the run with {process.returncode}: ...{reason[-100:]}")
        epochs = sum(json.loads(line)["event"] == "epoch" for line in log.read_text().splitlines())
        result = _finish(_run("dies", folder, 2, "own", f"schedule.epochs={epochs + 1}"))
        print(f"it resumes and ends after {result['steps']} steps")


if __name__ == "__main__":
    main()
