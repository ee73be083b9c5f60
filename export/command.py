"""neonext-export: a checkpoint becomes deployment files that are verified against the original network."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import (
    EXIT_CODES,
    MIN_WEIGHT_BITS,
    WEIGHT_BITS,
    Parser,
    StatusLine,
    batch_size,
    comma_list,
    int_range,
    note,
    parse_shifts,
    parse_sizes,
    percentage,
    print_json,
    random_seed,
    run,
    seconds,
    tolerance,
)
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import plural

from .onnx.format import BFLOAT16_OPSET, MIN_OPSET
from .quantize.options import DEFAULT_COUNT, DEFAULT_METHOD, MAX_CALIBRATION, METHODS, MIN_COUNT
from .targets import TARGETS, Target, resolve_targets
from .tolerances import DEFAULTS

if TYPE_CHECKING:
    from .quantize.options import QuantizeOptions
    from .request import Request
    from .source import Source

DESCRIPTION = """\
Fold a NeoNeXt checkpoint into a deployment graph and write it as ONNX, MindIR, for MindSpore Lite, or as an OM file
for Atlas boards. All but OM files are verified against the original network before they are published; of an OM file,
the ONNX file that it is compiled from is.

examples:
  neonext-export --checkpoint neonext_t.pt --shifts 1,1,1,0 --image-size 224 --target onnx,mindir --output build/t
  neonext-export --checkpoint neonext_t.pt --shifts 1,1,1,0 --target om --soc Ascend310P3 --batch 1,8 --output build/t
  neonext-export --check other.onnx      will ATC's parser take this file?

Targets:
{targets}

