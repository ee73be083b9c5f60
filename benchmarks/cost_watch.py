"""Regression watch: what the exporter, the checkpoint reader and the packers cost, against a stored baseline.

    python -m neonext_ms.benchmarks.cost_watch [--update]

Counted are instructions, with `perf stat` where the machine has counters, else with valgrind's callgrind; they hardly
vary from run to run. Where neither is there, the CPU time of a piece over that of fixed work in Python and NumPy is
taken instead. A piece that needs more than 1.1 times its baseline (1.5 times for ratios of time) fails: exit code 1.
Counts depend on the interpreter and the libraries, so a baseline of other versions is reported and not compared.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from pathlib import Path

from neonext_ms.common.cli import Parser, print_json, progress, run
from neonext_ms.common.errors import InputError, NeoNextError, ToolchainError, UsageError
from neonext_ms.common.files import atomic, explained

BASELINE = Path(__file__).parent / "data" / "instructions.json"
# What a piece may need of its baseline; times vary more than counts.
LIMITS = {"perf": 1.1, "callgrind": 1.1, "ratio": 1.5}
PIECES = ("exporter", "reader", "packers")
PACKAGES = ("numpy", "onnx", "protobuf")
TIMEOUT = 900.0
# Repetitions in the time of a piece, whose smallest counts.
REPEATS = 15


class RegressionError(NeoNextError):
    """A piece needs more than its baseline allows (exit code 1)."""


@dataclass(frozen=True)
class Row:
    """A piece beside its baseline.

    Attributes:
        piece: one of `PIECES`.
        cost: instructions, or CPU time over that of the reference work.
        baseline: the same, stored; None if there is none for these versions.
        limit: largest allowed ratio.
    """

    piece: str
    cost: float
    baseline: float | None
    limit: float

    @property
    def ratio(self) -> float | None:
        """Cost over baseline."""
        return None if self.baseline is None else self.cost / self.baseline

    @property
    def fails(self) -> bool:
        """Whether it needs more than it may."""
        return self.ratio is not None and self.ratio > self.limit

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {"piece": self.piece, "cost": self.cost, "baseline": self.baseline, "ratio": self.ratio,
                "limit": self.limit, "fails": self.fails}  # fmt: skip


def prepare(folder: Path) -> dict[str, Callable[[], object]]:
    """The pieces, each as a function; what they read lies in `folder`."""
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
    save_checkpoint(checkpoint, arrays, {"shifts": list(architecture.shifts)})
    spec = architecture.stage_spec(2)
    small = [[np.ones(shape, np.float32) for shape in shapes] for shapes in (spec.shapes_a, spec.shapes_b)]

    def exporter():
        graph, _ = fold(original_graph(architecture, arrays, (64, 64)))
        save(lower(graph, Format()), folder / "model.onnx")

    def packers():
        # A model packs each of its NeoCells once: the plan is part of it.
        packing.plan.cache_clear()
        packing.pack(spec, *small)

    return {"exporter": exporter, "reader": lambda: load_checkpoint(checkpoint).float32(), "packers": packers}


def work(extra: str | None) -> None:
    """Every piece once, so that what is loaded or kept at first use is there, and one of them once more."""
    with tempfile.TemporaryDirectory() as folder:
        pieces = prepare(Path(folder))
        for piece in pieces.values():
            piece()
        if extra:
            pieces[extra]()


def method() -> str:
    """The best way that works here: "perf", "callgrind" or "ratio"."""
    if shutil.which("perf"):
        found = subprocess.run(["perf", "stat", "-x,", "-e", "instructions:u", "true"], capture_output=True, text=True)
        if found.returncode == 0 and parse_perf(found.stderr) is not None:
            return "perf"
    return "callgrind" if shutil.which("valgrind") else "ratio"


def parse_perf(text: str) -> int | None:
    """Instructions from what `perf stat -x,` printed, or None if the machine does not count them."""
    match = re.search(r"^(\d+),[^,\n]*,instructions", text, re.MULTILINE)
    return int(match[1]) if match else None


def parse_callgrind(text: str) -> int | None:
    """Instructions from what callgrind printed, or None."""
    match = re.search(r"Collected\s*:\s*([\d,]+)", text)
    return int(match[1].replace(",", "")) if match else None


def count(how: str, extra: str | None) -> int:
    """Instructions of a process that does `work(extra)`.

    Raises:
        ToolchainError: the tool failed.
    """
    tools = {
        "perf": (["perf", "stat", "-x,", "-e", "instructions:u"], parse_perf),
        "callgrind": (["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"], parse_callgrind),
    }
    tool, parse = tools[how]
    # One thread and one seed of hashes: the same instructions in every run.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [*tool, sys.executable, "-m", __spec__.name if __spec__ else __name__, "--work", extra or ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{tool[0]} took more than {TIMEOUT:.0f} s; is the machine busy?") from error
    found = parse(done.stderr) if done.returncode == 0 else None
    if found is None:
        tail = " ".join(done.stderr.split())[-300:]
        raise ToolchainError(f"{tool[0]} counted nothing (exit code {done.returncode}): {tail}; try --method ratio")
    return found


def costs(how: str) -> dict[str, float]:
    """What every piece costs, by a method.

    Raises:
        ToolchainError: the tool of that method failed.
    """
    if how == "ratio":
        return _ratios()
    steps = progress([None, *PIECES], what=how)
    found = {extra: count(how, extra) for extra in steps}
    return {piece: float(found[piece] - found[None]) for piece in PIECES}


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
    """What counts depend on besides this package."""
    from importlib.metadata import version

    python = ".".join(platform.python_version_tuple()[:2])
    return {"machine": platform.machine(), "python": python, **{name: version(name) for name in PACKAGES}}


def read_baseline(path: str | os.PathLike) -> dict:
    """The stored baseline; empty if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    if not Path(path).exists():
        return {}
    try:
        with explained(path):
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        for entry in found.values():
            entry["versions"].items()
            if not all(float(entry["costs"][piece]) > 0 for piece in PIECES):
                raise ValueError("a cost is not positive")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{os.fspath(path)}: not a baseline of this command; write it anew with --update") from error


