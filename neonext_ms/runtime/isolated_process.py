"""The process in which `isolated.IsolatedModel` loads and runs a MindIR file."""

from __future__ import annotations

from collections.abc import Sequence

from neonext_ms.common.errors import InputError
from neonext_ms.common.worker import Arrays, answer_calls

from .base import Settings
from .mindspore import MindSpore, MindSporeAscend


def serve(descriptors: Sequence[int], path: str, device: int | None) -> None:
    """Load and run a file when asked to; the body of the process.

    Args:
        descriptors: see `answer_calls`.
        path: the file.
        device: number of the Ascend device, or None for the CPU.
    """
    model = MindSpore() if device is None else MindSporeAscend()

    def answer(action: str, arrays: Arrays) -> Arrays:
        try:
            if action == "run":
                return model.run(arrays)
            model.load_here(path, Settings(device=device or 0))
        except InputError as error:
            raise InputError(str(error).removeprefix(f"{path}: ")) from error
        return ()

    answer_calls(descriptors, answer)