{exit_codes}"""


def parse_batch(text: str) -> tuple[int, ...]:
    """Parse batch sizes: `dynamic` gives none, `8` one, `1,8,16` several.

    Raises:
        argparse.ArgumentTypeError: the text is none of these.
    """
    if text == "dynamic":
        return ()
    try:
        return tuple(batch_size(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected 'dynamic', or sizes such as 8 or 1,8,16, got {text!r}") from None


def build_parser() -> Parser:
    """Return the argument parser of neonext-export."""
    targets = "\n".join(f"  {target.name:12}{target.summary}" for target in TARGETS.values())
    parser = Parser(prog="neonext-export", description=DESCRIPTION.format(targets=targets, exit_codes=EXIT_CODES))
    add = parser.add_argument_group("source").add_argument
    add("--checkpoint", metavar="FILE", help=".pt, .pth, .ckpt or .safetensors file")
    add("--model", metavar="NAME", help="named model with random weights, for benchmarks")
    add("--shifts", type=parse_shifts, metavar="A,B,C,D", help="NeoCell shifts of the four stages, such as 1,1,1,0")
    add_weights_options(add)
    add = parser.add_argument_group("file format").add_argument
    add("--target", metavar="NAMES", help="one or more of the targets above, separated by commas")
    add("--image-size", type=parse_sizes, default=(), metavar="SIZES", help="224, 256x320 (height x width), or 224,384")
    add("--batch", type=parse_batch, help="fixed batch size, or dynamic (default; om: 1)")
    add("--features-only", action="store_true", help="output the feature maps of the four stages instead of logits")
    add("--dtype", default="float32", metavar="TYPE", help="weights and arithmetic: float32, float16 or bfloat16")
    add("--half-io", action="store_true", help="input and outputs in that dtype too, not in float32")
    add(
        "--opset",
        type=int_range(MIN_OPSET, BFLOAT16_OPSET),
        metavar="N",
        help="11 to 21 (default 20; 13 for om; 22 for bfloat16)",
    )
    add("--gelu", default="auto", metavar="FORM", help="erf (exact), tanh (approximation), auto (exact, one node), "
        "npu (exact, one node that only ATC knows), or fast (approximation of ordinary vector operations)")  # fmt: skip
    add("--neocell", default="matmul", metavar="FORM", help="matmul, padded or custom (docs/export.md)")
    add = parser.add_argument_group("8 bit (docs/quantization.md), for the targets onnx and om").add_argument
    add("--quantize", choices=("int8",), help="compute convolutions and linear layers in 8 bit")
    add("--calibrate", metavar="IMAGES", help="images to calibrate on: a folder, a .npy file of prepared images, or "
        "digits")  # fmt: skip
    add("--calibrate-count", type=int_range(MIN_COUNT, MAX_CALIBRATION), metavar="N",
        help=f"number of these images to use, spread evenly (default {DEFAULT_COUNT})")  # fmt: skip
    add("--calibrate-method", metavar="NAME", help=f"{', '.join(METHODS)} (default {DEFAULT_METHOD})")
    add("--weight-bits", type=int_range(MIN_WEIGHT_BITS, WEIGHT_BITS), metavar="N",
        help="bits of the weights, stored in 8 in any case: 7 for processors without VNNI, fewer for studies "
        f"(default {WEIGHT_BITS})")  # fmt: skip
    add("--quantize-skip", type=comma_list(), metavar="LAYERS", help="layers that stay in floating point: names or "
        "patterns such as 'stage_4.*', separated by commas")  # fmt: skip
    add(
        "--quantize-scales",
        metavar="FILE",
        help="scales of an earlier export, NAME.scales.json, instead of --calibrate",
    )
    add("--validate", metavar="FOLDER", help="labelled images to measure the accuracy on, or digits")
    add("--max-drop", type=percentage, metavar="P", help="leave layers in floating point until 8 bit costs at most P "
        "percentage points of top-1 on --validate")  # fmt: skip
    add = parser.add_argument_group("target om (docs/deploy.md; no OM file has run on a device yet)").add_argument
    add("--soc", metavar="NAME", help="device, such as Ascend310P3")
    add("--precision", metavar="MODE", help="fp16 (default), mixed_float16, mixed_bfloat16, origin or "
        "cube_fp16in_fp32out")  # fmt: skip
    add("--aipp", action="store_true", help="normalize on the device, from uint8 images")
    add("--keep-dtype", metavar="FILE|NAMES", help="operators that keep their dtype: a file written by "
        "neonext-compare --keep-dtype, or names separated by commas")  # fmt: skip
    add("--via", metavar="TOOL", help="compiler: atc (default) or lite, the converter of MindSpore Lite")
    add("--dry-run", action="store_true", help="print the commands and their configuration files, and write nothing")
    add("--timeout", type=seconds, metavar="S", help="time limit for each file in seconds (default 3600)")
    add = parser.add_argument_group("verification against the original network").add_argument
    add("--images", nargs="+", default=[], metavar="IMAGE", help="images to compare on, besides noise")
    add(
        "--seed",
        type=random_seed,
        default=0,
        metavar="N",
        help="random seed of noise and of random weights (default 0)",
    )
    add(
        "--tolerance",
        type=tolerance,
        metavar="X",
        help="largest relative L2, and largest relative "
        f"difference, of the outputs that passes (default: by dtype, {DEFAULTS})",
    )
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="FOLDER", help="output folder, or a file name if there is a single target")
    add("--name", help="base name of the files (default: the checkpoint's name)")
    add("--labels", metavar="FILE|FOLDER", help="class names to record: one per line, or a folder with a folder for "
        "each class")  # fmt: skip
    add("--preprocess", metavar="FILE.yaml", help="preprocessing to record")
    add("--check", metavar="FILE.onnx", help="say whether ATC's parser takes this file of any exporter, and if "
        "not, which node and what to do; nothing is exported")  # fmt: skip
    add("--list-targets", action="store_true", help="list the targets and what each needs, and exit")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.list_targets:
        return _list_targets(args)
    if args.check is not None:
        return _check(args)
    if (args.checkpoint is None) == (args.model is None):
        count = "neither" if args.model is None else "both"
        raise UsageError(f"Pass either --checkpoint FILE or --model NAME (got {count}).")
    if args.dry_run and args.output is None:
        args.output = "."
    if args.target is None or args.output is None:
        raise UsageError("--target and --output are required, for example --target onnx --output build/t.")
    from .pipeline import export

    targets = resolve_targets(args.target.split(","))
    output, name = _destination(args, targets)
    request = _request(args, name, argv)
    status = StatusLine()
    try:
        status.show("read ...")
        source = _source(args)
        _check_distinct(args, output, name or source.name, targets)
        report = export(source, request, output, lambda step: status.show(f"{step} ..."))
    finally:
        status.clear()
    if args.batch == () and args.soc:
        others = ", ".join(target.name for target in targets if target.name != "om")
        note(f"note: om: batch 1; --batch dynamic applies to {others or 'other targets'} only")
    for text in report.notes:
        note(f"note: {text}")
    if args.json:
        print_json({**report.to_dict(), "output": str(output), "seconds": report.seconds, "threads": thread_count()})
    elif args.dry_run:
        for file in report.exported:
            _print_command(file.details)
    else:
        print(report)
    if report.missing:
        raise report.missing


def _check_distinct(args: argparse.Namespace, output: Path, name: str, targets: Sequence[Target]) -> None:
    """Reject names of files to write that are those of files to read, such as labels in the manifest's place."""
    from neonext_ms.common.files import check_distinct

    inputs = [args.checkpoint, args.labels, args.preprocess, args.calibrate, args.keep_dtype, *args.images]
    # The scales of an export may take the place of those that it read: `pipeline` keeps their layers.
    inputs.append(args.quantize_scales)
    for suffix in (".json", *(target.suffix for target in targets)):
        check_distinct(output / f"{name}{suffix}", inputs)


