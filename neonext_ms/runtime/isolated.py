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
_PROGRAM = "import sys; sys.path[:] = {path!r}; from neonext_ms.runtime.isolated import serve; serve({arguments})"


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
        with theirs:
            program = _PROGRAM.format(path=sys.path, arguments=f"{theirs.fileno()}, {path!r}, {device!r}")
            # Its session is its own, so that Ctrl-C reaches this process alone, which then ends that one.
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
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
            _send_arrays(self._connection, inputs)
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
                return _receive_arrays(self._connection)
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
        # It may be deep in MindSpore, and has nothing to save.
        self._process.kill()
        self._process.wait()


def serve(descriptor: int, path: str, device: int | None) -> None:
    """Load a file and answer calls until the other side closes the connection; the body of the process.

    Args:
        descriptor: file descriptor of the connection.
        path: the file.
        device: number of the Ascend device, or None for the CPU.
    """
    import ctypes
    import resource

    from . import mindspore as runtime
    from .base import Settings

    # SIGKILL when the parent ends, and no core file in the user's folder.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptor)
    model = runtime.MindSpore() if device is None else runtime.MindSporeAscend()
    try:
        model.load_here(path, Settings(device=device or 0))
        _send_arrays(connection, (), b"")
        while True:
            inputs = _receive_arrays(connection)
            _send_arrays(connection, model.run(inputs), b"")
    except EOFError:
        pass
    except InputError as error:
        connection.send_bytes(str(error).removeprefix(f"{path}: ").encode())
    # Threads of MindSpore may not end.
    os._exit(0)


def _send_arrays(connection: Connection, arrays: Sequence[np.ndarray], header: bytes | None = None) -> None:
    """Send a header, the number of arrays, and each array in NumPy's format."""
    if header is not None:
        connection.send_bytes(header)
    connection.send_bytes(str(len(arrays)).encode())
    for array in arrays:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        connection.send_bytes(buffer.getbuffer())


def _receive_arrays(connection: Connection) -> tuple[np.ndarray, ...]:
    count = int(connection.recv_bytes())
    return tuple(np.load(io.BytesIO(connection.recv_bytes()), allow_pickle=False) for _ in range(count))
