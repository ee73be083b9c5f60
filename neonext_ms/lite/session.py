"""MindSpore Lite in a process of its own: convert a model, or load and run one."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained
from neonext_ms.common.text import one_line
from neonext_ms.common.worker import Worker, WorkerEndedError, WorkerError

from .driver import driver
from .package import VERSION

_LONGEST_LOG = 1 << 20
# `[ERROR] LITE(12,7f,python):2026-01-01-00:00:00.000.000 [file.cc:42] Function] what happened`
_ERROR = re.compile(r"^\[(?:ERROR|CRITICAL)\][^\n]*?\] \w+\] ?(.*)$", re.MULTILINE)


class Tensor(NamedTuple):
    """An input or output of a model.

    Attributes:
        name: its name.
        dtype: value of mindspore::DataType.
        layout: value of mindspore::Format: 0 NCHW, 1 NHWC.
        shape: its sizes; -1 for an open one.
    """

    name: str
    dtype: int
    layout: int
    shape: tuple[int, ...]


class Session:
    """A process with MindSpore Lite in it; what fails there is an `InputError` here, that process's end included.

    Args:
        path: the file that it will work on, for messages.
        threads: threads of the operators.

    Raises:
        ToolchainError: MindSpore Lite cannot be used here.
    """

    def __init__(self, path: str, threads: int = 1):
        self._path, self._threads = path, threads
        library = driver()
        with explained("temporary folder"):
            self._log = tempfile.TemporaryFile()  # noqa: SIM115
        # Errors are logged, and nothing else.
        self._worker = Worker("neonext_ms.lite.process", [str(library)], threads, {"GLOG_v": "3"}, self._log)

    def _ask(self, what: str, arrays: Sequence[np.ndarray], *command: object) -> tuple[np.ndarray, ...]:
        try:
            return self._worker.ask(json.dumps(command), arrays)
        except WorkerError as error:
            reason = self._reason()
            raise InputError(
                f"{self._path}: MindSpore Lite {VERSION} cannot {what} it ({one_line(reason or error, 400)})."
                f"{' Export it again.' if what == 'load' else ''}"
            ) from error
        except WorkerEndedError as end:
            reason = self._reason()
            raise InputError(
                f"{self._path}: MindSpore Lite {VERSION} ended {end} when it tried to {what} it"
                f"{f' ({one_line(reason, 400)})' if reason else ''}. It is damaged, or Lite is at fault. Export it "
                "again."
            ) from end

    def _reason(self) -> str:
        """Return the first error that the library logged."""
        self._log.seek(0)
        match = _ERROR.search(self._log.read(_LONGEST_LOG).decode("utf-8", "replace"))
        return match[1].strip() if match else ""

    def convert(self, source: str | os.PathLike, output: str | os.PathLike, half_weights: bool = False) -> None:
        """Convert an ONNX file to `output`, whose name ends in `.ms`.

        Args:
            source: the ONNX file.
            output: the file to write.
            half_weights: whether to store the weights in float16.

        Raises:
            InputError: the converter fails.
        """
        stem = os.path.abspath(output).removesuffix(".ms")
        self._ask("convert", (), "convert", os.path.abspath(source), stem, half_weights)
        if not os.path.isfile(f"{stem}.ms") or os.path.getsize(f"{stem}.ms") == 0:
            raise InputError(f"{self._path}: the converter of MindSpore Lite reported success, but wrote no file")

    def load(self, path: str) -> tuple[list[Tensor], list[Tensor]]:
        """Load a model and return its inputs and outputs.

        Raises:
            InputError: MindSpore Lite cannot load it.
        """
        ins, outs, *values = self._ask("load", (), "load", os.path.abspath(path), self._threads)
        rows = (array.tolist() for array in values)
        names = [*ins.tolist(), *outs.tolist()]
        tensors = [Tensor(name, row[0], row[1], tuple(row[2:])) for name, row in zip(names, rows, strict=True)]
        return tensors[: len(ins)], tensors[len(ins) :]

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy the inputs to the model, which takes their sizes."""
        self._ask("take the input of", arrays, "copy_in")

    def execute(self) -> None:
        """Run the model."""
        self._ask("run", (), "execute")

    def copy_out(self) -> list[np.ndarray]:
        """Return the outputs."""
        return list(self._ask("read the outputs of", (), "copy_out"))

    def close(self) -> None:
        """End the process; allowed more than once."""
        self._worker.close()
        self._log.close()
