"""Cost of the exporter, the checkpoint reader and the packers, in comparison with a stored baseline.

    python -m neonext_ms.benchmarks.cost_watch [--update]

The cost of a piece is its number of instructions, which hardly varies from run to run: by `perf stat` where the machine
has counters, else by valgrind's callgrind. Without both, it is the CPU time over that of fixed work in Python and
NumPy. The exit code is 1 if a piece needs more than 1.1 times its baseline (1.5 times for ratios of time). Counts
depend on the interpreter and the libraries, so a baseline of other versions is reported and not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from neonext_ms.common.cli import Parser, print_json, progress, run
from neonext_ms.common.errors import InputError, NeoNextError, ToolchainError, UsageError
from neonext_ms.common.files import atomic, read_json

BASELINE = Path(__file__).parent / "data" / "cost_watch.json"
# Largest allowed ratio to the baseline; times vary more than counts.
LIMITS = {"perf": 1.1, "callgrind": 1.1, "ratio": 1.5}
PIECES = ("exporter", "reader", "packers")
PACKAGES = ("numpy", "onnx", "protobuf")
TIMEOUT = 900.0
# Repetitions of a timed piece, of which the fastest counts.
REPEATS = 15


class RegressionError(NeoNextError):
    """A piece needs more than its baseline allows (exit code 1)."""


@dataclass(frozen=True)
class PieceCost:
    """Cost of a piece and its baseline.

    Attributes:
        piece: one of `PIECES`.
        cost: instructions, or CPU time over that of the reference work.
        baseline: stored cost; None if there is none for these versions.
        limit: largest allowed ratio.
    """

    piece: str
    cost: float
    baseline: float | None
    limit: float

    @property
    def ratio(self) -> float | None:
        """Return cost over baseline."""
        return None if self.baseline is None else self.cost / self.baseline

    @property
    def fails(self) -> bool:
        """Return whether the cost exceeds the limit."""
        return self.ratio is not None and self.ratio > self.limit

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return {**asdict(self), "ratio": self.ratio, "fails": self.fails}


def prepare(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the pieces as functions; the files that they read are in `folder`."""
    import numpy as np

    from neonext_ms.checkpoint.checkpoint import load_checkpoint, save_checkpoint
    from neonext_ms.export.fold import fold
    from neonext_ms.export.graph import original_graph
    from neonext_ms.export.lower import lower
    from neonext_ms.export.onnx.emitter import save
    from neonext_ms.export.onnx.format import Format
    from neonext_ms.models.architecture import make_architecture
    from neonext_ms.models.initialization import initial_arrays
    from neonext_ms.ops import packing

    architecture = make_architecture(
        num_classes=10, per_stage_layers=(1, 1, 2, 1), dims=(16, 32, 64, 128), kernel_spec="4+7",
        shifts=(1, 1, 1, 0), layer_scale_init_value=0.1, linear_bias=True,
    )  # fmt: skip
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    checkpoint = folder / "model.pt"
    save_checkpoint(checkpoint, arrays, {"shifts": [1, 1, 1, 0]})
    spec = architecture.stage_spec(2)
    a, b = ([np.ones(shape, np.float32) for shape in shapes] for shapes in (spec.shapes_a, spec.shapes_b))

    def exporter():
        graph, _ = fold(original_graph(architecture, arrays, (64, 64)))
        save(lower(graph, Format()), folder / "model.onnx")

    def packers():
        # A model packs each of its NeoCells once: the plan is part of it.
        packing.plan.cache_clear()
        packing.pack(spec, a, b)

    return {"exporter": exporter, "reader": lambda: load_checkpoint(checkpoint).float32(), "packers": packers}


def work(extra: str | None) -> None:
    """Run every piece once, so that imports and caches are warm, and one of them once more."""
    with tempfile.TemporaryDirectory() as folder:
        pieces = prepare(Path(folder))
        for piece in pieces.values():
            piece()
        if extra:
            pieces[extra]()


def method() -> str:
    """Return the most precise method that works here: "perf", "callgrind" or "ratio"."""
    if shutil.which("perf"):
        trial = subprocess.run(["perf", "stat", "-x,", "-e", "instructions:u", "true"], capture_output=True, text=True)
        if trial.returncode == 0 and parse_perf(trial.stderr) is not None:
            return "perf"
    return "callgrind" if shutil.which("valgrind") else "ratio"


def parse_perf(text: str) -> int | None:
    """Parse the output of `perf stat -x,`; return None if the machine does not count instructions."""
    match = re.search(r"^(\d+),[^,\n]*,instructions", text, re.MULTILINE)
    return int(match[1]) if match else None


def parse_callgrind(text: str) -> int | None:
    """Parse the output of callgrind; return None if it has no count."""
    match = re.search(r"Collected\s*:\s*([\d,]+)", text)
    return int(match[1].replace(",", "")) if match else None


