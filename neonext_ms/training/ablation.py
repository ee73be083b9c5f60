"""Ablations: the same training with one thing changed, over several seeds, and what came out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from neonext_ms.common.errors import InputError

from .config.schema import Config, make_config

# Name -> (key of the configuration, its values); the first value is the paper's proposal.
ABLATIONS = {"neoinit": ("model.neocell_init", ("neoinit", "normal"))}
# A run that ends below this many times chance counts as diverged, as one that ends with NaN does.
_CHANCE = 1.5


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        value: of the key that is changed.
        seed: of the run.
        top1: share of validation images at the end; 0 if it ended with NaN.
        loss: of the validation, None with NaN.
        diverged: NaN, or no better than chance.
    """

    value: str
    seed: int
    top1: float
    loss: float | None
    diverged: bool


def run_trials(
    name: str,
    config: Config,
    seeds: Sequence[int],
    output: Path,
    note: Callable[[str], None],
    report: Callable[[str], None],
) -> list[Trial]:
    """Train every value with every seed, in `output/<value>-<seed>`; finished runs are not repeated.

    Args:
        name: in `ABLATIONS`.
        config: everything else.
        seeds: one run each.
        output: a folder.
        note, report: see `Trainer`.
    """
    from .trainer import NotFiniteError, Trainer

    key, values = ABLATIONS[name]
    part, _, leaf = key.partition(".")
    trials = []
    for seed in seeds:
        for value in values:
            plain = config.to_dict()
            plain[part][leaf] = value
            one = make_config(plain)
            folder = output / f"{value}-{seed}"
            one = replace(one, run=replace(one.run, output=str(folder), seed=seed))
            try:
                trainer = Trainer(one, "auto", ["neonext-ablate", name], note)
                classes = len(trainer.train_images.classes)
                last = trainer.run()["last"]["model"]
                trial = Trial(value, seed, last["top1"], last["loss"], last["top1"] < _CHANCE / classes)
            except NotFiniteError as error:
                note(str(error))
                trial = Trial(value, seed, 0.0, None, True)
            report(f"{value:8} seed {seed}: top-1 {100 * trial.top1:.2f} %{' (diverged)' if trial.diverged else ''}")
            trials.append(trial)
    return trials


def summarise(trials: Sequence[Trial]) -> dict[str, dict]:
    """For every value the mean and standard deviation of top-1 over the runs that did not diverge, and counts.

    Raises:
        InputError: there are no trials.
    """
    if not trials:
        raise InputError("no runs; give at least one seed")
    result: dict[str, dict] = {}
    for value in dict.fromkeys(trial.value for trial in trials):
        own = [trial for trial in trials if trial.value == value]
        good = [trial.top1 for trial in own if not trial.diverged]
        result[value] = {
            "runs": len(own),
            "diverged": len(own) - len(good),
            "mean": statistics.mean(good) if good else None,
            "deviation": statistics.stdev(good) if len(good) > 1 else None,
            "trials": [asdict(trial) for trial in own],
        }
    return result


def table(summary: Mapping[str, dict]) -> list[str]:
    """The summary as lines of text."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    rows = [("", "runs", "diverged", "mean top-1", "deviation")]
    rows += [
        (value, str(row["runs"]), str(row["diverged"]), percent(row["mean"]), percent(row["deviation"]))
        for value, row in summary.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
