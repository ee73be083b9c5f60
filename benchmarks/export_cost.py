"""Time and peak memory of exports, in comparison with only reading and writing the weights."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, comma_list, positive_int, run, some_of
from neonext_ms.common.files import temporary_folder
from neonext_ms.common.text import format_bytes

DESCRIPTION = """\
Time and peak memory of exports, in comparison with only reading and writing the weights.

    python -m neonext_ms.benchmarks.export_cost
    python -m neonext_ms.benchmarks.export_cost --models t,s,b,l,xl --targets onnx,mindir --rounds 1

Each measurement is a process of its own, and the kinds take turns: `idle` is the interpreter with NumPy, `weights`
reads a float32 checkpoint and writes its arrays, `emit` reads it, folds it and writes the ONNX file, and `onnx` and
`mindir` are a whole `neonext-export`, verification included. Peak memory is the largest resident set of the process,
mapped files included (Linux only)."""

_PROCESS = """\
import sys
{work}
# Not getrusage: its maximum counts the parent's memory from before this program was loaded.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", int(peak) * 1024, "mindspore" in sys.modules)
"""
_WORK = {
    "idle": "import numpy",
    "weights": """\
from neonext_ms import load_checkpoint, save_checkpoint
checkpoint = load_checkpoint({checkpoint!r})
save_checkpoint({output!r} + "/weights.pt", checkpoint.arrays)
""",
    "emit": """\
from pathlib import Path
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import neocell_to_matmul
from neonext_ms.export.onnx.emitter import save
from neonext_ms.export.source import Source
source = Source.from_checkpoint({checkpoint!r})
graph = neocell_to_matmul(fold(original_graph(source.architecture, source.arrays, (224, 224)))[0])
save(graph, Path({output!r}) / "model.onnx")
""",
}
_EXPORT = """\
from neonext_ms.export.command import main
arguments = ["--checkpoint", {checkpoint!r}, "--image-size", "224", "--target", {kind!r}, "--output", {output!r}]
if main(arguments):
    raise SystemExit(1)
"""


def _measure_once(work: str) -> tuple[float, int, bool]:
    """Run a process; return its seconds, its peak memory in bytes, and whether it imported MindSpore."""
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", _PROCESS.format(work=work)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    # Wall time of the whole process: starting the interpreter and importing count.
    seconds = time.perf_counter() - start
    peak, mindspore = process.stdout.split("peak ")[-1].split()
    return seconds, int(peak), mindspore == "True"


def _measure(model: str, targets: Sequence[str], rounds: int) -> None:
    """Print medians of seconds and peak bytes over `rounds` processes of each kind."""
    from neonext_ms.checkpoint.checkpoint import save_checkpoint
    from neonext_ms.export.source import Source

    source = Source.from_name(f"neonext_{model}.released_224")
    works = {**_WORK, **dict.fromkeys(targets, _EXPORT)}
    measured: dict[str, list[tuple[float, int, bool]]] = {kind: [] for kind in works}
    with temporary_folder() as folder:
        checkpoint = str(folder / "model.pt")
        save_checkpoint(checkpoint, source.arrays, {"shifts": list(source.architecture.shifts or ())})
        weights = sum(array.nbytes for array in source.arrays.values())
        del source
        for _ in range(rounds):
            for kind, work in works.items():
                output = str(folder / kind)
                Path(output).mkdir(exist_ok=True)
                measured[kind].append(_measure_once(work.format(checkpoint=checkpoint, output=output, kind=kind)))
    if any(mindspore for kind in measured if kind != "mindir" for _, _, mindspore in measured[kind]):
        raise RuntimeError("an export of ONNX imported MindSpore")
    print(f"neonext_{model}, {format_bytes(weights)} of weights, medians of {rounds}")
    medians = {
        kind: [statistics.median(column) for column in zip(*values, strict=True)] for kind, values in measured.items()
    }
    for kind, (seconds, peak, _) in medians.items():
        print(
            f"  {kind:8}{seconds:7.2f} s ({seconds / medians['weights'][0]:.2f} of `weights`), peak "
            f"{format_bytes(peak)} ({peak / weights:.2f} times the weights)",
            flush=True,
        )


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.export_cost", description=DESCRIPTION)
    parser.add_argument("--models", type=comma_list(), default=("t",), metavar="NAMES", help="sizes (default t)")
    parser.add_argument(
        "--targets",
        type=some_of(("onnx", "mindir")),
        default=("onnx",),
        metavar="NAMES",
        help="onnx,mindir (default onnx)",
    )
    parser.add_argument("--rounds", type=positive_int, default=7, help="processes of each kind (default 7)")
    args = parser.parse_args(argv)
    for model in args.models:
        _measure(model, args.targets, args.rounds)


if __name__ == "__main__":
    sys.exit(run(_main))
