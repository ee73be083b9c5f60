"""Trainings that differ in one choice, with several seeds each: resumable, and summarised.

Every run has its own folder, and `result.json` there when it has ended. An interrupted comparison resumes where it was;
finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from neonext_ms.common.cli import note, positive_int, some_of
from neonext_ms.common.environment import prepare_environment
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.files import atomic, read_json
from neonext_ms.common.text import list_names

_RESULT = "result.json"
# A run that ends below this multiple of chance counts as diverged, as one that ends with NaN does.
_CHANCE = 1.5
T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser, seeds: int, output: str) -> None:
    """Add the options of a comparison.

    Args:
        parser: parser of the claim.
        seeds: default number of seeds.
        output: default folder of the runs.
    """
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="configuration of all runs")
    parser.add_argument(
        "--seeds", type=positive_int, default=seeds, metavar="N", help=f"runs of each kind (default {seeds})"
    )
    parser.add_argument("--output", default=output, metavar="FOLDER", help="folder of the runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change, after all options")


def add_choice(parser: argparse.ArgumentParser, flag: str, names: Sequence[str], what: str) -> None:
    """Add the option that names what to compare: some of `names`, by default all."""
    parser.add_argument(
        flag, type=some_of(names), default=names, metavar="NAMES", help=f"{what} to compare (default {','.join(names)})"
    )


def write_figure(draw: Callable[..., T], path: Path) -> str | None:
    """Write the figure of `draw(plt)`; where that cannot be, print a note and return None instead of the path."""
    try:
        from neonext_ms.common.figures import pyplot, save_figure

        save_figure(draw(pyplot()), path)
    except (ToolchainError, InputError) as error:
        # The results of hours are printed in any case.
        note(f"note: no figure: {error}")
        return None
    return str(path)


def train(args: argparse.Namespace, runs: Callable[..., T]) -> T:
    """Load the configuration of `add_options` and call `runs` with it.

    Raises:
        KeyboardInterrupt: a signal or `run.stop_after` ended a run, whose state is saved.
    """
    prepare_environment(args.threads)
    from neonext_ms.common.signals import signals_later
    from neonext_ms.training.config.load import load_config

    config = load_config(args.config, args.overrides)
    with signals_later():
        from neonext_ms.training.trainer import StoppedError
    try:
        return runs(config)
    except StoppedError as stopped:
        note(f"stopped: {stopped}")
        raise KeyboardInterrupt from stopped


def run_trials(
    configs: Callable[[int], Mapping[str, object]], seeds: Sequence[int], output: Path, command: str
) -> list[dict]:
    """Train with every configuration and every seed, in `output/<name>-<seed>`; see `_trial`.

    Args:
        configs: returns the configurations of a seed, in their order, by the value of the choice that they differ in.
        seeds: random seeds.
        output: folder of the runs.
        command: name of the claim.
    """
    trials = []
    images = _Images()
    # Seed by seed, so that an unfinished comparison has as many runs of each kind.
    for seed in seeds:
        for name, config in configs(seed).items():
            run = replace(config.run, output=str(output / f"{name}-{seed}"), seed=seed)  # type: ignore
            one = replace(config, run=run)  # type: ignore
            trial = _recorded(one, name, images) or _trial(one, name, command)
            diverged = " (diverged)" if trial["diverged"] else ""
            note(f"{name:15} seed {seed}: top-1 {100 * trial['top1']:.2f} %{diverged}")
            trials.append(trial)
    return trials


class _Images:
    """Descriptions of the images of configurations; each data set is opened once, and only if it is asked for."""

    def __init__(self) -> None:
        self._known: dict[str, dict] = {}

    def of(self, config) -> dict:
        """Return `describe_data` of a configuration now."""
        from neonext_ms.training.data.datasets import open_dataset
        from neonext_ms.training.data.image_sets import describe_data

        key = repr(config.data)
        if key not in self._known:
            self._known[key] = describe_data(*open_dataset(config.data))
        return self._known[key]


def _trial(config, name: str, command: str) -> dict:
    """Train once, and record the result.

    Returns:
        `value` (name), `seed`, `top1` and `loss` of the last validation, `epochs` with the `epoch`, `loss`
        and `top1` of each, and whether it `diverged`, that is ended with NaN (`top1` is 0 and `loss` None) or barely
        above chance.
    """
    from neonext_ms.training.runlog import EPOCHS, read_csv
    from neonext_ms.training.trainer import NotFiniteError, Trainer

    output = Path(config.run.output)
    trial: dict = {"value": name, "seed": config.run.seed}
    trial |= {"top1": 0.0, "loss": None, "diverged": True}
    images: dict = {}
    try:
        trainer = Trainer(config, "auto", ["neonext-bench", "claims", command], lambda text: note(f"note: {text}"))
        classes, images = len(trainer.train_images.classes), trainer.progress.data
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
        staged.write_text(json.dumps({**trial, "data": images}, indent=1) + "\n", encoding="utf-8")
    return trial


def _recorded(config, name: str, images: _Images) -> dict | None:
    """Return the recorded result of a run that has ended, or None.

    Raises:
        InputError: the run was begun with another configuration or other images, or its result is of another run.
    """
    from neonext_ms.training.config.changes import changes
    from neonext_ms.training.config.load import load_config
    from neonext_ms.training.data.image_sets import check_data

    folder = Path(config.run.output)
    begun = folder / "config.yaml"
    if begun.exists() and (changed := changes(load_config(begun).to_dict(), config.to_dict())):
        raise InputError(
            f"{folder}: was begun with another configuration. Choose another folder with --output, or remove this run. "
            f"These differ:\n{list_names(changed)}"
        )
    if not (folder / _RESULT).exists():
        return None
    trial = _read_result(folder / _RESULT)
    if not begun.exists() or (trial["value"], trial["seed"]) != (name, config.run.seed):
        problem = "is of another run" if begun.exists() else f"has no {begun.name} beside it"
        raise InputError(f"{folder / _RESULT}: {problem}. Remove this folder; the run is then repeated.")
    # Results of earlier versions do not say.
    if recorded := trial.pop("data", None):
        check_data(recorded, images.of(config), str(folder))
    return trial


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

    from neonext_ms.training.data.image_sets import is_description

    return (
        isinstance(trial, dict)
        and isinstance(trial.get("value"), str)
        and number(trial.get("seed"), 0, 1 << 32)
        and isinstance(trial.get("diverged"), bool)
        and figures(trial)
        and isinstance(trial.get("epochs"), list)
        and all(epoch(row) for row in trial["epochs"])
        and is_description(trial.get("data", {}))
    )


def read_trials(folder: Path, order: Sequence[str], command: str) -> list[dict]:
    """Read the results of the finished runs in a folder.

    Args:
        folder: folder of the runs.
        order: names in the order of the result.
        command: name of the claim.

    Raises:
        InputError: there are none, or one is damaged.
    """
    trials = [_read_result(path) for path in sorted(folder.glob(f"*/{_RESULT}"))]
    if not trials:
        raise InputError(f"{folder}: no results (expected the folder of neonext-bench claims {command})")
    place = {name: position for position, name in enumerate(order)}
    return sorted(trials, key=lambda trial: (place.get(trial["value"], len(place)), trial["seed"]))


def summarise(trials: Sequence[Mapping]) -> dict[str, dict]:
    """Return counts, and mean and deviation of top-1 and loss over the runs that did not diverge, by name.

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
