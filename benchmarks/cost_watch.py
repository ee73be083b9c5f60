"""Instructions of the exporter, the checkpoint reader and the packers, in comparison with a stored baseline."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from neonext_ms.common.cli import Parser, progress, run
from neonext_ms.common.errors import NeoNextError, ToolchainError
from neonext_ms.common.files import atomic, temporary_folder

DESCRIPTION = """\
Instructions of the exporter, the checkpoint reader and the packers, in comparison with a stored baseline.

    python -m neonext_ms.benchmarks.cost_watch [--update]

valgrind's callgrind counts them; the number hardly varies from run to run. The exit code is 1 if a piece needs more
than 1.1 times its baseline. Counts depend on the interpreter and the libraries, so a baseline of other versions is
reported and not compared."""

BASELINE = Path(__file__).parent / "data" / "cost_watch.json"
# Largest allowed ratio to the baseline.
LIMIT = 1.1
PIECES = ("exporter", "reader", "packers")
PACKAGES = ("numpy", "onnx", "protobuf")
TIMEOUT = 900.0


class RegressionError(NeoNextError):
    """A piece needs more than its baseline allows (exit code 1)."""


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
    with temporary_folder() as folder:
        pieces = prepare(folder)
        for piece in pieces.values():
            piece()
        if extra:
            pieces[extra]()


def parse_callgrind(text: str) -> int | None:
    """Parse the output of callgrind; return None if it has no count."""
    match = re.search(r"Collected\s*:\s*([\d,]+)", text)
    return int(match[1].replace(",", "")) if match else None


def count(extra: str | None) -> int:
    """Count the instructions of a process that runs `work(extra)`.

    Raises:
        ToolchainError: valgrind is not installed, or failed.
    """
    # With one thread and one hash seed, every run executes the same instructions.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    command += ["-m", __spec__.name if __spec__ else __name__, "--work", extra or ""]
    try:
        process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
    except FileNotFoundError as error:
        raise ToolchainError("valgrind is not installed. Install it to count instructions.") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"valgrind took more than {TIMEOUT:.0f} s; is the machine busy?") from error
    instructions = parse_callgrind(process.stderr) if process.returncode == 0 else None
    if instructions is None:
        tail = " ".join(process.stderr.split())[-300:]
        raise ToolchainError(f"valgrind counted nothing (exit code {process.returncode}): {tail}")
    return instructions


def versions() -> dict[str, str]:
    """Return the versions that counts depend on."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"machine": platform.machine(), "python": python, **{name: version(name) for name in PACKAGES}}


def other_versions(baseline: Mapping) -> str:
    """Return how the versions of a baseline differ from those here; an empty string if they do not."""
    stored = baseline["versions"]
    return "; ".join(
        f"{key} {stored.get(key)}, here {value}" for key, value in versions().items() if stored.get(key) != value
    )


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.cost_watch", description=DESCRIPTION)
    parser.add_argument("--update", action="store_true", help="store the counts as the baseline")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work is not None:
        return work(args.work or None)
    counts = {extra: count(extra) for extra in progress([None, *PIECES], what="callgrind")}
    costs = {piece: counts[piece] - counts[None] for piece in PIECES}
    if args.update:
        with atomic(BASELINE) as staged:
            baseline = {"versions": versions(), "costs": costs}
            staged.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    ratios = {piece: cost / baseline["costs"][piece] for piece, cost in costs.items()}
    print("instructions by callgrind, for one more call of each piece")
    for piece, cost in costs.items():
        print(f"{piece:10}{cost:>16,}  {ratios[piece]:.3f} of the baseline (allowed {LIMIT})")
    if reason := other_versions(baseline):
        print(f"not compared: the baseline is of other versions ({reason}); --update stores these figures")
    elif failed := [f"{piece} ({r:.2f} times its baseline)" for piece, r in ratios.items() if r > LIMIT]:
        raise RegressionError(f"{', '.join(failed)}: allowed is {LIMIT}. Make it cheaper, or accept it with --update.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
