"""An end for runs that wait for a killed reader."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import Signals

from neonext_ms.common.signals import killed_child

# Seconds without progress after a reader was killed. MindSpore usually reports it within ten.
_PATIENCE = 60.0
_INTERVAL = 2.0


def killed_text(killed: Signals, saved: str = "") -> str:
    """Return the message for a run that ends because a process that reads images was killed."""
    return (
        f"a process that reads images was killed ({killed.name}), perhaps because memory ran out. {saved}"
        "Lower data.workers or data.batch_size, and resume with --resume auto."
    )


@contextmanager
def watch_readers(position: Callable[[], int], give_up: Callable[[Signals], None]) -> Iterator[None]:
    """Call `give_up` if a process that reads images was killed and the block makes no progress any more.

    MindSpore sometimes waits for such a process for ever, in code where Python's signal handlers do not run. So this is
    checked in a thread of its own, which also calls `give_up`.

    Args:
        position: a number that changes as long as there is progress.
        give_up: function that ends the process; it receives the signal that killed the reader.
    """
    ended = threading.Event()

    def watch() -> None:
        last, since = position(), time.monotonic()
        while not ended.wait(min(_INTERVAL, _PATIENCE / 4)):
            killed = killed_child()
            if not killed or position() != last:
                last, since = position(), time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                give_up(killed)
                return

    threading.Thread(target=watch, name="reader watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
