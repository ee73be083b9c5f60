"""The logs of a run: events as JSON lines, steps and epochs as CSV and for TensorBoard, and a record of each start."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import atomic, check_regular, explained, parse_json, read_text
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import list_names, one_line, printable

from .data.image_sets import ImageSet
from .run_state import Progress, save_state
from .tensorboard import EventFile

STEPS, EPOCHS = "steps.csv", "epochs.csv"
_LARGEST_STEP = 1 << 53
_STEP_COLUMNS = ("step", "epoch", "loss", "accuracy", "rate", "norm", "scale", "skipped", "images_per_second")
_EPOCH_COLUMNS = (
    "step", "epoch", "loss", "top1", "top5", "ema_loss", "ema_top1", "ema_top5", "seconds", "images_per_second",
    "communication",
)  # fmt: skip


class RunLog:
    """The logs in the folder of a run.

    Args:
        folder: folder of the run.
        step: step that the run starts from. Later rows, of a process that was killed, are removed, and so is everything
            from the first row that cannot be read; a note on stderr says so.
    """

    def __init__(self, folder: Path, step: int = 0):
        self.folder = folder
        self._trim(step)
        self._events = EventFile(folder, step + 1)

    def step(self, row: Mapping) -> None:
        """Log a training step; keys are `_STEP_COLUMNS`."""
        self._row(STEPS, _STEP_COLUMNS, "train", row)
        self.event("step", row)

    def epoch(self, row: Mapping) -> None:
        """Log the validation after an epoch; keys are `_EPOCH_COLUMNS`."""
        self._row(EPOCHS, _EPOCH_COLUMNS, "validation", row)
        self.event("epoch", row)

    def event(self, kind: str, values: Mapping) -> None:
        """Log an event as one JSON object with `event` and `time` (seconds since 1970)."""
        path = self.folder / "log.jsonl"
        with explained(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": kind, "time": round(time.time(), 3), **values}) + "\n")

    def failure(
        self, step: int, what: str, state: Mapping, progress: Progress, metadata: dict, images: Sequence[str]
    ) -> str:
        """Save the state before a step that failed, and the names of its images; return a text that says where.

        Args:
            step: number of the step, from 1.
            what: value that is not finite.
            state, progress, metadata: see `save_state`.
            images: names of the images of its batches.
        """
        path = self.folder / "failed" / f"step-{step:09d}.safetensors"
        save_state(path, state, progress, metadata)
        names = path.with_suffix(".txt")
        with atomic(names) as staged:
            staged.write_text("".join(f"{name}\n" for name in images), encoding="utf-8", errors="surrogateescape")
        self.event("failed", {"step": step, "what": what, "state": str(path)})
        return (
            f"The state before this step is {path}; the images of its batch are listed in {names}:\n"
            f"{list_names(map(printable, images), 5)}\n"
        )

    def _row(self, name: str, columns: Sequence[str], group: str, row: Mapping) -> None:
        """Write a row to a CSV file, and its values as TensorBoard scalars `<group>/<column>`."""
        path = self.folder / name
        with explained(path):
            new = not path.exists() or path.stat().st_size == 0
            with open(path, "a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(columns)
                writer.writerow([row.get(column, "") for column in columns])
        scalars = {f"{group}/{key}": row[key] for key in columns[1:] if row.get(key) is not None}
        self._events.scalars(row["step"], scalars)

    def _trim(self, step: int) -> None:
        """Remove rows after a step, which the resumed run writes again, and everything that cannot be read."""
        for name, columns in ((STEPS, _STEP_COLUMNS), (EPOCHS, _EPOCH_COLUMNS)):
            path = self.folder / name
            if not path.exists():
                continue
            rows, damage = _read_rows(path)
            kept = [row for row in rows if int(row["step"]) <= step]
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
            content = text.getvalue().encode()
            check_regular(path)
            with explained(path):
                unchanged = path.read_bytes() == content
            if damage:
                print(f"note: {printable(path)}: {damage}; {len(kept)} rows before it are kept", file=sys.stderr)
            if not unchanged:
                with atomic(path) as staged:
                    staged.write_bytes(content)
        events = self.folder / "log.jsonl"
        if events.exists():
            check_regular(events)
            with explained(events), open(events, "rb+") as file:
                # The next event must not continue a line that a killed process has begun.
                if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) is not None and file.read() != b"\n":
                    file.write(b"\n")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as texts by column, without an incomplete last one; [] if there is no file.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    if not path.exists():
        return []
    text = read_text(path)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        return [row for row in reader if None not in row and None not in row.values()]
    except csv.Error as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from error


def _read_rows(path: Path) -> tuple[list[dict[str, str]], str | None]:
    """Return the rows of a log up to the first that cannot be read, and what is wrong with that one."""
    check_regular(path)
    with explained(path):
        lines = path.read_bytes().split(b"\n")
    # A process that was killed may have left a part of a line.
    del lines[-1]
    rows: list[dict[str, str]] = []
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            # Fields have no line breaks, so that each line is a row.
            (values,) = csv.reader([line.decode()])
            if not header:
                header = values
                if "step" not in header:
                    raise ValueError("it has no column step")
                continue
            row = dict(zip(header, values, strict=True))
            if not 0 <= int(row["step"]) < _LARGEST_STEP:
                raise ValueError("its step is impossible")
            # neonext-plot reads numbers.
            [float(value) for value in values if value]
        except (ValueError, csv.Error) as error:
            return rows, f"line {number} is damaged ({one_line(error, 80)})"
        rows.append(row)
    return rows, None


def write_predictions(folder: Path, images: ImageSet, predicted: Iterable[int]) -> None:
    """Write label and predicted class of the validation images in the format of `neonext-validate`.

    Args:
        folder: folder of the run.
        images: validation images.
        predicted: predicted class of each image, -1 for one that could not be read.
    """
    path = folder / "best_predictions.csv"
    with atomic(path) as staged, open(staged, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "predicted"))
        for i, label in enumerate(predicted):
            if label >= 0:
                writer.writerow((images.file(i), images.classes[images.labels[i]], images.classes[label]))


def describe_run(argv: Sequence[str]) -> dict:
    """Return command, versions, git state and machine."""
    versions: dict[str, str | None] = {}
    for name in ("neonext_ms", "mindspore", "numpy", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": list(argv),
        "folder": os.getcwd(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **versions},
        "git": _git(),
        "machine": {"system": platform.platform(), "processors": os.cpu_count(), "threads": thread_count()},
    }


def _git() -> dict | None:
    """Return the commit of this code and whether it was modified since; None outside of a repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def write_run(folder: Path, description: Mapping) -> None:
    """Add a description to `run.json`, which has one for each start of the run."""
    path = folder / "run.json"
    starts: list[dict] = []
    if path.exists():
        try:
            check_regular(path)
            starts = list(map(dict, parse_json(path.read_bytes(), str(path), "a description of runs")["starts"]))
        except (InputError, ValueError, KeyError, TypeError):
            print(f"note: {printable(path)} was damaged and is replaced", file=sys.stderr)
            starts = []
    with atomic(path) as staged:
        staged.write_text(json.dumps({"starts": [*starts, dict(description)]}, indent=2) + "\n", encoding="utf-8")
