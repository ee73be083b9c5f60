"""What an ONNX export costs, against only reading and writing the weights: time and peak memory.

    python -m neonext_ms.benchmarks.export_cost [--model neonext_t.released_224]

Every measurement is a process of its own, taking turns: `weights` reads a float32 checkpoint and writes its arrays,
`export` reads the same checkpoint, folds it and writes the ONNX file, `proven` is the whole `neonext-export` with its
parity run. Peak memory is the largest resident set of the process (Linux only); `idle` is the interpreter with NumPy.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, print_json, run

_MEASURED = """\
import sys
{work}
# Not getrusage: its maximum counts the parent's memory from before this program was loaded.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) * 1024, "mindspore" in sys.modules)
"""
_WORK = {
    "idle": "import numpy",
    "weights": """\
from neonext_ms import load_checkpoint, save_checkpoint
checkpoint = load_checkpoint({checkpoint!r})
save_checkpoint({output!r} + "/weights.pt", checkpoint.arrays)
""",
    "export": """\
from pathlib import Path
from neonext_ms.export import pipeline
from neonext_ms.export.fold import fold
from neonext_ms.export.lower import neocell_to_matmul
from neonext_ms.export.graph import original_graph
from neonext_ms.export.onnx.emitter import save
source = Source.from_checkpoint({checkpoint!r})
graph = neocell_to_matmul(fold(original_graph(source.architecture, source.arrays, {size!r}))[0])
save(graph, Path({output!r}) / "model.onnx")
""",
    "proven": """\
from neonext_ms.export import pipeline
from neonext_ms.export.request import Request
pipeline.export(Source.from_checkpoint({checkpoint!r}), Request(["onnx"], [{size!r}]), {output!r})
""",
}


def _once(work: str) -> tuple[float, float, bool]:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED.format(work=work)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    # Wall time of the whole process: starting the interpreter and importing count.
    seconds = time.perf_counter() - start
    memory, mindspore = done.stdout.split()
    return seconds, float(memory), mindspore == "True"


def measure(model: str, rounds: int) -> dict:
    """Medians over `rounds` processes of each kind: seconds and peak bytes."""
    from neonext_ms.checkpoint.checkpoint import save_checkpoint
    from neonext_ms.export.source import Source

    source = Source.from_name(model)
    size = tuple(source.metadata["image_size"])
    seconds: dict[str, list[float]] = {name: [] for name in _WORK}
    memory: dict[str, list[float]] = {name: [] for name in _WORK}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder) / "model.pt")
        save_checkpoint(checkpoint, source.arrays, {"shifts": list(source.architecture.shifts)})
        for _ in range(rounds):
            for name, work in _WORK.items():
                taken, peak, mindspore = _once(work.format(checkpoint=checkpoint, output=folder, size=size))
                seconds[name].append(taken)
                memory[name].append(peak)
                if mindspore:
                    raise RuntimeError(f"{name} imported MindSpore")
    weights = sum(array.nbytes for array in source.arrays.values())
    return {
        "model": model,
        "rounds": rounds,
        "weights_bytes": weights,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "peak_bytes": {name: statistics.median(values) for name, values in memory.items()},
    }


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.export_cost", description=__doc__)
    parser.add_argument("--model", default="neonext_t.released_224", help="a named model with random weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    result = measure(args.model, args.rounds)
    if args.json:
        print_json(result)
        return
    seconds, peak = result["seconds"], result["peak_bytes"]
    print(f"{result['model']}, {result['weights_bytes'] / 1e6:.0f} MB of weights, medians of {result['rounds']}")
    for name in _WORK:
        print(
            f"{name:8} {seconds[name]:6.2f} s ({seconds[name] / seconds['weights']:.2f} x weights), peak "
            f"{peak[name] / 1e6:5.0f} MB ({peak[name] / peak['weights']:.2f} x weights)"
        )


if __name__ == "__main__":
    sys.exit(run(_main))
