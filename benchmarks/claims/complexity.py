"""Equations 4 and 5: multiply-adds and time of a depthwise k x k convolution and of a NeoCell with k x k blocks.

Both are timed alone in onnxruntime on the same maps. The NeoCell is in its block-diagonal form, which multiplies the
zeros too, so that its time does not depend on k.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from neonext_ms.common.cli import batch_size, comma_list, int_range

from .timing import add_rounds

KERNELS = tuple(range(2, 15))
# Maps of NeoNeXt-T at 224x224: channels and side.
MAPS = ((96, 56), (192, 28), (384, 14), (768, 7))
ROUNDS = 20


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim to the parser."""
    parser.add_argument("--batch", type=batch_size, default=1, help="batch size (default 1)")
    parser.add_argument(
        "--kernels", type=comma_list(int_range(1, 1024)), default=KERNELS, help="block sizes (default 2 to 14)"
    )
    parser.add_argument(
        "--maps",
        type=comma_list(int_range(1, 1024)),
        default=tuple(side for _, side in MAPS),
        help="sides of the maps (default 56,28,14,7)",
    )
    add_rounds(parser)


def channels_of(side: int) -> int:
    """Return the channels of the map with this side in NeoNeXt-T at 224x224, or 96."""
    return {size: channels for channels, size in MAPS}.get(side, 96)


def counted(kernel: int, channels: int, side: int) -> dict[str, float]:
    """Return multiply-adds per value of a map: by the two equations, counted on the map, and with the zeros."""
    from neonext_ms.ops.spec import NeoCellSpec

    spec = NeoCellSpec({"kernel": kernel, "channels": channels, "shift": 0})
    values = channels * side * side
    return {
        "depthwise": float(kernel * kernel),
        "neocell": 2.0 * kernel,
        "neocell_counted": spec.multiply_adds(side, side) / values,
        "neocell_with_zeros": spec.multiply_adds(side, side, padded=True) / values,
    }


def measure(args: argparse.Namespace) -> dict:
    """Count and time both operators for every map and every k that fits into it."""
    import numpy as np

    from neonext_ms.ops.spec import NeoCellSpec

    from .forms import block_diagonal, call, depthwise, over, timed

    generator, rows = np.random.default_rng(0), []
    for side in args.maps:
        channels = channels_of(side)
        shape = (args.batch, channels, side, side)
        x = generator.standard_normal(shape, np.float32)
        subjects = {}
        kernels = [k for k in args.kernels if k <= side]
        for k in kernels:
            spec = NeoCellSpec({"kernel": k, "channels": channels, "shift": 0})
            small = generator.standard_normal((2, channels, k, k), np.float32) / np.float32(k)
            a, b = spec.matrices([small[0]], [small[1]], side, side)
            subjects[f"neocell {k}"] = call(block_diagonal(a, b, shape), x, args.threads)
            subjects[f"depthwise {k}"] = call(depthwise(small[0], shape), x, args.threads)
        if not subjects:
            continue
        times, samples = timed(subjects, args.rounds or ROUNDS)
        for k in kernels:
            rows.append(
                {
                    "map": side,
                    "channels": channels,
                    "kernel": k,
                    "multiply_adds_per_value": counted(k, channels, side),
                    "neocell_ms": times[f"neocell {k}"],
                    "depthwise_ms": times[f"depthwise {k}"],
                    "depthwise_over_neocell": over(samples, f"depthwise {k}", f"neocell {k}"),
                }
            )
    return {"batch": args.batch, "rows": rows}


def lines(result: Mapping) -> Iterator[str]:
    """Yield the lines to print."""
    yield f"onnxruntime, {result['threads']} threads, batch {result['batch']}; multiply-adds per value of the map"
    yield "  map channels   k  k^2   2k  counted  with zeros  depthwise ms  NeoCell ms  depthwise / NeoCell"
    for row in result["rows"]:
        count, ratio = row["multiply_adds_per_value"], row["depthwise_over_neocell"]
        yield (
            f"{row['map']:5} {row['channels']:8} {row['kernel']:3} {count['depthwise']:4.0f} {count['neocell']:4.0f} "
            f"{count['neocell_counted']:8.2f} {count['neocell_with_zeros']:11.0f} {row['depthwise_ms']:13.3f} "
            f"{row['neocell_ms']:11.3f}  {ratio['median_ratio']:5.2f}{'' if ratio['sure'] else ' (noisy)'}"
        )
    for side in dict.fromkeys(row["map"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["map"] == side]
        faster = [row["kernel"] for row in rows if row["depthwise_over_neocell"]["low"] > 1]
        yield f"map {side}: the NeoCell is faster for k = {', '.join(map(str, faster)) or 'none of these'}"
