"""Checkpoints of a run: everything that the next step depends on, in one safetensors file with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from neonext_ms.checkpoint import metadata as checkpoint_metadata
from neonext_ms.checkpoint import safetensors_file
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import atomic, check_home_written, exclusive, explained, parse_json
from neonext_ms.common.text import one_line, shorten

from .data.image_sets import is_description

# Folder of the checkpoints in that of a run.
CHECKPOINTS = "checkpoints"
_RECORD = "neonext_ms_training"
_COUNTS = ("step", "epoch", "done")
_LARGEST_COUNT = 1 << 53
_NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class Progress:
    """Position of a run.

    Attributes:
        step: number of steps, including skipped ones.
        epoch: index of the current epoch.
        done: number of steps of this epoch.
        best: best validation so far: `epoch`, `step`, `weights` ("model" or "ema") and `top1`; or {}.
        seed: random seed of the run; with `epoch` and `done` it determines every random number that follows.
        world: number of cards.
        config: configuration as plain values.
        data: images of the run, see `describe_data`.
        scales: scales of a network that is trained in 8 bit (`Scales.to_dict`); or {}.
    """

    step: int = 0
    epoch: int = 0
    done: int = 0
    best: dict = field(default_factory=dict)
    seed: int = 0
    world: int = 1
    config: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    scales: dict = field(default_factory=dict)


class Checkpoints:
    """The checkpoints in a folder, `step-000000123.safetensors`.

    Args:
        folder: folder, created with the first checkpoint.
        keep: number of checkpoints to keep; older ones are removed after a new one is complete.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        """Return the file of a step."""
        return self.folder / f"step-{step:09d}.safetensors"

    def save(self, arrays: Mapping[str, np.ndarray], progress: Progress, metadata: Mapping) -> None:
        """Write a checkpoint atomically, and remove old ones.

        Raises:
            InputError: the checkpoint cannot be written; earlier ones are kept.
        """
        try:
            save_state(self.path(progress.step), arrays, progress, metadata)
        except InputError as error:
            kept = self.paths()
            hint = (
                f"The last checkpoint is {kept[0]}; resume from it with --resume auto."
                if kept
                else "There is no earlier checkpoint."
            )
            raise InputError(f"{str(error).rstrip('.')}. {hint}") from error
        for old in self.paths()[self.keep :]:
            with explained(old):
                old.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        steps = {path: match for path in self.folder.glob("step-*") if (match := _NAME.fullmatch(path.name))}
        return sorted(steps, key=lambda path: int(steps[path][1]), reverse=True)

    def newest(self, note: Callable[[str], None]) -> tuple[Path, dict[str, np.ndarray], Progress] | None:
        """Load the newest undamaged checkpoint, or return None if there is no checkpoint.

        Args:
            note: called with a message for every damaged checkpoint.

        Raises:
            InputError: all checkpoints are damaged.
        """
        paths = self.paths()
        for path in paths:
            try:
                return path, *load_state(path)
            except InputError as error:
                note(f"{str(error).rstrip('.')}. Trying the previous checkpoint.")
        if paths:
            raise InputError(
                f"{self.folder}: all {len(paths)} checkpoints are damaged. Remove them to start again, or name another "
                "one with --resume PATH."
            )
        return None


def save_state(path: Path, arrays: Mapping[str, np.ndarray], progress: Progress, metadata: Mapping) -> None:
    """Write arrays and progress; `metadata` is what `neonext-export` reads from a checkpoint.

    Raises:
        InputError: the file cannot be written.
    """
    record = asdict(progress)
    record["sha256"] = _digest(arrays, record)
    texts = {
        checkpoint_metadata.KEY: checkpoint_metadata.encode(metadata, source=str(path)),
        _RECORD: json.dumps(record, sort_keys=True),
    }
    with atomic(path) as staged:
        safetensors_file.write(staged, arrays, {"format": "np", **texts})


