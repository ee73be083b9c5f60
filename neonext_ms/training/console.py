"""What a person sees of a run that is under way."""

from __future__ import annotations

import sys
import time

from .run_state import Progress
from .step import StepResult


class ProgressLine:
    """One line on the terminal that is written over and over: epoch, step, loss, accuracy, images/s, time left."""

    def __init__(self, first: bool, epochs: int, per_epoch: int, images: int):
        self.active = first and sys.stderr.isatty()
        self.epochs, self.per_epoch, self.images = epochs, per_epoch, images
        self._began, self._first, self._shown = 0.0, None, 0.0

    def start(self) -> None:
        """An epoch begins."""
        self._first = None

    def show(self, progress: Progress, result: StepResult, accuracy: float, scale: float) -> None:
        """Another step is done."""
        now = time.monotonic()
        if self._first is None:
            # The first step may have compiled.
            self._began, self._first = now, progress.step
            return
        if not self.active or now - self._shown < 0.1:
            return
        self._shown = now
        steps = progress.step - self._first
        speed = steps / (now - self._began)
        left = (self.epochs - progress.epoch) * self.per_epoch - progress.done
        eta = (
            time.strftime("%H:%M:%S", time.gmtime(left / speed))
            if left < 86400 * speed
            else f"{left / speed / 3600:.0f} h"
        )
        parts = [
            f"epoch {progress.epoch + 1}/{self.epochs}", f"step {progress.done}/{self.per_epoch}",
            f"loss {result.loss:.4f}", f"accuracy {100 * accuracy:.1f} %", f"{speed * self.images:.1f} images/s",
            f"left {eta}",
        ]  # fmt: skip
        if scale != 1:
            parts.append(f"loss scale {scale:g}")
        sys.stderr.write("\r\033[K" + "  ".join(parts))
        sys.stderr.flush()

    def clear(self) -> None:
        """Make room for another line."""
        if self.active:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
