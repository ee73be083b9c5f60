"""External tools: locate them, run them with a time limit and without leftovers, keep their logs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, NeoNextError, ToolchainError, UsageError
from .files import explained, publish
from .signals import in_main_thread, signals_later, unhurried

GRACE = 1.0
_LINE = 1 << 16
_TAIL = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._\-\u4e00-\u9fa5]+")


@dataclass(frozen=True)
class Tool:
    """An executable of a package that is not installed with this one.

    Attributes:
        name: file name of the executable.
        package: package that contains it, for the error message.
        homes: environment variables that hold the root of an installation.
        folders: folders inside an installation that may hold the executable.
        advice: what to do if it is missing.
        libraries: library folders inside an installation, for executables that do not set their own search path.
    """

    name: str
    package: str
    homes: tuple[str, ...]
    folders: tuple[str, ...]
    advice: str
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The outcome of a run.

    Attributes:
        exit_code: exit code of the tool, or the negative number of the signal that killed it.
        log: file with everything it printed, inside the staging folder.
        tail: last lines of the log.
    """

    exit_code: int
    log: Path
    tail: tuple[str, ...]

    @property
    def how(self) -> str:
        """The exit code or the signal, in words."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-self.exit_code).name}"
        return f"killed by signal {-self.exit_code}"


def find(tool: Tool, environ: Mapping[str, str] | None = None) -> Path:
    """Locate the executable of a tool, on PATH first, then in its installation.

    Raises:
        ToolchainError: the executable is missing. The message lists the places searched and what to do.
    """
    environ = os.environ if environ is None else environ
    on_path = shutil.which(tool.name, path=environ.get("PATH", os.defpath))
    if on_path:
        return Path(os.path.abspath(on_path))
    searched = ["PATH"]
    for variable in tool.homes:
        home = environ.get(variable)
        searched.append(f"{variable} ({home or 'not set'})")
        for folder in tool.folders if home else ():
            candidate = Path(os.path.abspath(str(home))) / folder / tool.name
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return candidate
    raise ToolchainError(
        f"{tool.name} was not found; searched {', '.join(searched)}. It comes with {tool.package}. {tool.advice}"
    )


def environment(tool: Tool, executable: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables for an executable, with its installation's libraries if it needs them."""
    result = dict(os.environ if environ is None else environ)
    for folder in tool.folders:
        if executable.parent.as_posix().endswith("/" + folder):
            home = Path(*executable.parent.parts[: -len(Path(folder).parts)])
            paths = [str(home / place) for place in tool.libraries if (home / place).is_dir()]
            if paths:
                old = result.get("LD_LIBRARY_PATH")
                result["LD_LIBRARY_PATH"] = ":".join([*paths, *([old] if old else [])])
            break
    return result


def check_timeout(timeout: float | None) -> None:
    """Reject a time limit that is not above zero.

    Raises:
        UsageError: the time limit is zero, negative or not a number.
    """
    if timeout is not None and not timeout > 0:
        raise UsageError(f"time limit {timeout}: expected seconds above 0, or none for no limit")


def run(
    command: Sequence[str],
    work: Path,
    log: Path,
    final_log: Path,
    timeout: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> Finished:
    """Run a tool without a shell, in its own process group and working folder, with its output in a file.

    No process of the group outlives the call. After the time limit, Ctrl-C, SIGTERM, or the end of the tool itself,
    the group receives SIGTERM, and SIGKILL `GRACE` seconds later. A process that starts a session of its own leaves
    the group and is not stopped.

    Args:
        command: executable and its arguments.
        work: existing working folder.
        log: file that receives a line with the command, then stdout and stderr.
        final_log: later name of the log, for messages.
        timeout: time limit in seconds; None means no limit.
        environ: environment variables of the tool; None means those of this process.

    Raises:
        ToolchainError: the executable cannot be started.
        InputError: the time limit has passed.
    """
    check_timeout(timeout)
    name = Path(command[0]).name
    environ = {**(os.environ if environ is None else environ), "PWD": str(work)}
    process = None
    with explained(final_log), open(log, "wb") as output:
        output.write(f"$ {quoted([name, *command[1:]])}\n".encode())
        output.flush()
        with _terminated_as_exit(), unhurried():
            try:
                with signals_later():
                    process = _start(command, work, output, environ)
                exit_code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"{name} did not finish within {timeout:g} s and was stopped with all its processes. "
                    f"Allow more time, or read its log: {final_log}"
                ) from None
            finally:
                if process is not None:
                    _stop(process)
    return Finished(exit_code, log, tail(log))


