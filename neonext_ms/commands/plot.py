"""neonext-plot: draw the curves of training runs, and the figures of the paper."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from neonext_ms.checkpoint.options import add_weights_options
from neonext_ms.common.cli import Parser, parse_size, png_file, print_json, run
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.figures import literal, pyplot, save_figure
from neonext_ms.common.text import one_line, printable

DESCRIPTION = """\
Draw loss, accuracy, learning rate and gradient norm of training runs, or a figure of the paper (--figure). Requires
matplotlib: pip install "neonext_ms[plot]".

examples:
  neonext-plot runs/digits
  neonext-plot runs/a runs/b --output both.png
  neonext-plot --figure 4 --spec kernel=7,shift=2 --map 14
  neonext-plot --figure 5 runs/digits/best.safetensors"""

# Value of --figure -> module of `benchmarks.pictures`, what it draws, and what is named by RUN.
FIGURES = {
    "1": ("accuracy", "published accuracy against size", ""),
    "2": ("geometry", "patches", ""),
    "3": ("geometry", "up- and down-sampling", ""),
    "4": ("geometry", "shifts", ""),
    "5": ("matrices", "learned matrices beside NeoInit", "a checkpoint"),
    "6": ("ablation", "initializations compared", "the folder of neonext-bench claims neoinit"),
    "receptive-field": ("receptive_field", "pixels that each stage depends on", "a registered model"),
}

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
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of runs (run.output), or the subject of --figure"
    )
    paper = parser.add_argument_group("figures of the paper")
    drawn = "; ".join(
        f"{name}: {what}" + f" (RUN: {subject})" * bool(subject) for name, (_, what, subject) in FIGURES.items()
    )
    paper.add_argument("--figure", choices=FIGURES, metavar="N", help=drawn)
    paper.add_argument(
        "--spec",
        action="append",
        metavar="KEY=N,...",
        help="NeoCell of figures 2 to 4, such as kernel=4,shift=1; repeatable",
    )
    paper.add_argument(
        "--map", type=parse_size, metavar="SIZE", help="map of figures 2 to 4 (at most 64), image of receptive-field"
    )
    add_weights_options(parser.add_argument_group("checkpoint of figure 5").add_argument, activation=False)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=png_file, metavar="FILE.png", help="file to write (default: curves.png in the first run)"
    )
    output.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if (args.ema or args.key) and args.figure != "5":
        raise UsageError("--ema and --key are for the checkpoint of --figure 5")
    if args.figure:
        _draw_figure(args)
        return
    if not args.runs or args.spec or args.map:
        raise UsageError("expected folders of runs, or --figure" if not args.runs else "--spec and --map need --figure")
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
                    names = [literal(printable(folder))] * (len(logs) > 1) + [label] * bool(label)
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


def _draw_figure(args) -> None:
    module, _, subject = FIGURES[args.figure]
    if args.runs and not subject:
        raise UsageError(f"--figure {args.figure}: draws no run (got {printable(args.runs[0])})")
    if args.spec and module != "geometry":
        raise UsageError(f"--figure {args.figure}: --spec is for figures 2 to 4")
    if args.map and module not in ("geometry", "receptive_field"):
        raise UsageError(f"--figure {args.figure}: --map is for figures 2 to 4 and receptive-field")
    picture = import_module(f"neonext_ms.benchmarks.pictures.{module}")
    figure, facts = picture.draw(pyplot(), args)
    output = Path(args.output or f"figure_{args.figure}.png")
    save_figure(figure, output)
    if args.json:
        print_json({"plot": str(output), "figure": args.figure, **facts})
        return
    for line in picture.describe(facts):
        print(line)
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
