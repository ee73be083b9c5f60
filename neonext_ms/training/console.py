"""The status line of a run in progress."""

from __future__ import annotations

import time

from neonext_ms.common.cli import StatusLine

from .run_state import Progress
from .step import StepResult

_REFRESH_SECONDS = 0.1


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

    def start(self) -> None:
        """Begin an epoch."""
        self._first = None

    def update(self, progress: Progress, result: StepResult, accuracy: float, scale: float) -> None:
        """Show the state after another step, at most ten times a second."""
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
            f"epoch {progress.epoch + 1}/{self.epochs}", f"step {progress.done}/{self.per_epoch}",
            f"loss {result.loss:.4f}", f"accuracy {100 * accuracy:.1f} %", f"{speed * self.images:.1f} images/s",
            f"left {left}",
        ]  # fmt: skip
        if scale != 1:
            parts.append(f"loss scale {scale:g}")
        self.show("  ".join(parts))
