"""NeoInit against other initializations (Table 3 and Fig. 6 of the paper): the same training from each, several seeds.

Every run has its own folder in `--output`, and `result.json` there when it has ended. An interrupted comparison resumes
where it was; finished runs are not repeated. Without matplotlib there is no figure.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neonext_ms.common.cli import comma_list, note, positive_int
from neonext_ms.common.environment import prepare_environment
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.common.files import atomic, read_json
from neonext_ms.common.text import list_names

# Values of model.neocell_init: the paper's proposal, its baseline, to which differences refer, and two variants.
INITIALIZATIONS = ("neoinit", "normal", "noise", "figure5")
_BASELINE = "normal"
_RESULT = "result.json"
_FIGURE = "neoinit.png"
# A run that ends below this multiple of chance counts as diverged, as one that ends with NaN does.
_CHANCE = 1.5


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim."""
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="configuration of all runs")
    parser.add_argument(
        "--initialization",
        type=comma_list(),
        default=INITIALIZATIONS,
        metavar="NAMES",
        help=f"initializations to compare (default {','.join(INITIALIZATIONS)})",
    )
    parser.add_argument("--seeds", type=positive_int, default=5, metavar="N", help="runs of each kind (default 5)")
    parser.add_argument("--output", default="runs/ablate_neoinit", metavar="FOLDER", help="folder of the runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change, after all options")


def measure(args: argparse.Namespace) -> dict:
    """Train from every initialization with every seed, and draw the curves."""
    unknown = [name for name in args.initialization if name not in INITIALIZATIONS]
    if unknown:
        raise UsageError(
            f"--initialization: unknown name (got {unknown[0]!r}, expected some of {', '.join(INITIALIZATIONS)})"
        )
    prepare_environment(args.threads)
    from neonext_ms.common.signals import signals_later
    from neonext_ms.training.config.load import load_config

    config = load_config(args.config, args.overrides)
    with signals_later():
        from neonext_ms.training.trainer import StoppedError
    output = Path(args.output)
    try:
        names = list(dict.fromkeys(args.initialization))
        summary = summarise(run_trials(config, names, range(args.seeds), output))
    except StoppedError as stopped:
        note(f"stopped: {stopped}")
        raise KeyboardInterrupt from stopped
    plot: str | None = str(output / _FIGURE)
    try:
        from neonext_ms.common.figures import pyplot, save_figure

        save_figure(draw(pyplot(), summary), output / _FIGURE)
    except ToolchainError as error:
        note(f"note: no figure: {error}")
        plot = None
    return {"summary": summary, "plot": plot}


def run_trials(config, names: Sequence[str], seeds: Sequence[int], output: Path) -> list[dict]:
    """Train from every initialization with every seed, in `output/<initialization>-<seed>`; see `_trial`."""
    trials = []
    # Seed by seed, so that an unfinished comparison has as many runs of each kind.
    for seed in seeds:
        for name in names:
            one = replace(
                config,
                model=replace(config.model, neocell_init=name),
                run=replace(config.run, output=str(output / f"{name}-{seed}"), seed=seed, validate_every=1),
            )
            trial = _recorded(one) or _trial(one)
            diverged = " (diverged)" if trial["diverged"] else ""
            note(f"{name:8} seed {seed}: top-1 {100 * trial['top1']:.2f} %{diverged}")
            trials.append(trial)
    return trials


def _trial(config) -> dict:
    """Train once, and record the result.

    Returns:
        `value` (initialization), `seed`, `top1` and `loss` of the last validation, `epochs` with the `epoch`, `loss`
        and `top1` of each, and whether it `diverged`, that is ended with NaN (`top1` is 0 and `loss` None) or barely
        above chance.
    """
    from neonext_ms.training.runlog import EPOCHS, read_csv
    from neonext_ms.training.trainer import NotFiniteError, Trainer

    output = Path(config.run.output)
    trial: dict = {"value": config.model.neocell_init, "seed": config.run.seed}
    trial |= {"top1": 0.0, "loss": None, "diverged": True}
    try:
        trainer = Trainer(config, "auto", ["neonext-bench", "claims", "neoinit"], lambda text: note(f"note: {text}"))
        classes = len(trainer.train_images.classes)
        last = trainer.run()["last"]["model"]
        trial |= {"top1": last["top1"], "loss": _finite(last["loss"]), "diverged": last["top1"] < _CHANCE / classes}
    except NotFiniteError as error:
        note(str(error))
    rows = read_csv(output / EPOCHS)
    trial["epochs"] = [
        {"epoch": int(row["epoch"]) + 1, "loss": _finite(float(row["loss"])), "top1": float(row["top1"])}
        for row in rows
    ]
    output.mkdir(parents=True, exist_ok=True)
    with atomic(output / _RESULT) as staged:
        staged.write_text(json.dumps(trial, indent=1) + "\n", encoding="utf-8")
    return trial


