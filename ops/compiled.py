"""C++ sources of this package as shared objects, compiled on first use and kept in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.errors import ToolchainError
from neonext_ms.common.files import explained, publish, staging

_COMPILE_SECONDS = 600
_SHOWN_LINES = 20


def compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler: `CXX`, or `g++`.

    Raises:
        ToolchainError: the compiler is not installed.
    """
    command = tuple(shlex.split(os.environ.get("CXX", ""))) or ("g++",)
    if shutil.which(command[0]) is None:
        raise ToolchainError(
            f"C++ compiler {command[0]!r} not found. Install g++ (version 9 or later), or set CXX to a compiler that "
            "takes the same options."
        )
    return command


def cache_directory(name: str) -> Path:
    """Return a folder for compiled files: `neonext_ms/<name>` in `XDG_CACHE_HOME` or `~/.cache`, or a temporary one."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    cache = root / "neonext_ms" / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK | os.X_OK):
            return cache
    except OSError:
        pass
    return _temporary_cache(name)


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """Return a description of the processor, which `-march=native` depends on."""
    # A home folder with its cache may be shared by machines with different processors.
    fields = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        first = [platform.processor(), platform.node()]
    return "\n".join([platform.machine(), *(line for line in first if line.partition("\t")[0].strip() in fields)])


def shared_object(name: str, folder: Path, options: Sequence[str], environment: Sequence[str] = ()) -> Path:
    """Return the shared object of all `.cpp` files of a folder, compiled unless an earlier call did.

    Args:
        name: name of the folder in the cache.
        folder: folder of the sources and their headers.
        options: options of the compiler.
        environment: anything else that the object depends on.

    Raises:
        ToolchainError: there is no C++ compiler, or it fails.
    """
    command = compiler()
    sources = sorted(folder.glob("*.cpp"))
    digest = hashlib.sha256("\0".join((compiler_version(command), *command, *options, *environment)).encode())
    for path in (*sorted(folder.glob("*.h")), *sources):
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes())
    cache = cache_directory(name)
    target = cache / f"{digest.hexdigest()[:32]}.so"
    if target.is_file():
        return target
    with staging(cache) as stage:
        staged = stage / target.name
        _run([*command, *options, *map(str, sources), "-o", str(staged)])
        with explained(target):
            publish(staged, target)
    return target


@functools.lru_cache(maxsize=8)
def compiler_version(command: tuple[str, ...]) -> str:
    """Return the output of the compiler's `--version`."""
    return _run([*command, "--version"])


def attempt(command: Sequence[str]) -> subprocess.CompletedProcess:
    """Run a compiler and return its result, whatever the exit code, with messages in English.

    Raises:
        ToolchainError: the compiler cannot be started, or takes longer than ten minutes.
    """
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILE_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"`{_abridged(command)}` did not finish within {_COMPILE_SECONDS} s") from error
    except OSError as error:
        raise ToolchainError(f"`{_abridged(command)}` cannot be run ({error.strerror})") from error


def messages(done: subprocess.CompletedProcess) -> str:
    """Return the first lines of the compiler's messages, indented."""
    lines = done.stderr.strip().splitlines()
    more = [f"... and {len(lines) - _SHOWN_LINES} more lines"] if len(lines) > _SHOWN_LINES else []
    return "".join(f"\n  {line}" for line in [*lines[:_SHOWN_LINES], *more])


def _run(command: Sequence[str]) -> str:
    done = attempt(command)
    if done.returncode != 0:
        raise ToolchainError(f"`{_abridged(command)}` failed with exit code {done.returncode}:{messages(done)}")
    return done.stdout


def _abridged(command: Sequence[str]) -> str:
    return shlex.join([command[0], *command[-2:]])


# Cached, so that one process uses one folder.
@functools.lru_cache(maxsize=8)
def _temporary_cache(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"neonext_{name}_"))
