"""Delivery of signals: some must wait, and none may wait for long."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .processors import limited_memory

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FAULTS = (signal.SIGFPE, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
_PATIENCE_SECONDS = 0.8
# Process, user and group of the sender of a message.
_CREDENTIALS = struct.Struct("3i")
# Blocks of `unhurried` that have not ended.
_unhurried: list[object] = []
# Blocks of `faults_told` that have not ended; None before `end_in_time`.
_faulty: list[str] | None = None


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


def kill_children() -> None:
    """Kill all processes that descend from this one, which is about to end; it works on Linux only."""
    waiting = [os.getpid()]
    while waiting:
        process = waiting.pop()
        for listing in Path(f"/proc/{process}/task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):
                waiting += map(int, listing.read_text(encoding="ascii").split())
        if process != os.getpid():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


def end_in_time(leave: Callable[[], None], fail: Callable[[str], None]) -> None:
    """Call `leave`, which ends the process, if a signal to stop has not ended it after a moment.

    Python calls handlers in the main thread and between two of its instructions, so that they wait for a library that
    computes, compiles or loads. The system's own handler wakes a thread at once.

    Args:
        leave: function that ends the process.
        fail: function that ends it because of a fault (`faults_told`), which receives the message.
    """
    global _faulty
    _faulty = []
    ours, theirs = socket.socketpair()
    # Forked processes, such as readers of images, share the socket; so every message has to name its sender.
    if hasattr(socket, "SO_PASSCRED"):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_wait_for_signal, args=(ours, theirs, leave, fail), daemon=True).start()


def _wait_for_signal(
    ours: socket.socket, theirs: socket.socket, leave: Callable[[], None], fail: Callable[[str], None]
) -> None:
    while True:
        received, credentials, *_ = ours.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        # Linux adds them; without them, this process is believed to be the sender.
        process = _CREDENTIALS.unpack(credentials[0][2])[0] if credentials else os.getpid()
        # MindSpore sends SIGTERM to its process when a reader of images was killed, which is reported as that.
        if process == os.getpid() and received[0] in STOPPING and not _unhurried and killed_child() is None:
            time.sleep(_PATIENCE_SECONDS)
            leave()
        if process == os.getpid() and received[0] in _FAULTS and _faulty:
            name = signal.Signals(received[0]).name
            fail(f"{_faulty[-1]}: damaged or hostile; a library that reads or runs it fails ({name}). Get it again.")


@contextlib.contextmanager
def faults_told(path: str) -> Iterator[None]:
    """Let a command end with an error, and not by a signal, if a library makes a fault while it reads or runs a file.

    The library must let other threads of Python run. Python's handler returns to the instruction that failed, which
    fails again and again until the thread of `end_in_time` ends the process; without that, nothing is changed. Memory
    is limited, because the system would end the command by a signal as well.

    Args:
        path: the file.
    """
    if _faulty is None or not in_main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda received, frame: None) for number in _FAULTS}
    _faulty.append(path)
    try:
        with limited_memory():
            yield
    finally:
        _faulty.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Let the code of the block end the process itself after a signal, in the time that it needs.

    It saves the state of a training, or stops a process of its own.
    """
    token = object()
    _unhurried.append(token)
    try:
        yield
    finally:
        _unhurried.remove(token)


def unhurried_from_now() -> None:
    """Let this process end itself after a signal from now on, because it has results to write."""
    if None not in _unhurried:
        _unhurried.append(None)


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Postpone SIGINT, SIGTERM and SIGHUP until the block has ended.

    MindSpore aborts on them, or loses them, while it is imported or compiles a graph. A child process must be
    registered before a handler can stop it.
    """
    arrived: list[int] = []
    before = {}
    for number in STOPPING if in_main_thread() else ():
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
