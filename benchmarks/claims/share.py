"""The share of NeoCells in the whole model: multiply-adds, bytes of weights, and time in onnxruntime."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

RUNS = 20
MODELS = tuple(f"neonext_{size}.released_224" for size in "tsb")


def options(parser: argparse.ArgumentParser) -> None:
    """Its part of the command line."""
    from neonext_ms.common.cli import comma_list, positive_int

    parser.add_argument("--models", default=",".join(MODELS), help="names with commas; the first one is timed too")
    parser.add_argument("--batch", type=comma_list(positive_int), default=(1, 8))


def measure(args: argparse.Namespace) -> dict:
    """Counts of every model, and the time of the first one by layer kind."""
    import tempfile
    from pathlib import Path

    from neonext_ms.export import pipeline

    from .. import profiles, variants

    models = [name.strip() for name in args.models.split(",") if name.strip()]
    sources = {name: pipeline.source_of_name(name) for name in models}
    counts = {name: count(source, tuple(source.metadata["image_size"])) for name, source in sources.items()}
    first = sources[models[0]]
    size = tuple(first.metadata["image_size"])
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = variants.write(first, size, Path(folder) / "model.onnx")
        for batch in args.batch:
            profile = profiles.of_onnxruntime(path, batch, args.threads, args.rounds or RUNS)
            total = profile.microseconds
            times.append(
                {
                    "model": models[0],
                    "batch": batch,
                    "microseconds": total,
                    "kinds": {kind: value / total for kind, value in profile.kinds().items()},
                }
            )
    return {"counts": counts, "times": times}


def count(source, image_size: tuple[int, int]) -> dict[str, float]:
    """Shares of the NeoCells in the folded network: multiply-adds by equation 5 and with zeros, learned numbers."""
    from neonext_ms.export.fold import fold, neocell_to_matmul
    from neonext_ms.export.graph import unfolded

    from .. import costs

    folded, _ = fold(unfolded(source.architecture, source.arrays, image_size))
    cells = {layer.name for layer in folded.layers if layer.op == "neocell"}
    exact = costs.of_graph(folded)
    whole = costs.of_graph(neocell_to_matmul(folded))
    neocell = costs.total(cost for cost in exact if cost.name in cells)
    padded = costs.total(cost for cost in whole if cost.op in ("left", "right"))
    every, with_zeros = costs.total(exact), costs.total(whole)
    return {
        "multiply_adds": every.multiply_adds,
        "share": neocell.multiply_adds / every.multiply_adds,
        "share_with_zeros": padded.multiply_adds / with_zeros.multiply_adds,
        "share_of_weights": neocell.weight_bytes / every.weight_bytes,
    }


def lines(found: Mapping) -> Iterator[str]:
    """For a person."""
    for name, row in found["counts"].items():
        yield (
            f"{name}: {row['multiply_adds'] / 1e9:.2f} G multiply-adds when folded, NeoCells "
            f"{100 * row['share']:.2f} % of them ({100 * row['share_with_zeros']:.2f} % with zeros) and "
            f"{100 * row['share_of_weights']:.2f} % of the weights"
        )
    for row in found["times"]:
        kinds = ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in row["kinds"].items())
        yield (
            f"{row['model']}, batch {row['batch']}, onnxruntime, {found['threads']} threads, "
            f"{row['microseconds'] / 1e3:.1f} ms in nodes: {kinds}"
        )
