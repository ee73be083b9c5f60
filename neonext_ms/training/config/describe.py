"""The keys of a configuration for a reader: values, and what the dataclasses' docstrings say of them."""

from __future__ import annotations

import inspect
import json
import re
import typing
from dataclasses import fields

from .schema import Config


def describe_keys(config: Config | None = None) -> list[tuple[str, str, str]]:
    """Every key with its value in `config` (the default if None) as YAML, and what it means."""
    config = config or Config()
    values = config.to_dict()
    hints, described = typing.get_type_hints(Config), []
    for part in fields(Config):
        meanings = _meanings(hints[part.name])
        for leaf, value in values[part.name].items():
            described.append((f"{part.name}.{leaf}", json.dumps(value), meanings.get(leaf, "")))
    return described


def _meanings(kind: type) -> dict[str, str]:
    """What the `Attributes` of a docstring say; one line there may be about several."""
    found: dict[str, str] = {}
    current: list[str] = []
    for line in inspect.getdoc(kind).partition("Attributes:")[2].splitlines():
        match = re.match(r"    (\w[\w, ]*): (.*)", line)
        if match:
            current = match[1].split(", ")
            found |= dict.fromkeys(current, match[2].strip())
        elif current and line.strip():
            found |= dict.fromkeys(current, f"{found[current[0]]} {line.strip()}")
    return found or dict.fromkeys(typing.get_type_hints(kind), " ".join(inspect.getdoc(kind).split()))
