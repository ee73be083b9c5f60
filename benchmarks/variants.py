"""Faster variants of an exported network on a CPU: what they gain, and how far they are from float32.

    neonext-bench variants --model neonext_t.released_224
    neonext-bench variants --checkpoint tests/data/digits_64.pt --shifts 1,1,0,0 --images digits --write build/int8.onnx

`bf16` is the float32 file in OpenVINO with its arithmetic in bfloat16; `int8` is a file of its own (`export.int8`) in
onnxruntime. Times are of random images, interleaved; the deviation is that of logits on labelled images, each variant
in batches of the first `--batch`, against float32 in onnxruntime.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from neonext_ms.commands.predict import positive
from neonext_ms.common.cli import Parser, note, parse_shifts, parse_size, print_json, run
from neonext_ms.common.errors import ToolchainError, UsageError, nearest

from .command import batches

BASE = "float32"
# Name -> runtime, and whether it has a file of its own.
VARIANTS = {"bf16": ("openvino-bf16", False), "int8": ("onnxruntime", True)}
ROUNDS = 30
DIGITS = "digits"


@dataclass(frozen=True)
class Deviation:
    """How far a variant's logits are from those of float32 on the same images.

    Attributes:
        images: how many.
        top1_changes: images whose best class is another one.
        relative_l2: norm of the difference over the norm of the float32 logits.
        correct: images whose best class is the label.
        correct_float32: the same of float32.
    """

    images: int
    top1_changes: int
    relative_l2: float
    correct: int
    correct_float32: int


def deviation(reference, logits, labels: Sequence[int]) -> Deviation:
    """Compare logits `(N, classes)` with those of float32.

    Args:
        reference: of float32.
        logits: of the variant.
        labels: class of every image.
    """
    import numpy as np

    best, expected = logits.argmax(1), reference.argmax(1)
    return Deviation(
        images=len(reference),
        top1_changes=int((best != expected).sum()),
        relative_l2=float(np.linalg.norm(logits - reference) / np.linalg.norm(reference)),
        correct=int((best == labels).sum()),
        correct_float32=int((expected == labels).sum()),
    )


def parse_variants(text: str) -> tuple[str, ...]:
    """`bf16,int8` as names, each once.

    Raises:
        argparse.ArgumentTypeError: an unknown one, or none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(
                f"unknown variant {name!r}{nearest(name, VARIANTS)}; known: {', '.join(VARIANTS)}"
            )
    if not names:
        raise argparse.ArgumentTypeError(f"no variant; known: {', '.join(VARIANTS)}")
    return names


def write(source, image_size: tuple[int, int], path: str | os.PathLike, variant: str | None = None) -> Path:
    """Write the file that a variant runs, with an open batch.

    Args:
        source: an `export.pipeline.Source`.
        image_size: height and width in pixels.
        path: the file.
        variant: one of `VARIANTS`, or None for float32.

    Raises:
        InputError: the network cannot take that size, or the file cannot be written.
    """
    from neonext_ms.checkpoint.metadata import KEY
    from neonext_ms.common.files import atomic
    from neonext_ms.export.fold import fold
    from neonext_ms.export.graph import unfolded
    from neonext_ms.export.onnx import emitter, int8
    from neonext_ms.export.onnx.format import Flavour, lower

    graph, _ = fold(unfolded(source.architecture, source.arrays, image_size))
    metadata = {KEY: {**source.metadata, "image_size": list(image_size), "shifts": list(source.architecture.shifts)}}
    if variant and VARIANTS[variant][1]:
        return int8.write(graph, path, metadata=metadata)
    with atomic(path) as staged:
        emitter.save(lower(graph, Flavour()), staged, None, Flavour(), metadata)
    return Path(path)


@contextlib.contextmanager
def _loaded(files: Mapping[str, Path], batch: int, image_size, threads: int) -> Iterator[dict]:
    """The runtimes of float32 and of variants, each with its file loaded for a batch."""
    from .runtimes import Settings, runtime

    with contextlib.ExitStack() as stack:
        found = {}
        for name, path in files.items():
            found[name] = stack.enter_context(runtime(VARIANTS[name][0] if name != BASE else "onnxruntime")())
            found[name].load(str(path), Settings(batch, image_size, threads))
        yield found


def speed(files: Mapping[str, Path], batch: int, image_size: tuple[int, int], threads: int, rounds: int) -> dict:
    """Medians in milliseconds, and how many times as fast as float32 each variant is.

    Args:
        files: of float32 and of the variants, by name.
        batch: images per call.
        image_size: height and width in pixels.
        threads: to compute with.
        rounds: timed calls of each.
    """
    import numpy as np

    from . import measure, statistics

    images = np.random.default_rng(0).standard_normal((batch, 3, *image_size), np.float32)
    with _loaded(files, batch, image_size, threads) as runtimes:
        for loaded in runtimes.values():
            loaded.feed([images])
        measured = measure.interleave({name: loaded.timed for name, loaded in runtimes.items()}, rounds=rounds)
    samples = measured.samples
    return {
        "batch": batch,
        "rounds": measured.rounds,
        "milliseconds": {name: 1e3 * statistics.summary(values).p50 for name, values in samples.items()},
        "speedup": {n: statistics.ratio(samples[BASE], s).to_dict() for n, s in samples.items() if n != BASE},
    }


