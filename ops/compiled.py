"""C++ sources of this package as shared objects, compiled on first use and kept in the user's cache folder.

An entry of the cache is a shared object, named by its key and digest, and a record `<key>.json` of its size and digest.
What is loaded was verified against its record. Where the cache cannot be used, a temporary folder of this process takes
its place and is removed when the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from neonext_ms.common.errors import InputError, NeoNextError, ToolchainError
from neonext_ms.common.files import explained, private_folder, publish, sha256, staging

_COMPILE_SECONDS = 600
_SHOWN_LINES = 20
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler: `CXX`, or `g++`.

    Raises:
        ToolchainError: the compiler is not installed.
    """
    try:
        command = tuple(shlex.split(os.environ.get("CXX", ""))) or ("g++",)
    except ValueError as error:
        raise ToolchainError(f"CXX: not a command ({error}). Set it to a C++ compiler, such as g++.") from error
    if shutil.which(command[0]) is None:
        raise ToolchainError(
            f"C++ compiler {command[0]!r} not found. Install g++ (version 9 or later), or set CXX to a compiler that "
            "takes the same options."
        )
    return command


def cache_directory(name: str) -> Path | None:
    """Return the folder of compiled files, `neonext_ms/<name>` in `XDG_CACHE_HOME` or `~/.cache`.

    Returns:
        The folder, or None if there is no home folder, or if this user cannot run files from there, or if another user
        owns it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
        # Without an entry in the password file, and with an empty HOME, there is no home folder.
        if not root.is_absolute():
            return None
        for folder in (root / "neonext_ms", root / "neonext_ms" / name):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
            if status.st_uid != os.geteuid():
                return None
            if status.st_mode & _WRITABLE_BY_OTHERS:
                folder.chmod(stat.S_IMODE(status.st_mode) & ~_WRITABLE_BY_OTHERS)
        runs = not os.statvfs(folder).f_flag & os.ST_NOEXEC
        return folder if runs and os.access(folder, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):
        return None


def kept_object(
    name: str,
    key: str,
    compile_in: Callable[[Path], tuple[Path, Mapping[str, str]]],
    current: Callable[[Mapping[str, str]], bool] = lambda files: True,
) -> Path:
    """Return a shared object of the cache, compiled unless the cache has a verified one.

    Args:
        name: name of the folder in the cache.
        key: digest of everything that the object depends on, apart from `files`.
        compile_in: function that compiles into a folder and returns the object and the digests of files it depends on.
        current: function that decides whether these files are still the same.

    Raises:
        InputError, ToolchainError: the error of `compile_in`, or no folder can be written.
    """
    cache = cache_directory(name)
    if cache is not None:
        try:
            return _find_or_compile(cache, key, compile_in, current)
        except (OSError, NeoNextError) as error:
            if not _cannot_write(error):
                raise
    with explained("temporary folder"):
        return _find_or_compile(private_folder(), key, compile_in, current)


def _find_or_compile(folder: Path, key: str, compile_in: Callable, current: Callable) -> Path:
    record = folder / f"{key}.json"
    entry = _read_record(record)
    if entry and current(entry["files"]):
        kept = folder / entry["object"]
        if _verified(kept, entry):
            return kept
        with contextlib.suppress(OSError):
            kept.unlink()
    with staging(folder) as stage:
        staged, files = compile_in(stage)
        digest = sha256(staged)
        # A name with a digest of the content: the record is published last, and always describes the object it names.
        target = folder / f"{key}-{digest[:16]}.so"
        listing = stage / "record"
        size = staged.stat().st_size
        listing.write_text(json.dumps({"object": target.name, "size": size, "sha256": digest, "files": dict(files)}))
        publish(staged, target, mode=0o600)
        publish(listing, record, mode=0o600)
    return target


def _read_record(path: Path) -> dict | None:
    """Return a record of this user that has all its values, or None."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8")) if _own_file(path) else None
    except (OSError, ValueError, RecursionError):
        return None
    types = {"object": str, "size": int, "sha256": str, "files": dict}
    if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in types.items()):
        return None
    return entry if os.path.basename(entry["object"]) == entry["object"] else None


def _verified(path: Path, entry: Mapping) -> bool:
    """Return whether an object is what its record says. A damaged one can end the process by a signal when loaded."""
    with contextlib.suppress(OSError, InputError):
        return _own_file(path) and path.stat().st_size == entry["size"] and sha256(path) == entry["sha256"]
    return False


def _own_file(path: Path) -> bool:
    """Return whether this is a regular file of this user that no other user can write."""
    status = path.lstat()
    mine = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    return mine and not status.st_mode & _WRITABLE_BY_OTHERS


def _cannot_write(error: BaseException) -> bool:
    """Return whether an error is about the folder of the cache, such as a full disk or a read-only file system."""
    cause = error if isinstance(error, OSError) else error.__cause__
    # The compiler only prints the error.
    return isinstance(cause, OSError) or any(os.strerror(number) in str(error) for number in _FULL)


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

    def compile_in(stage: Path) -> tuple[Path, Mapping[str, str]]:
        staged = stage / "object.so"
        _run([*command, *options, *map(str, sources), "-o", str(staged)], stage)
        check_written(command, staged)
        return staged, {}

    return kept_object(name, digest.hexdigest()[:32], compile_in)


@functools.lru_cache(maxsize=8)
def compiler_version(command: tuple[str, ...]) -> str:
    """Return the output of the compiler's `--version`."""
    return _run([*command, "--version"])


def attempt(command: Sequence[str], temporary: Path | None = None) -> subprocess.CompletedProcess:
    """Run a compiler and return its result, whatever the exit code, with messages in English.

    Args:
        command: command and arguments.
        temporary: folder of its temporary files; a compiler that is killed leaves them behind.

    Raises:
        ToolchainError: the compiler cannot be started, or takes longer than ten minutes.
    """
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", **({"TMPDIR": str(temporary)} if temporary else {})},
            # It starts the programs that do the work, which are stopped with it.
            start_new_session=True,
        )
    except OSError as error:
        raise ToolchainError(f"`{_abridged(command)}` cannot be run ({error.strerror})") from error
    with process:
        try:
            output, errors = process.communicate(timeout=_COMPILE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ToolchainError(f"`{_abridged(command)}` did not finish within {_COMPILE_SECONDS} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def messages(done: subprocess.CompletedProcess) -> str:
    """Return the first lines of the compiler's messages, indented."""
    lines = done.stderr.strip().splitlines()
    more = [f"... and {len(lines) - _SHOWN_LINES} more lines"] if len(lines) > _SHOWN_LINES else []
    return "".join(f"\n  {line}" for line in [*lines[:_SHOWN_LINES], *more])


def check_written(command: Sequence[str], *paths: Path) -> None:
    """Reject a compiler that reports success but wrote nothing, such as CXX=true.

    Raises:
        ToolchainError: one of the files does not exist.
    """
    if not all(path.is_file() for path in paths):
        raise ToolchainError(f"`{command[0]}` succeeded but wrote no file. Set CXX to a C++ compiler, such as g++.")


def _run(command: Sequence[str], temporary: Path | None = None) -> str:
    done = attempt(command, temporary)
    if done.returncode != 0:
        raise ToolchainError(f"`{_abridged(command)}` failed with exit code {done.returncode}:{messages(done)}")
    return done.stdout


def _abridged(command: Sequence[str]) -> str:
    return shlex.join([command[0], *command[-2:]])
