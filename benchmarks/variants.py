"""neonext-bench variants: speed of faster variants of an exported network on a CPU, and their deviation."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import (
    THREADS_HELP,
    Parser,
    batch_size,
    comma_list,
    note,
    parse_shifts,
    parse_size,
    positive_int,
    print_json,
    run,
    threads,
)
from neonext_ms.common.errors import ToolchainError, UsageError
from neonext_ms.common.files import check_output, temporary_folder
from neonext_ms.common.processors import saturates, thread_count
from neonext_ms.common.text import format_size, nearest

DESCRIPTION = """\
Measure the speed of faster variants of an exported network on a CPU, and their deviation from float32.

examples:
  neonext-bench variants --model neonext_t.released_224
  neonext-bench variants --checkpoint tests/data/digits_64.pt --shifts 1,1,0,0 --images digits --write build/int8.onnx

`openvino` and `bf16` run the float32 file in OpenVINO, `bf16` with bfloat16 arithmetic. `int8` runs a file of its own,
with the MLPs in 8 bit and scales found as it runs (`export.onnx.int8`), in onnxruntime. `qdq` and `qdq-openvino` run
the file of `neonext-export --quantize int8`, whose scales are calibrated. Times are of random images, interleaved. The
deviation is that of the logits on labelled images from float32 in onnxruntime, in batches of the first `--batch`."""

BASE = "float32"
DYNAMIC, STATIC = "int8", "qdq"
# Name -> runtime, and the kind of file that the variant has; None for the float32 one.
VARIANTS: dict[str, tuple[str, str | None]] = {
    "openvino": ("openvino", None),
    "bf16": ("openvino-bf16", None),
    "int8": ("onnxruntime", DYNAMIC),
    "qdq": ("onnxruntime", STATIC),
    "qdq-openvino": ("openvino", STATIC),
}
# Noise images to calibrate on where none are given; their scales are good for speed only.
_NOISE = 8
# Labelled images that are prepared at once.
_READ_AT_ONCE = 32
ROUNDS = 30


def deviation(reference, logits, labels: Sequence[int]) -> dict:
    """Compare logits of a variant with those of float32 on the same images.

    Args:
        reference: logits (N, classes) of float32.
        logits: logits (N, classes) of the variant.
        labels: class of every image.

    Returns:
        `images`, `top1_changes` (images whose best class differs), `relative_l2` (norm of the difference over the norm
        of the float32 logits), and `correct` and `correct_float32` (images whose best class is the label).
    """
    from neonext_ms.export.compare import parity

    best, expected = logits.argmax(1), reference.argmax(1)
    return {
        "images": len(reference),
        "top1_changes": int((best != expected).sum()),
        "relative_l2": parity.compare(reference, logits).relative_l2,
        "correct": int((best == labels).sum()),
        "correct_float32": int((expected == labels).sum()),
    }


def _variant(text: str) -> str:
    if text not in VARIANTS:
        raise argparse.ArgumentTypeError(
            f"unknown variant {text!r}{nearest(text, VARIANTS)}; known: {', '.join(VARIANTS)}"
        )
    return text


def write(
    source,
    image_size: tuple[int, int],
    path: str | os.PathLike,
    kind: str | None = None,
    images: str | None = None,
) -> Path:
    """Write a file of an `export.source.Source`, with an open batch.

    Args:
        source: the network.
        image_size: height and width.
        path: path of the file.
        kind: None for float32, or `DYNAMIC` or `STATIC`.
        images: images to calibrate `STATIC` on, see `export.quantize.images.open_images`; None for noise.

    Raises:
        InputError: the network cannot take that size, images that cannot be read, or the file cannot be written.
    """
    from neonext_ms.checkpoint.metadata import KEY
    from neonext_ms.common.files import atomic
    from neonext_ms.export.fold import fold
    from neonext_ms.export.graph import original_graph
    from neonext_ms.export.lower import lower
    from neonext_ms.export.onnx import emitter, int8
    from neonext_ms.export.onnx.format import Format

    graph, _ = fold(original_graph(source.architecture, source.arrays, image_size))
    a = source.architecture
    recorded = {"image_size": list(image_size), "shifts": list(a.shifts or ()), "activation": a.activation}
    metadata = {KEY: {**source.metadata, **recorded}}
    if kind == DYNAMIC:
        return int8.write(graph, path, metadata=metadata)
    if kind == STATIC:
        graph = _calibrated(graph, source, images)
    with atomic(path) as staged:
        emitter.save(lower(graph, Format()), staged, None, Format(), metadata)
    return Path(path)


def _calibrated(graph, source, images: str | None):
    """Return the graph that `neonext-export --quantize int8` writes for hosts, by its default method."""
    from neonext_ms.export.compare import parity
    from neonext_ms.export.quantize.apply import quantize
    from neonext_ms.export.quantize.calibrate import calibrate
    from neonext_ms.export.quantize.forms import host_graph
    from neonext_ms.export.quantize.images import ArrayImages, Images, open_images
    from neonext_ms.export.quantize.options import DEFAULT_COUNT, DEFAULT_METHOD
    from neonext_ms.images.preprocessing import Preprocessing

    size = graph.image_size
    opened: Images
    if images is None:
        opened = ArrayImages("noise", parity.noise(_NOISE, size, 0))
    else:
        steps = Preprocessing.from_dict(source.metadata.get("preprocessing") or {})
        opened = open_images(images, size, steps, source.architecture.num_classes, count=DEFAULT_COUNT)
    return host_graph(quantize(graph, calibrate(graph, opened, DEFAULT_METHOD, "")))


def speed(files: Mapping[str, Path], batch: int, image_size: tuple[int, int], threads: int, rounds: int) -> dict:
    """Return medians in milliseconds, and the speed of each variant relative to float32, of files by variant."""
    import numpy as np

    from neonext_ms.runtime.base import Settings
    from neonext_ms.runtime.open import runtime_class

    from . import measure, statistics

    images = np.random.default_rng(0).standard_normal((batch, 3, *image_size), np.float32)
    with contextlib.ExitStack() as stack:
        calls = {}
        for name, path in files.items():
            runtime = stack.enter_context(runtime_class(_runtime(name))())
            runtime.load(str(path), Settings(batch, image_size, threads))
            calls[name] = measure.timed(runtime, [images])
        measured = measure.interleave(calls, rounds=rounds)
    samples = measured.samples
    return {
        "batch": batch,
        "rounds": measured.rounds,
        "milliseconds": {name: 1e3 * statistics.summary(values).p50 for name, values in samples.items()},
        "speedup": {n: statistics.ratio(samples[BASE], s).to_dict() for n, s in samples.items() if n != BASE},
    }


def deviations(files: Mapping[str, Path], images, labels: Sequence[int], batch: int, threads: int) -> dict:
    """Return the deviation of every variant from float32 on prepared images, float32 (N, 3, H, W), as plain values."""
    import numpy as np

    from neonext_ms.runtime.base import chunks
    from neonext_ms.runtime.open import open_runtime

    logits = {}
    for name, path in files.items():
        with open_runtime(path, image_size=images.shape[2:], threads=threads, runtime=_runtime(name)) as model:
            parts = [model.run(chunk)[:count] for chunk, count in chunks(images, batch)]
            logits[name] = np.concatenate(parts)
    return {name: deviation(logits[BASE], values, labels) for name, values in logits.items() if name != BASE}


def _runtime(variant: str) -> str:
    return "onnxruntime" if variant == BASE else VARIANTS[variant][0]


def labelled_images(images: str, source, image_size: tuple[int, int]):
    """Return prepared images and their labels, of a folder with one folder per class or of the validation digits.

    Args:
        images: the folder, or "digits".
        source: the network (`export.source.Source`), whose classes the folders have.
        image_size: height and width.

    Raises:
        InputError: the folder holds no labelled images, or its folders do not match the classes.
    """
    import numpy as np

    from neonext_ms.export.quantize.images import open_images
    from neonext_ms.images.preprocessing import Preprocessing

    steps = Preprocessing.from_dict(source.metadata.get("preprocessing") or {})
    classes, labels = source.architecture.num_classes, source.metadata.get("labels")
    opened = open_images(images, image_size, steps, classes, labels, validation=True)
    if opened.note:
        note(f"note: {opened.note}")
    return np.concatenate(list(opened.batches(_READ_AT_ONCE))), np.asarray(opened.labels)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="neonext-bench variants", description=DESCRIPTION)
    source = parser.add_argument_group("network")
    source.add_argument("--model", default="neonext_t.released_224", help="named network with random weights")
    source.add_argument("--checkpoint", metavar="FILE", help="checkpoint to measure instead")
    source.add_argument("--shifts", type=parse_shifts, help="shifts of the stages, if the checkpoint lacks them")
    source.add_argument(
        "--image-size", type=parse_size, metavar="SIZE", help="height x width, if the checkpoint lacks it"
    )
    add_weights_options(source.add_argument)
    speed_group = parser.add_argument_group("measurement")
    speed_group.add_argument(
        "--variants", type=comma_list(_variant), default=tuple(VARIANTS), help=f"default: {','.join(VARIANTS)}"
    )
    speed_group.add_argument("--batch", type=comma_list(batch_size), default=(1, 8), help="batch sizes (default 1,8)")
    speed_group.add_argument("--threads", type=threads, default=thread_count(), help=THREADS_HELP)
    speed_group.add_argument("--rounds", type=positive_int, default=ROUNDS, help=f"calls at batch 1 (default {ROUNDS})")
    speed_group.add_argument("--images", metavar="FOLDER|digits", help="labelled images to measure the deviation on")
    speed_group.add_argument("--calibrate", metavar="IMAGES", help="images to calibrate the qdq variants on, as for "
        "neonext-export (default: noise, good for speed only)")  # fmt: skip
    speed_group.add_argument("--no-speed", action="store_true", help="measure the deviation only")
    output = parser.add_argument_group("output")
    output.add_argument("--write", metavar="FILE.onnx", help="keep the file of the variant int8")
    output.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if args.write:
        if "int8" not in args.variants:
            raise UsageError("--write keeps the file of the variant int8. Add it to --variants.")
        check_output(args.write, [args.checkpoint, args.calibrate])
    return args


def _usable(asked: Sequence[str]) -> list[str]:
    from neonext_ms.runtime.open import runtime_class

    missing = {name: reason for name in asked if (reason := runtime_class(_runtime(name)).missing())}
    for name, reason in missing.items():
        note(f"note: {name} is omitted: {reason}")
    if len(missing) == len(asked):
        raise ToolchainError(f"none of {', '.join(asked)} can be measured here: {'; '.join(missing.values())}")
    usable = [name for name in asked if name not in missing]
    if saturates() and any(VARIANTS[name] == ("openvino", STATIC) for name in usable):
        note("note: qdq-openvino computes in float32: without VNNI, OpenVINO's 8-bit sums would saturate on this CPU")
    return usable


def _main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    names = _usable(args.variants)
    from neonext_ms.export.source import Source

    if args.checkpoint:
        source = Source.from_checkpoint(args.checkpoint, args.shifts, args.ema, args.key, args.activation)
    elif args.ema or args.key:
        raise UsageError("--ema and --key are for checkpoints. Use them with --checkpoint.")
    else:
        source = Source.from_name(args.model, args.shifts, activation=args.activation)
    (size,) = source.image_sizes([args.image_size] if args.image_size else ())
    result = {"model": source.name, "image_size": list(size), "threads": args.threads, "variants": names}
    with temporary_folder() as folder:
        kinds: dict[str | None, Path] = {None: write(source, size, folder / "float32.onnx")}
        for kind in dict.fromkeys(VARIANTS[name][1] for name in names):
            if kind is not None:
                path = args.write if kind == DYNAMIC and args.write else folder / f"{kind}.onnx"
                kinds[kind] = write(source, size, path, kind, args.calibrate)
        files = {BASE: kinds[None], **{name: kinds[VARIANTS[name][1]] for name in names}}
        if not args.no_speed:
            result["speed"] = [
                speed(files, batch, size, args.threads, max(8, args.rounds // (1 if batch == 1 else 3)))
                for batch in args.batch
            ]
        if args.images:
            images, labels = labelled_images(args.images, source, size)
            result["deviation"] = deviations(files, images, labels, args.batch[0], args.threads)
    if args.json:
        print_json(result)
        return
    _print(result)
    if args.write:
        print(f"written   {args.write}")


def _print(result: Mapping) -> None:
    size = format_size(result["image_size"])
    print(f"{result['model']} at {size}, {result['threads']} threads, against float32 in onnxruntime")
    for row in result.get("speed", ()):
        times = row["milliseconds"]
        print(f"batch {row['batch']}: float32 {times[BASE]:.1f} ms ({row['rounds']} rounds)")
        for name, ratio in row["speedup"].items():
            unsure = "" if ratio["sure"] else "; too noisy to rely on"
            print(
                f"  {name:12} {times[name]:7.1f} ms, {ratio['median_ratio']:.2f} times as fast "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}{unsure})"
            )
    for name, row in result.get("deviation", {}).items():
        print(
            f"{name:12} top-1 changes {row['top1_changes']} of {row['images']}, correct {row['correct']} (float32 "
            f"{row['correct_float32']}), logits relative L2 {row['relative_l2']:.1e}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `neonext-bench variants`; return the exit code."""
    return run(_main, argv)
