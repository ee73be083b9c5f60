"""neonext-plot: draw the curves of training runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neonext_ms.common.cli import Parser, print_json, run
from neonext_ms.common.errors import InputError
from neonext_ms.common.figures import pyplot, save_figure
from neonext_ms.common.text import one_line, printable

DESCRIPTION = """\
Draw loss, accuracy, learning rate and gradient norm of training runs. Requires matplotlib:
pip install "neonext_ms[plot]".

examples:
  neonext-plot runs/digits
  neonext-plot runs/a runs/b --output both.png"""

# Title of a panel -> (log file, column, label) of its curves.
_PANELS = {
    "loss": [
        ("steps.csv", "loss", "training"), ("epochs.csv", "loss", "validation"), ("epochs.csv", "ema_loss", "EMA"),
    ],
    "accuracy": [
        ("steps.csv", "accuracy", "training"), ("epochs.csv", "top1", "validation"), ("epochs.csv", "ema_top1", "EMA"),
    ],
    "learning rate": [("steps.csv", "rate", "")],
    "gradient norm": [("steps.csv", "norm", "")],
}  # fmt: skip


def build_parser() -> Parser:
    """Return the command-line parser of neonext-plot."""
    parser = Parser(prog="neonext-plot", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs (run.output)")
    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="FILE.png", help="file to write (default: curves.png in the first run)")
    output.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from neonext_ms.training.runlog import EPOCHS, STEPS, read_csv

    logs = []
    for folder in map(Path, args.runs):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        log = {name: read_csv(folder / name) for name in (STEPS, EPOCHS)}
        if not any(log.values()):
            raise InputError(f"{folder}: no rows in {STEPS} or {EPOCHS} (expected the folder of a training run)")
        logs.append((folder, log))
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for panel, (title, curves) in zip(axes.flat, _PANELS.items(), strict=True):
        for folder, log in logs:
            for name, column, label in curves:
                points = _points(log[name], column, folder / name)
                if points:
                    # A dollar sign would start a formula.
                    names = [printable(folder).replace("$", r"\$")] * (len(logs) > 1) + [label] * bool(label)
                    panel.plot(*zip(*points, strict=True), label=", ".join(names) or None, linewidth=1.2)
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize="small")
    output = Path(args.output) if args.output else logs[0][0] / "curves.png"
    save_figure(figure, output)
    if args.json:
        print_json({"plot": str(output), "runs": args.runs})
    else:
        print(output)


def _points(rows: Sequence[Mapping[str, str]], column: str, path: Path) -> list[tuple[float, float]]:
    """Return the steps and values of a column; infinity and what no axis can hold become gaps."""
    try:
        points = [(float(int(row["step"])), float(row[column])) for row in rows if row.get(column)]
    except (ValueError, KeyError, OverflowError) as error:
        raise InputError(
            f"{path}: damaged, a step or a value of {column} is not a number ({printable(one_line(error))}). Remove "
            "that row."
        ) from error
    return [(step, value if abs(value) < 1e100 else math.nan) for step, value in points if step < 1e18]


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-plot and return its exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
