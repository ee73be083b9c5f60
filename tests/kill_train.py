"""Kill training at random steps and resume it: the weights must be bit-identical to those of an undisturbed run.

python tests/kill_train.py              one process, SIGKILL and SIGTERM in turn; a copy of one that has imported all
python tests/kill_train.py --workers 2  two processes under msrun
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from copies import ROOT, Copies

OPTIONS = [
    "model.dims=[8,8,16,16]", "model.per_stage_layers=[1,1,1,1]", "model.image_size=32", "model.drop_path=0.2",
    "data.batch_size=36", "schedule.epochs=2", "run.checkpoint_every=3", "augmentation.mixup=0.8", "run.log_every=1",
    "augmentation.randaugment_ops=2", "augmentation.erasing=0.25",
]  # fmt: skip


class Run:
    """A training process, or several under msrun, in one process group."""

    def __init__(self, output: Path, workers: int, copies: Copies | None):
        self.output = output
        words = ["--config", str(ROOT / "configs" / "digits.yaml"), *OPTIONS]
        words += [f"data.batch_size={36 // workers}", f"run.output={output}", "--resume", "auto"]
        if copies:
            self.process = copies.start(words)
            return
        # msrun starts a script, not a module.
        script = output.parent / "train_script.py"
        script.write_text("import sys\nfrom neonext_ms.commands.train import main\nsys.exit(main())\n")
        # The module behind the command msrun.
        command = [sys.executable, "-m", "mindspore.parallel.cluster.run", f"--worker_num={workers}"]
        command += ["--join=True", f"--local_worker_num={workers}", f"--master_port={_free_port()}"]
        command += [f"--log_dir={output}-logs", str(script), *words]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PATH": path},
        )  # fmt: skip

    def step(self) -> int:
        """Return the last step in the log."""
        path = self.output / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        steps = [json.loads(line).get("step", 0) for line in lines if line.endswith("}")]
        return max(steps, default=0)

    def stop(self, number: int) -> None:
        """Send a signal to the training processes, and wait until all have ended."""
        # msrun gives each of its processes its own session, which a signal to the group does not reach.
        listed = subprocess.run(["pgrep", "-a", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        children = {int(line.split()[0]): line for line in listed.splitlines()}
        inner = [pid for pid, line in children.items() if "train_script.py" in line and "tail -f" not in line]
        # The first one is the scheduler, which ends with the workers. The children with `tail` show the logs.
        chosen = [self.process.pid, *children] if number == signal.SIGKILL else inner[1:] or [self.process.pid]
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        _, errors = self.process.communicate()
        if number == signal.SIGTERM and not inner and self.process.returncode not in (0, 130):
            raise SystemExit(f"SIGTERM: exit code {self.process.returncode}\n{errors}")

    def finish(self) -> None:
        """Wait for the end, and fail if the exit code is not 0."""
        _, errors = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"exit code {self.process.returncode}\n{errors}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=40, help="number of signals, half SIGKILL, half SIGTERM")
    parser.add_argument("--workers", type=int, default=1, help="number of training processes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        copies = Copies("neonext_ms.commands.train", Path(name) / "stderr") if args.workers == 1 else None
        undisturbed = Run(Path(name) / "undisturbed", args.workers, copies)
        undisturbed.finish()
        total = undisturbed.step()
        disturbed, killed = Path(name) / "disturbed", []
        while len(killed) < args.times:
            # Each signal comes some steps after the last one, so that many fit into one run; then the next run starts.
            run = Run(disturbed, args.workers, copies)
            target = run.step() + rng.randint(1, max(2, 2 * total // args.times))
            while run.process.poll() is None and run.step() < target:
                time.sleep(0.01)
            if run.process.poll() is not None:
                run.finish()
                _compare(undisturbed.output, disturbed)
                disturbed = Path(name) / f"disturbed-{len(killed)}"
                continue
            time.sleep(rng.random() * 0.1)
            number = signal.SIGTERM if len(killed) % 2 else signal.SIGKILL
            run.stop(number)
            killed.append(f"{signal.Signals(number).name} at {run.step()}")
        Run(disturbed, args.workers, copies).finish()
        _compare(undisturbed.output, disturbed)
        if copies:
            copies.close()
    print(f"{len(killed)} signals ({', '.join(killed)}), {args.workers} processes: bit-identical weights")


def _compare(one: Path, other: Path) -> None:
    states = [load_file(max((folder / "checkpoints").glob("step-*.safetensors"))) for folder in (one, other)]
    different = [name for name in states[0] if not np.array_equal(states[0][name], states[1][name])]
    if different or states[0].keys() != states[1].keys():
        raise SystemExit(f"{other}: {len(different)} of {len(states[0])} tensors differ: {different[:5]}")


if __name__ == "__main__":
    main()
