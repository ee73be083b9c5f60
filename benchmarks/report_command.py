"""neonext-bench report: tables and pictures of a result, and its comparison with an earlier one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, note, positive_float, print_json, print_text, run
from neonext_ms.common.errors import ToolchainError, UsageError
from neonext_ms.common.text import visible

DESCRIPTION = """\
Show results of neonext-bench --output.

examples:
  neonext-bench report result.json
  neonext-bench report result.json --output DIR           Markdown and pictures, named after the result
  neonext-bench report a.json b.json --output all.md      several results in one page, pictures beside it
  neonext-bench report result.json --compare earlier.json --fail-above 1.1
  neonext-bench report --update docs/results.md           regenerate the reports of a page

--compare compares ratios, never times: each model relative to the first model's matrix products of its own run. The
two runs may therefore come from different machines of one kind. With --fail-above the exit code is 1 if a ratio grew
by more than that factor."""

COMMAND = "neonext-bench report"


def _limit(text: str) -> float:
    limit = positive_float(text)
    # Beyond the upper one, nothing would ever fail.
    if not 1 <= limit <= 10:
        raise argparse.ArgumentTypeError(f"expected a factor of at least 1 and at most 10, such as 1.1, got {text!r}")
    return limit


def build_parser() -> Parser:
    """Return the parser of neonext-bench report."""
    parser = Parser(prog=COMMAND, description=DESCRIPTION)
    parser.add_argument("results", nargs="*", metavar="RESULT.json", help="results of neonext-bench --output")
    parser.add_argument("--output", metavar="DIR|FILE.md", help="write the report there, with pictures")
    parser.add_argument("--update", metavar="PAGE.md", help="regenerate the reports inside this page")
    parser.add_argument("--json", action="store_true", help="print summaries, or the comparison, as JSON")
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument("--compare", metavar="BASE.json", help="earlier result to compare with")
    comparison.add_argument("--to", metavar="LABEL", help="model that all are compared with (default: the GEMM)")
    comparison.add_argument(
        "--fail-above", type=_limit, metavar="RATIO", help="exit with 1 if a ratio grew by more (1.1)"
    )
    return parser


def _main(argv: Sequence[str] | None = None) -> int | None:
    args = build_parser().parse_args(argv)
    if not args.compare and (args.fail_above is not None or args.to):
        raise UsageError("--fail-above and --to require --compare BASE.json. Name the earlier result.")
    if args.compare and len(args.results) != 1:
        raise UsageError(f"--compare takes one result (got {len(args.results)})")
    if bool(args.results) == bool(args.update):
        raise UsageError("expected results, or --update PAGE.md")
    from . import documents, results

    if args.update:
        print(documents.updated(args.update, COMMAND, _section))
        return None
    read = {path: results.read(path) for path in args.results}
    with results.undamaged(*args.results, *([args.compare] if args.compare else [])):
        return _show(args, read)


def _show(args: argparse.Namespace, read: dict[str, dict]) -> int | None:
    """Write, compare or print results."""
    from . import regression, results

    if args.output:
        _write(read, Path(args.output))
    if args.compare:
        changes = regression.compare(read[args.results[0]], results.read(args.compare), args.to)
        failed = regression.failures(changes, args.fail_above)
        if args.json:
            print_json({"moves": [change.to_dict() for change in changes], "failed": failed})
        else:
            print_text(regression.text(changes, args.fail_above))
        return 1 if failed else None
    if args.json:
        print_json([row.to_dict() for result in read.values() for row in results.entries(result)])
    elif not args.output:
        from .report import markdown

        print(visible("\n".join(markdown(result) for result in read.values())), end="")
    return None


def _section(paths: Sequence[str]) -> str:
    """Return the report of results as a section of a page."""
    from .report import markdown
    from .results import read, undamaged

    with undamaged(*paths):
        return "\n".join(markdown(read(path)) for path in paths).rstrip("\n").replace("\n## ", "\n### ")


def _write(read: dict[str, dict], output: Path) -> None:
    """Write the page and its pictures, to `output` if that is a Markdown file, else into that folder."""
    from neonext_ms.common.files import atomic

    from . import plots
    from .report import markdown

    page = output if output.suffix == ".md" else output / f"{Path(next(iter(read))).stem}.md"
    missing: ToolchainError | None = None
    pages = []
    for path, result in read.items():
        stem = Path(path).stem
        try:
            pictures = plots.draw(result, page.parent, stem if len(read) == 1 else f"{page.stem}_{stem}")
        except ToolchainError as error:
            pictures, missing = [], error
        for picture in pictures:
            note(str(picture))
        title = "Measured with neonext-bench" if len(read) == 1 else stem.replace("_", " ").capitalize()
        text = markdown(result, [picture.name for picture in pictures], title)
        pages.append(text if len(read) == 1 else text.replace("\n## ", "\n### ").replace("# ", "## ", 1))
    head = [] if len(read) == 1 else ["# Measured with neonext-bench\n"]
    with atomic(page) as staged:
        staged.write_text("\n".join(head + pages), encoding="utf-8")
    note(str(page))
    if missing:
        note(f"note: no pictures: {missing}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-bench report; return the exit code."""
    return run(_main, argv)
