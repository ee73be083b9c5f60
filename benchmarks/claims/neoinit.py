"""NeoInit against its noise alone (Table 3 of the paper): the same training from both, with several seeds.

Every run has its own folder in `--output`. An interrupted comparison resumes where it was; finished runs are not
repeated. Without matplotlib there is no figure.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neonext_ms.common.cli import note, positive_int
from neonext_ms.common.environment import prepare_environment
from neonext_ms.common.errors import ToolchainError, UsageError

# Values of model.neocell_init; the first one is the paper's proposal.
INITS = ("neoinit", "normal")
# A run that ends below this multiple of chance counts as diverged, as one that ends with NaN does.
_CHANCE = 1.5


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim."""
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="configuration of all runs")
    parser.add_argument("--seeds", type=positive_int, default=5, metavar="N", help="runs of each kind (default 5)")
    parser.add_argument("--output", default="runs/ablate_neoinit", metavar="FOLDER", help="folder of the runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change, after all options")


def measure(args: argparse.Namespace) -> dict:
    """Train from both initialisations with every seed, and draw the accuracies."""
    if args.rounds:
        raise UsageError("--rounds: nothing is timed in this claim. Use --seeds for the number of runs.")
    prepare_environment(args.threads)
    from neonext_ms.common.signals import signals_later
    from neonext_ms.training.config.load import load_config

    config = load_config(args.config, args.overrides)
    with signals_later():
        from neonext_ms.training.trainer import StoppedError
    try:
        summary = summarise(run_trials(config, range(args.seeds), Path(args.output)))
    except StoppedError as stopped:
        note(f"stopped: {stopped}")
        raise KeyboardInterrupt from stopped
    plot: str | None = str(Path(args.output) / "neoinit.png")
    try:
        _draw(summary, Path(args.output) / "neoinit.png")
    except ToolchainError as error:
        note(f"note: no figure: {error}")
        plot = None
    return {"summary": summary, "plot": plot}


def run_trials(config, seeds: Sequence[int], output: Path) -> list[dict]:
    """Train from every initialisation with every seed, in `output/<initialisation>-<seed>`.

    Returns:
        For each run its `value` (initialisation), `seed`, validation `top1` and `loss`, and whether it `diverged`, that
        is ended with NaN (`top1` is 0 and `loss` None) or barely above chance.
    """
    from neonext_ms.training.trainer import NotFiniteError, Trainer

    trials = []
    for seed in seeds:
        for value in INITS:
            one = replace(
                config,
                model=replace(config.model, neocell_init=value),
                run=replace(config.run, output=str(output / f"{value}-{seed}"), seed=seed),
            )
            trial: dict = {"value": value, "seed": seed, "top1": 0.0, "loss": None, "diverged": True}
            try:
                trainer = Trainer(one, "auto", ["neonext-bench", "claims", "neoinit"], lambda t: note(f"note: {t}"))
                classes = len(trainer.train_images.classes)
                last = trainer.run()["last"]["model"]
                trial |= {"top1": last["top1"], "loss": last["loss"], "diverged": last["top1"] < _CHANCE / classes}
            except NotFiniteError as error:
                note(str(error))
            diverged = " (diverged)" if trial["diverged"] else ""
            note(f"{value:8} seed {seed}: top-1 {100 * trial['top1']:.2f} %{diverged}")
            trials.append(trial)
    return trials


def summarise(trials: Sequence[Mapping]) -> dict[str, dict]:
    """Return counts, and mean and standard deviation of top-1 over the runs that did not diverge, by initialisation."""
    summary: dict[str, dict] = {}
    for value in dict.fromkeys(trial["value"] for trial in trials):
        own = [dict(trial) for trial in trials if trial["value"] == value]
        good = [trial["top1"] for trial in own if not trial["diverged"]]
        summary[value] = {
            "runs": len(own),
            "diverged": len(own) - len(good),
            "mean": statistics.mean(good) if good else None,
            "deviation": statistics.stdev(good) if len(good) > 1 else None,
            "trials": own,
        }
    return summary


def lines(result: Mapping) -> Iterator[str]:
    """Yield the table as text."""
    yield "         runs  diverged  mean top-1  deviation"
    for value, row in result["summary"].items():
        mean, deviation = ("-" if x is None else f"{100 * x:.2f} %" for x in (row["mean"], row["deviation"]))
        yield f"{value:7}  {row['runs']:<4}  {row['diverged']:<8}  {mean:10}  {deviation}".rstrip()
    if result["plot"]:
        yield result["plot"]


def _draw(summary: Mapping[str, dict], path: Path) -> None:
    """Draw a column for each initialisation: a dot for each run, a cross if it diverged, a line at the mean."""
    from neonext_ms.common.figures import pyplot, save_figure

    figure, axis = pyplot().subplots(figsize=(6, 4), layout="constrained")
    for x, row in enumerate(summary.values()):
        for trial in row["trials"]:
            axis.plot(x, 100 * trial["top1"], "x" if trial["diverged"] else "o", color=f"C{x}", alpha=0.7)
        if row["mean"] is not None:
            axis.hlines(100 * row["mean"], x - 0.2, x + 0.2, color=f"C{x}")
    axis.set_xticks(range(len(summary)), list(summary))
    axis.set_ylabel("top-1 of the validation images, %")
    axis.grid(alpha=0.3)
    save_figure(figure, path)
