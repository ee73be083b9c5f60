"""Copies of a process that has imported what is slow to import; each runs a command from its start.

`disk_full.py` and `kill_train.py` run a command hundreds of times, and an import of MindSpore takes seconds.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# They start no thread that a copy would miss.
SLOW = ("numpy", "mindspore", "onnxruntime", "onnx", "PIL.Image", "matplotlib.pyplot")
# Reads a command line a line; prints the id of the copy that runs it, and its exit code when it has ended.
SERVER = """
import importlib, json, os, signal, sys, traceback
from {module} import main
for name in {imports!r}:
    importlib.import_module(name)
for line in sys.stdin:
    work = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream, path in ((1, work["stdout"]), (2, work["stderr"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
        os.environ.update(work["environment"])
        code = 1
        try:
            code = main(work["words"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        # Without destructors, which would wait for threads that a copy does not have.
        os._exit(code or 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Copy:
    """A command that runs, with as much of `subprocess.Popen` as is needed."""

    def __init__(self, server: subprocess.Popen, errors: Path):
        self.server, self.errors, self.returncode = server, errors, None
        self.pid = self._read()

    def _read(self) -> int:
        line = self.server.stdout.readline()
        if not line:
            raise SystemExit("the process whose copies run the command has ended")
        return int(line)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None and select.select([self.server.stdout], [], [], 0)[0]:
            self.returncode = self._read()
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait for the end; return nothing and what it wrote to stderr."""
        if self.returncode is None:
            self.returncode = self._read()
        return "", self.errors.read_text(errors="replace")


class Copies:
    """The process that is copied.

    Args:
        module: module whose `main` is the command.
        errors: file for what a copy writes to stderr.
        folder: its working folder.
        environment: environment variables that it has besides those of this process.
    """

    def __init__(self, module: str, errors: Path, folder: Path | None = None, environment: Mapping[str, str] = {}):
        self.errors = errors
        # Without buffers, which would hide from `select` what has come.
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER.format(module=module, imports=SLOW)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=folder,
            # As the commands set it before they import onnxruntime, which would write below HOME.
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip

    def start(self, words: Sequence[str], stdout: str = os.devnull, environment: Mapping[str, str] = {}) -> Copy:
        """Start a command; only one runs at a time."""
        work = {"words": list(words), "stdout": stdout, "stderr": str(self.errors), "environment": dict(environment)}
        self.server.stdin.write(f"{json.dumps(work)}\n".encode())
        return Copy(self.server, self.errors)

    def close(self) -> None:
        """End the process."""
        self.server.stdin.close()
        self.server.wait()
