"""neonext-predict: classify images with a model file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neonext_ms.common.cli import Parser, positive_int, print_json, run
from neonext_ms.common.errors import InputError

from .classify import add_model_options, classify, escape_output, open_model, softmax

_EXAMPLES = """\
examples:
  neonext-predict --model neonext_t.onnx cat.jpg dog.png
  neonext-predict --model neonext_t.pt --shifts 1,1,1,0 --image-size 224 cat.jpg

An image of the model's own size is used unchanged. Any other is resized and cropped as in the official evaluation.
docs/images.md has the details."""


def build_parser() -> Parser:
    """Build the command line of neonext-predict."""
    parser = Parser(prog="neonext-predict", description="Classify images with a model file.", epilog=_EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    add_model_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--top", type=positive_int, default=5, metavar="N", help="classes per image (default: 5)")
    output.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _check_images(paths: Sequence[str]) -> None:
    from neonext_ms.common.files import explained

    for path in paths:
        if os.path.isdir(path):
            raise InputError(
                f"{path}: this is a folder (expected an image). Name the files in it ({path.rstrip('/')}/*), or use "
                "neonext-validate for a folder with one folder per class."
            )
        with explained(path):
            os.stat(path)


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    escape_output()
    # A missing image is reported before a large model is loaded.
    _check_images(args.images)
    model, preprocessing = open_model(args)
    import numpy as np

    with model:
        names = model.metadata.get("labels") or [str(i) for i in range(model.classes)]
        top = min(args.top, model.classes)
        # One column for all images, unless it would be as wide as the longest of many labels.
        width = max(map(len, names)) if len(names) <= 100 else 0
        results = []
        for batch, logits in classify(args, model, preprocessing, args.images):
            order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
            for index, classes, values in zip(batch.indices, order, softmax(logits), strict=True):
                best = [{"class": int(c), "label": names[c], "probability": float(values[c])} for c in classes]
                if args.json:
                    results.append({"path": args.images[index], "top": best})
                    continue
                print(args.images[index])
                column = width or max(len(names[c]) for c in classes)
                for c in classes:
                    print(f"   {names[c]:{column}}  {100 * values[c]:6.2f} %")
        if args.json:
            print_json(
                {
                    "model": args.model,
                    "runtime": model.name,
                    "image_size": list(model.input_size),
                    "preprocessing": preprocessing.to_dict(),
                    "images": results,
                }
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-predict and return its exit code."""
    return run(_main, argv)
