"""Text of a run in progress: a status line, and a line for each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import cast

import numpy as np

from neonext_ms.common.cli import StatusLine

from .result import StepResult
from .run_state import Progress
from .validation import Evaluation

_REFRESH_SECONDS = 0.1


class StepWindow:
    """Totals of the steps since the last line of the log whose results have been read.

    Attributes:
        images: number of images.
        rate: learning rate of the last step.
        last: results of the last step, None before the first.
        since: time at which the window begins, as `time.monotonic`.
    """

    def __init__(self) -> None:
        self.images, self.rate, self.last = 0, 0.0, cast("StepResult | None", None)
        self._hits, self._losses = 0, list[float]()
        self.since = time.monotonic()

    def add(self, result: StepResult, rate: float, images: int) -> None:
        """Add the results of a step, and wait for them."""
        self.images, self.rate, self.last = self.images + images, rate, result
        self._hits += result.hits
        self._losses.append(result.loss)

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(np.mean(self._losses))

    @property
    def accuracy(self) -> float:
        """Share of the images whose largest logit is that of the largest target."""
        return self._hits / self.images

    def row(self, progress: Progress, updates: int) -> dict:
        """Return a row of the log: the means of the window, and rate, norm and loss scale of its last step.

        Args:
            progress: position of the run.
            updates: number of updates of the run, without skipped steps.
        """
        norm, scale = (self.last.norm, self.last.scale) if self.last else (math.nan, 1.0)
        return {
            "step": progress.step,
            "epoch": progress.epoch,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "accuracy": self.accuracy,
            "rate": self.rate,
            "norm": norm if math.isfinite(norm) else None,
            "scale": scale,
            "skipped": progress.step - updates,
            "images_per_second": round(self.images / (time.monotonic() - self.since), 1),
        }


class ProgressLine(StatusLine):
    """A status line with epoch, step, loss, accuracy, images/s and time left.

    Args:
        enabled: whether to print at all.
        epochs: number of epochs.
        per_epoch: number of steps in an epoch.
        images: number of images in a step.
    """

    def __init__(self, enabled: bool, epochs: int, per_epoch: int, images: int):
        super().__init__(enabled)
        self.epochs, self.per_epoch, self.images = epochs, per_epoch, images
        self._began, self._shown = 0.0, 0.0
        self._first: int | None = None
        # Results are read every few steps; the last ones stay on the line.
        self._results = self._scale = ""

    def start(self) -> None:
        """Begin an epoch."""
        self._first = None

    def update(self, progress: Progress, window: StepWindow) -> None:
        """Show the state after another step has started, at most ten times a second."""
        if window.last is not None:
            scale = window.last.next_scale
            self._results = f"loss {window.last.loss:.4f}  accuracy {100 * window.accuracy:.1f} %"
            self._scale = f"  loss scale {scale:g}" if scale != 1 else ""
        now = time.monotonic()
        if self._first is None:
            # Speed is measured from the second step on; the first one may have compiled.
            self._began, self._first = now, progress.step
            return
        if not self.active or now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        speed = (progress.step - self._first) / (now - self._began)
        seconds = ((self.epochs - progress.epoch) * self.per_epoch - progress.done) / speed
        left = time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 3600:.0f} h"
        parts = [
            f"epoch {progress.epoch + 1}/{self.epochs}", f"step {progress.done}/{self.per_epoch}", self._results,
            f"{speed * self.images:.1f} images/s", f"left {left}{self._scale}",
        ]  # fmt: skip
        self.show("  ".join(parts))


def epoch_text(
    epoch: int, epochs: int, results: Mapping[str, Evaluation], speed: Mapping[str, float], seconds: float
) -> str:
    """Return the line that reports an epoch, with the speed if it is known."""
    parts = [f"{name} top-1 {100 * r.top1:.2f} % (loss {r.loss:.4f})" for name, r in results.items()]
    text = f"epoch {epoch + 1}/{epochs}  {', '.join(parts)}"
    if speed:
        text += f"  {speed['images_per_second']:g} images/s"
    if "communication" in speed:
        text += f", {100 * speed['communication']:.1f} % communication"
    return f"{text}  {seconds:.1f} s"
