"""TensorBoard event files with scalars, written without TensorBoard.

An event file is a sequence of TFRecords (length, its checksum, content, its checksum). Each content is an `Event`
message of TensorFlow's `event.proto`; the few fields that scalars need are encoded by hand.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from neonext_ms.common.files import explained

PREFIX = "events.out.tfevents"
_VERSION = b"brain.Event:2"
# Field numbers of event.proto and summary.proto.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
_VALUE, _TAG, _SIMPLE_VALUE, _STATUS, _START = 1, 1, 2, 1, 1
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


class EventFile:
    """An event file. It is opened for each write, so that a killed run loses nothing.

    Args:
        folder: folder of the run.
        step: first step that will be written; TensorBoard drops scalars from this step on in earlier files.
    """

    def __init__(self, folder: Path, step: int):
        # TensorBoard reads the files of a folder in the order of their names.
        self.path = Path(folder) / f"{PREFIX}.{time.time_ns() // 1000:020d}.{os.getpid()}"
        start = _field(_STATUS, _VARINT, _varint(_START))
        self._write(_bytes(_FILE_VERSION, _VERSION), _number(_STEP, step) + _bytes(_SESSION_LOG, start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by tag."""
        summary = b"".join(
            _bytes(_VALUE, _bytes(_TAG, tag.encode()) + _field(_SIMPLE_VALUE, _FLOAT, struct.pack("<f", value)))
            for tag, value in values.items()
        )
        self._write(_number(_STEP, step) + _bytes(_SUMMARY, summary))

    def _write(self, *events: bytes) -> None:
        now = _field(_WALL_TIME, _DOUBLE, struct.pack("<d", time.time()))
        with explained(self.path), open(self.path, "ab") as file:
            file.write(b"".join(_record(now + event) for event in events))


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked(length) + content + _masked(content)


def _masked(content: bytes) -> bytes:
    # TFRecord rotates and offsets its checksums, so that a checksum of data with checksums stays useful.
    checksum = crc32c(content)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(content: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of bytes."""
    value = 0xFFFFFFFF
    for byte in content:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(number: int, kind: int, content: bytes) -> bytes:
    return _varint(number << 3 | kind) + content


def _number(number: int, value: int) -> bytes:
    return _field(number, _VARINT, _varint(value))


def _bytes(number: int, content: bytes) -> bytes:
    return _field(number, _BYTES, _varint(len(content)) + content)
