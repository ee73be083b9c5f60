"""Compare two workers with one: same weights from the same shard, throughput, and the end of a run if a worker dies.

python tests/train_workers.py
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


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run, workers in (("one", 1), ("two", 2)):
            _finish(_run(run, folder, workers, "all"))
        one, two = (load_file(folder / run / "final_ema.safetensors") for run in ("one", "two"))
        different = [key for key in one if not np.array_equal(one[key], two[key])]
        if different:
            raise SystemExit(f"same shard, different weights: {different[:5]} ({len(different)} of {len(one)})")
        print("2 workers with the same shard: weights and moving average are bit-identical to those of 1 worker")
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
