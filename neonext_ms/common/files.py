"""Files: atomic writes, advisory locks, checksums, text and YAML with errors that name the file."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import InputError, UsageError
from .text import one_line, shorten


def explain(error: OSError, path: str | os.PathLike) -> InputError:
    """Return an operating-system error at `path` as an `InputError` that says what to do."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space or choose another place",
        errno.EFBIG: "the file is larger than this place or a limit allows; choose another place",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
        errno.EACCES: "permission denied; choose a place that you may use",
        errno.EPERM: "operation not permitted; choose a place that you may use",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOENT: "no such file or folder; check the path",
        errno.ENOTDIR: "a part of the path is a file where a folder was expected; check the path",
        errno.EISDIR: "this is a folder where a file was expected; name a file",
        errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter name",
        errno.EEXIST: "this exists already and is not a folder; choose another place",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"{os.fspath(path)}: {reason}")


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Convert an `OSError` inside the block to an `InputError` that names `path`, and an error about its characters."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error
    except ValueError:
        check_name(path)
        raise


def check_name(path: str | os.PathLike) -> None:
    """Reject a path with characters that no file name has; it comes from a file, such as a configuration.

    Raises:
        InputError: it has some.
    """
    if not can_be_name(path):
        name = os.fspath(path)
        kind = "a null character" if "\0" in name else "half of a character (a lone surrogate)"
        raise InputError(f"{shorten(name)}: not a path, because it has {kind}. Check its name.")


def can_be_name(path: str | os.PathLike) -> bool:
    """Return whether a file can have this name: no null character, and nothing that has no bytes."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


@contextlib.contextmanager
def staging(directory: str | os.PathLike) -> Iterator[Path]:
    """Yield a hidden temporary folder inside `directory`, and delete it when the block ends.

    Files are built in it and moved to their final names by `publish`. `directory` and its parents are created if
    necessary, and removed again if the block leaves them empty. Temporary folders of killed processes are removed.
    """
    directory = Path(directory)
    check_home_written(directory)
    created: list[Path] = []
    with explained(directory):
        missing = directory
        while not missing.exists():
            created.append(missing)
            missing = missing.parent
        directory.mkdir(parents=True, exist_ok=True)
        if not directory.is_dir():
            raise NotADirectoryError(errno.EEXIST, "not a folder", str(directory))
        _remove_abandoned(directory)
        stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=directory))
    _stages[stage] = os.getpid(), created
    try:
        # The lock ends with the process. It tells a folder in use from one that a killed process left behind.
        with exclusive(stage):
            yield stage
    finally:
        _remove_stage(stage)


def check_home_written(directory: Path) -> None:
    """Reject a folder to write in that begins with `~` or `~USER`, which only a shell takes for a home folder.

    Raises:
        InputError: it does, and there is no folder of that name here.
    """
    first = directory.parts[0] if directory.parts else ""
    if os.path.expanduser(first) != first and not os.path.exists(first):
        raise InputError(
            f"{directory}: would be in a new folder named {first!r} here. Shells replace {first} only at the start of "
            "a word, not in key=value, --option=value or files. Write the whole path."
        )


_STAGE = ".neonext-"
# Temporary folder -> the process that made it, and the parents that were made for it.
_stages: dict[Path, tuple[int, list[Path]]] = {}


def _remove_stage(stage: Path) -> None:
    shutil.rmtree(stage, ignore_errors=True)
    _, created = _stages.pop(stage, (0, []))
    for folder in created:
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_stages() -> None:
    """Remove the temporary folders of all `staging` blocks of this process, which is about to end."""
    for stage, (process, _) in list(_stages.items()):
        # A forked process has copies of the entries of its parent.
        if process == os.getpid():
            _remove_stage(stage)


_YOUNG_SECONDS = 10


@contextlib.contextmanager
def exclusive(directory: str | os.PathLike, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on a folder; the lock also ends with the process.

    Args:
        directory: folder to lock.
        wait: whether to wait for another process to release the lock.

    Yields:
        Whether the lock is held. It always is after waiting, and where the file system has no locks.
    """
    with explained(directory):
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError:
            held = wait
        yield held
    finally:
        os.close(descriptor)


def _remove_abandoned(directory: Path) -> None:
    for stage in directory.glob(f"{_STAGE}*"):
        # A folder is locked a moment after its creation, so that a very young one may be unlocked and in use.
        with contextlib.suppress(OSError, InputError):
            if stage.is_dir() and time.time() - stage.stat().st_mtime > _YOUNG_SECONDS:
                with exclusive(stage, wait=False) as abandoned:
                    if abandoned:
                        shutil.rmtree(stage, ignore_errors=True)


