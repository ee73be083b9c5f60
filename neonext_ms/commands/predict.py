"""neonext-predict: what a model sees in images. Also the options and steps that it shares with neonext-validate."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from neonext_ms.common.cli import Parser, non_negative_int, note, parse_shifts, parse_size, print_json, progress, run
from neonext_ms.common.errors import InputError, nearest
from neonext_ms.images.preprocessing import INTERPOLATIONS, MODES

DESCRIPTION = """\
Classify images with a model: an ONNX or MindIR file, or a checkpoint.

  neonext-predict --model neonext_t.onnx cat.jpg dog.png
  neonext-predict --model neonext_t.pt --shifts 1,1,1,0 --image-size 224 cat.jpg

An image of the model's own size is taken as it is, any other is resized and cropped as in the official evaluation;
the options at the end change that. See docs/images.md."""


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def _crop(text: str) -> float:
    try:
        crop = float(text)
    except ValueError:
        crop = 0.0
    if not 0 < crop <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, such as 0.875, got {text!r}")
    return crop


def _preprocess(text: str) -> str:
    if text not in MODES and not text.lower().endswith((".yaml", ".yml")):
        known = ", ".join(MODES)
        raise argparse.ArgumentTypeError(
            f"expected {known} or a file ending in .yaml, got {text!r}{nearest(text, MODES)}"
        )
    return text


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model runs and how an image becomes its input; `open_model` reads them."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, help=".onnx, .mindir, or a checkpoint (.pt .pth .ckpt .safetensors)")
    model.add_argument("--shifts", type=parse_shifts, help="of the four stages, where a checkpoint lacks them: 1,1,1,0")
    model.add_argument("--image-size", type=parse_size, help="224 or 256x320 (height x width), where the file lacks it")
    model.add_argument("--ema", action="store_true", help="the moving average of a checkpoint's weights")
    model.add_argument("--batch-size", type=positive, default=32, help="images at a time (default 32)")
    model.add_argument("--threads", type=positive, help="threads to compute with (default: all cores)")
    model.add_argument("--runtime", metavar="NAME", help="runtime (default: by suffix); neonext-bench --list-runtimes")
    model.add_argument(
        "--device", type=non_negative_int, default=0, metavar="N", help="number of the accelerator (default 0)"
    )
    images = parser.add_argument_group("preprocessing (what is not given here: as the model file says, else official)")
    images.add_argument(
        "--preprocess",
        type=_preprocess,
        metavar="|".join((*MODES, "FILE.yaml")),
        help="resize and crop: if the size differs, always, never; or a file such as configs/eval_imagenet.yaml",
    )
    images.add_argument("--interpolation", choices=INTERPOLATIONS, help="of the resize (official: bilinear)")
    images.add_argument("--crop", type=_crop, help="side of the centre crop relative to the resized image (0.875)")


def open_model(args: argparse.Namespace):
    """The model and the preprocessing that the options of `add_model_options` ask for.

    Returns:
        A `Runtime` and a `Preprocessing`: options first, then the model's metadata, then the official values.

    Raises:
        InputError: the model or a YAML file is not what it has to be.
        UsageError: an option is missing or contradicts the model.
    """
    from neonext_ms.runtime.open import open_runtime

    # A wrong YAML file is found before a large model is loaded.
    preprocessing_for(args, {})
    runtime = open_runtime(args.model, args.shifts, args.image_size, args.threads, args.ema, args.runtime, args.device)
    for text in runtime.notes:
        note(f"note: {text}")
    return runtime, preprocessing_for(args, runtime.metadata)


def preprocessing_for(args: argparse.Namespace, metadata: dict):
    """The `Preprocessing` from options, then the model's `metadata`, then the official values."""
    from dataclasses import replace

    from neonext_ms.images.preprocessing import Preprocessing

    preprocessing = Preprocessing.from_dict(metadata.get("preprocessing") or {})
    changes = {name: getattr(args, name) for name in ("interpolation", "crop") if getattr(args, name) is not None}
    if args.preprocess in MODES:
        changes["mode"] = args.preprocess
    elif args.preprocess:
        from neonext_ms.images.images import preprocessing_from_file

        preprocessing = preprocessing_from_file(args.preprocess, preprocessing)
    return replace(preprocessing, **changes)


def classify(args: argparse.Namespace, runtime, preprocessing, paths: Sequence[str], on_broken=None):
    """Run images through a model, batch by batch, with a progress bar.

    Args:
        args: the options of `add_model_options`.
        runtime: the model.
        preprocessing: how an image becomes its input.
        paths: the image files.
        on_broken: as in `image_batches`.

    Yields:
        `Batch` and its logits, float32 (N, classes).

    Raises:
        InputError: a broken image (unless `on_broken`), or logits that are not finite numbers.
    """
    import logging
    import warnings

    import numpy as np

    from neonext_ms.images.images import image_batches

    # Pillow warns of oddities in files (damaged EXIF, superfluous bytes) without naming the file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # A model of fixed batch is best fed with whole multiples of it.
    size = -(-args.batch_size // (runtime.batch or 1)) * (runtime.batch or 1)
    batches = image_batches(paths, preprocessing, runtime.input_size, size, args.threads, on_broken)
    for batch in progress(batches, total=-(-len(paths) // size), what="batches"):
        logits = runtime.run(batch.images)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            path = paths[batch.indices[int(np.argmin(finite))]]
            raise InputError(
                f"{args.model}: its logits for {os.fspath(path)} are not finite numbers; the weights may be damaged, "
                "or the precision too low for them"
            )
        yield batch, logits


def softmax(logits):
    """Probabilities, float64 (N, classes), from logits (N, classes)."""
    import numpy as np

    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def escape_output() -> None:
    """Let stdout print any file name: what its encoding lacks is escaped (as JSON does it, too)."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def build_parser() -> Parser:
    """The command line of neonext-predict."""
    parser = Parser(prog="neonext-predict", description=DESCRIPTION)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top", type=positive, default=5, help="classes to print for each image (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    add_model_options(parser)
    return parser


def _check_images(paths: Sequence[str]) -> None:
    from neonext_ms.common.files import explained

    for path in paths:
        if os.path.isdir(path):
            raise InputError(
                f"{path}: this is a folder where an image was expected; name the files in it "
                f"({path.rstrip('/')}/*), or use neonext-validate for a folder with one folder per class"
            )
        with explained(path):
            os.stat(path)


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    escape_output()
    # Cheap mistakes are found before a large model is loaded.
    _check_images(args.images)
    runtime, preprocessing = open_model(args)
    import numpy as np

    with runtime:
        names = runtime.metadata.get("labels") or [str(i) for i in range(runtime.classes)]
        top = min(args.top, runtime.classes)
        width = max(map(len, names)) if len(names) <= 100 else 0
        results = []
        for batch, logits in classify(args, runtime, preprocessing, args.images):
            order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
            for index, classes, values in zip(batch.indices, order, softmax(logits), strict=True):
                found = [{"class": int(c), "label": names[c], "probability": float(values[c])} for c in classes]
                if args.json:
                    results.append({"path": args.images[index], "top": found})
                else:
                    print(args.images[index])
                    column = width or max(len(f["label"]) for f in found)
                    for f in found:
                        print(f"   {f['label']:{column}}  {100 * f['probability']:6.2f} %")
        if args.json:
            print_json(
                {
                    "model": args.model,
                    "runtime": runtime.name,
                    "image_size": list(runtime.input_size),
                    "preprocessing": preprocessing.to_dict(),
                    "images": results,
                }
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-predict; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
