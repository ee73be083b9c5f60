"""Continuous weights (future work of the paper): the accuracy of a trained network whose matrices are resampled."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import StatusLine, note, parse_shifts, parse_size, positive_int
from neonext_ms.common.errors import UsageError, usage_errors
from neonext_ms.common.files import check_output
from neonext_ms.common.text import format_size
from neonext_ms.ops.resample import READINGS

# Between sizes; a comma separates stages.
_SEPARATOR = ";"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim."""
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="trained network")
    parser.add_argument("--shifts", type=parse_shifts, metavar="A,B,C,D", help="shifts, if the checkpoint has none")
    parser.add_argument("--image-size", type=parse_size, metavar="SIZE", help="224 or 256x320, if not as recorded")
    add_weights_options(parser.add_argument)
    parser.add_argument(
        "--kernels",
        required=True,
        metavar=f"SPEC{_SEPARATOR}...",
        help=f"new kernel sizes, such as '5+8', or '4+7,4+7,7,7' by stage; several are separated by {_SEPARATOR!r}",
    )
    parser.add_argument(
        "--reading", choices=READINGS, action="append", help="how a matrix is read as a function (default: both)"
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="use N images, spread evenly over all of them")
    parser.add_argument("--output", metavar="FILE", help="write the resampled checkpoint, of one size and reading")
    parser.add_argument("images", metavar="FOLDER", help="labelled images, FOLDER/<class>/**; or 'digits'")


def measure(args: argparse.Namespace) -> dict:
    """Measure top-1 before and after."""
    from neonext_ms.checkpoint.checkpoint import format_for, save_checkpoint
    from neonext_ms.checkpoint.metadata import SCALES
    from neonext_ms.export.quantize.images import open_images
    from neonext_ms.export.source import Source
    from neonext_ms.images.preprocessing import Preprocessing
    from neonext_ms.models.resample import resample_kernels

    specs = [spec.strip() for spec in args.kernels.split(_SEPARATOR) if spec.strip()]
    readings = list(dict.fromkeys(args.reading or READINGS))
    if args.output and len(specs) * len(readings) != 1:
        raise UsageError("--output writes one checkpoint. Name one size with --kernels and one --reading.")
    if args.output:
        format_for(args.output)
        check_output(args.output, [args.checkpoint])
    source = Source.from_checkpoint(args.checkpoint, args.shifts, args.ema, args.key, args.activation)
    (size,) = source.image_sizes([args.image_size] if args.image_size else [])
    preprocessing = Preprocessing.from_dict(source.metadata.get("preprocessing") or {})
    labels, classes = source.metadata.get("labels"), source.architecture.num_classes
    # All networks are built first, so that a size that does not fit is reported before the work begins.
    networks = [("before", dict(source.arrays), source.architecture)]
    for spec in specs:
        for reading in readings:
            with usage_errors():
                networks.append((reading, *resample_kernels(source.arrays, source.architecture, spec, reading)))
    images = open_images(args.images, size, preprocessing, classes, labels, args.limit, validation=True)
    if images.note:
        note(f"note: {images.note}")
    rows = []
    for reading, arrays, architecture in networks:
        correct = _correct(architecture, arrays, size, images)
        kernels = architecture.kernel_spec
        rows.append({"reading": reading, "kernels": kernels, "correct": correct, "top1": correct / len(images)})
    if args.output:
        metadata = {**source.metadata, "shifts": list(architecture.shifts or ()), "activation": architecture.activation}
        if metadata.pop(SCALES, None):
            note("note: the scales of 8 bit are those of the network before, and are left out")
        save_checkpoint(args.output, arrays, metadata)
        note(f"written: {args.output}")
    recorded = {"checkpoint": args.checkpoint, "images": len(images), "image_size": list(size)}
    return {**recorded, "output": args.output and str(Path(args.output)), "rows": rows}


def _correct(architecture, arrays: Mapping[str, np.ndarray], size: tuple[int, int], images) -> int:
    """Return the number of images whose largest logit is that of their label, by the folded network in onnxruntime."""
    from neonext_ms.export.fold import fold
    from neonext_ms.export.graph import original_graph
    from neonext_ms.export.quantize.cost import outputs_of

    line = StatusLine()
    graph, _ = fold(original_graph(architecture, arrays, size))
    logits = outputs_of(graph, images, "auto", line.show, architecture.kernel_spec)
    line.clear()
    return int((logits.argmax(1) == np.asarray(images.labels)).sum())


def lines(result: Mapping) -> Iterator[str]:
    """Yield the table as text."""
    yield f"{result['checkpoint']}: {result['images']} images of {format_size(result['image_size'])}"
    yield "kernels     reading  top-1"
    for row in result["rows"]:
        yield f"{row['kernels']:10}  {row['reading']:7}  {100 * row['top1']:.2f} %  ({row['correct']})"
