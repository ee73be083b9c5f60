"""Errors that a user can cause, each with the exit code of a command that meets it."""

from __future__ import annotations


class NeoNextError(Exception):
    """An error whose message is meant for the user: what was found, what was expected, what to do."""

    exit_code = 1


class InputError(NeoNextError, ValueError):
    """A file or a value is not what it has to be (exit code 1)."""


class UsageError(NeoNextError, ValueError):
    """A command line that says too little or contradicts itself (exit code 2)."""

    exit_code = 2


class ToolchainError(NeoNextError):
    """A tool or package that a target needs is not installed (exit code 3)."""

    exit_code = 3


class ParityError(NeoNextError):
    """An emitted file does not compute what the network computes (exit code 4)."""

    exit_code = 4


def listed(names, limit: int = 20) -> str:
    """Names for an error message, one per line, with a count of those left out."""
    names = list(names)
    lines = [f"  {name}" for name in names[:limit]]
    if len(names) > limit:
        lines.append(f"  ... and {len(names) - limit} more")
    return "\n".join(lines)


def nearest(name: str, known) -> str:
    """`; did you mean ...?` for a misspelt name, or nothing."""
    import difflib

    found = difflib.get_close_matches(str(name), [str(k) for k in known], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(found)}?" if found else ""