NO_TEMPORARY_FOLDER = "no temporary folder can be written. Set TMPDIR to one that can."
_private: dict[int, tuple[contextlib.ExitStack, Path]] = {}


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder that only this user can read; it is removed when the block or a command ends.

    Raises:
        InputError: there is no place for temporary files.
    """
    try:
        place = tempfile.gettempdir()
    except OSError as error:
        raise InputError(NO_TEMPORARY_FOLDER) from error
    with staging(place) as folder:
        yield folder


def private_folder() -> Path:
    """Return a temporary folder that only this user can read; one per process, removed when the process ends.

    Raises:
        InputError: there is no place for temporary files.
    """
    if os.getpid() not in _private:
        stack = contextlib.ExitStack()
        _private[os.getpid()] = stack, stack.enter_context(temporary_folder())
        atexit.register(remove_private_folder)
    return _private[os.getpid()][1]


def remove_private_folder() -> None:
    """Remove the folder of `private_folder`, for a process that ends without the ordinary way out."""
    # The entry of the parent of a forked process is left alone.
    if entry := _private.pop(os.getpid(), None):
        entry[0].close()


def publish(staged: Path, final: str | os.PathLike, mode: int | None = None) -> Path:
    """Flush a finished file to disk, rename it to `final` atomically, and return `final`.

    Args:
        staged: finished file.
        final: path to give it.
        mode: permissions (default: those of a new file).
    """
    final = Path(final)
    check_replaceable(final)
    with explained(final):
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(staged, 0o666 & ~umask if mode is None else mode)
        descriptor = os.open(staged, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(staged, final)
    return final


def check_replaceable(path: str | os.PathLike) -> None:
    """Reject a path to write that is a pipe, socket or device: a rename would put a file in its place.

    For root, `--output /dev/null` would take that from the whole machine.

    Raises:
        InputError: the path is one of these.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        # What is missing can be written; what cannot be reached is reported when it is written.
        return
    # /dev/stdout is a link to an open file, which may be an ordinary one.
    link = os.path.islink(path) and os.readlink(os.fsdecode(path)).startswith("/proc/")
    if link or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{os.fspath(path)}: this is a pipe, socket or device, which is not replaced. Name a file.")


def check_distinct(output: str | os.PathLike, inputs: Iterable[str | os.PathLike | None]) -> None:
    """Reject a file to write that is one of the files to read, also under another name.

    Args:
        output: file to write.
        inputs: files to read; None for one that was not given.

    Raises:
        UsageError: it is one of them.
    """
    for path in inputs:
        if not path:
            continue
        try:
            same = os.path.samefile(path, output)
        except OSError:
            same = os.path.abspath(os.fspath(path)) == os.path.abspath(os.fspath(output))
        if same:
            raise UsageError(f"{os.fspath(output)}: the output is the same file as an input. Choose another name.")


def check_output(output: str | os.PathLike, inputs: Iterable[str | os.PathLike | None] = ()) -> None:
    """Check before long work that a file can be written after it, and is none of the files to read.

    Raises:
        InputError: the file cannot be written.
        UsageError: it is one of `inputs`.
    """
    output = Path(output)
    check_distinct(output, inputs)
    check_replaceable(output)
    with explained(output):
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder")
    with staging(output.parent):
        pass


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` on success, delete it on error.

    Raises:
        InputError: the file cannot be written, or is there and no file (`check_replaceable`).
    """
    path = Path(path)
    check_replaceable(path)
    with staging(path.parent) as stage:
        staged = stage / path.name
        with explained(path):
            yield staged
        publish(staged, path)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with explained(path), open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def check_regular(path: str | os.PathLike) -> None:
    """Reject what is not a regular file: reading a FIFO or a device could block for ever.

    Raises:
        InputError: the path does not exist, or is no regular file.
    """
    check_name(path)
    with explained(path):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a folder")
    if not stat.S_ISREG(mode):
        raise InputError(f"{os.fspath(path)}: not a regular file, but a pipe, socket or device. Name a file.")


def read_text(path: str | os.PathLike) -> str:
    """Read a UTF-8 text file, without the byte order mark that some editors put at its start.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    check_regular(path)
    try:
        with explained(path), open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{os.fspath(path)}: not a UTF-8 text file ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error


def read_lines(path: str | os.PathLike) -> list[str]:
    """Read the lines of a UTF-8 text file, without line ends and without empty lines at the end of the file.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    return read_text(path).rstrip("\n").split("\n")


# Nesting of JSON that this package writes is below 10. Deep values exhaust the stack of whatever walks them.
_JSON_DEPTH = 64
_JSON_BYTES = 1 << 28
# Strings are matched too, so that brackets in them are not counted.
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def read_json(path: str | os.PathLike, kind: str) -> Any:
    """Load a JSON file, as `parse_json` does.

    Args:
        path: file to read.
        kind: what the file should be, for the error message, for example "a manifest".

    Raises:
        InputError: the file cannot be read, or is not JSON.
    """
    check_regular(path)
    with explained(path):
        size = os.path.getsize(path)
    if size > _JSON_BYTES:
        raise InputError(f"{os.fspath(path)}: too large for {kind} (got {size:,} bytes, at most {_JSON_BYTES:,})")
    return parse_json(read_text(path), os.fspath(path), kind)


def parse_json(text: str | bytes, source: str, kind: str) -> Any:
    """Parse JSON strictly: finite numbers only, every key once, no deeper than any file of this package.

    Args:
        text: the JSON text.
        source: where it comes from, for the error message.
        kind: what it should be, likewise.

    Raises:
        InputError: the text is not such JSON.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        _check_depth(text)
        value = json.loads(text, parse_constant=_reject_constant, parse_float=_finite, object_pairs_hook=unique_keys)
    except ValueError as error:
        raise InputError(f"{source}: not {kind} ({one_line(error)})") from error
    return value


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of an object in JSON (`object_pairs_hook`), where a later value would replace an earlier one.

    Raises:
        ValueError: a key is given twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shorten(double)} is given twice")
    return values


def _check_depth(text: str) -> None:
    """Reject deep nesting before it is parsed: the parser recurses, and may be allowed to as deep as its stack ends."""
    depth = 0
    for token in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > _JSON_DEPTH:
            raise ValueError(f"nested more than {_JSON_DEPTH} levels deep")
