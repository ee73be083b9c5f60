"""A reader of protobuf's wire format without message classes: fields by number, every length checked."""

from __future__ import annotations

from collections.abc import Iterator

# A varint holds 64 bits in groups of 7.
_VARINT_BYTES = 10


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message in order: number, and an integer or the bytes of a string, message or float.

    Raises:
        ValueError: the bytes are not a message.
    """
    place, end = 0, len(message)
    while place < end:
        key, place = varint(message, place)
        number, kind = key >> 3, key & 7
        if not number:
            raise ValueError("a field without a number")
        if kind == 0:
            value, place = varint(message, place)
            yield number, value
            continue
        if kind == 2:
            size, place = varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > end - place:
            raise ValueError(f"a field of {size} bytes where {end - place} are left")
        yield number, message[place : place + size]
        place += size


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the unsigned integer at `place` and the place after it.

    Raises:
        ValueError: the bytes end, or are no varint of 64 bits.
    """
    value = 0
    for index, byte in enumerate(message[place : place + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value >> 64:
                break
            return value, place + index + 1
    raise ValueError("a number that does not end")


def signed(value: int) -> int:
    """Return an int64 from the unsigned integer of its varint."""
    return value - (1 << 64) if value >> 63 else value


def integers(value: int | memoryview) -> list[int]:
    """Return one value of a repeated int64 field: a single number, or several that are packed.

    Raises:
        ValueError: the bytes are no varints.
    """
    if isinstance(value, int):
        return [signed(value)]
    numbers, place = [], 0
    while place < len(value):
        number, place = varint(value, place)
        numbers.append(signed(number))
    return numbers