def count(how: str, extra: str | None) -> int:
    """Count the instructions of a process that runs `work(extra)`.

    Raises:
        ToolchainError: the tool failed.
    """
    tools = {
        "perf": (["perf", "stat", "-x,", "-e", "instructions:u"], parse_perf),
        "callgrind": (["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"], parse_callgrind),
    }
    tool, parse = tools[how]
    # With one thread and one hash seed, every run executes the same instructions.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [*tool, sys.executable, "-m", __spec__.name if __spec__ else __name__, "--work", extra or ""]
    try:
        process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{tool[0]} took more than {TIMEOUT:.0f} s; is the machine busy?") from error
    instructions = parse(process.stderr) if process.returncode == 0 else None
    if instructions is None:
        tail = " ".join(process.stderr.split())[-300:]
        raise ToolchainError(f"{tool[0]} counted nothing (exit code {process.returncode}): {tail}. Try --method ratio.")
    return instructions


def costs(how: str) -> dict[str, float]:
    """Return the cost of every piece by a method.

    Raises:
        ToolchainError: the tool of the method failed.
    """
    if how == "ratio":
        return _ratios()
    steps = progress([None, *PIECES], what=how)
    counts = {extra: count(how, extra) for extra in steps}
    return {piece: float(counts[piece] - counts[None]) for piece in PIECES}


def _ratios() -> dict[str, float]:
    import numpy as np

    values = np.random.RandomState(0).standard_normal((64, 64)).astype(np.float32)

    def reference():
        table = {i: str(i) for i in range(20000)}
        return sum(len(text) for text in table.values()), [values @ values for _ in range(50)]

    with tempfile.TemporaryDirectory() as folder:
        pieces = {"": reference, **prepare(Path(folder))}
        best = dict.fromkeys(pieces, float("inf"))
        for _ in range(REPEATS):
            for name, piece in pieces.items():
                start = time.process_time()
                piece()
                best[name] = min(best[name], time.process_time() - start)
    return {piece: best[piece] / best[""] for piece in PIECES}


def versions() -> dict[str, str]:
    """Return the versions that counts depend on."""
    from importlib.metadata import version

    python = ".".join(platform.python_version_tuple()[:2])
    return {"machine": platform.machine(), "python": python, **{name: version(name) for name in PACKAGES}}


def read_baseline(path: str | os.PathLike) -> dict:
    """Read the stored baseline; it is empty if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    if not Path(path).exists():
        return {}
    try:
        baseline = read_json(path, "a baseline of this command")
        for entry in baseline.values():
            entry["versions"].items()
            if not all(float(entry["costs"][piece]) > 0 for piece in PIECES):
                raise ValueError("a cost is not positive")
        return baseline
    except InputError:
        raise
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{os.fspath(path)}: not a baseline of this command. Write it anew with --update.") from error


def compare(how: str, measured: Mapping[str, float], baseline: Mapping) -> tuple[list[PieceCost], str | None]:
    """Return the costs with the baseline of the same method, and the reason if there is nothing to compare with."""
    entry, reason = baseline.get(how), None
    if entry is None:
        reason = f"the baseline has no figures by {how}"
    elif entry["versions"] != (here := versions()):
        other = [f"{key} {entry['versions'].get(key)}, here {value}" for key, value in here.items()
                 if entry["versions"].get(key) != value]  # fmt: skip
        reason = f"the baseline is of other versions ({'; '.join(other)})"
    stored = {} if entry is None or reason else entry["costs"]
    return [PieceCost(piece, measured[piece], stored.get(piece), LIMITS[how]) for piece in PIECES], reason


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.cost_watch", description=__doc__)
    parser.add_argument("--method", help=f"{', '.join(LIMITS)} (default: the first that works here)")
    parser.add_argument("--baseline", default=str(BASELINE), metavar="FILE", help="file of the baseline")
    parser.add_argument("--update", action="store_true", help="store the measured costs as the baseline")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work is not None:
        return work(args.work or None)
    if args.method is not None and args.method not in LIMITS:
        raise UsageError(f"unknown method {args.method!r}; expected {', '.join(LIMITS)}")
    how = args.method or method()
    tool = {"perf": "perf", "callgrind": "valgrind"}.get(how)
    if tool and shutil.which(tool) is None:
        raise ToolchainError(f"{tool} is not installed. Install it, or pass --method ratio.")
    baseline = read_baseline(args.baseline)
    measured = costs(how)
    if args.update:
        baseline[how] = {"versions": versions(), "costs": measured}
        with atomic(args.baseline) as staged:
            staged.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    rows, reason = compare(how, measured, baseline)
    if args.json:
        print_json({"method": how, "not_compared": reason, "rows": [row.to_dict() for row in rows]})
    else:
        _print(how, rows, reason)
    if failed := [row for row in rows if row.fails]:
        pieces = ", ".join(f"{row.piece} ({row.ratio:.2f} times its baseline)" for row in failed)
        raise RegressionError(f"{pieces}: allowed is {failed[0].limit}. Make it cheaper, or accept it with --update.")


def _print(how: str, rows: Sequence[PieceCost], reason: str | None) -> None:
    unit = "CPU time over that of reference work" if how == "ratio" else f"instructions by {how}"
    print(f"{unit}, for one more call of each piece")
    for row in rows:
        cost = f"{row.cost:.3f}" if how == "ratio" else f"{row.cost:,.0f}"
        comparison = "" if row.ratio is None else f"  {row.ratio:.3f} of the baseline (allowed {row.limit})"
        print(f"{row.piece:10}{cost:>16}{comparison}")
    if reason:
        print(f"not compared: {reason}; --update stores these figures")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
