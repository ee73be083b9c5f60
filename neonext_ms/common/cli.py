"""What every command shares: errors become one line and an exit code, progress goes to a terminal only."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence

from .errors import InputError, NeoNextError, nearest

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps the layout of its text and whose errors name the nearest option."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
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


def run(command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's body; return its exit code.

    Errors meant for the user are printed as one `error:` line on stderr. Anything else is a defect of this
    program: it is reported in one line too, with its traceback only when `NEONEXT_DEBUG` is set.
    """
    # MindSpore logs to the same terminal; its warnings say nothing to the user of a command.
    os.environ.setdefault("GLOG_v", "3")
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _stop)
    debug = bool(os.environ.get("NEONEXT_DEBUG"))
    try:
        code = command(argv) or 0
        sys.stdout.flush()
        return code
    except NeoNextError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing was left half-written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; Python would complain once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        print("error: not enough memory for this model on this machine", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())[:300]
        print(
            f"error: unexpected {type(error).__name__}: {text} (set NEONEXT_DEBUG=1 for the traceback)",
            file=sys.stderr,
        )
        return 1


def progress(items: Iterable, total: int | None = None, what: str = "", quiet: bool = False) -> Iterable:
    """Iterate with a progress bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, leave=False, file=sys.stderr)


def note(text: str) -> None:
    """A line for the person who watches, on stderr."""
    print(text, file=sys.stderr)


def print_json(value) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def parse_shifts(text: str) -> tuple[int, ...]:
    """`1,1,1,0` as four whole numbers.

    Raises:
        argparse.ArgumentTypeError: it is not four non-negative whole numbers.
    """
    try:
        shifts = tuple(int(part) for part in text.split(","))
    except ValueError:
        shifts = ()
    if len(shifts) != 4 or min(shifts) < 0:
        raise argparse.ArgumentTypeError(f"expected four whole numbers such as 1,1,1,0, one per stage, got {text!r}")
    return shifts


def parse_size(text: str) -> tuple[int, int]:
    """`224` or `256x320` (height x width) as (height, width) in pixels.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        parts = [int(part) for part in text.lower().split("x")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2) or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 224 or 256x320 (height x width), got {text!r}")
    return parts[0], parts[-1]


def read_lines(path: str) -> list[str]:
    """The lines of a text file, without their ends and without empty lines at the end of the file."""
    from .files import explained

    try:
        with explained(path), open(path, encoding="utf-8") as file:
            return file.read().rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from error
