"""Text that commands and messages share: sizes, names, one-line errors, text files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def format_size(size: Sequence[object]) -> str:
    """Return lengths joined by `x`: (224, 320) becomes `224x320`."""
    return "x".join(map(str, size))


def format_bytes(count: float) -> str:
    """Return a number of bytes in the largest unit of 1000 that leaves at least 1: `512 B`, `2.4 MB`."""
    units = ["B", "kB", "MB", "GB"]
    while abs(count) >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun: `1 image`, `2 images`, `1,000 classes` (`many` is an irregular plural)."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def one_line(error: object, limit: int = 200) -> str:
    """Return the text of an error of another library on one line, cut to `limit` characters.

    An error without text gives the name of its class.
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__


def shorten(value: object, limit: int = 100) -> str:
    """Return the representation of a value for an error message, cut to about `limit` characters.

    The whole representation is never built, since that of a value with shared parts can be of any size.
    """
    import reprlib

    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = writer.maxlong = limit
    try:
        text = writer.repr(value)
    except ValueError:
        # Python does not write integers of more than 4,300 digits.
        text = f"{type(value).__name__} with too many digits"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: object) -> str:
    """Return text of a file with control characters, line breaks and invalid Unicode escaped, safe for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


# Control characters besides the line break, and those that change the direction of text.
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return text of several lines, with names from files in it, safe for a terminal."""
    return CONTROLS.sub(lambda match: printable(match[0]), text)


def list_names(names: Iterable[object], limit: int = 20) -> str:
    """Return names for an error message, one per line, with a count of those beyond `limit`."""
    names = list(names)
    lines = [f"  {name}" for name in names[:limit]]
    if len(names) > limit:
        lines.append(f"  ... and {len(names) - limit} more")
    return "\n".join(lines)


# Every branch consumes its characters in one way only: two quantifiers side by side need quadratic time for a long
# text that fits except for its end.
DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def nearest(name: object, known: Iterable[object]) -> str:
    """Return ` (did you mean X?)` for a misspelt name, or an empty string if no known name is close."""
    import difflib

    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
