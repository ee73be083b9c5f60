"""neonext-compare: where two forms of a network part."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, parse_shifts, parse_size, print_json, run
from neonext_ms.common.errors import InputError, UsageError

DESCRIPTION = """\
Compare two forms of a network on the same images: checkpoints, ONNX files, MindIR files, or a folder of values that
were dumped on a board (.npy, .bin). A is the reference.

  neonext-compare neonext_t.pt neonext_t_fp16.onnx --layers
  neonext-compare --write-inputs board --image-size 224        (inputs for the board; then, with what came back:)
  neonext-compare neonext_t.onnx dump --inputs board/input.npy --layers --keep-dtype keep.txt

Exit codes: 0 they agree, 1 error, 2 usage, 4 they part."""


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number such as 2e-5, got {text!r}")
    return value


def build_parser() -> Parser:
    """The command line of neonext-compare."""
    parser = Parser(prog="neonext-compare", description=DESCRIPTION)
    parser.add_argument(
        "sides", nargs="*", metavar="A B", help="checkpoint, .onnx, .mindir, or folder of dumped values"
    )
    parser.add_argument("--layers", action="store_true", help="compare the values inside, too")
    parser.add_argument("--tolerance", type=_tolerance, help="relative L2 that passes (2e-5; fp16 5e-3; bf16 4e-2)")
    parser.add_argument("--keep-dtype", metavar="FILE", help="write the operators to blame for ATC's --keep_dtype")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    inputs = parser.add_argument_group("images (default: noise)")
    inputs.add_argument("--images", nargs="+", default=[], metavar="IMAGE", help="image files, prepared for the model")
    inputs.add_argument("--inputs", metavar="FILE.npy", help="prepared inputs, float32 (N, 3, H, W)")
    inputs.add_argument("--samples", type=_positive, default=4, help="noise images (default 4)")
    inputs.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    inputs.add_argument("--write-inputs", metavar="FOLDER", help="write the images as .npy and .bin for a board")
    model = parser.add_argument_group("model")
    model.add_argument("--shifts", type=parse_shifts, help="of the four stages, where a checkpoint lacks them: 1,1,1,0")
    model.add_argument("--image-size", type=parse_size, help="224 or 256x320 (height x width), where the file lacks it")
    model.add_argument("--ema", action="store_true", help="the moving average of a checkpoint's weights")
    return parser


def _main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    writing = args.write_inputs is not None
    if len(args.sides) != 2 and not (writing and len(args.sides) < 2):
        raise UsageError(f"expected two things to compare, got {len(args.sides)}; see --help")
    if args.images and args.inputs:
        raise UsageError("give either --images or --inputs")
    if not 0 <= args.seed < 1 << 32:
        raise UsageError(f"--seed {args.seed}: expected 0 to 4294967295")
    for path in args.sides:
        if not Path(path).exists():
            raise InputError(f"{path}: no such file or folder; check the path")
    sides = _open(args)
    images, what = _images(args, sides)
    if writing:
        from .compare import write_inputs

        paths = write_inputs(args.write_inputs, images)
        note(f"wrote {what} to {args.write_inputs}: {paths[0].name} with all, {paths[1].name} ... with one each")
        if len(sides) < 2:
            if args.json:
                print_json({"inputs": what, "files": [str(path) for path in paths]})
            return 0
    return _compare(args, sides, images, what)


def _compare(args: argparse.Namespace, sides, images, what: str) -> int:
    from .compare import blamed_nodes, compare_sides, write_keep_dtype

    a, b = sides
    result = compare_sides(a, b, images, args.layers or args.keep_dtype is not None, args.tolerance, _watch())
    for text in result.notes:
        note(f"note: {text}")
    for side in sides:
        if side.kind == "dump" and not (args.inputs or args.images):
            note(f"note: {side.path}: taken as computed from {what}; if the board had others, give them with --inputs")
    kept = None
    if args.keep_dtype is not None and result.blamed:
        kept = blamed_nodes(result, b, a)
        write_keep_dtype(args.keep_dtype, kept)
    if args.json:
        print_json({**result.to_dict(), "inputs": what, "keep_dtype": kept})
    else:
        _print(args, result, sides, what, kept)
    return 0 if result.holds else 4


def _open(args: argparse.Namespace) -> list:
    """The sides; what one file does not say (size, shifts) is taken from the other, checkpoints last."""
    from neonext_ms.runtime.base import CHECKPOINT_SUFFIXES

    from .compare import open_side

    def late(path: str) -> bool:
        return Path(path).suffix.lower() in CHECKPOINT_SUFFIXES and not Path(path).is_dir()

    found: dict[int, object] = {}
    size, shifts = args.image_size, args.shifts
    for place in sorted(range(len(args.sides)), key=lambda place: late(args.sides[place])):
        path = args.sides[place]
        if late(path):
            found[place] = side = _open_checkpoint(path, size, shifts, args)
        else:
            found[place] = side = open_side(path, args.image_size)
        size = size or side.input_size
        shifts = shifts or side.metadata.get("shifts")
    return [found[place] for place in sorted(found)]


def _open_checkpoint(path: str, size, shifts, args: argparse.Namespace):
    from .compare import open_side

    if args.shifts is None and shifts is not None:
        try:
            return open_side(path, size, None, args.ema)
        except UsageError:
            side = open_side(path, size, shifts, args.ema)
            note(f"note: {path}: shifts {','.join(map(str, shifts))} as in the other file")
            return side
    return open_side(path, size, args.shifts, args.ema)


def _images(args: argparse.Namespace, sides):
    """The images, float32 (N, 3, H, W), and what they are, for a person."""
    import numpy as np

    from neonext_ms.common.files import explained

    from .compare import noise

    models = [side for side in sides if side.input_size is not None]
    size = models[0].input_size if models else args.image_size
    if size is None:
        raise UsageError("the size of the images is not known; give --image-size, such as 224 or 256x320")
    shown = "x".join(map(str, size))
    if args.inputs:
        try:
            with explained(args.inputs):
                images = np.load(args.inputs, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{args.inputs}: not a whole .npy file ({error}); write it with numpy.save") from error
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype.kind != "f" or not len(images):
            raise InputError(f"{args.inputs}: expected an array float32 (N, 3, {size[0]}, {size[1]})")
        if images.shape[1:] != (3, *size):
            raise InputError(f"{args.inputs}: expected shape (N, 3, {size[0]}, {size[1]}), got {images.shape}")
        return images.astype(np.float32), f"{len(images)} images of {args.inputs}, {shown}"
    if args.images:
        from neonext_ms.images.images import load_images
        from neonext_ms.images.preprocessing import Preprocessing

        known = [side.metadata["preprocessing"] for side in sides if side.metadata.get("preprocessing")]
        images = load_images(args.images, Preprocessing.from_dict(known[0] if known else {}), size)
        return images, f"{len(images)} image files, {shown}"
    return noise(args.samples, size, args.seed), f"{args.samples} noise images (seed {args.seed}), {shown}"


def _watch():
    """Shows the value that is compared, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda name: None
    return lambda name: print(f"\r\033[K{name} ...\r", end="", file=sys.stderr, flush=True)


