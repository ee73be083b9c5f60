"""The official PyTorch model in eager mode, in an interpreter of the user's that has torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.signals import signals_later
from neonext_ms.models.activations import GELU
from neonext_ms.models.architecture import Architecture
from neonext_ms.runtime.base import Runtime, Settings, Signature


class OfficialProcess:
    """A script of `official/` in another interpreter, which answers each line with a line of JSON until `close`.

    It answers one call at a time, so that its calls can be interleaved with those of other subjects. `python` has torch
    and NumPy, `repository` is a clone of the official one, and `versions` the first answer of the script.

    Raises:
        ToolchainError: the interpreter cannot be started.
        InputError: the script fails.
    """

    def __init__(self, python: str, script: str, repository: str, threads: int, *arguments: object):
        path = Path(__file__).parent / "official" / script
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        try:
            with signals_later():
                self._process: Any = subprocess.Popen(
                    list(map(str, [python, path, repository, threads, *arguments])),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    text=True,
                    # Ctrl-C is for this process, which then ends the other one.
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                )
        except OSError as error:
            self._log.close()
            raise ToolchainError(f"--torch {python}: cannot be started ({error.strerror or error})") from error
        try:
            self.versions = self._answer()
        except BaseException:
            self.close()
            raise

    def send(self, line: str) -> dict:
        """Send a line, and return the answer."""
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
        log = [text.strip() for text in self._log.read().splitlines() if text.strip()] or ["no message"]
        raise InputError(
            f"the official PyTorch model did not run ({log[-1][:300]}). --torch requires a Python that has torch and "
            "NumPy, --official a clone of HapKoM/neonext."
        )

    def close(self) -> None:
        """End the process; allowed more than once."""
        process, self._process = self._process, None
        if process is None:
            return
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._log.close()


class OfficialTorch(Runtime):
    """The forward pass of the official model, as `OfficialProcess`; `options` are the arguments of its `NeoNeXt`."""

    name = "torch"
    suffixes = (".pt",)

    def __init__(self, python: str, repository: str, options: Mapping):
        self._python, self._repository, self._options = python, repository, json.dumps(options)
        self._process: Any = None
        self._folder: Any = None
        self.package_versions: dict = {}

    @classmethod
    def missing(cls) -> str | None:
        return None

    def describe(self, path: str, settings: Settings) -> Signature:
        return Signature("", "float32", (None, 3, None, None))

    def load(self, path: str, settings: Settings) -> None:
        threads = thread_count(settings.threads)
        self._process = OfficialProcess(self._python, "forward.py", self._repository, threads, path, self._options)
        self.package_versions = self._process.versions
        self._folder = tempfile.TemporaryDirectory(prefix="neonext-")

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        path = Path(self._folder.name) / "images.npy"
        np.save(path, arrays[0])
        self._process.send(f"images {path}")

    def execute(self) -> None:
        self.execute_timed()

    def execute_timed(self) -> float:
        """Compute, and return the seconds that the process measured."""
        return self._process.send("run")["seconds"]

    def copy_out(self) -> list[np.ndarray]:
        path = Path(self._folder.name) / "logits.npy"
        self._process.send(f"logits {path}")
        return [np.load(path)]

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def official_options(architecture: Architecture) -> dict:
    """Return the keyword arguments of the official code's `NeoNeXt`, as values that JSON can hold.

    Raises:
        InputError: the official code cannot build this model.
    """
    if architecture.downsample != "official" or "," in architecture.kernel_spec or architecture.activation != GELU:
        raise InputError("the official code cannot build this model. Measure another one, or omit --torch.")
    names = (
        *("num_classes", "per_stage_layers", "dims", "kernel_spec", "shifts"),
        *("layer_scale_init_value", "linear_bias"),
    )
    return {name: getattr(architecture, name) for name in names}


def check_torch(python: str | None, repository: str | None) -> tuple[str, str] | None:
    """Return interpreter and repository of the official model, or None if neither is given.

    Raises:
        UsageError: only one is given.
        InputError: the repository is not one.
        ToolchainError: the interpreter does not exist.
    """
    if python is None and repository is None:
        return None
    if python is None or repository is None:
        raise UsageError("the official model needs both: --torch PYTHON (that has torch) and --official REPOSITORY")
    if not (Path(repository) / "ptvision" / "models" / "neonext" / "neonext.py").is_file():
        raise InputError(f"{repository}: not a clone of HapKoM/neonext; it has no ptvision/models/neonext/neonext.py")
    if shutil.which(python) is None:
        raise ToolchainError(f"--torch {python}: no such program; give a Python that has torch")
    return python, str(Path(repository).resolve())
