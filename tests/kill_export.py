"""Kill an export with SIGKILL at random moments: every file under its final name must be complete.

make kill-test
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "tests" / "data" / "digits_64.pt"


def _command(output: Path) -> list[str]:
    return [
        sys.executable, "-m", "neonext_ms.export.command", "--checkpoint", str(DIGITS), "--shifts", "1,1,0,0",
        "--image-size", "64", "--target", "onnx,mindir", "--output", str(output),
    ]  # fmt: skip


def _check(output: Path, sizes: dict[str, int]) -> list[str]:
    """Return the names of the files in a folder; each must be complete."""
    names = []
    for path in sorted(output.glob("*")):
        if path.name.startswith("."):
            continue
        names.append(path.name)
        if path.suffix == ".json":
            # The manifest contains the command, so its size depends on the folder.
            json.loads(path.read_text())
            continue
        if path.stat().st_size != sizes[path.name]:
            raise SystemExit(f"{path} has {path.stat().st_size} bytes of {sizes[path.name]}")
        if path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        complete = Path(name) / "complete"
        start = time.monotonic()
        subprocess.run(_command(complete), check=True, stdout=subprocess.DEVNULL)
        duration = time.monotonic() - start
        sizes = {path.name: path.stat().st_size for path in complete.iterdir()}
        counts: dict[int, int] = {}
        for i in range(args.times):
            output = Path(name) / str(i)
            process = subprocess.Popen(_command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # More of the moments are near the end, where files get their final names.
            time.sleep(duration * rng.choice((rng.random(), rng.uniform(0.85, 1.05))))
            process.kill()
            process.wait()
            count = len(_check(output, sizes)) if output.exists() else 0
            counts[count] = counts.get(count, 0) + 1
    print(f"{args.times} kills; number of complete files -> kills that left as many: {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
