"""Block-diagonal products against patches, and compiled code against Python.

The paper's two factors were measured on a V100 in PyTorch. Here both are measured on the CPU in onnxruntime, MindSpore
(a compiled graph, `ms.jit`) and NumPy. "patches" is equation 1 by reshape, transpose and batched products of k x k
matrices; "loop" goes from patch to patch in Python. Compiled against Python is `ms.jit` against MindSpore's PyNative
mode, for a NeoCell that builds its block-diagonal matrices from the small ones, as in a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from neonext_ms.common.cli import batch_size, comma_list, int_range

from .complexity import MAPS, channels_of
from .timing import add_rounds

ROUNDS = 20
# Batch 1 and one channel group of the maps keep the loop in Python short.
LOOP_CHANNELS = 16


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim to the parser."""
    parser.add_argument("--batch", type=batch_size, default=8, help="batch size (default 8)")
    parser.add_argument(
        "--kernel", type=int_range(1, 1024), default=7, help="block size k, a divisor of sides (default 7)"
    )
    parser.add_argument(
        "--maps", type=comma_list(int_range(1, 1024)), default=tuple(side for _, side in MAPS), help="sides of the maps"
    )
    parser.add_argument("--no-mindspore", action="store_true", help="omit MindSpore")
    add_rounds(parser)


def measure(args: argparse.Namespace) -> dict:
    """Time every form on every map whose side is a multiple of k."""
    from neonext_ms.common.errors import UsageError

    fitting = [side for side in args.maps if side % args.kernel == 0]
    if not fitting:
        raise UsageError(f"--kernel {args.kernel} divides none of the sides {', '.join(map(str, args.maps))}")
    rows = []
    for side in fitting:
        shape = (args.batch, channels_of(side), side, side)
        rows.append(_row(shape, args.kernel, args.threads, args.rounds or ROUNDS, not args.no_mindspore))
    return {"batch": args.batch, "kernel": args.kernel, "rows": rows}


def _row(shape, k: int, threads: int, rounds: int, mindspore: bool) -> dict:
    import numpy as np

    from neonext_ms.ops import reference
    from neonext_ms.ops.spec import NeoCellSpec

    from . import forms

    generator = np.random.default_rng(0)
    spec = NeoCellSpec({"kernel": k, "channels": shape[1], "shift": 0})
    x = generator.standard_normal(shape, np.float32)
    a, b = generator.standard_normal((2, shape[1], k, k), np.float32) / np.float32(k)
    matrix_a, matrix_b = spec.matrices([a], [b], *shape[2:])
    few = NeoCellSpec({"kernel": k, "channels": LOOP_CHANNELS, "shift": 0})
    x_few, a_few, b_few = x[:1, :LOOP_CHANNELS], a[:LOOP_CHANNELS], b[:LOOP_CHANNELS]
    subjects = {
        "onnxruntime, block-diagonal": forms.call(forms.block_diagonal(matrix_a, matrix_b, shape), x, threads),
        "onnxruntime, patches": forms.call(forms.patchwise(a, b, shape), x, threads),
        "NumPy, block-diagonal": lambda: matrix_a @ x @ matrix_b,
        "NumPy, patches": lambda: _patches(x, a, b),
        "NumPy, block-diagonal, 16 channels": lambda: reference.forward(x_few, [a_few], [b_few], few),
        "NumPy, loop, 16 channels": lambda: reference.forward_patchwise(x_few, [a_few], [b_few], few),
    }
    if mindspore:
        subjects |= _in_mindspore(x, a, b, spec, threads)
    times, samples = forms.timed(subjects, rounds)
    pairs = [
        ("onnxruntime, patches", "onnxruntime, block-diagonal"),
        ("NumPy, patches", "NumPy, block-diagonal"),
        ("NumPy, loop, 16 channels", "NumPy, block-diagonal, 16 channels"),
    ]
    if mindspore:
        pairs += [
            ("MindSpore graph, patches", "MindSpore graph, block-diagonal"),
            ("MindSpore PyNative, block-diagonal", "MindSpore graph, block-diagonal"),
        ]
    return {
        "map": shape[2],
        "channels": shape[1],
        "ms": times,
        "ratios": [{"slow": s, "fast": f, **forms.over(samples, s, f)} for s, f in pairs],
    }


def _patches(x, a, b):
    n, c, h, w = x.shape
    k = a.shape[1]
    cut = x.reshape(n, c, h // k, k, w // k, k).swapaxes(3, 4)
    return (a[:, None, None] @ cut @ b[:, None, None]).swapaxes(3, 4).reshape(x.shape)


def _in_mindspore(x, a, b, spec, threads: int) -> dict:
    from neonext_ms.runtime.mindspore import load_mindspore

    ms = load_mindspore(threads)
    from mindspore import Tensor, ops

    from neonext_ms.ops.neocell import neo_cell

    n, c, h, w = x.shape
    k = a.shape[1]
    product = ops.BatchMatMul()
    inputs = Tensor(x), Tensor(a), Tensor(b)

    def block_diagonal(x, a, b):
        return neo_cell(x, (a,), (b,), spec)

    def patches(x, a, b):
        cut = x.reshape(n, c, h // k, k, w // k, k).transpose(0, 1, 2, 4, 3, 5)
        size = (n, 1, h // k, w // k, 1, 1)
        left = ops.tile(a.reshape(1, c, 1, 1, k, k), size)
        right = ops.tile(b.reshape(1, c, 1, 1, k, k), size)
        return product(product(left, cut), right).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)

    def waited(function):
        # Reading the result waits for it.
        return lambda: function(*inputs).asnumpy()

    return {
        "MindSpore graph, block-diagonal": waited(ms.jit(block_diagonal)),
        "MindSpore graph, patches": waited(ms.jit(patches)),
        "MindSpore PyNative, block-diagonal": waited(block_diagonal),
    }


def lines(result: Mapping) -> Iterator[str]:
    """Yield the lines to print."""
    yield f"CPU, {result['threads']} threads, batch {result['batch']}, k = {result['kernel']}, no shift; milliseconds"
    from .forms import shown

    for row in result["rows"]:
        yield f"map {row['map']}, {row['channels']} channels"
        for name, value in row["ms"].items():
            yield f"  {name:36} {value:9.3f}"
        for ratio in row["ratios"]:
            yield f"  {ratio['slow']} / {ratio['fast'].rpartition(', ')[2]}: {shown(ratio)}"
