"""NeoNeXt and ConvNeXt of the same depths and widths, both as exported and both folded by the same rules."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from neonext_ms.common.cli import batch_size, comma_list, parse_size, some_of
from neonext_ms.common.errors import UsageError
from neonext_ms.common.text import format_size

from .timing import add_rounds

ROUNDS = 30
SIZES = ("t", "s", "b")
PAIRS = (
    ("convnext folded", "neonext folded"),
    ("convnext plain", "neonext plain"),
    ("convnext plain", "convnext folded"),
    ("neonext plain", "neonext folded"),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim to the parser."""
    parser.add_argument("--sizes", type=some_of(SIZES), default=("t",), metavar="NAMES", help="t, s and b (default t)")
    parser.add_argument("--batch", type=comma_list(batch_size), default=(1, 8), help="batch sizes (default 1,8)")
    parser.add_argument("--image-size", type=parse_size, default=(224, 224), help="height x width (default 224)")
    add_rounds(parser)


def measure(args: argparse.Namespace) -> dict:
    """Time the four graphs of every size at every batch size."""
    import numpy as np

    from neonext_ms.export.onnx.emitter import emit
    from neonext_ms.export.source import Source

    from .. import costs, networks
    from .forms import call, over, timed

    rows = []
    for size in args.sizes:
        if size not in SIZES:
            raise UsageError(f"unknown size {size!r} of ConvNeXt and NeoNeXt; expected one of {', '.join(SIZES)}")
        graphs = forms_of_source(Source.from_name(f"neonext_{size}.released_224"), args.image_size)
        for form, folded in (("plain", False), ("folded", True)):
            graphs[f"convnext {form}"] = networks.deploy_graph(
                f"convnext_{size}", image_size=args.image_size, folded=folded
            )
        counts = {name: costs.total(costs.of_graph(graph)).multiply_adds for name, graph in graphs.items()}
        for batch in args.batch:
            x = np.random.default_rng(0).standard_normal((batch, 3, *args.image_size), np.float32)
            subjects = {name: call(emit(graph), x, args.threads) for name, graph in graphs.items()}
            rounds = args.rounds or max(8, ROUNDS // (1 if batch == 1 else 3))
            times, samples = timed(subjects, rounds)
            rows.append(
                {
                    "size": size,
                    "batch": batch,
                    "rounds": rounds,
                    "multiply_adds": counts,
                    "ms": times,
                    "ratios": [{"slow": a, "fast": b, **over(samples, a, b)} for a, b in PAIRS],
                }
            )
    return {"image_size": list(args.image_size), "rows": rows}


def forms_of_source(source, image_size: tuple[int, int]) -> dict:
    """Return the two graphs of an `export.source.Source`: node by node, and folded."""
    from neonext_ms.export.fold import fold
    from neonext_ms.export.graph import original_graph
    from neonext_ms.export.lower import neocell_to_matmul

    network = original_graph(source.architecture, source.arrays, image_size)
    return {"neonext plain": neocell_to_matmul(network), "neonext folded": neocell_to_matmul(fold(network)[0])}


def lines(result: Mapping) -> Iterator[str]:
    """Yield the lines to print."""
    from .forms import shown

    size = format_size(result["image_size"])
    yield f"onnxruntime, {result['threads']} threads, {size}, float32, random weights"
    for row in result["rows"]:
        yield f"size {row['size'].upper()}, batch {row['batch']} ({row['rounds']} rounds)"
        for name, value in row["ms"].items():
            rate = 1e3 * row["batch"] / value
            yield (
                f"  {name:16} {value:8.1f} ms, {rate:6.1f} images/s, {row['multiply_adds'][name] / 1e9:.2f} G "
                "multiply-adds in its products"
            )
        for ratio in row["ratios"]:
            yield f"  {ratio['slow']} / {ratio['fast']}: {shown(ratio)}"