def _recorded(config) -> dict | None:
    """Return the recorded result of a run that has ended, or None.

    Raises:
        InputError: the run was begun with another configuration.
    """
    from neonext_ms.training.config.changes import changes
    from neonext_ms.training.config.load import load_config

    folder = Path(config.run.output)
    begun = folder / "config.yaml"
    if begun.exists() and (changed := changes(load_config(begun).to_dict(), config.to_dict())):
        raise InputError(
            f"{folder}: was begun with another configuration. Choose another folder with --output, or remove this run. "
            f"These differ:\n{list_names(changed)}"
        )
    return _read_result(folder / _RESULT) if (folder / _RESULT).exists() else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read_result(path: Path) -> dict:
    trial = read_json(path, "the result of a run")
    if not _is_result(trial):
        raise InputError(f"{path}: damaged, not the result of a run. Remove it; the run then ends again.")
    return trial


def _is_result(trial: object) -> bool:
    """Return whether a value read from JSON has the form of `_trial`'s result."""

    def number(value: object, low: float, high: float) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    def epoch(row: object) -> bool:
        return isinstance(row, dict) and number(row.get("epoch"), 1, 1e9) and figures(row)

    def figures(values: dict) -> bool:
        loss = values.get("loss", "")
        return number(values.get("top1"), 0, 1) and (loss is None or number(loss, -1e30, 1e30))

    return (
        isinstance(trial, dict)
        and isinstance(trial.get("value"), str)
        and number(trial.get("seed"), 0, 1 << 32)
        and isinstance(trial.get("diverged"), bool)
        and figures(trial)
        and isinstance(trial.get("epochs"), list)
        and all(epoch(row) for row in trial["epochs"])
    )


def read_trials(folder: Path) -> list[dict]:
    """Read the results of the finished runs in a folder.

    Raises:
        InputError: there are none, or one is damaged.
    """
    trials = [_read_result(path) for path in sorted(folder.glob(f"*/{_RESULT}"))]
    if not trials:
        raise InputError(f"{folder}: no results (expected the folder of neonext-bench claims neoinit)")
    order = {name: position for position, name in enumerate(INITIALIZATIONS)}
    return sorted(trials, key=lambda trial: (order.get(trial["value"], len(order)), trial["seed"]))


def summarise(trials: Sequence[Mapping]) -> dict[str, dict]:
    """Return counts, and mean and deviation of top-1 and loss over the runs that did not diverge, by initialization.

    Each has a `curve`, the same figures after every epoch, and its `trials`.
    """
    summary: dict[str, dict] = {}
    for value in dict.fromkeys(trial["value"] for trial in trials):
        own = [dict(trial) for trial in trials if trial["value"] == value]
        good = [trial for trial in own if not trial["diverged"]]
        by_epoch: dict[int, list[Mapping]] = {}
        for trial in good:
            for row in trial["epochs"]:
                by_epoch.setdefault(row["epoch"], []).append(row)
        summary[value] = {
            "runs": len(own),
            "diverged": len(own) - len(good),
            **_statistics(good),
            "curve": [{"epoch": epoch, **_statistics(rows)} for epoch, rows in sorted(by_epoch.items())],
            "trials": own,
        }
    return summary


def _statistics(rows: Sequence[Mapping]) -> dict:
    """Return `mean` and `deviation` of top-1, and those of the loss; None where there are too few."""
    result = {}
    for key, prefix in (("top1", ""), ("loss", "loss_")):
        values = [row[key] for row in rows if row[key] is not None]
        result[f"{prefix}mean"] = statistics.mean(values) if values else None
        result[f"{prefix}deviation"] = statistics.stdev(values) if len(values) > 1 else None
    return result


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
