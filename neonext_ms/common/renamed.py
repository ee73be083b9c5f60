"""Names of earlier versions that still work: each runs what replaced it, and prints one line on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

# Not in any help or table of commands.
RENAMED = {
    "neonext-ops twin": "neonext-ops simulate",
    "neonext-bench predict": "neonext-bench estimate",
    "neonext-ablate": "neonext-bench claims neoinit",
}


def current_words(command: str, words: Sequence[str]) -> list[str]:
    """Return the words of a command line as the current version knows them.

    Args:
        command: the command without its words.
        words: what follows on the command line.
    """
    for old, new in RENAMED.items():
        typed = [command, *words][: old.count(" ") + 1]
        if typed == old.split():
            # stderr may be closed; the command itself will cope with that.
            with contextlib.suppress(OSError):
                if sys.stderr is not None:
                    print(f"note: {old} is now {new}", file=sys.stderr)
            return [*new.split()[1:], *words[len(typed) - 1 :]]
    return list(words)
