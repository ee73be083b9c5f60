"""Configuration keys as text: values, accepted values, and meaning from the docstrings of the schema."""

from __future__ import annotations

import inspect
import json
import re
import types
from typing import Annotated, Literal, Union, get_args, get_origin

from .schema import Config, annotated_keys

_NAMES = {
    int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("a text", "texts"),
    bool: ("true or false", ""), types.NoneType: ("null", ""),
}  # fmt: skip


def alternatives(annotation) -> tuple:
    """Return the members of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (types.UnionType, Union) else (annotation,)


def expected(annotation) -> str:
    """Return the values that an annotation accepts, such as `a number in [0, 1] or null`."""
    return " or ".join(_describe(kind) for kind in alternatives(annotation))


def _describe(kind, many: bool = False) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is Annotated:
        return f"{_describe(arguments[0], many)} {arguments[1]}"
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{_describe(arguments[0], many=True)}"
    return _NAMES[kind][many]


def describe_keys(config: Config | None = None) -> list[tuple[str, str, str, str]]:
    """Return key, value in `config` (default: the defaults) as JSON, accepted values, and meaning of every key.

    The meanings are empty if Python was told to drop docstrings (`PYTHONOPTIMIZE=2`).
    """
    rows = []
    kinds = annotated_keys(Config)
    for part, values in (config or Config()).to_dict().items():
        meanings = _meanings(kinds[part])
        for key, annotation in annotated_keys(kinds[part]).items():
            rows.append((f"{part}.{key}", json.dumps(values[key]), expected(annotation), meanings.get(key, "")))
    return rows


def _meanings(kind: type) -> dict[str, str]:
    """Return the `Attributes` of a docstring; an entry may be about several keys."""
    meanings: dict[str, str] = {}
    keys: list[str] = []
    for line in (inspect.getdoc(kind) or "").partition("Attributes:")[2].splitlines():
        if match := re.match(r"    (\w[\w, ]*): (.*)", line):
            keys = match[1].split(", ")
            meanings |= dict.fromkeys(keys, match[2].strip())
        elif keys and line.strip():
            meanings |= dict.fromkeys(keys, f"{meanings[keys[0]]} {line.strip()}")
    return meanings
