"""Options and steps that neonext-predict and neonext-validate share: the model, the preprocessing, the images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import (
    batch_size,
    fraction,
    non_negative_int,
    note,
    parse_shifts,
    parse_size,
    progress,
    threads,
)
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import nearest, plural, printable
from neonext_ms.images.preprocessing import INTERPOLATIONS, MODES, Preprocessing, preprocessing_from_file

if TYPE_CHECKING:
    import numpy as np

    from neonext_ms.images.images import Batch
    from neonext_ms.runtime.classifier import Classifier


def _preprocess(text: str) -> str:
    if text not in MODES and not text.lower().endswith((".yaml", ".yml")):
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(MODES)} or a file ending in .yaml, got {text!r}{nearest(text, MODES)}"
        )
    return text


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model and the preprocessing; `open_model` reads them."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", required=True, metavar="FILE", help="ONNX, MindIR, OM or MindSpore Lite file, or a checkpoint"
    )
    model.add_argument(
        "--shifts", type=parse_shifts, metavar="A,B,C,D", help="shifts of the stages, if the checkpoint records none"
    )
    model.add_argument(
        "--image-size", type=parse_size, metavar="SIZE", help="224 or 256x320 (height x width), if the file has none"
    )
    add_weights_options(model.add_argument)
    running = parser.add_argument_group("runtime")
    running.add_argument(
        "--runtime", metavar="NAME", help="runtime (default: by suffix); neonext-bench --list-runtimes names them"
    )
    running.add_argument(
        "--device", type=non_negative_int, default=0, metavar="N", help="number of the accelerator (default: 0)"
    )
    running.add_argument("--batch-size", type=batch_size, default=32, metavar="N", help="batch size (default: 32)")
    running.add_argument(
        "--threads", type=threads, metavar="N", help="intra-op threads (default: OMP_NUM_THREADS, or all processors)"
    )
    images = parser.add_argument_group("preprocessing (default: as recorded in the model file, else the official one)")
    images.add_argument(
        "--preprocess",
        type=_preprocess,
        metavar="|".join((*MODES, "FILE.yaml")),
        help="when to resize and crop: if the size differs, always, or never; or a file such as "
        "configs/eval_imagenet.yaml",
    )
    images.add_argument("--interpolation", choices=INTERPOLATIONS, help="filter of the resize (official: bilinear)")
    images.add_argument(
        "--crop", type=fraction, metavar="SHARE", help="side of the centre crop over the resized side (official: 0.875)"
    )


def open_model(args: argparse.Namespace) -> tuple[Classifier, Preprocessing]:
    """Open the model that the options of `add_model_options` name, and return it with its preprocessing.

    Raises:
        InputError: the model or a YAML file is invalid.
        UsageError: an option is missing or contradicts the model.
        ToolchainError: the runtime is not installed.
    """
    from neonext_ms.runtime.open import open_runtime

    # An invalid YAML file is reported before a large model is loaded.
    preprocessing_for(args, {})
    model = open_runtime(
        args.model, args.shifts, args.image_size, args.threads, args.ema, args.runtime, args.device, args.key,
        args.activation,
    )  # fmt: skip
    for text in model.notes:
        note(f"note: {printable(text)}")
    normalization = "" if model.metadata else model.conventions.normalization
    if normalization and (not args.preprocess or args.preprocess in MODES):
        model.close()
        raise UsageError(
            f"{args.model}: it normalizes images itself (node {printable(normalization)!r}), so they must not be "
            "normalized before. Pass the mean and std that it expects with --preprocess FILE.yaml: for pixels from 0 "
            "to 1, mean: [0, 0, 0] and std: [1, 1, 1]; for pixels from 0 to 255, std: [0.0039215686, 0.0039215686, "
            "0.0039215686]."
        )
    return model, preprocessing_for(args, model.metadata)


def preprocessing_for(args: argparse.Namespace, metadata: dict) -> Preprocessing:
    """Return the preprocessing: each value from the options, else the model's `metadata`, else the official one."""
    preprocessing = Preprocessing.from_dict(metadata.get("preprocessing") or {})
    if args.preprocess in MODES:
        preprocessing = replace(preprocessing, mode=args.preprocess)
    elif args.preprocess:
        preprocessing = preprocessing_from_file(args.preprocess, preprocessing)
    changes = {name: getattr(args, name) for name in ("interpolation", "crop") if getattr(args, name) is not None}
    return replace(preprocessing, **changes)


def classify(
    args: argparse.Namespace,
    model: Classifier,
    preprocessing: Preprocessing,
    paths: Sequence[str],
    on_broken: Callable[[int, InputError], None] | None = None,
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
    """Run images through a model batch by batch, with a progress bar.

    Args:
        args: options of `add_model_options`.
        model: model to run.
        preprocessing: transformation of every image.
        paths: image files.
        on_broken: see `image_batches`.

    Yields:
        A `Batch`, its logits, float32 (N, classes), and its probabilities, float64 (N, classes). The logits are the
        probabilities if the model ends in a softmax.

    Raises:
        InputError: an image is broken (unless `on_broken` is set), or logits are not finite.
    """
    import logging
    import warnings

    import numpy as np

    from neonext_ms.images.images import image_batches
    from neonext_ms.runtime.classifier import sum_to_one

    # Pillow warns of oddities in files (damaged EXIF, superfluous bytes) without naming the file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # A model of fixed batch wastes nothing if it gets whole multiples of it.
    fixed = model.batch or 1
    size = -(-args.batch_size // fixed) * fixed
    batches = image_batches(paths, preprocessing, model.input_size, size, args.threads, on_broken)
    what = f"batches, {plural(thread_count(args.threads), 'thread')}"
    for batch in progress(batches, total=-(-len(paths) // size), what=what):
        unknown = model.probabilities is None
        logits, probabilities = model.classify(batch.images)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            path = paths[batch.indices[int(np.argmin(finite))]]
            raise InputError(
                f"{args.model}: the logits of {printable(path)} are not finite. Check the weights, or use a dtype of "
                "more precision."
            )
        if unknown and model.probabilities:
            ending = model.conventions.ending
            if ending == "Softmax" or sum_to_one(probabilities):
                note(f"note: {args.model} ends in a softmax; its outputs are used as probabilities")
            else:
                reason = "ends in a sigmoid" if ending == "Sigmoid" else "has outputs from 0 to 1 only"
                note(f"note: {args.model} {reason}; its outputs are used as probabilities, each of its own")
        yield batch, logits, probabilities


def escape_output() -> None:
    """Let stdout print any file name; characters outside its encoding are escaped, as in JSON."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
