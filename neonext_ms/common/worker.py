"""A Python process that answers calls with arrays: what ends by a signal in it does not end this process."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO

import numpy as np

from .errors import InputError
from .processors import limited_memory, thread_count

# MindSpore's pool, and stacks and buffers of its threads, most of which stay empty.
_RESERVED = 2 << 30
# For one call; the first one may compile a model.
_SECONDS = 900
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import serve; serve({arguments})"

Arrays = Sequence[np.ndarray]


class WorkerError(Exception):
    """An error that the worker reports; it lives on."""


class WorkerEndedError(Exception):
    """The end of a worker before its answer; the text says how, such as `by signal SIGSEGV`."""


class Worker:
    """A process that runs `serve(descriptors, *arguments)` of a module, which calls `answer_calls`.

    Args:
        module: name of the module.
        arguments: values that `repr` writes as Python reads them.
        threads: threads of OpenMP in the process.
        environ: environment variables that it has besides those of this process.
        log: open file that receives stdout and stderr of the process; None drops them.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[object] = (),
        threads: int | None = None,
        environ: Mapping[str, str] | None = None,
        log: IO[bytes] | None = None,
    ):
        ours, theirs = socket.socketpair()
        # Closed with this object or with this process, which ends the other one.
        self._life, their_life = socket.socketpair()
        with theirs, their_life:
            descriptors = [theirs.fileno(), their_life.fileno()]
            values = ", ".join(map(repr, [descriptors, *arguments]))
            # Native libraries print pages before they end the process.
            output = None if os.environ.get("NEONEXT_DEBUG") and log is None else log or subprocess.DEVNULL
            # Its session is its own, so that Ctrl-C reaches this process alone, which then ends that one.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path, module=module, arguments=values)],
                stdin=subprocess.DEVNULL,
                stdout=log or subprocess.DEVNULL,
                stderr=output,
                pass_fds=descriptors,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(thread_count(threads)), **(environ or {})},
            )
        self._connection = Connection(ours.detach())

    def ask(self, command: str, arrays: Arrays = ()) -> tuple[np.ndarray, ...]:
        """Send a call and return the arrays of its answer.

        Raises:
            WorkerError: the worker reports an error.
            WorkerEndedError: the process ended, or did not answer in time.
        """
        # If the process has ended, the wait for its answer finds out how.
        with contextlib.suppress(OSError):
            _send(self._connection, command, arrays)
        try:
            if not self._connection.poll(_SECONDS):
                self.close()
                raise WorkerEndedError(f"without an answer in {_SECONDS} s")
            error, answer = _receive(self._connection)
        except (EOFError, OSError, ValueError) as problem:
            if isinstance(problem, ValueError):
                self._process.kill()
            code = self._process.wait()
            end = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise WorkerEndedError(end) from problem
        if error:
            raise WorkerError(error)
        return answer

    def close(self) -> None:
        """End the process; allowed more than once."""
        self._connection.close()
        self._life.close()
        # It may be deep in a library, and has nothing to save.
        self._process.kill()
        self._process.wait()


def answer_calls(descriptors: Sequence[int], answer: Callable[[str, Arrays], Arrays]) -> None:
    """Answer the calls of a `Worker` until it closes; the body of its process.

    Args:
        descriptors: file descriptors of the connection, and of a socket that is closed when this process has to end.
        answer: function of a command and its arrays; an `InputError` of it is the answer to that call.
    """
    end_with(descriptors[1])
    # No core file in the user's folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptors[0])
    with contextlib.suppress(EOFError), limited_memory(_RESERVED):
        while True:
            command, arrays = _receive(connection)
            try:
                _send(connection, "", answer(command, arrays))
            except InputError as error:
                _send(connection, str(error))
    # Threads of the libraries may not end, and their destructors may crash.
    os._exit(0)


def end_with(descriptor: int) -> None:
    """End this process when the other side of a socket is closed, also while a library holds the interpreter."""
    # The system sends SIGIO then, whose default is to end the process.
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_ASYNC)


def _send(connection: Connection, text: str, arrays: Arrays = ()) -> None:
    """Send a text, the number of arrays, and each array in NumPy's format."""
    connection.send_bytes(text.encode("utf-8", "surrogateescape"))
    connection.send_bytes(str(len(arrays)).encode())
    for array in arrays:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        connection.send_bytes(buffer.getbuffer())


def _receive(connection: Connection) -> tuple[str, tuple[np.ndarray, ...]]:
    """Return what `_send` sent."""
    text = connection.recv_bytes().decode("utf-8", "surrogateescape")
    count = int(connection.recv_bytes())
    return text, tuple(np.load(io.BytesIO(connection.recv_bytes()), allow_pickle=False) for _ in range(count))
