"""Signals that have to wait for a moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


def in_main_thread() -> bool:
    """Whether this thread is the one that may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block has ended.

    MindSpore aborts, or loses them, while it is imported or compiles a graph; and a child process must be known
    before it can be stopped.
    """
    arrived: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread() else ():
        # An ignored signal stays ignored, and one handled outside of Python is left alone.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, lambda received, frame: arrived.append(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)
