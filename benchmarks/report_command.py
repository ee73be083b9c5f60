"""neonext-bench report: tables and pictures of a result, and how it compares with an earlier one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, print_json, run
from neonext_ms.common.errors import ToolchainError, UsageError

DESCRIPTION = """\
Show what neonext-bench --output kept.

  neonext-bench report result.json
  neonext-bench report result.json --output DIR           Markdown and pictures, named after the result
  neonext-bench report a.json b.json --output all.md      several results in one page, pictures beside it
  neonext-bench report result.json --compare earlier.json --fail-above 1.1

--compare holds ratios against ratios: every model to the first model's matrix products in its own run, so the two runs
may be from different machines of one kind. With --fail-above it exits with 1 if a ratio grew by more."""


def _limit(text: str) -> float:
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 1 <= limit < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a factor of at least 1, such as 1.1, got {text!r}")
    return limit


def build_parser() -> Parser:
    """The command line of neonext-bench report."""
    parser = Parser(prog="neonext-bench report", description=DESCRIPTION)
    parser.add_argument("results", nargs="+", metavar="RESULT.json")
    parser.add_argument("--output", metavar="DIR|FILE.md", help="write the report there, with pictures")
    parser.add_argument("--compare", metavar="BASE.json", help="an earlier result")
    parser.add_argument("--to", metavar="LABEL", help="hold every model against this one in --compare")
    parser.add_argument("--fail-above", type=_limit, metavar="1.1", help="exit with 1 if a ratio grew by more")
    parser.add_argument("--json", action="store_true", help="summaries, or the comparison, as JSON")
    return parser


def _main(argv: Sequence[str] | None = None) -> int | None:
    args = build_parser().parse_args(argv)
    if not args.compare and (args.fail_above is not None or args.to):
        raise UsageError("--fail-above and --to belong to --compare BASE.json; name the earlier result")
    if args.compare and len(args.results) > 1:
        raise UsageError(f"--compare takes one result, not {len(args.results)}")
    from . import regression, results

    found = {path: results.read(path) for path in args.results}
    if args.output:
        _write(found, Path(args.output))
    if args.compare:
        moves = regression.compare(found[args.results[0]], results.read(args.compare), args.to)
        failed = regression.failures(moves, args.fail_above)
        if args.json:
            print_json({"moves": [move.to_dict() for move in moves], "failed": failed})
        else:
            print(regression.text(moves, args.fail_above))
        return 1 if failed else None
    if args.json:
        print_json([row.to_dict() for result in found.values() for row in results.entries(result)])
    elif not args.output:
        from .report import markdown

        print("\n".join(markdown(result) for result in found.values()), end="")
    return None


def _write(found: dict[str, dict], output: Path) -> None:
    """The page and its pictures: `output` itself if it is a Markdown file, else one in that folder."""
    from neonext_ms.common.files import atomic

    from . import plots
    from .report import markdown

    page = output if output.suffix == ".md" else output / f"{Path(next(iter(found))).stem}.md"
    missing, pages = None, []
    for path, result in found.items():
        stem = Path(path).stem
        try:
            pictures = plots.draw(result, page.parent, stem if len(found) == 1 else f"{page.stem}_{stem}")
        except ToolchainError as error:
            pictures, missing = [], error
        for picture in pictures:
            note(str(picture))
        title = "Measured with neonext-bench" if len(found) == 1 else stem.replace("_", " ").capitalize()
        text = markdown(result, [picture.name for picture in pictures], title)
        pages.append(text if len(found) == 1 else text.replace("\n## ", "\n### ").replace("# ", "## ", 1))
    head = [] if len(found) == 1 else ["# Measured with neonext-bench\n"]
    with atomic(page) as staged:
        staged.write_text("\n".join(head + pages), encoding="utf-8")
    note(str(page))
    if missing:
        note(f"note: no pictures: {missing}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-bench report; returns the exit code."""
    return run(_main, argv)
