"""neonext-bench estimate blocks: predicted times of NeoCell kernels and of whole blocks. Nothing is run on a device."""

from __future__ import annotations

import json
from collections.abc import Sequence

from neonext_ms.common.cli import Parser, run
from neonext_ms.common.errors import UsageError

DESCRIPTION = """\
Predict NeoCell kernels and whole blocks of the released models on Ascend devices.

examples:
  neonext-bench estimate blocks neocell --models t --image-size 224
  neonext-bench estimate blocks fusions --soc Ascend310P3 --models t --image-size 224
  neonext-bench estimate blocks buffers --models t --image-size 224

Tables: neocell (one NeoCell beside its alternatives), fusions (the bounds of a block, and which fusion pays), buffers
(tiles of a whole block in the buffers of one core). All times are predicted by the device model, none is measured.
neocell and fusions count the kernel's instructions in the simulator, which needs a C++ compiler (exit code 3 without
one). See docs/device-model.md."""
TABLES = ("neocell", "fusions", "buffers")
_MODELS = ("t", "s", "b", "l", "xl")
_IMAGES = ("224", "384")
_BATCHES = tuple(map(str, range(1, 65)))


def build_parser() -> Parser:
    """Return the parser of `neonext-bench estimate blocks`."""
    parser = Parser(prog="neonext-bench estimate blocks", description=DESCRIPTION)
    parser.add_argument("table", nargs="?", choices=TABLES, default=TABLES[0], help=f"table (default: {TABLES[0]})")
    parser.add_argument(
        "--soc", default="Ascend310P3,Ascend910B3", metavar="NAMES", help="devices (default: %(default)s)"
    )
    parser.add_argument("--models", default="t,s,b", metavar="NAMES", help="sizes of released models (default: t,s,b)")
    parser.add_argument("--image-size", default="224,384", metavar="SIZES", help="image sizes (default: %(default)s)")
    parser.add_argument("--batch", default="1,8", metavar="SIZES", help="batch sizes (default: %(default)s)")
    parser.add_argument("--totals", action="store_true", help="print only the sums over a model")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON document on stdout")
    return parser


def printed(argv: Sequence[str] | None = None) -> str:
    """Return what a command line prints.

    Raises:
        UsageError: `--totals` of a table without sums; an unknown device, model, image size or batch.
        ToolchainError: there is no C++ compiler.
    """
    from neonext_ms.ops.soc import soc

    from .block_tables import TABLES as FUNCTIONS
    from .block_tables import BlockCases

    args = build_parser().parse_args(argv)
    if args.totals and args.table == "buffers":
        raise UsageError("--totals: the table buffers has no sums over a model. Leave the option out.")
    cases = BlockCases(
        tuple(soc(name) for name in args.soc.split(",")),
        tuple(_known(args.models, _MODELS, "model")),
        tuple(map(int, _known(args.image_size, _IMAGES, "image size"))),
        tuple(map(int, _known(args.batch, _BATCHES, "batch"))),
    )
    rows_of, text_of = FUNCTIONS[args.table]
    rows = [row for row in rows_of(cases) if not args.totals or row["stage"] == "all"]
    return json.dumps(rows, indent=2) if args.json else text_of(rows)


def _known(text: str, known: Sequence[str], what: str) -> list[str]:
    parts = text.split(",")
    for part in parts:
        if part not in known:
            expected = ", ".join(known) if len(known) < 10 else f"a whole number from {known[0]} to {known[-1]}"
            raise UsageError(f"{what} {part!r}: unknown (expected {expected}, or several of them with commas)")
    return parts


def _main(argv: Sequence[str] | None = None) -> None:
    print(printed(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `neonext-bench estimate blocks` and return its exit code."""
    return run(_main, argv)
