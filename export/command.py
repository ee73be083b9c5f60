"""neonext-export: a checkpoint becomes deployment files that are proven equal to the network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, parse_shifts, parse_size, print_json, run
from neonext_ms.common.errors import UsageError
from neonext_ms.common.files import read_lines

from .targets import TARGETS, Target, resolve_targets

DESCRIPTION = """\
Fold a NeoNeXt checkpoint into a deployment graph, write it as ONNX or MindIR, and prove every file against the
unfolded network before it gets its name.

  neonext-export --checkpoint neonext_t.pt --shifts 1,1,1,0 --image-size 224 --target onnx,mindir --output build/t
  neonext-export --model neonext_t.released_224 --target onnx --output build/t      (random weights, for benchmarks)
  neonext-export --checkpoint neonext_t.pt --shifts 1,1,1,0 --target om --soc Ascend310P3 --batch 1,8 --output build/t

Targets:
{targets}

Exit codes: 0 done, 1 error, 2 usage, 3 toolchain missing, 4 a file does not compute what the network computes."""


def parse_batch(text: str) -> tuple[int, ...]:
    """`dynamic` as nothing, `8` as one size, `1,8,16` as several.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    if text == "dynamic":
        return ()
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected 'dynamic', or sizes such as 8 or 1,8,16, got {text!r}")
    return tuple(int(part) for part in parts)


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`224`, `256x320` or several with commas, as (height, width) each.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    return tuple(parse_size(part) for part in text.split(","))


def parse_seconds(text: str) -> float:
    """A positive number.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return seconds


def build_parser() -> Parser:
    """The command line of neonext-export."""
    targets = "\n".join(f"  {target.name:12}{target.summary}" for target in TARGETS.values())
    parser = Parser(prog="neonext-export", description=DESCRIPTION.format(targets=targets))
    parser.add_argument("--checkpoint", metavar="FILE", help=".pt, .pth, .ckpt or .safetensors")
    parser.add_argument("--model", metavar="NAME", help="a named model with random weights instead of a checkpoint")
    parser.add_argument("--shifts", type=parse_shifts, help="NeoCell shift of the four stages, such as 1,1,1,0")
    parser.add_argument("--image-size", type=parse_sizes, default=(), help="224, 256x320 (height x width), or 224,384")
    parser.add_argument("--target", help="one or more of the targets above, separated by commas")
    parser.add_argument("--output", metavar="FOLDER", help="where the files go")
    parser.add_argument("--name", help="of the files, before their suffixes (default: that of the checkpoint)")
    parser.add_argument("--batch", type=parse_batch, default=(), help="fixed batch size, or dynamic (default; om: 1)")
    parser.add_argument("--features-only", action="store_true", help="the outputs are the maps of the four stages")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    parser.add_argument("--list-targets", action="store_true", help="each target, what it needs, if it is here")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    form = parser.add_argument_group("form of the ONNX files")
    form.add_argument("--opset", type=int, help="11 to 21 (default 20; 13 for om; 22 for bfloat16)")
    form.add_argument("--dtype", default="float32", help="of weights and arithmetic: float32, float16 or bfloat16")
    form.add_argument("--half-io", action="store_true", help="input and outputs in that type too, not in float32")
    form.add_argument("--gelu", default="auto", help="erf (exact), tanh (approximation), or auto (exact, one node)")
    form.add_argument("--neocell", default="matmul", help="matmul, padded or custom (docs/flavours.md)")
    travel = parser.add_argument_group("what travels with the files")
    travel.add_argument("--labels", metavar="FILE|FOLDER", help="class names, one per line, or a folder of each class")
    travel.add_argument("--preprocess", metavar="FILE.yaml", help="how an image becomes the input")
    proof = parser.add_argument_group("comparison with the network")
    proof.add_argument("--images", nargs="+", default=[], metavar="IMAGE", help="compare on these, besides noise")
    proof.add_argument("--seed", type=int, default=0, help="of the noise, and of random weights (default 0)")
    proof.add_argument("--tolerance", type=float, help="relative deviation that passes (default 2e-5 in float32)")
    om = parser.add_argument_group("target om (docs/deploy.md; nothing of it has run on a device)")
    om.add_argument("--soc", help="the device, such as Ascend310P3")
    om.add_argument("--precision", help="fp16 (default), mixed_float16, mixed_bfloat16, origin, cube_fp16in_fp32out")
    om.add_argument("--aipp", action="store_true", help="normalise on the device, from uint8 images")
    om.add_argument("--keep-dtype", metavar="FILE|NAMES", help="operators that keep their type: a file of "
                    "neonext-compare, or names with commas")  # fmt: skip
    om.add_argument("--via", help="atc (default) or lite, MindSpore Lite's converter")
    om.add_argument("--dry-run", action="store_true", help="print the exact commands and write nothing")
    om.add_argument("--timeout", type=parse_seconds, metavar="S", help="seconds for each file (default 3600)")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.list_targets:
        return _list_targets(args)
    if (args.checkpoint is None) == (args.model is None):
        raise UsageError("give either --checkpoint FILE or --model NAME")
    for option in ("target", "output"):
        if getattr(args, option) is None:
            raise UsageError(f"--{option} is needed")
    from . import pipeline

    targets = resolve_targets(args.target.split(","))
    output, name = _destination(args, targets)
    request = _request(args, [target.name for target in targets], name, argv)
    watch = _watch()
    watch("read")
    report = pipeline.export(_source(args, pipeline), request, output, watch)
    watch("")
    for text in report.notes:
        note(f"note: {text}")
    if args.json:
        print_json({**report.to_dict(), "output": str(output), "seconds": report.seconds})
    elif args.dry_run:
        for artefact in report.artefacts:
            print(artefact.extra["command"])
    else:
        _print(report, request)
    if report.missing:
        raise report.missing


def _request(args: argparse.Namespace, targets: list[str], name: str | None, argv: Sequence[str] | None):
    """The request that the options make."""
    import shlex

    from .om.options import OmOptions
    from .request import Request

    given = {"precision_mode": args.precision, "via": args.via, "timeout": args.timeout}
    given = {option: value for option, value in given.items() if value is not None}
    given |= {option: True for option in ("aipp", "dry_run") if getattr(args, option)}
    if args.keep_dtype:
        given["keep_dtype"] = tuple(_keep_dtype(args.keep_dtype))
    if given and args.soc is None:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is for the target om; give --soc too")
    preprocessing = None
    if args.preprocess:
        from neonext_ms.images.preprocessing import preprocessing_from_file

        preprocessing = preprocessing_from_file(args.preprocess)
    return Request(
        targets=targets,
        image_sizes=args.image_size,
        batch=args.batch,
        opset=args.opset,
        gelu=args.gelu,
        neocell=args.neocell,
        dtype=args.dtype,
        float32_io=not args.half_io,
        features_only=args.features_only,
        name=name,
        labels=_labels(args.labels) if args.labels else None,
        preprocessing=preprocessing,
        images=args.images,
        seed=args.seed,
        tolerance=args.tolerance,
        om=OmOptions(args.soc, **given) if args.soc else None,
        command=shlex.join(["neonext-export", *(sys.argv[1:] if argv is None else argv)]),
    )


def _keep_dtype(text: str) -> list[str]:
    if Path(text).is_file():
        from .compare.keep_dtype import read_keep_dtype

        return read_keep_dtype(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _labels(path: str) -> list[str]:
    """Class names from a text file, or from the folders of a data set."""
    if Path(path).is_dir():
        from neonext_ms.images.folder import find_images

        return list(find_images(path).classes)
    return read_lines(path)


def _list_targets(args: argparse.Namespace) -> None:
    rows = [
        {"target": t.name, "file": f"NAME{t.suffix}", "what": t.summary, "needs": t.needs, "here": t.here()}
        for t in TARGETS.values()
    ]
    if args.json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['target']:12}{row['file']:18}{row['what']}\n{'':30}needs {row['needs']}; {row['here']}")


def _source(args: argparse.Namespace, pipeline) -> object:
    if args.checkpoint:
        return pipeline.source_of_checkpoint(args.checkpoint, args.shifts, args.ema)
    if args.ema:
        raise UsageError("--ema goes with --checkpoint")
    return pipeline.source_of_name(args.model, args.shifts, args.seed)


def _destination(args: argparse.Namespace, targets: list[Target]) -> tuple[Path, str | None]:
    """Folder and name of the files; `--output` may name the one file itself."""
    output = Path(args.output)
    if args.name is not None and (not args.name or Path(args.name).name != args.name):
        raise UsageError(f"--name {args.name!r}: expected a file name without folders")
    if output.is_dir() or not output.name.endswith(tuple(target.suffix for target in TARGETS.values())):
        return output, args.name
    suffix = targets[0].suffix
    if len(targets) > 1 or not output.name.endswith(suffix) or args.name:
        raise UsageError(f"--output {output}: name a folder, or a {suffix} file for one target without --name")
    return output.parent, output.name.removesuffix(suffix)


def _watch():
    """Shows the step that runs, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda step: None

    def show(step: str) -> None:
        text = f"{step} ..." if step else ""
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    return show


