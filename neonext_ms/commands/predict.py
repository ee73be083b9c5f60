"""neonext-predict: classify images with a model file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neonext_ms.common.cli import Parser, note, positive_int, print_json, run
from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import plural, printable

from .classify import add_model_options, classify, escape_output, open_model

_EXAMPLES = """\
examples:
  neonext-predict --model neonext_t.onnx cat.jpg dog.png
  neonext-predict --model neonext_t.pt --shifts 1,1,1,0 --image-size 224 cat.jpg

An image of the model's own size is used unchanged. Any other is resized and cropped as in the official evaluation.
An image that cannot be read is named on stderr, the others are classified, and the exit code is 1 (with --skip-broken
0). docs/images.md has the details."""


def build_parser() -> Parser:
    """Build the command line of neonext-predict."""
    parser = Parser(prog="neonext-predict", description="Classify images with a model file.", epilog=_EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    add_model_options(parser)
    parser.add_argument_group("images").add_argument(
        "--skip-broken", action="store_true", help="exit with 0 even if some of the images cannot be read"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--top", type=positive_int, default=5, metavar="N", help="classes per image (default: 5)")
    output.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _check_images(paths: Sequence[str]) -> None:
    """Raise the error of the first image if none of them can be opened: before a large model is loaded."""
    errors = [error for error in map(_problem, paths) if error]
    if len(errors) == len(paths):
        raise errors[0]


def _problem(path: str) -> InputError | None:
    from neonext_ms.common.files import check_regular

    name = printable(path)
    if os.path.isdir(path):
        return InputError(
            f"{name}: this is a folder (expected an image). Name the files in it ({name.rstrip('/')}/*), or use "
            "neonext-validate for a folder with one folder per class."
        )
    try:
        check_regular(path)
    except InputError as error:
        return InputError(printable(error))
    return None


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    escape_output()
    _check_images(args.images)
    model, preprocessing = open_model(args)
    broken: list[dict[str, str]] = []

    def skip(index: int, error: InputError) -> None:
        path = args.images[index]
        # The message about a folder says what to do instead.
        text = str(_problem(path) or error)
        note(f"skipped: {text}")
        broken.append({"path": path, "error": text})

    with model:
        results = _classify(args, model, preprocessing, skip if len(args.images) > 1 or args.skip_broken else None)
        if args.json:
            print_json(
                {
                    "model": args.model,
                    "runtime": model.name,
                    "threads": thread_count(args.threads),
                    "image_size": list(model.input_size),
                    "preprocessing": preprocessing.to_dict(),
                    "images": results,
                    "broken": broken,
                }
            )
    count = f"{len(broken)} of {plural(len(args.images), 'image')} cannot be read"
    if broken and (len(broken) == len(args.images) or not args.skip_broken):
        raise InputError(f"{count}. Repair or remove the files named above.")
    if broken:
        note(f"note: {count} and were skipped")


def _classify(args, model, preprocessing, on_broken) -> list[dict]:
    """Classify the images; print the classes, or with --json return them."""
    import numpy as np

    labels = model.metadata.get("labels") or [str(i) for i in range(model.classes)]
    names = list(map(printable, labels))
    top = min(args.top, model.classes)
    # One column for all images, unless it would be as wide as the longest of many labels.
    width = max(map(len, names)) if len(names) <= 100 else 0
    results = []
    for batch, logits, probabilities in classify(args, model, preprocessing, args.images, on_broken):
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        for index, classes, values in zip(batch.indices, order, probabilities, strict=True):
            if args.json:
                best = [{"class": int(c), "label": labels[c], "probability": float(values[c])} for c in classes]
                results.append({"path": args.images[index], "top": best})
                continue
            print(printable(args.images[index]))
            column = width or max(len(names[c]) for c in classes)
            for c in classes:
                print(f"   {names[c]:{column}}  {100 * values[c]:6.2f} %")
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-predict and return its exit code."""
    return run(_main, argv)
