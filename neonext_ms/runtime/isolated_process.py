"""The process in which `isolated.IsolatedModel` loads and runs a MindIR file."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Sequence
from multiprocessing.connection import Connection

from neonext_ms.common.errors import InputError

from .base import Settings
from .isolated import receive_arrays, send_arrays
from .mindspore import MindSpore, MindSporeAscend


def serve(descriptors: Sequence[int], path: str, device: int | None) -> None:
    """Load a file and answer calls until the other side closes the connection; the body of the process.

    Args:
        descriptors: file descriptors of the connection, and of a socket that is closed when this process has to end.
        path: the file.
        device: number of the Ascend device, or None for the CPU.
    """
    end_with(descriptors[1])
    # No core file in the user's folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptors[0])
    model = MindSpore() if device is None else MindSporeAscend()
    try:
        model.load_here(path, Settings(device=device or 0))
        send_arrays(connection, (), b"")
        while True:
            inputs = receive_arrays(connection)
            send_arrays(connection, model.run(inputs), b"")
    except EOFError:
        pass
    except InputError as error:
        connection.send_bytes(str(error).removeprefix(f"{path}: ").encode())
    # Threads of MindSpore may not end.
    os._exit(0)


def end_with(descriptor: int) -> None:
    """End this process when the other side of a socket is closed, also while MindSpore holds the interpreter."""
    # The system sends SIGIO then, whose default is to end the process.
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_ASYNC)
