"""Share of NeoCells in the whole model: multiply-adds, bytes of weights, and time in onnxruntime."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from neonext_ms.common.cli import batch_size, comma_list

from .timing import add_rounds

RUNS = 20
MODELS = tuple(f"neonext_{size}.released_224" for size in "tsb")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim to the parser."""
    parser.add_argument("--models", type=comma_list(), default=MODELS, help="names; the first one is timed too")
    parser.add_argument("--batch", type=comma_list(batch_size), default=(1, 8), help="batch sizes (default 1,8)")
    add_rounds(parser)


def measure(args: argparse.Namespace) -> dict:
    """Count the work of every model, and time the first one by layer kind."""
    from neonext_ms.common.files import temporary_folder
    from neonext_ms.export.source import Source

    from .. import profiles, variants

    sources = {name: Source.from_name(name) for name in args.models}
    counts = {name: count(source, tuple(source.metadata["image_size"])) for name, source in sources.items()}
    first = sources[args.models[0]]
    size = tuple(first.metadata["image_size"])
    times = []
    with temporary_folder() as folder:
        path = variants.write(first, size, folder / "model.onnx")
        for batch in args.batch:
            profile = profiles.of_onnxruntime(path, batch, args.threads, args.rounds or RUNS)
            total = profile.microseconds
            times.append(
                {
                    "model": args.models[0],
                    "batch": batch,
                    "microseconds": total,
                    "kinds": {kind: value / total for kind, value in profile.kinds().items()},
                }
            )
    return {"counts": counts, "times": times}


def count(source, image_size: tuple[int, int]) -> dict[str, float]:
    """Return the shares of NeoCells in the folded network: multiply-adds by equation 5 and with zeros, and weights."""
    from neonext_ms.export.fold import fold
    from neonext_ms.export.graph import original_graph
    from neonext_ms.export.lower import neocell_to_matmul

    from .. import costs

    folded, _ = fold(original_graph(source.architecture, source.arrays, image_size))
    cells = {layer.name for layer in folded.layers if layer.op == "neocell"}
    exact = costs.of_graph(folded)
    products = costs.of_graph(neocell_to_matmul(folded))
    neocell = costs.total(cost for cost in exact if cost.name in cells)
    padded = costs.total(cost for cost in products if cost.op in ("left", "right"))
    every, with_zeros = costs.total(exact), costs.total(products)
    return {
        "multiply_adds": every.multiply_adds,
        "share": neocell.multiply_adds / every.multiply_adds,
        "share_with_zeros": padded.multiply_adds / with_zeros.multiply_adds,
        "share_of_weights": neocell.weight_bytes / every.weight_bytes,
    }


def lines(result: Mapping) -> Iterator[str]:
    """Yield the lines to print."""
    for name, row in result["counts"].items():
        yield (
            f"{name}: {row['multiply_adds'] / 1e9:.2f} G multiply-adds when folded, NeoCells "
            f"{100 * row['share']:.2f} % of them ({100 * row['share_with_zeros']:.2f} % with zeros) and "
            f"{100 * row['share_of_weights']:.2f} % of the weights"
        )
    for row in result["times"]:
        kinds = ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in row["kinds"].items())
        yield (
            f"{row['model']}, batch {row['batch']}, onnxruntime, {result['threads']} threads, "
            f"{row['microseconds'] / 1e3:.1f} ms in nodes: {kinds}"
        )
