"""The frame of every command: exit codes, argument types, progress and messages on the terminal.

Results go to stdout. Messages, progress and errors go to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from .environment import prepare_environment
from .errors import InputError, NeoNextError, nearest
from .files import explain, remove_private_folder
from .processors import processors
from .text import one_line

INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 done, 1 error, 2 wrong usage, 3 a required tool or device is missing, 4 the results differ by more\n"
    "than the tolerance, 130 interrupted."
)
# The help of --threads, whose default is `thread_count()`.
THREADS_HELP = "intra-op threads (default: OMP_NUM_THREADS, or all processors)"
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the layout of its description and suggests the nearest option."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # An abbreviation would change its meaning when an option is added.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str):
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            known = [option for action in self._actions for option in action.option_strings]
            message += nearest(message[len(prefix) :].split()[0], known)
        super().error(message)


def _stop(signum, frame):
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """Make the standard streams safe to print to.

    A closed stream becomes the null device; otherwise the next file that is opened would take its number, and prints
    would go there. Characters that a stream cannot encode, such as those of a file name that is not UTF-8, are escaped.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> InputError | None:
    """Flush stdout; return the error if that fails, with what is left in the buffer dropped."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone, which is its right; it gets no message.
        error = InputError("")
    except OSError as problem:
        error = explain(problem, "standard output")
    else:
        return None
    # Python flushes once more at its end, and would complain once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return error


def run(command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run the body of a command and return its exit code.

    Errors meant for the user are printed as one `error:` line on stderr. Any other exception is a defect of this
    program; it is printed as one line too, with its traceback only if `NEONEXT_DEBUG` is set.
    """
    prepare_environment()
    _prepare_streams()
    for name in ("SIGTERM", "SIGHUP"):
        # `nohup` makes a process ignore SIGHUP; that is kept.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _stop)
    code, text = _outcome(command, argv)
    problem = _flush()
    if text:
        print(text, file=sys.stderr)
    elif problem and not code:
        code = problem.exit_code
        if str(problem):
            print(f"error: {problem}", file=sys.stderr)
    # Only as a program: a caller in Python goes on, and its own threads are none of our business.
    if code == INTERRUPTED and argv is None:
        _leave(code)
    return code


def _outcome(
    command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None
) -> tuple[int, str | None]:
    """Run the body of a command; return its exit code and the message for stderr."""
    debug = bool(os.environ.get("NEONEXT_DEBUG"))
    try:
        os.getcwd()
    except OSError:
        return 1, "error: the working folder does not exist any more. Change to another folder."
    try:
        return command(argv) or 0, None
    except NeoNextError as error:
        if debug:
            raise
        return error.exit_code, f"error: {error}"
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted; no partial files were left behind"
    except BrokenPipeError:
        return 1, None
    except MemoryError:
        return 1, "error: not enough memory for this model on this machine"
    except OSError as error:
        if debug:
            raise
        where = error.filename if isinstance(error.filename, str) else "standard output"
        return 1, f"error: {explain(error, where)}"
    except Exception as error:
        if debug:
            raise
        text = (
            f"error: unexpected {type(error).__name__}: {one_line(error, 300)} (set NEONEXT_DEBUG=1 for the traceback)"
        )
        return 1, text


def _leave(code: int) -> None:
    """End the process at once if a thread would keep it alive, for example one that waits for a dead network drive."""
    if any(thread.is_alive() and not thread.daemon for thread in threading.enumerate()[1:]):
        remove_private_folder()
        sys.stderr.flush()
        os._exit(code)


def progress(items: Iterable[T], total: int | None = None, what: str = "", quiet: bool = False) -> Iterable[T]:
    """Iterate over `items` with a progress bar on stderr if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, leave=False, file=sys.stderr)


class StatusLine:
    """A line on stderr that is overwritten by each update; silent if stderr is not a terminal.

    Args:
        enabled: whether to print at all, for example on the first worker only.
    """

    def __init__(self, enabled: bool = True):
        self.active = enabled and sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line by `text`; an empty text clears it."""
        if self.active:
            # A line that wraps could not be overwritten.
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clear the line, so that another message can be printed."""
        self.show("")


def note(text: str) -> None:
    """Print a message for the user on stderr."""
    print(text, file=sys.stderr)


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


# Argument types. Each raises ArgumentTypeError with what was expected, and argparse exits with 2.


def _number(convert: Callable[[str], T], accepts: Callable[[T], bool], expected: str, name: str) -> Callable[[str], T]:
    """Return an argument type: text that `convert` reads and `accepts` approves of."""

    def parse(text: str) -> T:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    parse.__name__ = name
    return parse


positive_int = _number(int, lambda n: n >= 1, "a whole number of at least 1", "positive_int")
non_negative_int = _number(int, lambda n: n >= 0, "a whole number of at least 0", "non_negative_int")
positive_float = _number(float, lambda x: 0 < x < math.inf, "a number above 0", "positive_float")
seconds = _number(float, lambda x: 0 < x < math.inf, "a positive number of seconds", "seconds")
fraction = _number(float, lambda x: 0 < x <= 1, "a number above 0 and up to 1, such as 0.875", "fraction")


def threads(text: str) -> int:
    """Parse a number of threads, at most as many as there are processors.

    Raises:
        argparse.ArgumentTypeError: another number.
    """
    limit = processors()
    expected = f"a whole number of at least 1 and at most {limit}, the processors that this process may use"
    return _number(int, lambda n: 1 <= n <= limit, expected, "threads")(text)


def comma_list(item: Callable[[str], T] = str) -> Callable[[str], tuple[T, ...]]:  # type: ignore[assignment]
    """Return an argument type for a comma-separated list of at least one `item`; repeats are dropped."""

    def parse(text: str) -> tuple[T, ...]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise argparse.ArgumentTypeError(f"expected values separated by commas, got {text!r}")
        return tuple(dict.fromkeys(item(part) for part in parts))

    return parse


def parse_shifts(text: str) -> tuple[int, ...]:
    """Parse the shifts of the four stages, such as `1,1,1,0`.

    Raises:
        argparse.ArgumentTypeError: the text is not four non-negative whole numbers.
    """
    try:
        shifts = tuple(int(part) for part in text.split(","))
    except ValueError:
        shifts = ()
    if len(shifts) != 4 or min(shifts) < 0:
        raise argparse.ArgumentTypeError(f"expected four whole numbers such as 1,1,1,0, one per stage, got {text!r}")
    return shifts


def parse_size(text: str) -> tuple[int, int]:
    """Parse an image size, `224` or `256x320` (height x width), as (height, width) in pixels.

    Raises:
        argparse.ArgumentTypeError: the text is not a size.
    """
    try:
        parts = [int(part) for part in text.lower().split("x")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2) or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 224 or 256x320 (height x width), got {text!r}")
    return parts[0], parts[-1]


parse_sizes = comma_list(parse_size)
