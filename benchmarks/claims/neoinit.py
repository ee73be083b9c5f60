"""NeoInit against other initializations (Table 3 and Fig. 6 of the paper): the same training from each, several seeds.

Every run has its own folder in `--output`, and `result.json` there when it has ended. An interrupted comparison resumes
where it was; finished runs are not repeated. Without matplotlib there is no figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import trials
from .trials import summarise as summarise

# Values of model.neocell_init: the paper's proposal, its baseline, to which differences refer, and two variants.
INITIALIZATIONS = ("neoinit", "normal", "noise", "figure5")
_BASELINE = "normal"
_FIGURE = "neoinit.png"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim."""
    trials.add_choice(parser, "--initialization", INITIALIZATIONS, "initializations")
    trials.add_options(parser, seeds=5, output="runs/ablate_neoinit")


def measure(args: argparse.Namespace) -> dict:
    """Train from every initialization with every seed, and draw the curves."""
    output = Path(args.output)
    seeds = range(args.seeds)
    summary = summarise(trials.train(args, lambda config: run_trials(config, args.initialization, seeds, output)))
    plot = trials.write_figure(lambda plt: draw(plt, summary), output / _FIGURE)
    return {"summary": summary, "plot": plot}


def run_trials(config, names: Sequence[str], seeds: Sequence[int], output: Path) -> list[dict]:
    """Train from every initialization with every seed, in `output/<initialization>-<seed>`; see `trials.run_trials`."""
    configs = {name: replace(config, model=replace(config.model, neocell_init=name)) for name in names}
    return trials.run_trials(lambda seed: configs, seeds, output, "neoinit")


def read_trials(folder: Path) -> list[dict]:
    """Read the results of the finished runs in a folder, in the order of `INITIALIZATIONS`.

    Raises:
        InputError: there are none, or one is damaged.
    """
    return trials.read_trials(folder, INITIALIZATIONS, "neoinit")


def lines(result: Mapping) -> Iterator[str]:
    """Yield the table as text: Table 3 of the paper."""
    summary = result["summary"]
    baseline = summary.get(_BASELINE, {}).get("mean")
    yield f"         runs  diverged  mean top-1  deviation  against {_BASELINE}  mean loss  deviation"
    for value, row in summary.items():
        mean, deviation = ("-" if x is None else f"{100 * x:.2f} %" for x in (row["mean"], row["deviation"]))
        loss, spread = ("-" if x is None else f"{x:.3f}" for x in (row["loss_mean"], row["loss_deviation"]))
        known = value != _BASELINE and None not in (row["mean"], baseline)
        against = f"{100 * (row['mean'] - baseline):+.2f}" if known else "-"
        yield (
            f"{value:7}  {row['runs']:<4}  {row['diverged']:<8}  {mean:10}  {deviation:9}  {against:14}  {loss:9}  "
            f"{spread}"
        )
    if result["plot"]:
        yield result["plot"]


def draw(plt, summary: Mapping[str, dict]):
    """Draw loss and accuracy by epoch: mean and deviation of the runs that converged; those that diverged, dotted."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    panels = (("validation loss", "loss", "loss_", 1), ("top-1 of the validation images, %", "top1", "", 100))
    for axis, (title, key, prefix, scale) in zip(axes, panels, strict=True):
        for number, (value, row) in enumerate(summary.items()):
            curve = [point for point in row["curve"] if point[f"{prefix}mean"] is not None]
            epochs = [point["epoch"] for point in curve]
            middle = [scale * point[f"{prefix}mean"] for point in curve]
            spread = [scale * (point[f"{prefix}deviation"] or 0) for point in curve]
            label = f"{value}: {row['runs'] - row['diverged']} of {row['runs']} converged"
            axis.plot(epochs, middle, color=f"C{number}", label=label, marker=".")
            low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
            axis.fill_between(epochs, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
            for trial in row["trials"]:
                points = [(p["epoch"], scale * p[key]) for p in trial["epochs"] if p[key] is not None]
                if trial["diverged"] and points:
                    axis.plot(*zip(*points, strict=True), ":", color=f"C{number}", marker="x", markevery=[-1])
        axis.set_xlabel("epoch")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return figure
