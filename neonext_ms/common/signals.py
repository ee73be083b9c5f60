"""Delivery of signals that must wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path


def in_main_thread() -> bool:
    """Return whether this is the main thread, which alone may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def killed_child() -> signal.Signals | None:
    """Return the signal that killed a child of this process whose end nobody has collected yet, or None.

    SIGTERM and SIGINT do not count: they reach the children of a process that is stopped. It works on Linux only.
    """
    for listing in Path("/proc/self/task").glob("*/children"):
        # A thread or a child may end at any time.
        with contextlib.suppress(OSError, ValueError, IndexError):
            for pid in listing.read_text(encoding="ascii").split():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    # The name of the program, in parentheses, may contain anything.
                    fields = (
                        Path(f"/proc/{pid}/stat")
                        .read_text(encoding="utf-8", errors="replace")
                        .rpartition(")")[2]
                        .split()
                    )
                    number = int(fields[-1]) & 0x7F
                    if fields[0] == "Z" and number and number not in (signal.SIGTERM, signal.SIGINT):
                        return signal.Signals(number)
    return None


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Postpone SIGINT, SIGTERM and SIGHUP until the block has ended.

    MindSpore aborts on them, or loses them, while it is imported or compiles a graph. A child process must be
    registered before a handler can stop it.
    """
    arrived: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main_thread() else ():
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
