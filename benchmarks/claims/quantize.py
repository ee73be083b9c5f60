"""BatchNorm against LayerNorm in 8 bit: three networks of the same size. A question, no claim of the paper.

`neonext` has NeoCells and BatchNorm, `convnext` depthwise convolutions and LayerNorm, and `convnext_bn` depthwise
convolutions and BatchNorm, so that the two differences can be told apart. They are trained, folded, calibrated and
measured by the same code. In each, convolutions of one group and linear layers are in 8 bit, everything else in
float32.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from neonext_ms.common.cli import MIN_WEIGHT_BITS, WEIGHT_BITS, StatusLine, comma_list, int_range, note

from . import trials

NETWORKS = ("neonext", "convnext", "convnext_bn")
# Kinds of layers in 8 bit.
KINDS = ("stem", "downsampling", "fc_1", "fc_2", "classifier")
_FIGURES = ("top1_float32", "top1", "changed", "distance", "relative_l2")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim."""
    trials.add_choice(parser, "--networks", NETWORKS, "networks")
    parser.add_argument(
        "--weight-bits",
        type=comma_list(int_range(MIN_WEIGHT_BITS, WEIGHT_BITS)),
        default=(8, 4),
        metavar="BITS",
        help="bits of the weights; those of the activations are 8 (default 8,4)",
    )
    trials.add_options(parser, seeds=3, output="runs/quantize")


def measure(args: argparse.Namespace) -> dict:
    """Train every network with every seed, or take the weights of an earlier call, and measure what 8 bit costs."""

    def runs(config) -> list[dict]:
        from .rivals import Task, with_seed

        rows, line = [], StatusLine()
        # Seed by seed, so that an unfinished comparison has as many runs of each network.
        for seed in range(args.seeds):
            task = Task.from_config(with_seed(config, seed), note)
            for name in args.networks:
                path = Path(args.output) / f"{name}-{seed}.safetensors"
                rows.append({"network": name, "seed": seed, **_run(task, name, path, args.weight_bits, line)})
                line.clear()
                note(_run_line(rows[-1]))
        return rows

    rows = trials.train(args, runs)
    return {"runs": rows, "summary": summarise(rows)}


def _run(task, name: str, path: Path, bits: tuple[int, ...], line: StatusLine) -> dict:
    """Train a network or read its weights, and return what it costs to store them in few bits."""
    from neonext_ms.export.quantize.calibrate import calibrate
    from neonext_ms.export.quantize.cost import layer_noise, measure
    from neonext_ms.export.quantize.fine_tuning import TrainingImages
    from neonext_ms.export.quantize.options import DEFAULT_COUNT, DEFAULT_METHOD

    from .rivals import trained

    graph = task.graph(name, trained(task, name, path, line.show))
    calibration = TrainingImages(task.train, task.plan, DEFAULT_COUNT)
    validation = TrainingImages(task.val, task.plan, len(task.val))
    validation.source, validation.labels = "the validation images", list(task.val.labels)
    row: dict = {
        "parameters": task.architecture(name).parameters(),
        "images": len(validation),
        "calibrated_on": len(calibration),
        "method": DEFAULT_METHOD,
        "bits": {},
    }
    for count in bits:
        scales = calibrate(graph, calibration, DEFAULT_METHOD, "", progress=line.show, weight_bits=count)
        (accuracy,) = measure(graph, scales, {"validate": validation}, progress=line.show).accuracy.values()
        noise = layer_noise(graph, scales, calibration, progress=line.show)
        images = accuracy.images
        row["bits"][count] = {
            "top1_float32": (accuracy.correct_float32 or 0) / images,
            "top1": (accuracy.correct or 0) / images,
            "changed": (accuracy.changed or 0) / images,
            "distance": accuracy.distance,
            "relative_l2": accuracy.relative_l2,
            "snr_db": by_kind(graph, noise),
        }
    return row


def by_kind(graph, noise: Mapping[str, float]) -> dict[str, float]:
    """Return the median signal-to-noise ratio of the layers of each kind in dB."""
    from neonext_ms.export.quantize.apply import quantizable

    values: dict[str, list[float]] = {kind: [] for kind in KINDS}
    layers = quantizable(graph)
    for layer in layers:
        outputs, inputs, *kernel = layer.arrays["weight"].shape
        if layer is layers[0] or layer is layers[-1]:
            kind = "stem" if layer is layers[0] else "classifier"
        elif kernel == [1, 1]:
            kind = "fc_1" if outputs > inputs else "fc_2"
        else:
            kind = "downsampling"
        values[kind].append(noise[layer.name])
    return {kind: statistics.median(own) for kind, own in values.items() if own}


def summarise(rows: list[dict]) -> list[dict]:
    """Return means over the seeds, and deviations where there are several, for every network and number of bits."""
    summary = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        for bits in own[0]["bits"]:
            cells = [row["bits"][bits] for row in own]
            entry = {"network": name, "bits": bits, "runs": len(own), "parameters": own[0]["parameters"]}
            for key in _FIGURES:
                values = [cell[key] for cell in cells]
                entry[key] = statistics.mean(values)
                entry[f"{key}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
            kinds = cells[0]["snr_db"]
            entry["snr_db"] = {kind: statistics.mean(cell["snr_db"][kind] for cell in cells) for kind in kinds}
            summary.append(entry)
    return summary


def _run_line(row: Mapping) -> str:
    parts = [
        f"{bits} bit {100 * cell['top1']:.2f} % (distance {cell['distance']:.4f})" for bits, cell in row["bits"].items()
    ]
    float32 = next(iter(row["bits"].values()))["top1_float32"]
    return f"{row['network']:11} seed {row['seed']}: float32 {100 * float32:.2f} %, weights in {', '.join(parts)}"


def lines(result: Mapping) -> Iterator[str]:
    """Yield the tables as text."""
    first = result["runs"][0]
    yield (
        f"{first['images']:,} validation images; calibrated on {first['calibrated_on']} training images by "
        f"{first['method']}; mean over {result['summary'][0]['runs']} seeds"
    )
    yield "weights  network      parameters  float32   8 bit     classes changed  distance           relative L2"
    order = sorted(result["summary"], key=lambda entry: -int(entry["bits"]))
    for entry in order:
        spread = "" if entry["distance_deviation"] is None else f" +- {entry['distance_deviation']:.4f}"
        yield (
            f"{entry['bits']} bit    {entry['network']:11}  {entry['parameters']:<10,}  "
            f"{100 * entry['top1_float32']:5.2f} %   {100 * entry['top1']:5.2f} %   "
            f"{100 * entry['changed']:5.2f} %          {entry['distance']:.4f}{spread:10}  {entry['relative_l2']:.1e}"
        )
    yield "signal to noise of a layer alone, dB, median of each kind"
    yield f"weights  network      {'  '.join(f'{kind:12}' for kind in KINDS)}"
    for entry in order:
        cells = "  ".join(f"{entry['snr_db'].get(kind, float('nan')):<12.1f}" for kind in KINDS)
        yield f"{entry['bits']} bit    {entry['network']:11}  {cells}"
