"""neonext-ablate: train pairs that differ in one thing, over several seeds, and compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.cli import INTERRUPTED, Parser, note, positive_int, print_json, run
from neonext_ms.common.errors import ToolchainError
from neonext_ms.common.figures import pyplot, save_figure

DESCRIPTION = """\
Repeat an ablation of the paper on the data at hand.

  neonext-ablate neoinit --config configs/ablate_neoinit.yaml
  neonext-ablate neoinit --config configs/ablate_neoinit.yaml --seeds 3 optimizer.lr=0.4

neoinit trains with NeoInit and with normal noise alone (Table 3). Every run has a folder of its own in --output, with
its curves; an ablation that was interrupted goes on where it was. The plot needs matplotlib."""


def build_parser() -> Parser:
    """The command line of neonext-ablate."""
    parser = Parser(prog="neonext-ablate", description=DESCRIPTION)
    parser.add_argument("ablation", choices=("neoinit",), help="what is compared")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that differ from the configuration")
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="the configuration of all runs")
    parser.add_argument("--seeds", type=positive_int, default=5, metavar="N", help="runs of each kind (default 5)")
    parser.add_argument("--output", metavar="FOLDER", help="where to write (default: runs/ablate_<name>)")
    parser.add_argument("--json", action="store_true", help="print what came out as JSON")
    return parser


def _main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    from neonext_ms.training.config.schema import load_config

    config = load_config(args.config, args.overrides)
    output = Path(args.output or f"runs/ablate_{args.ablation}")
    from neonext_ms.common.signals import signals_later

    with signals_later():
        from neonext_ms.training.ablation import run_trials, summarise, table
        from neonext_ms.training.trainer import StoppedError

    def report(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    try:
        trials = run_trials(
            args.ablation, config, range(args.seeds), output, lambda text: note(f"note: {text}"), report
        )
    except StoppedError as stopped:
        note(f"stopped: {stopped}")
        return INTERRUPTED
    summary = summarise(trials)
    picture = output / f"{args.ablation}.png"
    try:
        _draw(summary, picture)
    except ToolchainError as error:
        note(f"note: no plot: {error}")
        picture = None
    if args.json:
        print_json({"ablation": args.ablation, "summary": summary, "plot": str(picture) if picture else None})
    else:
        print("\n".join(table(summary)))
        if picture:
            print(picture)
    return 0


def _draw(summary: dict, path: Path) -> None:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, row in enumerate(summary.values()):
        for trial in row["trials"]:
            mark = "x" if trial["diverged"] else "o"
            axis.plot(place, 100 * trial["top1"], mark, color=f"C{place}", alpha=0.7)
        if row["mean"] is not None:
            axis.hlines(100 * row["mean"], place - 0.2, place + 0.2, color=f"C{place}")
    axis.set_xticks(range(len(summary)), list(summary))
    axis.set_ylabel("top-1 of the validation images, %")
    axis.grid(alpha=0.3)
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of neonext-ablate; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