def _print_command(details: dict[str, Any]) -> None:
    """Print the command of a dry run, below its configuration files as comments."""
    for plain, name in details["copies"].items():
        print(f"# {plain}: a copy of {name}, whose name CANN rejects")
    for name, text in details["configs"].items():
        print(f"# {name}:")
        for line in text.splitlines():
            print(f"#   {line}".rstrip())
    print(details["command"])


def _source(args: argparse.Namespace) -> Source:
    from .source import Source

    if args.checkpoint:
        return Source.from_checkpoint(args.checkpoint, args.shifts, args.ema, args.key, args.activation)
    if args.ema:
        raise UsageError("--ema: a named model has no moving average. Use it with --checkpoint.")
    if args.key:
        raise UsageError("--key: a named model has no keys. Use it with --checkpoint.")
    return Source.from_name(args.model, args.shifts, args.seed, args.activation)


def _request(args: argparse.Namespace, name: str | None, argv: Sequence[str] | None) -> Request:
    """Return the request that the options make."""
    from neonext_ms.images.folder import read_labels

    from .om.options import OmOptions
    from .request import Request

    quantize = _quantize(args)

    om: dict[str, Any] = {"precision_mode": args.precision, "via": args.via, "timeout": args.timeout}
    om = {option: value for option, value in om.items() if value is not None}
    om |= {option: True for option in ("aipp", "dry_run") if getattr(args, option)}
    if args.keep_dtype:
        om["keep_dtype"] = tuple(_keep_dtype(args.keep_dtype))
    if om and args.soc is None and "om" not in args.target.split(","):
        option = "precision" if "precision_mode" in om else next(iter(om)).replace("_", "-")
        raise UsageError(f"--{option}: only valid with --target om. Add om to --target, and pass --soc.")
    preprocessing = None
    if args.preprocess:
        from neonext_ms.images.preprocessing import preprocessing_from_file

        preprocessing = preprocessing_from_file(args.preprocess)
    return Request(
        targets=args.target.split(","),
        image_sizes=args.image_size,
        batch=args.batch or (),
        opset=args.opset,
        gelu=args.gelu,
        neocell=args.neocell,
        dtype=args.dtype,
        float32_io=not args.half_io,
        features_only=args.features_only,
        name=name,
        labels=read_labels(args.labels, lambda text: note(f"note: {text}")) if args.labels else None,
        preprocessing=preprocessing,
        images=args.images,
        seed=args.seed,
        tolerance=args.tolerance,
        om=OmOptions(args.soc, **om) if args.soc else None,
        quantize=quantize,
        command=shlex.join(["neonext-export", *(sys.argv[1:] if argv is None else argv)]),
    )