def _print(args: argparse.Namespace, result, sides, what: str, kept: Sequence[str] | None) -> None:
    for letter, side in zip("AB", sides, strict=True):
        print(f"{letter}         {side.path} ({side.kind}, {side.dtype})")
    print(f"inputs    {what}")
    if result.layers:
        print(f"layers    {len(result.layers)} values that both have, as they are computed")
        print("          relative L2   added     largest   of        cosine    value")
        for layer in result.layers:
            print(
                f"          {layer.relative_l2:<13.1e} {layer.added:<9.1e} {layer.max_abs:<9.1e} "
                f"{layer.max_value:<9.2g} {layer.cosine:<9.6f} {layer.name}"
                + (f" ({layer.not_finite} numbers not finite)" if layer.not_finite else "")
            )
    for text in result.skipped:
        print(f"skipped   {text}")
    for output in result.outputs:
        top1 = f", top-1 {result.top1_agree}/{output.samples}" if result.top1_agree is not None else ""
        print(
            f"final     {output.name}: largest difference {output.max_abs:.1e} of {output.max_value:.2g}, relative L2 "
            f"{output.relative_l2:.1e}, cosine {output.cosine:.6f}{top1}"
        )
    if result.layers:
        most = sorted(result.layers, key=lambda layer: -layer.added)[:3]
        print("most      added by " + ", ".join(f"{layer.name} ({layer.added:.1e})" for layer in most))
    if kept:
        print(f"keep      {len(kept)} operators in {args.keep_dtype}, for --keep_dtype of ATC and --keep-dtype here")
    elif args.keep_dtype is not None:
        print(f"keep      nothing to blame; {args.keep_dtype} was not written")
    print(f"verdict   {result.verdict}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-compare; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
