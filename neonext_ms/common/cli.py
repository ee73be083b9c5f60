"""The frame of every command: exit codes, argument types, progress and messages on the terminal.

Results go to stdout. Messages, progress and errors go to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO, TypeVar, cast

from .environment import prepare_environment
from .errors import InputError, NeoNextError, nearest
from .files import NO_TEMPORARY_FOLDER, explain, remove_stages
from .processors import processors
from .signals import STOPPING, end_in_time, kill_children
from .text import CONTROLS, DECIMAL, one_line, shorten, visible

INTERRUPTED = 130
_INTERRUPTED_TEXT = "interrupted; no partial files were left behind"
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

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        # Many options would count as not given.
        empty = next((word for word in words if not word or (word.startswith("--") and word.endswith("="))), None)
        if empty is not None:
            self.error(f"an argument is empty (got {empty!r}). Is a variable of the shell not set?")
        return super().parse_known_args(words, namespace)

    def _print_message(self, message, file=None):
        super()._print_message(visible(message), file)

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


class _Escaped:
    """Standard output that escapes control characters, which can only come from files and names of files."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(visible(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
    if argv is None:
        own_process()
    for number in STOPPING[1:]:
        # `nohup` makes a process ignore SIGHUP; that is kept.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    with contextlib.redirect_stdout(cast(TextIO, _Escaped(sys.stdout))):
        code, text = _outcome(command, argv)
    problem = _flush()
    if text:
        print(visible(text), file=sys.stderr)
    elif problem and not code:
        code = problem.exit_code
        if str(problem):
            print(f"error: {visible(str(problem))}", file=sys.stderr)
    if text == _INTERRUPTED_TEXT and _owns_process:
        # A thread may wait for a dead network drive, and MindSpore takes seconds to destroy what it holds.
        kill_children()
        remove_stages()
        sys.stderr.flush()
        os._exit(code)
    return code


_owns_process = False


def own_process() -> None:
    """State that this process is a command: it ends soon after a signal, whatever its threads and libraries do.

    A caller in Python goes on instead, and its own threads are none of our business.
    """
    global _owns_process
    if not _owns_process:
        _owns_process = True
        end_in_time(_end_interrupted, _end_failed)


def _end_interrupted() -> None:
    _end_at_once(_INTERRUPTED_TEXT, INTERRUPTED)


def _end_failed(problem: str) -> None:
    _end_at_once(f"error: {visible(problem)}", 1)


