"""neonext-compare: compare two forms of a network, layer by layer."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import (
    EXIT_CODES,
    Parser,
    StatusLine,
    batch_size,
    note,
    parse_shifts,
    parse_size,
    print_json,
    print_text,
    random_seed,
    run,
    tolerance,
)
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import check_output
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import format_size, plural, printable

from ..tolerances import DEFAULTS, NOISE_SAMPLES

if TYPE_CHECKING:
    import numpy as np

    from .compare import Comparison
    from .side import Activations

DESCRIPTION = f"""\
Compare two forms of a network on the same images, layer by layer. A and B are checkpoints, model files, or folders of
values that a board dumped (.npy, .bin). A is the reference.

examples:
  neonext-compare neonext_t.pt neonext_t_fp16.onnx --layers
  neonext-compare neonext_t.onnx dump --inputs board/input.npy --layers --keep-dtype keep.txt

The second compares with a board, which was fed with what `--write-inputs board --image-size 224` wrote.

{EXIT_CODES}"""


def build_parser() -> Parser:
    """Return the command line of neonext-compare."""
    parser = Parser(prog="neonext-compare", usage="%(prog)s [options] [A B]", description=DESCRIPTION)
    parser.add_argument(
        "sides", nargs="*", metavar="A B", help="checkpoint, .onnx, .mindir, .om, .ms, or folder of dumped values"
    )
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument("--layers", action="store_true", help="also compare the values inside the network")
    comparison.add_argument(
        "--tolerance",
        type=tolerance,
        metavar="X",
        help=f"largest relative L2 of the outputs that passes (default: by the coarser dtype, {DEFAULTS}; dumps count "
        "as float16)",
    )
    images = parser.add_argument_group("images (default: noise)")
    images.add_argument("--images", nargs="+", default=[], metavar="IMAGE", help="image files, preprocessed as usual")
    images.add_argument("--inputs", metavar="FILE.npy", help="preprocessed images, float32 (N, 3, H, W)")
    images.add_argument("--samples", type=batch_size, metavar="N", help=f"noise images (default {NOISE_SAMPLES})")
    images.add_argument("--seed", type=random_seed, metavar="N", help="random seed of the noise (default 0)")
    model = parser.add_argument_group("what a file does not record")
    model.add_argument("--shifts", type=parse_shifts, help="NeoCell shifts of a checkpoint's four stages: 1,1,1,0")
    model.add_argument("--image-size", type=parse_size, metavar="SIZE", help="224 or 256x320 (height x width)")
    add_weights_options(model.add_argument)
    output = parser.add_argument_group("output")
    output.add_argument("--keep-dtype", metavar="FILE", help="write the suspect operators, for ATC's --keep_dtype")
    output.add_argument("--write-inputs", metavar="FOLDER", help="write the images as .npy and .bin for a board")
    output.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if len(args.sides) != 2 and not (args.write_inputs and len(args.sides) < 2):
        raise UsageError(f"expected two files or folders, A and B (got {len(args.sides)}). See --help.")
    if args.images and args.inputs:
        raise UsageError("--images and --inputs exclude each other; give one of them")
    for path in args.sides:
        if not Path(path).exists():
            raise InputError(f"{path}: no such file or folder; check the path")
    if args.keep_dtype:
        check_output(args.keep_dtype, [*args.sides, args.inputs, *args.images])
    with contextlib.ExitStack() as stack:
        return _run(args, _open(args, stack))


def _run(args: argparse.Namespace, sides: list[Activations]) -> int:
    images, description = _images(args, sides)
    if args.write_inputs:
        from .dump_side import write_inputs

        paths = write_inputs(args.write_inputs, images, [args.inputs, *args.images])
        note(f"wrote {description} to {args.write_inputs}: all in {paths[0].name}, one each in {paths[1].name} ...")
        if len(sides) < 2:
            if args.json:
                print_json({"inputs": description, "files": [str(path) for path in paths]})
            return 0
    return _compare(args, sides, images, description)


def _compare(args: argparse.Namespace, sides: list[Activations], images: np.ndarray, description: str) -> int:
    from .compare import compare_activations
    from .keep_dtype import suspect_nodes, write_keep_dtype

    a, b = sides
    status = StatusLine()
    layers = args.layers or args.keep_dtype is not None
    result = compare_activations(a, b, images, layers, args.tolerance, lambda name: status.show(f"{name} ..."))
    status.clear()
    for text in result.notes:
        note(f"note: {text}")
    for side in sides:
        if side.kind == "dump" and not (side.inputs or args.inputs or args.images):
            note(f"note: {side.path}: assumed to be computed from {description}. If not, give the board's --inputs.")
    if a.int8 != b.int8 and not (args.images or args.inputs):
        note("note: 8 bit clips what calibration has not seen, such as noise; compare on real images with --images")
    kept = None
    if args.keep_dtype is not None and result.suspects:
        kept = suspect_nodes(result, b, a)
        write_keep_dtype(args.keep_dtype, kept)
    if args.json:
        print_json({**result.to_dict(), "inputs": description, "threads": thread_count(), "keep_dtype": kept})
    else:
        _print(args, result, sides, description, kept)
    return 0 if result.agrees else 4


def _open(args: argparse.Namespace, stack: contextlib.ExitStack) -> list[Activations]:
    """Open both sides until the stack ends, checkpoints last: what they do not record is taken from the other file."""
    from neonext_ms.runtime.base import CHECKPOINT_SUFFIXES, model_suffix

    from .open import open_activations

    sides: dict[int, Activations] = {}
    size, shifts = args.image_size, None
    is_checkpoint = [model_suffix(path) in CHECKPOINT_SUFFIXES and not Path(path).is_dir() for path in args.sides]
    for place in sorted(range(len(args.sides)), key=is_checkpoint.__getitem__):
        path = args.sides[place]
        if not is_checkpoint[place]:
            side = open_activations(path, args.image_size)
        else:
            try:
                side = open_activations(path, size, args.shifts, args.ema, args.key, args.activation)
            except UsageError:
                if args.shifts is not None or shifts is None:
                    raise
                side = open_activations(path, size, shifts, args.ema, args.key, args.activation)
                note(f"note: {path}: uses the shifts {','.join(map(str, shifts))} of the other file")
        stack.callback(side.close)
        sides[place] = side
        size = size or side.input_size
        shifts = shifts or side.metadata.get("shifts")
    return [sides[place] for place in sorted(sides)]


def _images(args: argparse.Namespace, sides: list[Activations]) -> tuple[np.ndarray, str]:
    """Return the images, float32 (N, 3, H, W), and their description."""
    from neonext_ms.common.npy import read_npy

    from .parity import noise

    size = next((side.input_size for side in sides if side.input_size is not None), args.image_size)
    if size is None:
        raise UsageError("the size of the images is not known; give --image-size, such as 224 or 256x320")
    if args.inputs:
        images = read_npy(args.inputs)
        expected = f"(N, 3, {size[0]}, {size[1]})"
        if images.ndim != 4 or images.dtype.kind != "f" or not len(images):
            raise InputError(f"{args.inputs}: expected a float32 array {expected}")
        if images.shape[1:] != (3, *size):
            raise InputError(f"{args.inputs}: expected shape {expected}, got {images.shape}")
        images, description = images.astype("float32", copy=False), f"{plural(len(images), 'image')} of {args.inputs}"
    elif args.images:
        from neonext_ms.images.images import load_images
        from neonext_ms.images.preprocessing import Preprocessing

        recorded: dict = next(
            (side.metadata["preprocessing"] for side in sides if side.metadata.get("preprocessing")), {}
        )
        images = load_images(args.images, Preprocessing.from_dict(recorded), size)
        description = plural(len(images), "image file")
    elif recorded_inputs := next((side.inputs for side in sides if side.inputs), None):
        from .dump_side import read_inputs

        images = read_inputs(recorded_inputs, size)
        description = f"{plural(len(images), 'image')} of {recorded_inputs}"
    else:
        count, seed = args.samples or NOISE_SAMPLES, args.seed or 0
        return noise(count, size, seed), f"{plural(count, 'noise image')} (seed {seed}), {format_size(size)}"
    for option in ("samples", "seed"):
        if (value := getattr(args, option)) is not None:
            note(f"note: --{option} {value} is for noise and not used; the images are {description}")
    return images, f"{description}, {format_size(size)}"


def _print(
    args: argparse.Namespace, result: Comparison, sides: list[Activations], description: str, kept: list[str] | None
) -> None:
    for letter, side in zip("AB", sides, strict=True):
        print(f"{letter}         {side.path} ({side.kind}, {side.dtype}{', 8 bit' if side.int8 else ''})")
    print(f"inputs    {description}; {plural(thread_count(), 'thread')}")
    if result.layers:
        print(f"layers    {plural(len(result.layers), 'value')} on both sides, in order of computation")
        print("          relative L2  added    max diff  max value  cosine    name")
        for layer in result.layers:
            print(
                f"          {layer.relative_l2:<12.1e} {layer.added:<8.1e} {layer.max_abs:<9.1e} "
                f"{layer.max_value:<10.2g} {layer.cosine:<9.6f} {printable(layer.name)}"
                + (f" ({plural(layer.not_finite, 'number')} not finite)" if layer.not_finite else "")
            )
        most = sorted(result.layers, key=lambda layer: -layer.added)[:3]
        print("largest   additions: " + ", ".join(f"{printable(layer.name)} {layer.added:.1e}" for layer in most))
    for text in result.skipped:
        print_text(f"skipped   {text}")
    for output in result.outputs:
        top1 = f", top-1 {result.top1_agree}/{output.samples}" if result.top1_agree is not None else ""
        print(
            f"output    {printable(output.name)}: relative L2 {output.relative_l2:.1e}, max difference "
            f"{output.max_abs:.1e} of {output.max_value:.2g}, cosine {output.cosine:.6f}{top1}"
        )
    if kept:
        print(f"keep      {plural(len(kept), 'operator')} written to {args.keep_dtype}")
    elif args.keep_dtype is not None:
        print(f"keep      no suspects; {args.keep_dtype} was not written")
    print_text(f"verdict   {result.verdict}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-compare; return the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
