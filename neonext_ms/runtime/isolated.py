"""A MindIR file in a process of its own: MindSpore may end by a signal when it compiles or runs a damaged file."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import thread_count

# For one call of the model, the first of which compiles it.
_SECONDS = 900
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from neonext_ms.runtime.isolated_process import serve; serve({arguments})"
)


class IsolatedModel:
    """A MindIR file that another process has loaded.

    Args:
        path: the file.
        threads: threads of MindSpore's operators.
        device: number of the Ascend device, or None for the CPU.

    Raises:
        InputError: MindSpore cannot load the file, or ends when it does.
    """

    def __init__(self, path: str, threads: int | None = None, device: int | None = None):
        self._path = path
        ours, theirs = socket.socketpair()
        # Closed with this object or with this process, which ends the other one.
        self._life, their_life = socket.socketpair()
        with theirs, their_life:
            descriptors = [theirs.fileno(), their_life.fileno()]
            program = _PROGRAM.format(path=sys.path, arguments=f"{descriptors}, {path!r}, {device!r}")
            # Its session is its own, so that Ctrl-C reaches this process alone, which then ends that one.
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # MindSpore's libraries print pages before they end the process.
                stderr=None if os.environ.get("NEONEXT_DEBUG") else subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(thread_count(threads))},
            )
        self._connection = Connection(ours.detach())
        try:
            self._answer("load")
        except BaseException:
            self.close()
            raise

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs of one call.

        Raises:
            InputError: MindSpore cannot run the file, or ends when it does.
        """
        # If the process has ended, `_answer` finds out how.
        with contextlib.suppress(OSError):
            send_arrays(self._connection, inputs)
        return self._answer("run")

    def _answer(self, action: str) -> tuple[np.ndarray, ...]:
        """Wait for the process; return its arrays."""
        try:
            if not self._connection.poll(_SECONDS):
                raise InputError(
                    f"{self._path}: MindSpore did not {action} it within {_SECONDS} s. Export the model again."
                )
            error = self._connection.recv_bytes().decode(errors="replace")
            if not error:
                return receive_arrays(self._connection)
        except (EOFError, OSError, ValueError) as problem:
            if isinstance(problem, ValueError):
                self._process.kill()
            code = self._process.wait()
            end = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise InputError(
                f"{self._path}: a damaged MindIR file, or one for another version of MindSpore. MindSpore ended {end} "
                f"when it tried to {action} it. Export the model again."
            ) from problem
        raise InputError(f"{self._path}: {error}")

    def close(self) -> None:
        """End the process; allowed more than once."""
        self._connection.close()
        self._life.close()
        # It may be deep in MindSpore, and has nothing to save.
        self._process.kill()
        self._process.wait()


def send_arrays(connection: Connection, arrays: Sequence[np.ndarray], header: bytes | None = None) -> None:
    """Send a header, the number of arrays, and each array in NumPy's format."""
    if header is not None:
        connection.send_bytes(header)
    connection.send_bytes(str(len(arrays)).encode())
    for array in arrays:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        connection.send_bytes(buffer.getbuffer())


def receive_arrays(connection: Connection) -> tuple[np.ndarray, ...]:
    """Return the arrays that `send_arrays` sent, without its header."""
    count = int(connection.recv_bytes())
    return tuple(np.load(io.BytesIO(connection.recv_bytes()), allow_pickle=False) for _ in range(count))