def _start(command: Sequence[str], work: Path, output, environ: Mapping[str, str]) -> subprocess.Popen:
    try:
        return subprocess.Popen(
            command,
            cwd=work,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolchainError(
            f"{command[0]}: cannot be started ({error.strerror or error}). Reinstall it, or remove it from PATH."
        ) from error


def _stop(process: subprocess.Popen) -> None:
    """Stop the remaining processes of a group; Ctrl-C is postponed until they are gone."""
    process.poll()
    with signals_later():
        for sent in (signal.SIGTERM, signal.SIGKILL):
            if not _group_lives(process.pid):
                break
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sent)
            if _gone(process, GRACE):
                break
        process.poll()


def _gone(process: subprocess.Popen, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        process.poll()
        if not _group_lives(process.pid):
            return True
        time.sleep(0.02)
    return False


def _group_lives(group: int) -> bool:
    """Return whether a process of a group is still running; zombies do not count."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    if not os.path.isdir("/proc/self"):
        return True
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                state, _, of = file.read().rpartition(")")[2].split()[:3]
                if int(of) == group and state not in "ZX":
                    return True
    return False


@contextlib.contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Turn the default action of SIGTERM into SystemExit, so that `finally` blocks stop the tool as well."""
    if not in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(received, frame):
        raise SystemExit(128 + received)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def kept(log: Path, final: Path) -> Iterator[None]:
    """Publish a log under its final name when the block ends, also on an error."""
    try:
        yield
    finally:
        if log.exists():
            # Failing to keep a log must not hide why the tool failed.
            with contextlib.suppress(NeoNextError):
                publish(log, final)


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file of any size; a line over 64 KiB is yielded in pieces."""
    with open(path, "rb") as file:
        while line := file.readline(_LINE):
            yield line.decode("utf-8", "replace").rstrip("\r\n")


def tail(path: Path, count: int = _TAIL) -> tuple[str, ...]:
    """Return the last `count` non-empty lines of a text file."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LINE))
        text = file.read().decode("utf-8", "replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())[-count:]


def quoted(command: Sequence[str]) -> str:
    """Return a command quoted for a POSIX shell."""
    return " ".join(shlex.quote(str(part)) for part in command)


def is_plain(path: str | os.PathLike) -> bool:
    """Return whether CANN accepts a path: letters, digits, `.`, `_`, `-` and Chinese characters only.

    CANN checks the resolved path (`IsPathCharsValid` in base/common/util.cc of hicann/ge), so a link with a plain
    name does not help.
    """
    return all(_PLAIN_NAME.fullmatch(part) for part in Path(path).parts if part != os.sep)


def plain(name: str) -> str:
    """Return a file stem that CANN accepts, made from any name."""
    result = "".join(c if _PLAIN_NAME.fullmatch(c) else "_" for c in name).lstrip("-") or "model"
    # ATC inserts the name of the operating system before the first `.om` that it finds in a name.
    return result.replace(".om", "_om")


@contextlib.contextmanager
def work_folder(stage: Path, name: str) -> Iterator[Path]:
    """Yield a folder for one run of a CANN tool: in `stage`, or in the temporary folder if CANN rejects that path."""
    import tempfile

    folder = stage / name
    if is_plain(os.path.realpath(stage)):
        with explained(folder):
            folder.mkdir()
    else:
        with explained(tempfile.gettempdir()):
            folder = Path(tempfile.mkdtemp(prefix="neonext-"))
        if not is_plain(os.path.realpath(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"{stage.parent}: CANN's tools accept only paths of letters, digits, '.', '_' and '-', and neither "
                f"this folder nor {tempfile.gettempdir()} is one. Choose another folder, or set TMPDIR."
            )
    try:
        yield Path(os.path.realpath(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(source: str | os.PathLike, target: Path, link: bool = True) -> None:
    """Place a file in a working folder, as a hard link if possible, else as a copy.

    Raises:
        InputError: the source is missing or cannot be read.
    """
    source = Path(os.path.realpath(source))
    with explained(source):
        if not source.is_file():
            raise InputError(f"{source}: no such file; check the path")
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            with contextlib.suppress(OSError):
                os.link(source, target)
                return
        shutil.copyfile(source, target)


def move(source: Path, target: Path) -> None:
    """Move a file, across file systems if necessary."""
    with explained(target):
        shutil.move(source, target)
