"""Time and peak memory of whole exports, from T to XL.

    python -m neonext_ms.benchmarks.export_sizes [--sizes t,s,b,l,xl] [--targets onnx,mindir]

Each row is one `neonext-export` of a float32 checkpoint with random weights at 224, comparison included, in a process
of its own. Peak memory is the largest resident set of that process (Linux only); files that it maps count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, print_json, run

_EXPORT = """\
import sys
from neonext_ms.export.command import main
code = main(sys.argv[1:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", int(peak) * 1024)
sys.exit(code)
"""


def measure(size: str, targets: Sequence[str]) -> list[dict]:
    """One row for each target: seconds, peak bytes, and their ratio to the weights."""
    from neonext_ms.checkpoint.checkpoint import save_checkpoint
    from neonext_ms.export.source import Source

    source = Source.from_name(f"neonext_{size}.released_224")
    weights = sum(array.nbytes for array in source.arrays.values())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder) / "model.pt")
        save_checkpoint(checkpoint, source.arrays, {"shifts": list(source.architecture.shifts)})
        del source
        for target in targets:
            output = str(Path(folder) / target)
            arguments = ["--checkpoint", checkpoint, "--image-size", "224", "--target", target, "--output", output]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _EXPORT, *arguments], capture_output=True, text=True, check=True
            )
            seconds = time.perf_counter() - start
            peak = int(done.stdout.split("peak ")[-1])
            rows.append(
                {"size": size, "target": target, "weights_bytes": weights, "seconds": seconds, "peak_bytes": peak}
            )
    return rows


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.export_sizes", description=__doc__)
    parser.add_argument("--sizes", default="t,s,b,l,xl")
    parser.add_argument("--targets", default="onnx,mindir")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    for size in args.sizes.split(","):
        for row in measure(size, args.targets.split(",")):
            rows.append(row)
            if not args.json:
                ratio = row["peak_bytes"] / row["weights_bytes"]
                print(
                    f"neonext_{size:3} {row['target']:7} weights {row['weights_bytes'] / 1e6:6.0f} MB, "
                    f"{row['seconds']:6.1f} s, peak {row['peak_bytes'] / 1e6:6.0f} MB ({ratio:.2f} x weights)",
                    flush=True,
                )
    if args.json:
        print_json(rows)


if __name__ == "__main__":
    sys.exit(run(_main))
