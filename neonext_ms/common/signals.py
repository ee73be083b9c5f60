"""Delivery of signals that must wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


def in_main_thread() -> bool:
    """Return whether this is the main thread, which alone may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Postpone SIGINT and SIGTERM until the block has ended.

    MindSpore aborts on them, or loses them, while it is imported or compiles a graph. A child process must be
    registered before a handler can stop it.
    """
    arrived: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread() else ():
        # An ignored signal stays ignored, and a handler installed outside of Python cannot be restored.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, lambda received, frame: arrived.append(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for received in dict.fromkeys(arrived):
            signal.raise_signal(received)
