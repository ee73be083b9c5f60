"""Signals that end a run after the current step."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType

from neonext_ms.common.signals import STOPPING, in_main_thread, killed_child, unhurried


class StopSignals:
    """A context in which SIGTERM, SIGHUP and Ctrl-C are only recorded; a second one ends the process at once.

    Stopping inside a step would leave weights, moving average and statistics of different steps. Before the first step,
    which compiles for long, there is nothing to save, and the process ends soon after a signal (`end_in_time`).

    Attributes:
        number: signal that was received, or None.
        killed: signal that killed a process that reads images, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.killed: signal.Signals | None = None
        self._before: dict = {}
        self._saving = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        for number in STOPPING if in_main_thread() else ():
            # `nohup` makes a process ignore SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._record)
        return self

    def step_taken(self) -> None:
        """State that there is something to save; steps after the first one may be announced too."""
        self._saving.close()
        self._saving.enter_context(unhurried())

    def __exit__(self, *error: object) -> None:
        self._saving.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        # MindSpore sends SIGTERM to its own process when a process that reads images was killed.
        self.killed = killed_child()
