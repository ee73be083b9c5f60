"""Broken images: named, left out, and too many of them an error."""

from __future__ import annotations

from collections.abc import Sequence

from neonext_ms.common.errors import InputError, listed


class BrokenImages:
    """Counts the broken images of a run, each once.

    Args:
        limit: how many may be left out.
        option: what a user sets it with.
    """

    def __init__(self, limit: int, option: str = "data.broken_limit"):
        self.limit, self.option = limit, option
        self.messages: dict[str, None] = {}

    def add(self, messages: Sequence[str]) -> list[str]:
        """Note messages; return those that are new.

        Raises:
            InputError: there are more than the limit.
        """
        new = [text for text in dict.fromkeys(messages) if text not in self.messages]
        self.messages.update(dict.fromkeys(new))
        if len(self.messages) > self.limit:
            raise InputError(
                f"{len(self.messages)} images cannot be read, more than {self.option}={self.limit}; mend or remove "
                f"them, or raise the limit:\n{listed(self.messages)}"
            )
        return new
