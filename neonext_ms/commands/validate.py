"""neonext-validate: top-1 and top-5 accuracy of a model on labelled images."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neonext_ms.common.cli import Parser, note, positive_int, print_json, run
from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import format_size, plural, printable

from .classify import add_model_options, classify, escape_output, open_model

if TYPE_CHECKING:
    from neonext_ms.images.folder import ImageFolder
    from neonext_ms.images.preprocessing import Preprocessing
    from neonext_ms.runtime.classifier import Classifier

TOP = 5

_EXAMPLES = """\
examples:
  neonext-validate --model neonext_t.onnx /data/imagenet/val
  neonext-validate --model neonext_t.pt --shifts 1,1,1,0 --image-size 224 /data/imagenet/val

The class of a folder is found by name if the folders are named by the model's labels, else by number if all names are
class numbers, else by sorted order. --classes chooses one of these rules. docs/images.md has the details."""


def build_parser() -> Parser:
    """Build the command line of neonext-validate."""
    parser = Parser(
        prog="neonext-validate",
        description="Measure the top-1 and top-5 accuracy of a model on labelled images.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("folder", metavar="FOLDER", help="labelled images: FOLDER/<class>/**/*.png, .jpg, ...")
    add_model_options(parser)
    images = parser.add_argument_group("images")
    images.add_argument(
        "--classes",
        choices=("by-name", "by-number", "sorted"),
        help="how folders are matched to classes (default: by label, by class number or by sorted order, as they fit)",
    )
    images.add_argument("--limit", type=positive_int, metavar="N", help="use N images, spread evenly over all of them")
    images.add_argument("--skip-broken", action="store_true", help="name unreadable images on stderr and skip them")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--predictions", metavar="FILE", help="write path, label, predicted class and confidence of every image as CSV"
    )
    output.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    escape_output()
    from neonext_ms.common.files import check_distinct, check_replaceable, explained, publish, staging
    from neonext_ms.images.folder import CLASS_RULES, find_images, match_classes

    tree = find_images(args.folder)
    with ExitStack() as stack:
        # The destination is opened first, so that a place that cannot be written is reported before the work begins.
        if args.predictions:
            destination = Path(args.predictions)
            check_distinct(destination, [args.model, *(tree.root / file for file in tree.files)])
            if destination.is_dir():
                raise InputError(f"{destination}: this is a folder. --predictions expects a file to write.")
            check_replaceable(destination)
            stage = stack.enter_context(staging(destination.parent))
        model, preprocessing = open_model(args)
        stack.enter_context(model)
        labels = model.metadata.get("labels")
        indices, rule = match_classes(tree.classes, model.classes, labels, args.classes, printable(args.folder))
        if labels and rule != "by-name" and not args.classes:
            note(f"note: the folders are not named by the model's labels; classes are taken {CLASS_RULES[rule]}")
        names = dict(enumerate(map(printable, labels))) if labels else dict(zip(indices, tree.classes, strict=True))
        facts, rows = _evaluate(args, model, preprocessing, tree.subset(args.limit), indices)
        if args.predictions:
            staged = stage / destination.name
            with explained(destination):
                _write_predictions(staged, rows, names)
            publish(staged, destination)
    report = {
        "model": args.model,
        "runtime": model.name,
        "threads": thread_count(args.threads),
        "folder": args.folder,
        "images": len(rows),
        "classes": model.classes,
        "activation": model.metadata.get("activation"),
        "class_folders": len(tree.classes),
        "classes_by": rule,
        "image_size": list(model.input_size),
        "preprocessing": preprocessing.to_dict(),
        **facts,
    }
    if args.json:
        print_json(report)
    else:
        _print(report)


def _evaluate(
    args: argparse.Namespace,
    model: Classifier,
    preprocessing: Preprocessing,
    tree: ImageFolder,
    indices: Sequence[int],
) -> tuple[dict[str, Any], list[tuple[str, int, int, float]]]:
    """Run the images of `tree`, whose folders have the classes `indices`; return counts, and one row per image."""
    import numpy as np

    paths = [str(tree.root / file) for file in tree.files]
    skipped: list[str] = []

    def skip(index: int, error: InputError) -> None:
        note(f"skipped: {error}")
        skipped.append(tree.files[index])

    correct, resized, rows = {1: 0, TOP: 0}, 0, []
    for batch, logits, probabilities in classify(args, model, preprocessing, paths, skip if args.skip_broken else None):
        target = np.array([indices[tree.folders[i]] for i in batch.indices])
        order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        hits = order == target[:, None]
        for k in correct:
            correct[k] += int(hits[:, :k].sum())
        resized += sum(batch.resized)
        confidence = probabilities.max(axis=1)
        for i, label, predicted, value in zip(batch.indices, target, order[:, 0], confidence, strict=True):
            rows.append((tree.files[i], int(label), int(predicted), float(value)))
    if not rows:
        raise InputError(f"{args.folder}: none of its {len(paths)} images can be read. Check the files named above.")
    facts = {
        "as_is": len(rows) - resized,
        "resized": resized,
        "skipped": skipped,
        **{f"top{k}": {"correct": count, "accuracy": count / len(rows)} for k, count in correct.items()},
    }
    return facts, rows


def _write_predictions(path: Path, rows: Iterable[tuple[str, int, int, float]], names: Mapping[int, str]) -> None:
    # File names that are not UTF-8 come out with the bytes that they have on the disk.
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "predicted", "confidence"])
        for image, label, predicted, confidence in rows:
            writer.writerow([image, names.get(label, label), names.get(predicted, predicted), f"{confidence:.6f}"])


def _print(report: Mapping[str, Any]) -> None:
    from neonext_ms.images.folder import CLASS_RULES

    count, rule = report["images"], CLASS_RULES[report["classes_by"]]
    print(f"images  {count} in {report['class_folders']} classes ({rule}), {format_size(report['image_size'])}")
    print(f"        {report['as_is']} used unchanged, {report['resized']} resized and cropped")
    if report["skipped"]:
        print(f"        {len(report['skipped'])} skipped, because they cannot be read")
    print(f"runtime {report['runtime']}, {plural(report['threads'], 'thread')}")
    for k in (1, TOP):
        hits = report[f"top{k}"]
        print(f"top-{k}   {100 * hits['accuracy']:.2f} %  ({hits['correct']}/{count})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-validate and return its exit code."""
    return run(_main, argv)
