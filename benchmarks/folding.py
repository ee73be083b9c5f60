"""What folding gains: an exported model against the same network exported node by node, in onnxruntime.

python -m neonext_ms.benchmarks.folding [--model neonext_t.released_224] [--checkpoint FILE --shifts 1,1,1,0]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

from ..commands.common import Parser, parse_shifts, parse_size, print_json, run
from .timing import interleaved, ratio

BATCHES = (1, 8)


def measure(args: argparse.Namespace) -> dict:
    """Export both forms, time them, and return medians in milliseconds and ratios by batch size."""
    import numpy as np
    import onnxruntime

    from ..export import pipeline
    from ..export.request import Request
    from ..runtime import open_runtime

    if args.checkpoint:
        source = pipeline.source_of_checkpoint(args.checkpoint, args.shifts)
    else:
        source = pipeline.source_of_name(args.model, args.shifts)
    result = {"model": source.name, "threads": args.threads, "onnxruntime": onnxruntime.__version__, "batches": {}}
    with tempfile.TemporaryDirectory() as folder:
        sizes = [args.image_size] if args.image_size else ()
        report = pipeline.export(source, Request(["onnx", "onnx-naive"], sizes), folder)
        result["nodes"] = {"naive": report.nodes[0], "folded": report.nodes[1]}
        result["relative_l2"] = report.parity["onnx"].relative_l2
        result["image_size"] = report.metadata["image_size"]
        runtimes = {
            name: open_runtime(report.files[target], threads=args.threads)
            for name, target in (("naive", "onnx-naive"), ("folded", "onnx"))
        }
        for batch in BATCHES:
            images = np.random.RandomState(0).standard_normal((batch, 3, *result["image_size"])).astype(np.float32)
            rounds = max(3, args.rounds // (1 if batch == 1 else 3))
            seconds = interleaved({name: partial(r.run, images) for name, r in runtimes.items()}, rounds)
            middle, low, high = ratio(seconds["naive"], seconds["folded"])
            result["batches"][batch] = {
                "rounds": rounds,
                **{f"{name}_ms": statistics.median(values) * 1e3 for name, values in seconds.items()},
                "ratio": middle,
                "ratio_quartiles": [low, high],
            }
    return result


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.folding", description=__doc__)
    parser.add_argument("--model", default="neonext_t.released_224", help="a named model with random weights")
    parser.add_argument("--checkpoint", metavar="FILE", help="measure this instead")
    parser.add_argument("--shifts", type=parse_shifts)
    parser.add_argument("--image-size", type=parse_size)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40, help="timed runs of each at batch 1 (default 40)")
    parser.add_argument("--json", action="store_true")
    result = measure(args := parser.parse_args(argv))
    if args.json:
        print_json(result)
        return
    nodes = result["nodes"]
    print(
        f"{result['model']} at {'x'.join(map(str, result['image_size']))}, onnxruntime {result['onnxruntime']}, "
        f"{result['threads']} threads; {nodes['naive']} nodes naive, {nodes['folded']} folded, "
        f"relative L2 {result['relative_l2']:.1e}"
    )
    for batch, row in result["batches"].items():
        low, high = row["ratio_quartiles"]
        print(
            f"batch {batch}: naive {row['naive_ms']:.1f} ms, folded {row['folded_ms']:.1f} ms, naive / folded "
            f"{row['ratio']:.2f} (quartiles {low:.2f} to {high:.2f}, {row['rounds']} rounds)"
        )


if __name__ == "__main__":
    sys.exit(run(_main))
