"""Errors that a user can cause, each with the exit code of the command that meets it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .text import list_names as listed
from .text import nearest

__all__ = [
    "InputError",
    "NeoNextError",
    "ParityError",
    "ToolchainError",
    "UsageError",
    "listed",
    "nearest",
    "usage_errors",
]


class NeoNextError(Exception):
    """An error whose message is meant for the user: what is wrong, what was expected, what to do."""

    exit_code = 1


class InputError(NeoNextError, ValueError):
    """An invalid file or value (exit code 1)."""


class UsageError(NeoNextError, ValueError):
    """An incomplete or contradictory command line (exit code 2)."""

    exit_code = 2


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Report an invalid value as wrong usage, where it comes from the command line alone."""
    try:
        yield
    except InputError as error:
        raise UsageError(str(error)) from error


class ToolchainError(NeoNextError):
    """A tool or package that is required but not installed (exit code 3)."""

    exit_code = 3


class ParityError(NeoNextError):
    """An exported file whose outputs differ from the network's (exit code 4)."""

    exit_code = 4
