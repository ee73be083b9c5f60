"""neonext-validate: top-1 and top-5 accuracy of a model on a folder of labelled images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from neonext_ms.common.cli import Parser, note, print_json, run
from neonext_ms.common.errors import InputError

from .predict import add_model_options, classify, escape_output, open_model, positive, softmax

DESCRIPTION = """\
Accuracy of a model on labelled images: FOLDER has one folder per class, as torchvision's ImageFolder takes it.

  neonext-validate --model neonext_t.onnx /data/imagenet/val
  neonext-validate --model neonext_t.pt --shifts 1,1,1,0 --image-size 224 /data/imagenet/val

A folder's class is found by the model's labels if all folders are named by them, else by sorted order if there are as
many folders as classes, else by number. See docs/images.md."""

TOP = 5


def build_parser() -> Parser:
    """The command line of neonext-validate."""
    parser = Parser(prog="neonext-validate", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", help="labelled images: FOLDER/<class>/**/*.png, .jpg, ...")
    parser.add_argument("--limit", type=positive, metavar="N", help="only N images, spread evenly over all of them")
    parser.add_argument(
        "--skip-broken", action="store_true", help="name unreadable images on stderr and leave them out"
    )
    parser.add_argument(
        "--predictions", metavar="FILE", help="write path,label,predicted,confidence of every image (CSV)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    add_model_options(parser)
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    escape_output()
    from neonext_ms.common.files import explained, publish, staging
    from neonext_ms.images.folder import class_indices, find_images

    tree = find_images(args.folder)
    with ExitStack() as stack:
        # The folder for the predictions is opened first, so that a place that cannot be written is found at once.
        if args.predictions:
            destination = Path(args.predictions)
            if destination.is_dir():
                raise InputError(f"{destination}: this is a folder; --predictions expects a file to write")
            stage = stack.enter_context(staging(destination.parent))
        runtime, preprocessing = open_model(args)
        stack.enter_context(runtime)
        labels = runtime.metadata.get("labels")
        indices, rule = class_indices(tree.classes, runtime.classes, labels, args.folder)
        if labels and rule != "labels":
            note(f"note: the folders are not named by the model's labels; classes are taken {_RULES[rule]}")
        names = dict(enumerate(labels)) if labels else dict(zip(indices, tree.classes, strict=True))
        result = _evaluate(args, runtime, preprocessing, tree.subset(args.limit), indices)
        if args.predictions:
            staged = stage / destination.name
            with explained(destination):
                _write_predictions(staged, result["rows"], names)
            publish(staged, destination)
        report = {
            "model": args.model,
            "runtime": runtime.name,
            "folder": args.folder,
            "images": result["images"],
            "classes": runtime.classes,
            "class_folders": len(tree.classes),
            "classes_by": rule,
            "image_size": list(runtime.input_size),
            "preprocessing": preprocessing.to_dict(),
            "as_is": result["images"] - result["resized"],
            "resized": result["resized"],
            "skipped": result["skipped"],
        }
    for k in (1, TOP):
        report[f"top{k}"] = {"correct": result["correct"][k], "accuracy": result["correct"][k] / result["images"]}
    if args.json:
        print_json(report)
    else:
        _print(report)


_RULES = {"labels": "by label", "sorted": "in sorted order", "numbers": "by number"}


def _evaluate(args, runtime, preprocessing, tree, indices: Sequence[int]) -> dict:
    """Run the images of `tree`; `indices` has the class of each folder. Counts, and one row per image."""
    import numpy as np

    paths = [str(tree.root / file) for file in tree.files]
    skipped: list[str] = []

    def skip(index, error):
        note(f"skipped: {error}")
        skipped.append(tree.files[index])

    correct, resized, rows = {1: 0, TOP: 0}, 0, []
    on_broken = skip if args.skip_broken else None
    for batch, logits in classify(args, runtime, preprocessing, paths, on_broken):
        target = np.array([indices[tree.folders[i]] for i in batch.indices])
        order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        hits = order == target[:, None]
        for k in correct:
            correct[k] += int(hits[:, :k].sum())
        resized += sum(batch.resized)
        confidence = softmax(logits).max(axis=1)
        for i, label, predicted, value in zip(batch.indices, target, order[:, 0], confidence, strict=True):
            rows.append((tree.files[i], int(label), int(predicted), float(value)))
    if not rows:
        raise InputError(f"{args.folder}: none of its {len(paths)} images can be read; check the files named above")
    return {"images": len(rows), "correct": correct, "resized": resized, "skipped": skipped, "rows": rows}


def _write_predictions(path: Path, rows, names: dict[int, str]) -> None:
    import csv

    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "predicted", "confidence"])
        for image, label, predicted, confidence in rows:
            writer.writerow(
                [image, names.get(label, label), names.get(predicted, predicted), format(confidence, ".6f")]
            )


def _print(report: dict) -> None:
    count = report["images"]
    height, width = report["image_size"]
    print(f"images  {count} in {report['class_folders']} classes ({_RULES[report['classes_by']]}), {height}x{width}")
    print(f"        {report['as_is']} taken as they are, {report['resized']} resized and cropped")
    if report["skipped"]:
        print(f"        {len(report['skipped'])} skipped, because they cannot be read")
    for k in (1, TOP):
        hits = report[f"top{k}"]
        print(f"top-{k}   {100 * hits['accuracy']:.2f} %  ({hits['correct']}/{count})")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-validate; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
