"""Data-parallel training on many Ascend cards, on paper: how much of the gradients' exchange backward can hide."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from neonext_ms.common.cli import (
    Parser,
    batch_size,
    comma_list,
    float_range,
    positive_float,
    positive_int,
    print_json,
    run,
)
from neonext_ms.models.architecture import MLP_RATIO, STAGES, STATISTICS, STEM_STRIDE, Architecture
from neonext_ms.models.registry import model_config

DESCRIPTION = """\
Data-parallel training on many Ascend cards, on paper: nothing of it was measured.

    python -m neonext_ms.benchmarks.scaling [--model neonext_t.released_224] [--batch 128] [--cards 8,64,512]

A card computes at a share of its peak (--utilization); a third of the time is the forward pass. Backward goes from the
last layer to the first, each in proportion to its multiply-adds, and a message starts when its last gradient is there
and the message before it has ended. Gradients are float32. Within a server of 8 cards, a message takes its size over
--server-gbs; across servers, each card also exchanges an eighth of it with its peers, twice, at --network-gbs. Every
step of an exchange costs --start-us.

The defaults: 295 TFLOP/s is the float16 peak of an Ascend 910B3; 72 GB/s an AllReduce over 8 cards of 910B that
gameofdimension/limulidae measured; 25 GB/s a card's port of 200GE. The start is an assumption."""

_SERVER = 8
_BYTES = 4


def part_costs(architecture: Architecture, image_size: tuple[int, int]) -> dict[str, int]:
    """Return the multiply-adds of one image by part (`stem`, `stage_1.0`, `downsample_1`, ..., `head`), in order."""
    a, maps = architecture, architecture.maps(image_size)
    costs = {"stem": 3 * STEM_STRIDE**2 * a.dims[0] * math.prod(maps[0])}
    for stage, (height, width) in enumerate(maps):
        c = a.dims[stage]
        block = a.stage_spec(stage).multiply_adds(height, width) + 2 * MLP_RATIO * c * c * height * width
        costs |= {f"stage_{stage + 1}.{i}": block for i in range(a.per_stage_layers[stage])}
        if stage < STAGES - 1:
            read = maps[stage] if a.downsample == "official" else maps[stage + 1]
            costs[f"downsample_{stage + 1}"] = c * a.dims[stage + 1] * math.prod(read)
    return costs | {"head": a.dims[3] * a.num_classes}


def _part(name: str) -> str:
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if first.startswith("stage_") else first


def messages(architecture: Architecture, image_size: tuple[int, int], megabytes: float) -> list[tuple[int, float]]:
    """Return the bytes of each message, and the share of the backward pass after which it can start.

    Args:
        architecture: the network.
        image_size: height and width of the input in pixels.
        megabytes: largest size of a message in MB (2^20 bytes), unless a tensor is larger.
    """
    costs = part_costs(architecture, image_size)
    total, done, ready = sum(costs.values()), 0, {}
    for part, cost in reversed(costs.items()):
        done += cost
        ready[part] = done / total
    result: list[tuple[int, float]] = []
    # The rule of `neonext_ms.training.distributed.buckets`, which a test compares; that one needs MindSpore.
    limit = megabytes * 2**20
    for name, shape in reversed(architecture.tensors().items()):
        if name.endswith(STATISTICS):
            continue
        size = _BYTES * math.prod(shape)
        if result and result[-1][0] + size <= limit:
            size += result.pop()[0]
        result.append((size, ready[_part(name)]))
    return result


def exchange_seconds(size: float, cards: int, args: argparse.Namespace) -> float:
    """Return the seconds of an AllReduce of `size` bytes over `cards`."""
    start, servers = args.start_us * 1e-6, math.ceil(cards / _SERVER)
    seconds = 2 * start + size / (args.server_gbs * 1e9)
    if servers > 1:
        share = size / _SERVER
        seconds += 2 * math.ceil(math.log2(servers)) * start
        seconds += 2 * (servers - 1) / servers * share / (args.network_gbs * 1e9)
    return seconds


def predict(sent: Sequence[tuple[int, float]], cards: int, compute: float, args: argparse.Namespace) -> dict:
    """Return the seconds of a step on `cards`.

    Args:
        sent: result of `messages`.
        cards: number of cards.
        compute: seconds of the forward and the backward pass.
        args: rates of the network.

    Returns:
        `step`, `exchange` (of all messages alone), `hidden` (its share behind the backward pass) and `efficiency`,
        relative to a card alone.
    """
    forward, end, exchange = compute / 3, 0.0, 0.0
    for size, ready in sent:
        seconds = exchange_seconds(size, cards, args)
        exchange += seconds
        end = max(end, forward + ready * (compute - forward)) + seconds
    step = max(end, compute)
    hidden = max(0.0, 1 - (step - compute) / exchange)
    return {"step": step, "exchange": exchange, "hidden": hidden, "efficiency": compute / step}


def _measure(args: argparse.Namespace) -> dict:
    config = model_config(args.model)
    architecture, size = config.architecture, config.image_size
    multiply_adds = 3 * args.batch * architecture.multiply_adds(size)
    rows = []
    for utilization in args.utilization:
        compute = 2 * multiply_adds / (utilization * args.tflops * 1e12)
        for cards in args.cards:
            for name, megabytes in (("one message", math.inf), ("buckets", args.bucket_mb)):
                sent = messages(architecture, size, megabytes)
                row = {"utilization": utilization, "cards": cards, "messages": len(sent), "compute": compute}
                rows.append({"form": name, **row, **predict(sent, cards, compute, args)})
    gradients = sum(size for size, _ in messages(architecture, size, math.inf))
    return {"model": args.model, "batch": args.batch, "gradient_bytes": gradients, "predicted": rows}


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.scaling", description=DESCRIPTION)
    parser.add_argument("--model", default="neonext_t.released_224", help="named model")
    parser.add_argument("--batch", type=batch_size, default=128, help="images of a card in a step (default 128)")
    parser.add_argument(
        "--cards", type=comma_list(positive_int), default=(8, 64, 512), metavar="N,...", help="numbers of cards"
    )
    parser.add_argument("--bucket-mb", type=float_range(0, 4096), default=25.0, help="size of a message (default 25)")
    parser.add_argument(
        "--utilization",
        type=comma_list(float_range(0, 1)),
        default=(0.1, 0.3),
        metavar="SHARES",
        help="shares of the peak that training reaches (default 0.1,0.3)",
    )
    parser.add_argument("--tflops", type=positive_float, default=295.0, help="peak of a card (default 295)")
    parser.add_argument("--server-gbs", type=positive_float, default=72.0, help="AllReduce in a server (default 72)")
    parser.add_argument("--network-gbs", type=positive_float, default=25.0, help="port of a card (default 25)")
    parser.add_argument("--start-us", type=positive_float, default=20.0, help="start of an exchange (default 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    result = _measure(args)
    if args.json:
        print_json(result)
        return
    print(f"{args.model}, {args.batch} images a card, {result['gradient_bytes'] / 1e6:.1f} MB of gradients: predicted")
    print("utilization  cards  form         messages  exchange  hidden  step      efficiency")
    for row in result["predicted"]:
        milliseconds, step = (f"{1e3 * row[key]:5.1f} ms" for key in ("exchange", "step"))
        print(
            f"{row['utilization']:<11.0%}  {row['cards']:<5}  {row['form']:11}  {row['messages']:<8}  {milliseconds}  "
            f"{row['hidden']:6.0%}  {step}  {row['efficiency']:.1%}"
        )


if __name__ == "__main__":
    sys.exit(run(_main))
