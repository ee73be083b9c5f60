"""The rules that the twin checks, read from the one table in its headers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .build import INCLUDE

_ROW = re.compile(r'\{Rule::\w+,\s*"([\w-]+)",\s*"([^"]+)",\s*(true|false)\}')


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: its name in a refusal.
        text: what it refuses.
        hazard: whether `hazards="report"` lists it and goes on.
    """

    id: str
    text: str
    hazard: bool


def rules() -> dict[str, Rule]:
    """Every rule by its id, in the order of the table."""
    table = (INCLUDE / "twin" / "rules.h").read_text()
    return {name: Rule(name, text, hazard == "true") for name, text, hazard in _ROW.findall(table)}
