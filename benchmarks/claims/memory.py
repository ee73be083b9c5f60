"""Peak memory of one operator: a NeoCell in two forms, a depthwise convolution, and the same convolution by im2col.

Every measurement is a process of its own: it runs the operator once, sets the kernel's record of the largest resident
set back, runs it again, and reads the record. The result is what that run needed beside its input, its weights and
everything loaded before, so its output counts. onnxruntime's arena is off, because it keeps memory in steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.files import temporary_folder
from neonext_ms.common.text import format_bytes, one_line

KERNELS = (4, 7)
SIDES = (56, 28, 14)
_FORMS = ("block-diagonal", "patchwise", "depthwise", "im2col")
_RESET = Path("/proc/self/clear_refs")
# Large blocks always come from the system and go back to it, so that no run uses what an earlier one has freed.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
_PROCESS = """\
import json, sys
import numpy as np
from neonext_ms.runtime.onnx import onnx_session
path, shape, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
session = onnx_session(path, threads, lean=True)
x = np.random.default_rng(0).standard_normal(shape, np.float32)
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
session.run(None, {"x": x})
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
session.run(None, {"x": x})
print("peak", status("VmHWM") - before)
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim to the parser."""
    from neonext_ms.common.cli import batch_size, comma_list, int_range

    parser.add_argument("--batch", type=batch_size, default=8, help="batch size (default 8)")
    parser.add_argument(
        "--kernels", type=comma_list(int_range(1, 32)), default=KERNELS, help="block sizes (default 4 and 7)"
    )
    parser.add_argument(
        "--maps", type=comma_list(int_range(1, 1024)), default=SIDES, help="sides of the maps (default 56,28,14)"
    )


def counted(kernel: int, shape: tuple[int, int, int, int]) -> dict[str, int]:
    """Return the bytes of float32 that each form needs at least beside input and weights, the output included."""
    one = 4 * shape[0] * shape[1] * shape[2] * shape[3]
    # A X and the output; two of the copies in patches and the products, one after the other; the output alone; the
    # k^2 copies and the output.
    return {"block-diagonal": 2 * one, "patchwise": 2 * one, "depthwise": one, "im2col": (kernel**2 + 1) * one}


def measure(args: argparse.Namespace) -> dict:
    """Measure every form for every map and every k that divides it."""
    from .complexity import channels_of

    if not os.access(_RESET, os.W_OK):
        raise ToolchainError("claims memory needs Linux, whose /proc keeps the largest resident set of a process")
    rows = []
    for side in args.maps:
        shape = args.batch, channels_of(side), side, side
        for kernel in args.kernels:
            if side % kernel == 0:
                rows.append(_row(kernel, shape, args.threads))
    if not rows:
        raise InputError(f"no map is a multiple of a block (got maps {args.maps}, kernels {args.kernels})")
    return {"batch": args.batch, "rows": rows}


def _row(kernel: int, shape: tuple[int, int, int, int], threads: int) -> dict:
    import numpy as np

    from neonext_ms.ops.spec import NeoCellSpec

    from . import forms

    _, channels, height, width = shape
    a, b = np.random.default_rng(0).standard_normal((2, channels, kernel, kernel), np.float32)
    whole = NeoCellSpec({"kernel": kernel, "channels": channels}).matrices([a], [b], height, width)
    models = (forms.block_diagonal(*whole, shape), forms.patchwise(a, b, shape), forms.depthwise(a, shape),
              forms.im2col(a, shape))  # fmt: skip
    with temporary_folder() as folder:
        peaks = {}
        for name, model in zip(_FORMS, models, strict=True):
            path = folder / f"{name}.onnx"
            path.write_bytes(model.SerializeToString())
            peaks[name] = _peak(path, shape, threads)
    map_bytes = 4 * channels * shape[0] * height * width
    return {
        "kernel": kernel, "shape": list(shape), "map_bytes": map_bytes, "peak_bytes": peaks,
        "counted_bytes": counted(kernel, shape),
    }  # fmt: skip


def _peak(path: Path, shape: tuple[int, ...], threads: int) -> int:
    """Return the bytes that one run of a model needs."""
    command = [sys.executable, "-c", _PROCESS, str(path), json.dumps(shape), str(threads)]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_ENVIRONMENT})
    if process.returncode:
        raise InputError(f"{path.name}: cannot be measured ({one_line(process.stderr.strip().rpartition(chr(10))[2])})")
    return int(process.stdout.split("peak ")[-1])


def lines(result: Mapping) -> Iterator[str]:
    """Yield the table as text: bytes, and in parentheses how many maps that is."""
    yield f"onnxruntime without its arena, {result['threads']} threads; bytes of one run beside input and weights"
    yield "map              k  " + "  ".join(f"{name:18}" for name in _FORMS).rstrip()
    for row in result["rows"]:
        cells = [f"{format_bytes(n)} ({n / row['map_bytes']:.1f} maps)" for n in row["peak_bytes"].values()]
        shape = "x".join(map(str, row["shape"]))
        yield f"{shape:15} {row['kernel']:2}  " + "  ".join(f"{cell:18}" for cell in cells).rstrip()
    yield "at least, by count: 2, 2, 1 and k^2 + 1 maps; im2col here puts its copies together in a second buffer"
