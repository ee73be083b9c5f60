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


def _run(name: str, folder: Path, workers: int, shard: str, *options: str) -> subprocess.Popen:
    script = folder / "worker.py"
    script.write_text(WORKER)
    command = [str(script), str(ROOT / "configs" / "digits.yaml"), str(folder / name), shard, *OPTIONS, *options]
    if workers == 1:
        command = [sys.executable, *command]
    else:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [
            sys.executable, "-m", MSRUN, f"--worker_num={workers}", f"--local_worker_num={workers}",
            f"--master_port={port}", f"--log_dir={folder / name}-logs", "--join=True", *command,
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


def _seconds(folder: Path) -> tuple[float, float]:
    """Return the seconds of a step and of its messages alone, medians over the epochs."""
    with open(folder / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    speed, share = (float(np.median([float(row[key] or 0) for row in rows])) for key in ("images_per_second", _SHARE))
    images = json.loads((folder / "run.json").read_text())["starts"][0]["cards"] * _BATCH
    return images / speed, share * images / speed


def _same_weights(folder: Path, *runs: str) -> None:
    first, *others = (load_file(folder / run / "final_ema.safetensors") for run in runs)
    for run, weights in zip(runs[1:], others, strict=True):
        different = [key for key in first if not np.array_equal(first[key], weights[key])]
        if different:
            raise SystemExit(f"{runs[0]} and {run}: different weights: {different[:5]} ({len(different)})")


def _messages(folder: Path) -> None:
    """Train with messages of several sizes, and without any: two runs at once that do not know of each other."""
    batch = [f"data.batch_size={_BATCH}", "schedule.epochs=1"]
    alone = [_run(f"alone-{i}", folder, 1, "own", *batch) for i in range(2)]
    for process in alone:
        _finish(process)
    compute = float(np.mean([_seconds(folder / f"alone-{i}")[0] for i in range(2)]))
    sizes = {"single": "4096", "quarters": "0.25", "quarters-again": "0.25"}
    for name, size in sizes.items():
        _finish(_run(name, folder, 2, "own", *batch, f"parallel.bucket_mb={size}"))
    _same_weights(folder, *sizes)
    print("2 workers: same weights, bit for bit, with messages of any size, and in a second run")
    print(f"2 processes without messages: {1000 * compute:.0f} ms a step")
    for name, size in sizes.items():
        step, messages = _seconds(folder / name)
        # What messages take beyond the computation was not hidden behind it.
        hidden = min(1.0, max(0.0, 1 - (step - compute) / messages))
        print(
            f"messages of {size} MB: {1000 * step:.0f} ms a step, messages alone {1000 * messages:.0f} ms "
            f"({100 * messages / step:.1f} %), of which {100 * hidden:.0f} % overlap with computation"
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
