"""neonext-export: a checkpoint becomes deployment files that are proven equal to the network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..commands.common import Parser, note, parse_shifts, parse_size, print_json, read_lines, run
from ..errors import UsageError
from .targets import TARGETS, Target, resolve_targets

DESCRIPTION = """\
Fold a NeoNeXt checkpoint into a deployment graph, write it as ONNX or MindIR, and prove every file against the
unfolded network before it gets its name.

  neonext-export --checkpoint neonext_t.pt --shifts 1,1,1,0 --image-size 224 --target onnx,mindir --output build/t
  neonext-export --model neonext_t.released_224 --target onnx --output build/t      (random weights, for benchmarks)

Targets:
{targets}

Exit codes: 0 done, 1 error, 2 usage, 3 toolchain missing, 4 a file does not compute what the network computes."""


def parse_batch(text: str) -> int | None:
    """`dynamic` as None, or a positive whole number.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if text == "dynamic":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number or 'dynamic', got {text!r}")
    return int(text)


def build_parser() -> Parser:
    """The command line of neonext-export."""
    targets = "\n".join(f"  {target.name:12}{target.summary}" for target in TARGETS.values())
    parser = Parser(prog="neonext-export", description=DESCRIPTION.format(targets=targets))
    parser.add_argument("--checkpoint", metavar="FILE", help=".pt, .pth, .ckpt or .safetensors")
    parser.add_argument("--model", metavar="NAME", help="a named model with random weights instead of a checkpoint")
    parser.add_argument("--shifts", type=parse_shifts, help="NeoCell shift of the four stages, such as 1,1,1,0")
    parser.add_argument("--image-size", type=parse_size, help="224, or 256x320 for height x width")
    parser.add_argument("--target", required=True, help="one or more of the targets above, separated by commas")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--name", help="of the files, before their suffixes (default: that of the checkpoint)")
    parser.add_argument("--batch", type=parse_batch, help="a fixed batch size, or dynamic (default)")
    parser.add_argument("--opset", type=int, help="of the ONNX files (default 20)")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    parser.add_argument("--labels", metavar="FILE", help="class names, one per line, to travel with the files")
    parser.add_argument("--preprocess", metavar="FILE.yaml", help="preprocessing to travel with the files")
    parser.add_argument("--images", nargs="+", default=[], metavar="IMAGE", help="compare on these, besides noise")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, and of random weights (default 0)")
    parser.add_argument("--tolerance", type=float, help="largest relative deviation that passes (default 2e-5)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if (args.checkpoint is None) == (args.model is None):
        raise UsageError("give either --checkpoint FILE or --model NAME")
    from . import pipeline
    from .onnx_emitter import DEFAULT_OPSET
    from .parity import TOLERANCE

    targets = resolve_targets(args.target.split(","))
    output, name = _destination(args, targets)
    labels = read_lines(args.labels) if args.labels else None
    preprocessing = None
    if args.preprocess:
        from ..images import preprocessing_from_file

        preprocessing = preprocessing_from_file(args.preprocess)
    watch = _watch()
    watch("read")
    source = _source(args, pipeline)
    report = pipeline.export(
        source,
        [target.name for target in targets],
        output,
        image_size=args.image_size,
        batch=args.batch,
        opset=DEFAULT_OPSET if args.opset is None else args.opset,
        name=name,
        labels=labels,
        preprocessing=preprocessing,
        images=args.images,
        seed=args.seed,
        tolerance=TOLERANCE if args.tolerance is None else args.tolerance,
        watch=watch,
    )
    watch("")
    for text in report.notes:
        note(f"note: {text}")
    if args.json:
        print_json({**report.to_dict(), "output": str(output), "seconds": report.seconds})
    else:
        _print(report, args)


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


def _print(report, args: argparse.Namespace) -> None:
    data = report.metadata
    architecture, folded = data["architecture"], report.folded
    numbers = {key: ",".join(map(str, architecture[key])) for key in ("per_stage_layers", "dims", "shifts")}
    size = "x".join(map(str, data["image_size"]))
    print(
        f"model     {data['model'] or 'NeoNeXt'}: blocks {numbers['per_stage_layers']}, dims {numbers['dims']}, "
        f"kernels {architecture['kernel_spec']}, shifts {numbers['shifts']}, {data['classes']} classes"
    )
    print(f"input     {data['batch'] or 'N'}x3x{size}, float32")
    print(
        f"folded    {folded.gone('batch_norm')} BatchNorms, {folded.gone('scale')} layer scales, "
        f"{folded.gone('neocell')} downsampling NeoCells, {folded.gone('transpose')} transposes"
    )
    print(f"nodes     {report.nodes[0]} before, {report.nodes[1]} after")
    extra = f" and {len(args.images)} images" if args.images else ""
    samples = next(iter(report.parity.values())).samples - len(args.images)
    print(f"compared  with {report.reference}, on {samples} noise inputs (seed {args.seed}){extra}")
    for target, path in report.files.items():
        result = report.parity[target]
        print(
            f"{target:10}{path} ({path.stat().st_size / 1e6:.1f} MB): largest difference {result.max_abs:.1e} of "
            f"{result.max_logit:.2g}, relative L2 {result.relative_l2:.1e}, top-1 {result.top1_agree}/{result.samples}"
        )
    print(f"manifest  {report.manifest}")
    print("seconds   " + ", ".join(f"{step} {value:.2f}" for step, value in report.seconds.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-export; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
