"""A MindIR file in a process of its own: MindSpore may end by a signal when it compiles or runs a damaged file."""

from __future__ import annotations

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.worker import Worker, WorkerEndedError, WorkerError


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
        self._worker = Worker("neonext_ms.runtime.isolated_process", (path, device), threads)
        try:
            self._ask("load")
        except BaseException:
            self.close()
            raise

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs of one call.

        Raises:
            InputError: MindSpore cannot run the file, or ends when it does.
        """
        return self._ask("run", inputs)

    def _ask(self, action: str, arrays: tuple[np.ndarray, ...] = ()) -> tuple[np.ndarray, ...]:
        try:
            return self._worker.ask(action, arrays)
        except WorkerError as error:
            raise InputError(f"{self._path}: {error}") from error
        except WorkerEndedError as end:
            raise InputError(
                f"{self._path}: a damaged MindIR file, or one for another version of MindSpore. MindSpore ended {end} "
                f"when it tried to {action} it. Export the model again."
            ) from end

    def close(self) -> None:
        """End the process; allowed more than once."""
        self._worker.close()