def compare(how: str, found: Mapping[str, float], baseline: Mapping) -> tuple[list[Row], str | None]:
    """Costs beside the baseline of the same method, and why there is nothing to compare with, or None."""
    entry, reason = baseline.get(how), None
    if entry is None:
        reason = f"the baseline has no figures by {how}"
    elif entry["versions"] != (here := versions()):
        other = [f"{key} {entry['versions'].get(key)}, here {value}" for key, value in here.items()
                 if entry["versions"].get(key) != value]  # fmt: skip
        reason = f"the baseline is of other versions ({'; '.join(other)})"
    stored = {} if entry is None or reason else entry["costs"]
    return [Row(piece, found[piece], stored.get(piece), LIMITS[how]) for piece in PIECES], reason


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.cost_watch", description=__doc__)
    parser.add_argument("--method", help=f"{', '.join(LIMITS)} (default: the first of them that works here)")
    parser.add_argument("--baseline", default=str(BASELINE), metavar="FILE")
    parser.add_argument("--update", action="store_true", help="store what was found as the baseline")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", help="for the counted process")
    args = parser.parse_args(argv)
    if args.work is not None:
        return work(args.work or None)
    if args.method is not None and args.method not in LIMITS:
        raise UsageError(f"unknown method {args.method!r}; expected {', '.join(LIMITS)}")
    how = args.method or method()
    tool = {"perf": "perf", "callgrind": "valgrind"}.get(how)
    if tool and shutil.which(tool) is None:
        raise ToolchainError(f"{tool} is not installed; install it, or pass --method ratio")
    baseline = read_baseline(args.baseline)
    found = costs(how)
    if args.update:
        whole = {**baseline, how: {"versions": versions(), "costs": found}}
        with atomic(args.baseline) as staged:
            staged.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        baseline = whole
    rows, reason = compare(how, found, baseline)
    if args.json:
        print_json({"method": how, "not_compared": reason, "rows": [row.to_dict() for row in rows]})
    else:
        _print(how, rows, reason)
    if failed := [row for row in rows if row.fails]:
        pieces = ", ".join(f"{row.piece} ({row.ratio:.2f} times its baseline)" for row in failed)
        raise RegressionError(f"{pieces}: allowed is {failed[0].limit}; make it cheaper, or accept it with --update")


def _print(how: str, rows: Sequence[Row], reason: str | None) -> None:
    unit = "CPU time over that of reference work" if how == "ratio" else f"instructions by {how}"
    print(f"{unit}, of one more call of each piece")
    for row in rows:
        cost = f"{row.cost:.3f}" if how == "ratio" else f"{row.cost:,.0f}"
        beside = "" if row.ratio is None else f"  {row.ratio:.3f} of the baseline (allowed {row.limit})"
        print(f"{row.piece:10}{cost:>16}{beside}")
    if reason:
        print(f"not compared: {reason}; --update stores these")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
