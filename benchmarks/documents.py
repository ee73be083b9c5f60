"""Tables inside documents, each printed by the command above it, and printed anew in its place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import atomic, read_text


def _pattern(command: str) -> re.Pattern[str]:
    return re.compile(
        rf"^    {re.escape(command)} (?P<arguments>[^\n]*)\n\n(?P<table>.*?)\n\n<!-- end of the table -->$",
        re.MULTILINE | re.DOTALL,
    )


def tables_of(text: str, command: str) -> list[tuple[str, str]]:
    """Return arguments and text of every table of a command: the command, indented, the table, and a comment."""
    return [(match["arguments"], match["table"]) for match in _pattern(command).finditer(text)]


def updated(path: str | os.PathLike, command: str, printed: Callable[[Sequence[str]], str]) -> str:
    """Print every table of a command in a document anew, and return a line that counts the changes.

    `printed` returns the output of the command, as the document writes it, for the arguments that follow there.

    Raises:
        InputError: the document cannot be read, is not text, or has no such table.
    """
    text = read_text(path)
    parts, end, changed = [], 0, 0
    tables = list(_pattern(command).finditer(text))
    if not tables:
        raise InputError(f"{os.fspath(path)}: has no table of {command} (a page of docs/ has). Name such a page.")
    for match in tables:
        table = printed(match["arguments"].split())
        changed += table != match["table"]
        parts += [text[end : match.start("table")], table]
        end = match.end("table")
    with atomic(path) as staged:
        staged.write_text("".join([*parts, text[end:]]), encoding="utf-8")
    return f"{path}: {changed} of {len(tables)} tables changed"