def load_state(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """Return the arrays and the progress that `save_state` wrote.

    Raises:
        InputError: the file is not a checkpoint of a training run, or is damaged.
    """
    arrays, texts = safetensors_file.read(path)
    if _RECORD not in texts:
        raise InputError(
            f"{path}: contains only weights, no training state. Start from it with --init, or resume from a file in "
            "the checkpoints folder of a run."
        )
    try:
        record = parse_json(texts[_RECORD], str(path), "a training record")
        expected = record.pop("sha256")
        # Checkpoints of earlier versions have no `data`, and their checksum does not cover the record.
        covered = record if "data" in record else None
        progress = Progress(**record)
    except (InputError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: its training record is damaged ({one_line(error)})") from error
    if wrong := _impossible(progress):
        raise InputError(f"{path}: its training record is damaged: {wrong}. Resume from another checkpoint.")
    if _digest(arrays, covered) != expected:
        raise InputError(f"{path}: damaged, its checksum is wrong")
    if covered is None:
        labels = checkpoint_metadata.decode(texts.get(checkpoint_metadata.KEY, "{}"), str(path))[0].get("labels")
        progress = replace(progress, data={"classes": labels} if labels else {})
    return arrays, progress


def _impossible(progress: Progress) -> str | None:
    """Return what is wrong with the first value of a record that no run can have; None if all are possible."""

    def count(value: object, least: int = 0) -> bool:
        return type(value) is int and least <= value < _LARGEST_COUNT

    best, config, data = progress.best, progress.config, progress.data
    checks: list[tuple[str, object, bool, str]] = [
        *((name, getattr(progress, name), count(getattr(progress, name)), "a count") for name in _COUNTS),
        ("seed", progress.seed, count(progress.seed), "a whole number"),
        ("world", progress.world, count(progress.world, 1), "a number of cards"),
        ("best", best, isinstance(best, dict), "a mapping"),
        ("config", config, isinstance(config, dict) and all(isinstance(v, dict) for v in config.values()), "mappings"),
        ("data", data, is_description(data), "names of classes and numbers of images"),
        ("scales", progress.scales, isinstance(progress.scales, dict), "a mapping"),
    ]
    if isinstance(best, dict) and best:
        top1: Any = best.get("top1")
        checks += [
            *((f"best {name}", best.get(name), count(best.get(name)), "a count") for name in ("epoch", "step")),
            ("best weights", best.get("weights"), best.get("weights") in ("model", "ema"), "model or ema"),
            ("best top1", top1, isinstance(top1, (int, float)) and 0 <= top1 <= 1, "a number from 0 to 1"),
        ]
    for name, value, possible, expected in checks:
        if not possible:
            return f"{name} is {shorten(value)}, expected {expected}"
    return None


def _digest(arrays: Mapping[str, np.ndarray], record: Mapping | None) -> str:
    """Return the checksum of arrays and of their record, if it is covered."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        if record is not None:
            digest.update(f"{arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    if record is not None:
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()


def find_state(output: Path, checkpoints: Checkpoints, resume: str | None, note: Callable[[str], None]):
    """Return path, arrays and progress to resume from, or None for a new run.

    Args:
        output: folder of the run.
        checkpoints: its checkpoints.
        resume: path of a checkpoint or of another run, "auto" for the newest of `checkpoints`, None for a new run.
        note: called with messages to show to the user.

    Raises:
        UsageError: a new run in the folder of another one.
        InputError: there is no checkpoint, or none that is undamaged.
    """
    if resume is None:
        if checkpoints.paths():
            raise UsageError(
                f"{output}: contains a run already. Resume it with --resume auto, or choose another folder "
                "with run.output=FOLDER."
            )
        return None
    if resume == "auto":
        state = checkpoints.newest(note)
        if state is None:
            note(f"{output}: no checkpoint yet; starting from the beginning")
        return state
    path = Path(resume)
    if path.is_dir():
        folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
        state = Checkpoints(folder, 1).newest(note)
        if state is None:
            raise InputError(f"{path}: no checkpoints. Name the folder of a run or a file step-*.safetensors.")
        return state
    return path, *load_state(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder of a run, and lock it, so that no second run writes into it.

    Raises:
        InputError: another run has locked it.
    """
    check_home_written(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, wait=False) as alone:
        if not alone:
            raise InputError(f"{folder}: in use by another run. Wait for its end, or choose another run.output.")
        yield
