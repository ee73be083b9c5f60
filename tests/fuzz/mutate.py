"""Mutations that keep most of the structure of an input: of bytes, text, plain values (JSON) and protobuf messages."""

from __future__ import annotations

import copy
import re
from random import Random
from typing import Any

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536),
    *(sign * (2**bits + step) for bits in (31, 32, 53, 62, 63, 64) for step in (-1, 0) for sign in (1, -1)),
    10**30,
)
VALUES = (
    *(None, True, False, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", " ", "0", "no", "nan", "\x1b[2J"),
    *("a\nb", "../../x", "\u202etxt", "x" * 5000, "\ud800", "\0", [], {}, [[]], {"": {}}, [1, "a", None]),
)
_WORDS = (
    *(
        "0",
        "-1",
        "007",
        "1_0",
        "12:30",
        "0x1F",
        "1e999",
        "-1e-999",
        "nan",
        ".inf",
        "9" * 400,
        "9" * 5000,
        "null",
        "yes",
    ),
    *(
        "~",
        "''",
        '"',
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "#",
        "%",
        "&a",
        "*a",
        "!!python/object:x",
        "<<",
        "---",
        "\t",
        "\r",
    ),
    *("\x1b[2J", "\0", "\ufeff", "\u2028", "é", "\U0001f600", "=", ",", "//", "\\", "E19010"),
)


def mutate_bytes(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """Return `data` after one to four edits; parts of `other` may be spliced in."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(content) + 1)
        size = rng.choice((1, 2, 4, 8, rng.randint(1, 64), rng.randint(1, max(1, len(content)))))
        edit = rng.randrange(8)
        if edit == 0:
            del content[at:]
        elif edit == 1:
            del content[at : at + size]
        elif edit == 2:
            content[at:at] = content[at : at + size] * rng.choice((1, 1, 3, 100))
        elif edit == 3 and other:
            start = rng.randrange(len(other))
            content[at : at + size * rng.randint(0, 1)] = other[start : start + size]
        elif edit == 4:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % (1 << 8 * width)
            content[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif edit == 5:
            content[at : at + size] = rng.randbytes(size)
        elif content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
    return bytes(content[: 1 << 20])


def mutate_text(rng: Random, text: str) -> str:
    """Return text after a few edits of tokens and lines."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        tokens = re.findall(r"\w+|\n|[^\S\n]+|.", text) or [""]
        at = rng.randrange(len(tokens))
        edit = rng.randrange(8)
        if edit == 0:
            tokens[at] = rng.choice(_WORDS)
        elif edit == 1:
            tokens.insert(at, rng.choice(_WORDS))
        elif edit == 2:
            del tokens[at : at + rng.choice((1, 1, 3, 20))]
        elif edit == 3:
            tokens[at] = (tokens[at] * rng.choice((2, 3, 50, 3000)))[: 1 << 19]
        elif edit == 4:
            numbers = [i for i, token in enumerate(tokens) if token.isdigit()] or [at]
            tokens[rng.choice(numbers)] = str(rng.choice(NUMBERS))
        elif edit == 5:
            other = rng.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif edit == 6:
            lines = "".join(tokens).split("\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            tokens = ["\n".join(lines)]
        else:
            del tokens[at:]
        text = "".join(tokens)
    return text[: 1 << 19]


def mutate_value(rng: Random, value: Any, depth: int = 300) -> Any:
    """Return a copy of a plain value (dict, list, text, number) after a few edits, most of them deep inside.

    `depth` limits the nesting that one edit adds.
    """
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _edit(rng, value, depth)
    return value


def _edit(rng: Random, value: Any, depth: int) -> Any:
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        edit = rng.randrange(8)
        if edit == 0:
            del value[key]
        elif edit == 1 and isinstance(value, list):
            value[key:key] = [value[key]] * rng.choice((1, 2, 1000))
        elif edit == 1 and isinstance(value, dict):
            value[rng.choice(("", "x" * 300, f"{key} ", "neonext_ms", "format", "a.b", "\x1b[0m"))] = value.pop(key)
        else:
            value[key] = _edit(rng, value[key], depth)
        return value
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        nested: Any = value
        for _ in range(rng.choice((1, 2, min(50, depth), depth))):
            nested = [nested] if rng.random() < 0.7 else {"a": nested}
        return nested
    if kind == 2 and isinstance(value, str):
        return mutate_text(rng, value)
    if kind == 3 and isinstance(value, (int, float)):
        return rng.choice((-value, value + 1, value * 1000, str(value), float(value), [value]))
    return copy.deepcopy(rng.choice(VALUES))


def mutate_protobuf(rng: Random, data: bytes) -> bytes:
    """Return a protobuf message after an edit of one field, often one of a message inside."""
    fields = _fields(data)
    if not fields:
        return rng.choice((b"", b"\x08\x00", rng.randbytes(9)))
    at = rng.randrange(len(fields))
    number, wire, value = fields[at]
    edit = rng.randrange(10)
    if wire == 2 and edit < 6:
        # Text and weights parse as messages now and then, which is as good a mutation as others.
        inner = _fields(value)
        fields[at] = (number, wire, mutate_protobuf(rng, value) if inner else mutate_bytes(rng, value)[: 1 << 16])
    elif wire == 0 and edit < 6:
        fields[at] = (number, wire, rng.choice(NUMBERS) % (1 << 64))
    elif edit == 6:
        del fields[at : at + rng.choice((1, 1, 3))]
    elif edit == 7:
        fields[at:at] = [fields[at]] * rng.choice((1, 1, 200))
    elif edit == 8:
        other = rng.randrange(len(fields))
        fields[at], fields[other] = fields[other], fields[at]
    else:
        fields[at] = (rng.choice((number + 1, max(1, number - 1), 1, 15, 2047)), wire, value)
    return b"".join(map(_field, fields))


def _field(field: tuple[int, int, Any]) -> bytes:
    number, wire, value = field
    key = _varint(number << 3 | wire)
    return key + (_varint(value) if wire == 0 else _varint(len(value)) + value if wire == 2 else value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _fields(data: bytes) -> list[tuple[int, int, Any]]:
    """Return number, wire type and content of the fields of a message; [] for what is no message."""
    fields: list[tuple[int, int, Any]] = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        wire, number = key & 7, key >> 3
        value: Any
        if wire == 0:
            value, at = _read_varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, at = _read_varint(data, at)
            if size is None:
                return []
            value, at = data[at : at + size], at + size
        if at > len(data) or number == 0:
            return []
        fields.append((number, wire, value))
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
        if shift > 63:
            break
    return value, len(data) + 1
