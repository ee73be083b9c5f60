"""Writing files so that a name always stands for a whole file: written beside the destination, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


def explain(error: OSError, path: str | os.PathLike) -> InputError:
    """The user's words for an operating-system error at `path`."""
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
        errno.EEXIST: "this exists already and is not a folder; choose another place",
    }
    reason = reasons.get(error.errno, error.strerror or str(error))
    return InputError(f"{os.fspath(path)}: {reason}")


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn an `OSError` inside the block into an `InputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


@contextlib.contextmanager
def staging(directory: str | os.PathLike) -> Iterator[Path]:
    """A hidden folder inside `directory` to build files in; it goes away, and so does a `directory` made for it.

    `publish` moves finished files from it to their final names. A folder that this call created and that is
    still empty afterwards (because something failed) is removed again, and so is what a killed process left behind.
    """
    directory = Path(directory)
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
    try:
        # Held as long as this process lives: it tells a stage in use from one that was left behind.
        with exclusive(stage):
            yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()


_STAGE = ".neonext-"
_YOUNG_SECONDS = 10


@contextlib.contextmanager
def exclusive(directory: str | os.PathLike, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock, which other processes of this package respect; it ends with the process.

    Yields:
        whether the lock is held; without `wait` it may not be. File systems without locks count as held.
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
        # A stage is locked a moment after it is made.
        with contextlib.suppress(OSError, InputError):
            if stage.is_dir() and time.time() - stage.stat().st_mtime > _YOUNG_SECONDS:
                with exclusive(stage, wait=False) as abandoned:
                    if abandoned:
                        shutil.rmtree(stage, ignore_errors=True)


def publish(staged: Path, final: str | os.PathLike) -> Path:
    """Give a finished file its final name, atomically, on disk before it is visible."""
    final = Path(final)
    with explained(final):
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(staged, 0o666 & ~umask)
        descriptor = os.open(staged, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(staged, final)
    return final


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    with staging(path.parent) as stage:
        staged = stage / path.name
        with explained(path):
            yield staged
        publish(staged, path)


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with explained(path), open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def read_yaml(path: str | os.PathLike, example: str):
    """What a YAML file holds, as plain values; nothing in it is executed.

    Args:
        path: the file.
        example: a file of this kind, for the message.

    Raises:
        InputError: the file cannot be read or is not YAML; the message has the line where that is known.
    """
    import yaml

    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except OSError as error:
        raise explain(error, path) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{where}: not valid YAML ({problem}); see {example}") from error
