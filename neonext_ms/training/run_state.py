"""Checkpoints of a run: everything that the next step depends on, in one safetensors file with a checksum."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from neonext_ms.checkpoint import metadata as meta
from neonext_ms.checkpoint import safetensors_file
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import atomic, explained

KEY = "neonext_ms_training"
_NAME = re.compile(r"^step-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: updates that were tried.
        epoch: the current one, from 0.
        done: updates of this epoch.
        best: the best validation so far: `epoch`, `weights` ("model" or "ema"), `top1`; or {}.
        seed: of the run; with `epoch` and `done` it gives every random number that follows.
        world: cards.
        config: the configuration as plain values.
    """

    step: int = 0
    epoch: int = 0
    done: int = 0
    best: dict = field(default_factory=dict)
    seed: int = 0
    world: int = 1
    config: dict = field(default_factory=dict)


class Checkpoints:
    """The checkpoints in a folder, `step-000000123.safetensors`.

    Args:
        folder: made when the first is written.
        keep: how many stay; older ones are removed when a newer one is whole.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, arrays: Mapping[str, np.ndarray], progress: Progress, metadata: Mapping) -> Path:
        """Write a checkpoint, atomically.

        Raises:
            InputError: it cannot be written; those from before are still there.
        """
        path = self.folder / f"step-{progress.step:09d}.safetensors"
        try:
            save_state(path, arrays, progress, metadata)
        except InputError as error:
            kept = self.paths()
            before = (
                f"the last checkpoint is {kept[0]}; go on from it with --resume auto"
                if kept
                else "there is none before"
            )
            raise InputError(f"{error}; {before}") from error
        for old in self.paths()[self.keep :]:
            with explained(old):
                old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """What is there, newest first."""
        found = [path for path in self.folder.glob("step-*.safetensors") if _NAME.match(path.name)]
        return sorted(found, key=lambda path: int(_NAME.match(path.name)[1]), reverse=True)

    def newest(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, np.ndarray], Progress] | None:
        """The newest checkpoint that is whole, or None if there is none.

        Args:
            warn: told of every one that is damaged.

        Raises:
            InputError: there are checkpoints, but all are damaged.
        """
        paths = self.paths()
        for path in paths:
            try:
                return path, *load_state(path)
            except InputError as error:
                warn(f"{error}; trying the one before")
        if paths:
            raise InputError(
                f"{self.folder}: all {len(paths)} checkpoints are damaged; remove them to start again, or name another "
                "with --resume PATH"
            )
        return None


def save_state(path: Path, arrays: Mapping[str, np.ndarray], progress: Progress, metadata: Mapping) -> None:
    """Write arrays and progress; `metadata` is what `neonext-export` reads of a checkpoint.

    Raises:
        InputError: the file cannot be written.
    """
    record = {**asdict(progress), "sha256": _digest(arrays)}
    texts = {meta.KEY: meta.encode(metadata, source=str(path)), KEY: json.dumps(record, sort_keys=True)}
    with atomic(path) as staged:
        safetensors_file.write(staged, arrays, {"format": "np", **texts})


def load_state(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """The inverse of `save_state`.

    Raises:
        InputError: the file is no checkpoint of a training run, or it is damaged.
    """
    arrays, texts = safetensors_file.read(path)
    if KEY not in texts:
        raise InputError(
            f"{path}: holds no training state, only weights; start from it with --init, or resume from a file in a "
            "run's checkpoints folder"
        )
    try:
        record = json.loads(texts[KEY])
        expected = record.pop("sha256")
        progress = Progress(**record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: its training record is damaged ({error})") from error
    if _digest(arrays) != expected:
        raise InputError(f"{path}: damaged, its checksum is wrong")
    return arrays, progress


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()