def deviations(
    files: Mapping[str, Path], images, labels: Sequence[int], batch: int, threads: int
) -> dict[str, Deviation]:
    """The deviation of every variant on prepared images, float32 `(N, 3, H, W)`, in whole batches."""
    import numpy as np

    logits = {}
    filled = -len(images) % batch
    padded = np.concatenate([images, np.zeros((filled, *images.shape[1:]), images.dtype)])
    with _loaded(files, batch, images.shape[2:], threads) as runtimes:
        for name, loaded in runtimes.items():
            parts = [loaded.run([padded[i : i + batch]])[0] for i in range(0, len(padded), batch)]
            logits[name] = np.concatenate(parts)[: len(images)].astype(np.float64)
    return {name: deviation(logits[BASE], found, labels) for name, found in logits.items() if name != BASE}


def labelled_images(images: str, preprocessing: Mapping | None, image_size: tuple[int, int]):
    """Prepared images and their labels: a folder per class, or "digits" for the 360 validation images of that set.

    Raises:
        InputError: the folder holds no labelled images.
    """
    import numpy as np

    from neonext_ms.images.images import prepare
    from neonext_ms.images.preprocessing import Preprocessing
    from neonext_ms.training.config.schema import DataConfig
    from neonext_ms.training.data.datasets import open_dataset
    from neonext_ms.training.data.image_sets import FolderSet

    chosen = open_dataset(DataConfig(dataset=DIGITS))[1] if images == DIGITS else FolderSet(Path(images))
    how = Preprocessing.from_dict(preprocessing or {})
    prepared = [prepare(chosen.read(i), how, image_size, chosen.name(i)) for i in range(len(chosen))]
    return np.stack(prepared), np.asarray(chosen.labels)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="neonext-bench variants", description=__doc__)
    parser.add_argument("--model", default="neonext_t.released_224", help="a named model with random weights")
    parser.add_argument("--checkpoint", metavar="FILE", help="measure this instead")
    parser.add_argument("--shifts", type=parse_shifts)
    parser.add_argument("--image-size", type=parse_size)
    parser.add_argument("--variants", type=parse_variants, default=tuple(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--batch", type=batches, default=(1, 8), help="batch sizes (default 1,8)")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"of each at batch 1 (default {ROUNDS})")
    parser.add_argument("--images", metavar="FOLDER|digits", help="labelled images to measure the deviation on")
    parser.add_argument("--write", metavar="FILE.onnx", help="keep the 8-bit file")
    parser.add_argument("--no-speed", action="store_true", help="no times")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.write and "int8" not in args.variants:
        raise UsageError("--write keeps the 8-bit file; add int8 to --variants")
    return args


def _usable(asked: Sequence[str]) -> list[str]:
    from .runtimes import runtime

    missing = {name: reason for name in asked if (reason := runtime(VARIANTS[name][0]).missing())}
    for name, reason in missing.items():
        note(f"note: {name} is left out: {reason}")
    if len(missing) == len(asked):
        raise ToolchainError(f"none of {', '.join(asked)} can be measured here: {'; '.join(missing.values())}")
    return [name for name in asked if name not in missing]


def _main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    names = _usable(args.variants)
    from neonext_ms.export import pipeline

    if args.checkpoint:
        source = pipeline.source_of_checkpoint(args.checkpoint, args.shifts)
    else:
        source = pipeline.source_of_name(args.model, args.shifts)
    (size,) = pipeline.resolve_image_sizes(source, [args.image_size] if args.image_size else ())
    result = {"model": source.name, "image_size": list(size), "threads": args.threads, "variants": names}
    with tempfile.TemporaryDirectory() as folder:
        files = {BASE: write(source, size, Path(folder) / "float32.onnx")}
        for name in names:
            own = VARIANTS[name][1]
            path = args.write if own and args.write else Path(folder) / f"{name}.onnx"
            files[name] = write(source, size, path, name) if own else files[BASE]
        if not args.no_speed:
            result["speed"] = [
                speed(files, batch, size, args.threads, max(8, args.rounds // (1 if batch == 1 else 3)))
                for batch in args.batch
            ]
        if args.images:
            images, labels = labelled_images(args.images, source.metadata.get("preprocessing"), size)
            found = deviations(files, images, labels, args.batch[0], args.threads)
            result["deviation"] = {name: asdict(value) for name, value in found.items()}
    if args.json:
        print_json(result)
        return
    _print(result)
    if args.write:
        print(f"written   {args.write}")


def _print(result: Mapping) -> None:
    size = "x".join(map(str, result["image_size"]))
    print(f"{result['model']} at {size}, {result['threads']} threads, against float32 in onnxruntime")
    for row in result.get("speed", ()):
        times = row["milliseconds"]
        print(f"batch {row['batch']}: float32 {times[BASE]:.1f} ms ({row['rounds']} rounds)")
        for name, ratio in row["speedup"].items():
            unsure = "" if ratio["sure"] else "; too noisy to rely on"
            print(
                f"  {name:6} {times[name]:7.1f} ms, {ratio['median_ratio']:.2f} times as fast "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}{unsure})"
            )
    for name, found in result.get("deviation", {}).items():
        print(
            f"{name:6} top-1 changes {found['top1_changes']} of {found['images']}, right {found['correct']} (float32 "
            f"{found['correct_float32']}), logits relative L2 {found['relative_l2']:.1e}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """`neonext-bench variants`; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
