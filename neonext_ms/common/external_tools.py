"""Tools of other makers: finding them, running them under control, keeping what they print."""

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
from .signals import in_main_thread, signals_later

GRACE = 2.0
_LINE = 1 << 16
_TAIL = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._\-\u4e00-\u9fa5]+")


@dataclass(frozen=True)
class Tool:
    """An executable of a package that is not installed with this one.

    Attributes:
        name: of the executable.
        package: what has to be installed to have it.
        homes: environment variables that point to such an installation.
        folders: where the executable is inside an installation.
        advice: what to do where it is missing.
        libraries: folders of an installation whose libraries the executable needs, for tools without a wrapper.
    """

    name: str
    package: str
    homes: tuple[str, ...]
    folders: tuple[str, ...]
    advice: str
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        exit_code: of the tool; negative: the signal that killed it.
        log: everything that it printed, where it is while the staging folder exists.
        tail: the last lines of that.
    """

    exit_code: int
    log: Path
    tail: tuple[str, ...]

    @property
    def how(self) -> str:
        """The exit code in words."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-self.exit_code).name}"
        return f"killed by signal {-self.exit_code}"


def find(tool: Tool, environ: Mapping[str, str] | None = None) -> Path:
    """The executable of a tool, from PATH first, then from its installation.

    Raises:
        ToolchainError: it is not there; the message says where it was looked for and what to do.
    """
    environ = os.environ if environ is None else environ
    found = shutil.which(tool.name, path=environ.get("PATH", os.defpath))
    if found:
        return Path(os.path.abspath(found))
    looked = ["PATH"]
    for variable in tool.homes:
        home = environ.get(variable)
        looked.append(f"{variable} ({home or 'not set'})")
        for folder in tool.folders if home else ():
            candidate = Path(os.path.abspath(home)) / folder / tool.name
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return candidate
    raise ToolchainError(
        f"{tool.name} was not found; looked in {', '.join(looked)}. It comes with {tool.package}. {tool.advice}"
    )


def environment(tool: Tool, executable: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment to run an executable in: with the libraries of its installation, if it needs them."""
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
    """Raises:
    UsageError: a time limit that is not above zero.
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
    """Run a tool without a shell, in a process group and a working folder of its own, with its output in a file.

    However the run ends, no process of its group is left: on the time limit, on Ctrl-C and SIGTERM, and after the
    tool itself has gone, the group gets SIGTERM, and SIGKILL `GRACE` seconds later. A process that leaves the group
    by starting a session of its own is not found.

    Args:
        command: the executable and its arguments.
        work: working folder; it exists.
        log: file that gets both output streams, after a line with the command.
        final_log: the name that this file will have later, for messages.
        timeout: seconds, or None for no limit.
        environ: of the tool; this process's own if None.

    Raises:
        ToolchainError: the executable cannot be started.
        InputError: the time limit passed.
    """
    check_timeout(timeout)
    name = Path(command[0]).name
    environ = {**(os.environ if environ is None else environ), "PWD": str(work)}
    process = None
    with explained(final_log), open(log, "wb") as output:
        output.write(f"$ {quoted([name, *command[1:]])}\n".encode())
        output.flush()
        with _terminated_as_exit():
            try:
                with signals_later():
                    process = _start(command, work, output, environ)
                exit_code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"{name} did not finish within {timeout:g} s; it was stopped with all its processes. "
                    f"Allow more time, or read what it printed: {final_log}"
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
            f"{command[0]}: cannot be started ({error.strerror or error}); reinstall it, or take it out of PATH"
        ) from error


def _stop(process: subprocess.Popen) -> None:
    """End what is left of a process group; Ctrl-C waits until that is done."""
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
    """Whether a process of a group still runs; one that has ended and waits for its parent does not."""
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
    """Where SIGTERM would end this process at once, let it unwind instead, so that the tool is stopped too."""
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
    """Give a log its final name when the block ends, however it ends."""
    try:
        yield
    finally:
        if log.exists():
            # A log that cannot be kept must not hide why the tool failed.
            with contextlib.suppress(NeoNextError):
                publish(log, final)


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file of any size, in little memory: longer ones than 64 KiB come in pieces."""
    with open(path, "rb") as file:
        while line := file.readline(_LINE):
            yield line.decode("utf-8", "replace").rstrip("\r\n")


def tail(path: Path, count: int = _TAIL) -> tuple[str, ...]:
    """The last lines of a text file that are not empty."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LINE))
        text = file.read().decode("utf-8", "replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())[-count:]


def quoted(command: Sequence[str]) -> str:
    """A command as a POSIX shell reads it."""
    return " ".join(shlex.quote(str(part)) for part in command)


def is_plain(path: str | os.PathLike) -> bool:
    """Whether CANN takes a path: letters, digits, `.`, `_`, `-` and Chinese characters only.

    It checks the real path of what it reads (`IsPathCharsValid` in base/common/util.cc of hicann/ge), so links do
    not help.
    """
    return all(_PLAIN_NAME.fullmatch(part) for part in Path(path).parts if part != os.sep)


def plain(name: str) -> str:
    """The stem of a file name that CANN takes, made from any other."""
    result = "".join(c if _PLAIN_NAME.fullmatch(c) else "_" for c in name).lstrip("-") or "model"
    # ATC puts the system's name before the first `.om` that it finds in a name.
    return result.replace(".om", "_om")


@contextlib.contextmanager
def work_folder(stage: Path, name: str) -> Iterator[Path]:
    """A folder for one run of a CANN tool: in `stage`, or with the temporary files if CANN refuses that path."""
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
                f"{stage.parent}: CANN's tools take paths of letters, digits, '.', '_' and '-' only, and neither "
                f"this folder nor {tempfile.gettempdir()} is one; choose another folder, or set TMPDIR"
            )
    try:
        yield Path(os.path.realpath(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(source: str | os.PathLike, target: Path, link: bool = True) -> None:
    """Put a file into a working folder, as a second name of the same file where that is possible.

    Raises:
        InputError: it is not there, or cannot be read.
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
    """Move a file, to another file system too."""
    with explained(target):
        shutil.move(source, target)
