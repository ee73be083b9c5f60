"""The official PyTorch model in eager mode, in an interpreter of the user's that has torch."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.signals import signals_later
from neonext_ms.runtime.base import Runtime, Settings, Signature

_WORKER = Path(__file__).parent / "official" / "forward.py"


class OfficialTorch(Runtime):
    """A process that runs until `close`, controlled by one line for each call, so that its calls can be interleaved.

    Only the forward pass is timed, by the process itself: neither the pipe nor the files of images and logits count.

    Args:
        python: the interpreter.
        repository: a clone of the official repository.
        options: keyword arguments of its `NeoNeXt`.
    """

    name = "torch"
    suffixes = (".pt",)

    def __init__(self, python: str, repository: str, options: Mapping):
        self._command = [python, str(_WORKER), repository]
        self._options = json.dumps(options)
        self._process: subprocess.Popen | None = None
        self._folder: tempfile.TemporaryDirectory | None = None
        self._log = None
        self.versions_found: dict = {}

    @classmethod
    def missing(cls) -> str | None:
        return None

    def describe(self, path: str, settings: Settings) -> Signature:
        return Signature("", "float32", (None, 3, None, None))

    def load(self, path: str, settings: Settings) -> None:
        threads = str(settings.threads or os.cpu_count() or 1)
        self._folder = tempfile.TemporaryDirectory(prefix="neonext-")
        self._log = open(Path(self._folder.name) / "log", "w+", encoding="utf-8")  # noqa: SIM115
        try:
            with signals_later():
                self._process = subprocess.Popen(
                    [*self._command, threads, path, self._options],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    text=True,
                    # Ctrl-C is for this process, which then ends the other one.
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": threads},
                )
        except OSError as error:
            raise ToolchainError(
                f"--torch {self._command[0]}: cannot be started ({error.strerror or error})"
            ) from error
        self.versions_found = self._answer()

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        path = Path(self._folder.name) / "images.npy"
        np.save(path, arrays[0])
        self._send(f"images {path}")

    def execute(self) -> None:
        self.execute_timed()

    def execute_timed(self) -> float:
        """Compute, and return the seconds that the process measured."""
        return self._send("run")["seconds"]

    def copy_out(self) -> list[np.ndarray]:
        path = Path(self._folder.name) / "logits.npy"
        self._send(f"logits {path}")
        return [np.load(path)]

    def _send(self, line: str) -> dict:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        said = [text.strip() for text in self._log.read().splitlines() if text.strip()] or ["it said nothing"]
        raise InputError(
            f"the official PyTorch model did not run ({said[-1][:300]}); --torch takes a Python that has torch and "
            "NumPy, --official a clone of HapKoM/neonext"
        )

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