def _print(report, request) -> None:
    data, folded = report.metadata, report.folded
    architecture = data["architecture"]
    numbers = {key: ",".join(map(str, architecture[key])) for key in ("per_stage_layers", "dims", "shifts")}
    sizes = list(dict.fromkeys("x".join(map(str, artefact.image_size)) for artefact in report.artefacts))
    print(
        f"model     {data['model'] or 'NeoNeXt'}: blocks {numbers['per_stage_layers']}, dims {numbers['dims']}, "
        f"kernels {architecture['kernel_spec']}, shifts {numbers['shifts']}, {data['classes']} classes"
    )
    only_om = all(target.name == "om" for target in request.chosen)
    batch = ",".join(map(str, request.batch)) or ("1" if only_om else "N")
    print(f"input     {batch}x3x{', '.join(sizes)}")
    print(
        f"folded    {folded.gone('batch_norm')} BatchNorms, {folded.gone('scale')} layer scales, "
        f"{folded.gone('neocell')} downsampling NeoCells, {folded.gone('transpose')} transposes"
    )
    print(f"nodes     {report.nodes[0]} before, {report.nodes[1]} after")
    extra = f" and {len(request.images)} images" if request.images else ""
    samples = next(iter(report.parity.values())).samples - len(request.images)
    print(f"compared  with {report.reference}, on {samples} noise inputs (seed {request.seed}){extra}")
    for artefact in report.artefacts:
        where = f"{artefact.target:9} {artefact.path}"
        result = artefact.parity
        if result is None:
            print(where + (" (compiled, not run on a device)" if artefact.target == "om" else ""))
            continue
        print(
            f"{where} ({artefact.extra['bytes'] / 1e6:.1f} MB): largest difference {result.max_abs:.1e} of "
            f"{result.max_logit:.2g}, relative L2 {result.relative_l2:.1e}, top-1 {result.top1_agree}/{result.samples}"
        )
        if layers := artefact.extra.get("layers"):
            worst = sorted(layers, key=lambda layer: -layer["added"])[:3]
            print("          most deviation in " + ", ".join(f"{w['name']} ({w['relative_l2']:.1e})" for w in worst))
    print(f"manifest  {report.manifest}")
    print("seconds   " + ", ".join(f"{step} {value:.2f}" for step, value in report.seconds.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-export; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
