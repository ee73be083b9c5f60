"""neonext-board: pack a kit that tests this package on an Atlas board, and read the report that comes back."""

from __future__ import annotations

import argparse
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
    run,
)
from neonext_ms.common.errors import UsageError
from neonext_ms.common.files import check_output

if TYPE_CHECKING:
    from neonext_ms.benchmarks.board.report import Report

DESCRIPTION = f"""\
Pack a kit that tests a network on an Atlas board, and read the report that comes back. The kit is a folder that needs
nothing but CANN and Python there: which forms compile, which are right, which is fastest, and how wrong the predictions
of this package were. Nothing of it has run on a device yet.

examples:
  neonext-board pack --checkpoint neonext_t.pt --shifts 1,1,1,0 --soc Ascend310P3 --images val --output kit
  python3 run.py                                  (on the board, in the kit)
  neonext-board report kit/board_report.json

{EXIT_CODES}"""


def _batches(text: str) -> tuple[int, ...]:
    sizes = tuple(batch_size(part) for part in text.split(","))
    if len(set(sizes)) < len(sizes):
        raise argparse.ArgumentTypeError(f"a size occurs twice in {text!r}")
    return sizes


def build_parser() -> Parser:
    """Build the command line of neonext-board."""
    parser = Parser(prog="neonext-board", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    pack = commands.add_parser("pack", help="write a kit", description="Write a kit into a folder.")
    source = pack.add_argument_group("source").add_argument
    source("--checkpoint", metavar="FILE", help=".pt, .pth, .ckpt or .safetensors file")
    source("--model", metavar="NAME", help="named model with random weights, for its speed")
    source("--shifts", type=parse_shifts, metavar="A,B,C,D", help="NeoCell shifts of the four stages: 1,1,1,0")
    source("--image-size", type=parse_size, metavar="SIZE", help="224 or 256x320 (height x width)")
    add_weights_options(source)
    kit = pack.add_argument_group("kit").add_argument
    kit("--soc", required=True, metavar="NAME", help="device, such as Ascend310P3")
    kit("--batch", type=_batches, default=(1, 8), metavar="SIZES", help="batch sizes (default: 1,8)")
    kit("--images", metavar="FOLDER", help="labelled images, one folder for each class (default: noise alone)")
    kit("--level", choices=("quick", "full"), default="quick", help="more forms, images and values (default: quick)")
    kit("--output", required=True, metavar="FOLDER", help="folder of the kit")
    kit("--archive", action="store_true", help="also write FOLDER.tar.gz")
    kit("--json", action="store_true", help="print one JSON document")
    report = commands.add_parser("report", help="read a report", description="Read the report of a board.")
    report.add_argument("reports", nargs="+", metavar="REPORT.json", help="board_report.json; two for a comparison")
    report.add_argument("--fit", action="store_true", help="refit the device model with what was measured")
    report.add_argument(
        "--output", metavar="FILE.json",
        help="for --fit: file of measured rows and parameters to write or add to, for neonext-bench estimate --fitted",
    )  # fmt: skip
    report.add_argument("--kit", metavar="FOLDER", help="folder of the kit, for --fit (default: where the report is)")
    report.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    (_pack if args.command == "pack" else _report)(args)


def _pack(args: argparse.Namespace) -> None:
    if (args.checkpoint is None) == (args.model is None):
        raise UsageError("Pass either --checkpoint FILE or --model NAME.")
    from neonext_ms.benchmarks.board.pack import Wanted, archive, pack
    from neonext_ms.export.source import Source

    if args.checkpoint:
        source = Source.from_checkpoint(args.checkpoint, args.shifts, args.ema, args.key, args.activation)
    elif args.ema or args.key:
        raise UsageError("--ema and --key are for checkpoints. Leave them out with --model.")
    else:
        source = Source.from_name(args.model, args.shifts, 0, args.activation)
    for text in source.notes:
        note(f"note: {text}")
    wanted = Wanted(args.soc, args.batch, args.level, args.images, args.image_size, _source_arguments(args))
    status = StatusLine()
    try:
        content = pack(source, wanted, args.output, lambda step: status.show(f"{step} ..."))
    finally:
        status.clear()
    output = Path(args.output)
    packed = archive(output) if args.archive else None
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    if args.json:
        print_json({"kit": str(output), "bytes": size, "archive": packed and str(packed), **content})
        return
    from neonext_ms.benchmarks.board.report import packed_lines

    print_text("\n".join(packed_lines(output, content, size, packed)))


def _source_arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments of neonext-export for the same network, without the folders of this machine."""
    words = ["--checkpoint", Path(args.checkpoint).name] if args.checkpoint else ["--model", args.model]
    if args.shifts:
        words += ["--shifts", ",".join(map(str, args.shifts))]
    if args.image_size:
        words += ["--image-size", "x".join(map(str, args.image_size))]
    words += ["--activation", args.activation] if args.activation else []
    words += ["--ema"] if args.ema else []
    return words + (["--key", args.key] if args.key else [])


def _report(args: argparse.Namespace) -> None:
    from neonext_ms.benchmarks.board.report import compared, read_report, summary

    if len(args.reports) > 2:
        raise UsageError(f"expected one report, or two for a comparison (got {len(args.reports)})")
    reports = [read_report(path) for path in args.reports]
    if args.fit or args.kit or args.output:
        _fit(args, reports)
        return
    if args.json:
        print_json([summary(report) for report in reports] if len(reports) > 1 else summary(reports[0]))
        return
    from neonext_ms.benchmarks.board.report import lines

    print_text("\n".join(lines(reports[0]) if len(reports) == 1 else compared(*reports)))


def _fit(args: argparse.Namespace, reports: Sequence[Report]) -> None:
    from neonext_ms.benchmarks.board.fit import lines, read_rows, refit, store

    if not args.fit or len(reports) > 1:
        raise UsageError("--fit takes one report, and --kit and --output need --fit")
    output = Path(args.output) if args.output else None
    if output:
        check_output(output, args.reports)
    earlier = read_rows(output) if output and output.exists() else []
    result = refit(reports[0], Path(args.kit or Path(args.reports[0]).parent), earlier, quiet=False)
    if output:
        store(result, output)
    if args.json:
        print_json({name: value for name, value in result.items() if name != "rows"})
    else:
        print_text("\n".join([*lines(result), *([f"fitted    {output}"] if output else [])]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-board and return its exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