def _quantize(args: argparse.Namespace) -> QuantizeOptions | None:
    """Return the options of 8 bit, or None without --quantize."""
    names = ("calibrate", "calibrate_count", "calibrate_method", "weight_bits", "quantize_skip",
             "quantize_scales", "validate", "max_drop")  # fmt: skip
    given = [name for name in names if getattr(args, name) is not None]
    if args.quantize is None:
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')}: only valid with --quantize int8. Add it.")
        return None
    if not args.calibrate and (wrong := [name for name in given if name in names[1:4]]):
        raise UsageError(f"--{wrong[0].replace('_', '-')}: only valid with --calibrate. Leave it out.")
    from .quantize.options import QuantizeOptions

    return QuantizeOptions(
        calibrate=args.calibrate,
        count=args.calibrate_count or DEFAULT_COUNT,
        method=args.calibrate_method or DEFAULT_METHOD,
        weight_bits=args.weight_bits or WEIGHT_BITS,
        skip=args.quantize_skip or (),
        scales=args.quantize_scales,
        validate=args.validate,
        max_drop=args.max_drop,
    )


def _keep_dtype(text: str) -> list[str]:
    # Not `Path.is_file`, which fails on a list that is longer than a file name may be.
    if os.path.isfile(text):
        from .compare.keep_dtype import read_keep_dtype

        return read_keep_dtype(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _destination(args: argparse.Namespace, targets: list[Target]) -> tuple[Path, str | None]:
    """Return folder and base name of the files; `--output` may name the one file itself."""
    output = Path(args.output)
    if args.name is not None and (not args.name or Path(args.name).name != args.name):
        raise UsageError(f"--name {args.name!r}: expected a file name without folders")
    if output.is_dir() or not output.name.endswith(tuple(target.suffix for target in TARGETS.values())):
        return output, args.name
    suffix = targets[0].suffix
    if len(targets) > 1 or not output.name.endswith(suffix) or args.name:
        raise UsageError(f"--output {output}: expected a folder, or a {suffix} file for one target without --name")
    return output.parent, output.name.removesuffix(suffix)


def _list_targets(args: argparse.Namespace) -> None:
    rows = [
        {"target": t.name, "file": f"NAME{t.suffix}", "what": t.summary, "needs": t.needs, "here": _availability(t)}
        for t in TARGETS.values()
    ]
    if args.json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['target']:12}{row['file']:18}{row['what']}\n{'':30}{row['needs']}; {row['here']}")


def _check(args: argparse.Namespace) -> None:
    """Print what ATC's parser makes of an ONNX file, and raise an `InputError` if it refuses the file."""
    others = [name for name in ("checkpoint", "model", "target", "output") if getattr(args, name) is not None]
    if others:
        raise UsageError(f"--check and --{others[0]}: a check exports nothing. Pass one of them.")
    from .om.check_file import check_file

    result = check_file(args.check)
    if args.json:
        print_json(result.to_dict())
    else:
        print(result)
    if result.refused:
        raise InputError(
            f"{result.path}: ATC's parser would refuse it ({plural(len(result.refused), 'finding')}). Change what the "
            "findings name, and check the file again."
        )


def _availability(target: Target) -> str:
    """Return whether the software that a target needs is installed, in words."""
    if target.name == "lite":
        from .lite import missing

        return "not available: run make lite" if missing() else "available"
    if target.name != "om":
        return "available"
    from neonext_ms.common import external_tools

    from .om.target import COMPILERS

    paths = []
    for compiler in COMPILERS.values():
        try:
            paths.append(str(external_tools.find(compiler.tool)))
        except ToolchainError:
            continue
    return (
        f"available: {', '.join(paths)}"
        if paths
        else "not available; the ONNX file and build_om.sh are written instead"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-export and return its exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
