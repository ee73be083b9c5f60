"""Train a segmentation network on generated shapes, export it, and measure the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neonext_ms.common.cli import (
    THREADS_HELP,
    Parser,
    StatusLine,
    batch_size,
    parse_size,
    positive_int,
    random_seed,
    run,
    threads,
)
from neonext_ms.common.environment import prepare_environment
from neonext_ms.common.errors import usage_errors
from neonext_ms.common.files import staging
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import format_size

DESCRIPTION = """\
Segmentation with a decoder of NeoCells, as an example: a NeoNeXt with features_only, NeoCells that double its maps,
a short training on generated discs, squares and triangles, and the export as ONNX, MindIR and OM.

    python -m neonext_ms.benchmarks.segmentation --output build/shapes

Every file is verified against the network in MindSpore, as by neonext-export. With --soc, the file for ATC and the
script that compiles it are written too; the OM file itself is made where CANN is."""

_TEST_IMAGES, _TEST_SEED = 200, 1 << 20


def evaluate(path: Path, size: tuple[int, int]) -> tuple[float, float]:
    """Return the share of correct pixels and the mean IoU of an ONNX file on 200 images that were not trained on."""
    from neonext_ms.runtime.onnx import onnx_session

    from .shapes import draw_batch, mean_iou

    images, classes = draw_batch(np.random.RandomState(_TEST_SEED), _TEST_IMAGES, size)
    session = onnx_session(str(path))
    name = session.get_inputs()[0].name
    # Image by image, so that files of any batch size are measured alike.
    predicted = np.concatenate([session.run(None, {name: image[None]})[0].argmax(1) for image in images])
    return float((predicted == classes).mean()), mean_iou(predicted, classes)


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.segmentation", description=DESCRIPTION)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the files")
    parser.add_argument("--steps", type=positive_int, default=3000, help="updates (default 3000)")
    parser.add_argument("--batch", type=batch_size, default=16, help="images of an update (default 16)")
    parser.add_argument(
        "--image-size", type=parse_size, default=(64, 64), metavar="SIZE", help="64 or 64x96 (default 64)"
    )
    parser.add_argument("--seed", type=random_seed, default=0, help="random seed of weights and images (default 0)")
    parser.add_argument("--soc", metavar="NAME", help="device of an OM file, such as Ascend310P3")
    parser.add_argument("--threads", type=threads, default=thread_count(), help=THREADS_HELP)
    args = parser.parse_args(argv)
    prepare_environment(args.threads)
    from neonext_ms.common.signals import signals_later
    from neonext_ms.export.om.options import OmOptions
    from neonext_ms.export.pipeline import export
    from neonext_ms.export.request import Request

    from .shapes import check_size

    targets = ["onnx", "mindir"] + (["om"] if args.soc else [])
    # Before the training, because options may be wrong, or the folder may not be there to write in.
    with usage_errors():
        check_size(args.image_size)
    request = Request(targets, om=OmOptions(args.soc, compile=False) if args.soc else None)
    with staging(args.output), signals_later():
        from .train import train
    line = StatusLine()
    source = train(
        args.steps, args.batch, args.image_size, args.seed,
        lambda step, loss: line.show(f"step {step}/{args.steps}  loss {loss:.3f}"),
    )  # fmt: skip
    line.clear()
    report = export(source, request, args.output, line.show)
    line.clear()
    print(report)
    for target, path in report.files.items():
        if path.suffix == ".onnx":
            correct, iou = evaluate(path, args.image_size)
            print(
                f"{target:9} {100 * correct:.2f} % of the pixels of {_TEST_IMAGES} new images of "
                f"{format_size(args.image_size)} correct, mean IoU {100 * iou:.2f} %"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    return run(_main, argv)