def _end_at_once(text: str, code: int) -> None:
    # They may write into the folders that are removed next.
    kill_children()
    remove_stages()
    # The main thread may hold the lock of `sys.stderr`.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))
    os._exit(code)


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
        return INTERRUPTED, _INTERRUPTED_TEXT
    except BrokenPipeError:
        return 1, None
    except MemoryError:
        return 1, "error: not enough memory for this model on this machine"
    except OSError as error:
        if debug:
            raise
        if error.errno == errno.ENOENT and error.filename is None:
            # Nothing else is missing that has no name: `tempfile` has tried all places.
            return 1, f"error: {NO_TEMPORARY_FOLDER}"
        where = error.filename if isinstance(error.filename, str) else "standard output"
        return 1, f"error: {explain(error, where)}"
    except Exception as error:
        if debug:
            raise
        text = (
            f"error: unexpected {type(error).__name__}: {one_line(error, 300)} (set NEONEXT_DEBUG=1 for the traceback)"
        )
        return 1, text


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
            print(f"\r\033[K{visible(text)[:width]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clear the line, so that another message can be printed."""
        self.show("")


def note(text: str) -> None:
    """Print a message for the user on stderr; control characters of names from files are escaped."""
    print(visible(text), file=sys.stderr)


def print_json(value: object) -> None:
    """Print one JSON document on stdout; what JSON leaves unescaped but a terminal obeys is escaped too."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    print(CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_text(text: str) -> None:
    """Print a result on stdout; control characters of names from files are escaped."""
    print(visible(text))


# Argument types. Each raises ArgumentTypeError with what was expected, and argparse exits with 2.


# Bounds of what a command line may ask for: far beyond any use, and small enough that no later step overflows.
MAX_COUNT = 10**9
MAX_BATCH = 65_536
MAX_SIDE = 16_384
MAX_SHIFT = 4_096
MAX_SEED = 2**32 - 1
# `poll` counts milliseconds in 32 bits.
MAX_SECONDS = 1_000_000
# Bits of the weights of an 8-bit network, which are stored in 8 in any case.
MIN_WEIGHT_BITS, WEIGHT_BITS = 2, 8
MIN_CROP = 0.01
# A standard deviation of pixels from 0 to 1. A network of pixels from 0 to 255 has 1/255 here; far less was divided
# by 255 twice.
MIN_STD = 0.002
# Every shard is two files of one folder.
MAX_SHARDS = 10_000
# A relative L2 beyond this verifies nothing; that of bfloat16, the coarsest dtype, is 0.078.
MAX_TOLERANCE = 0.1
# A network that may lose more percentage points of its accuracy is not checked at all.
MAX_DROP = 50.0

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")


def _number(
    pattern: re.Pattern[str], convert: Callable[[str], T], accepts: Callable[[T], bool], expected: str
) -> Callable[[str], T]:
    """Return an argument type: text that matches, and whose value is accepted.

    The patterns exclude what Python's own conversions take besides: `1_000`, blanks, digits of other scripts, `nan`.
    """

    def parse(text: str) -> T:
        if not pattern.fullmatch(text) or not accepts(value := convert(text)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {shorten(text)}")
        return value

    return parse


def int_range(low: int, high: int = MAX_COUNT) -> Callable[[str], int]:
    """Return an argument type: a whole number from `low` to `high`."""
    return _number(_INTEGER, int, lambda n: low <= n <= high, f"a whole number of at least {low} and at most {high}")


def float_range(low: float, high: float, what: str = "a number") -> Callable[[str], float]:
    """Return an argument type: a number above `low` and up to `high`."""
    return _number(DECIMAL, float, lambda x: low < x <= high, f"{what} above {low:g} and up to {high:g}")


positive_int = int_range(1)
non_negative_int = int_range(0)
batch_size = int_range(1, MAX_BATCH)
random_seed = int_range(0, MAX_SEED)
positive_float = float_range(0, MAX_COUNT)
seconds = float_range(0, MAX_SECONDS, "a positive number of seconds,")
tolerance = float_range(0, MAX_TOLERANCE)
percentage = _number(
    DECIMAL, float, lambda x: 0 <= x <= MAX_DROP, f"a number of percentage points from 0 to {MAX_DROP:g}"
)
fraction = _number(DECIMAL, float, lambda x: MIN_CROP <= x <= 1, f"a number from {MIN_CROP:g} to 1, such as 0.875")


def png_file(text: str) -> str:
    """Parse the name of a picture to write, so that no model is overwritten by one.

    Raises:
        argparse.ArgumentTypeError: another suffix.
    """
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, got {shorten(text)}")
    return text


def threads(text: str) -> int:
    """Parse a number of threads, at most as many as there are processors.

    Raises:
        argparse.ArgumentTypeError: another number.
    """
    limit = processors()
    expected = f"a whole number of at least 1 and at most {limit}, the processors that this process may use"
    return _number(_INTEGER, int, lambda n: 1 <= n <= limit, expected)(text)


def comma_list(item: Callable[[str], T] = str) -> Callable[[str], tuple[T, ...]]:  # type: ignore[assignment]
    """Return an argument type for a comma-separated list of at least one `item`; repeats are dropped."""

    def parse(text: str) -> tuple[T, ...]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise argparse.ArgumentTypeError(f"expected values separated by commas, got {shorten(text)}")
        return tuple(dict.fromkeys(item(part) for part in parts))

    return parse


def some_of(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argument type for a comma-separated list of at least one of these names; repeats are dropped."""

    def member(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(names)}, got {shorten(text)}")
        return text

    return comma_list(member)


def parse_shifts(text: str) -> tuple[int, ...]:
    """Parse the shifts of the four stages, such as `1,1,1,0`.

    Raises:
        argparse.ArgumentTypeError: the text is not four non-negative whole numbers.
    """
    parts = text.split(",")
    shifts = tuple(int(part) for part in parts if _INTEGER.fullmatch(part))
    if len(parts) != 4 or len(shifts) != 4 or not all(0 <= shift <= MAX_SHIFT for shift in shifts):
        raise argparse.ArgumentTypeError(
            f"expected four whole numbers such as 1,1,1,0, one per stage, got {shorten(text)}"
        )
    return shifts


def parse_size(text: str) -> tuple[int, int]:
    """Parse an image size, `224` or `256x320` (height x width), as (height, width) in pixels.

    Raises:
        argparse.ArgumentTypeError: the text is not a size.
    """
    parts = text.lower().split("x")
    sides = [int(part) for part in parts if _INTEGER.fullmatch(part)]
    if len(parts) != len(sides) or len(sides) not in (1, 2) or not all(1 <= side <= MAX_SIDE for side in sides):
        raise argparse.ArgumentTypeError(
            f"expected a size such as 224 or 256x320 (height x width), at most {MAX_SIDE}, got {shorten(text)}"
        )
    return sides[0], sides[-1]


parse_sizes = comma_list(parse_size)
