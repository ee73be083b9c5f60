"""The zip archive of a torch.save file: entries are stored uncompressed, so a tensor is a slice of the file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from neonext_ms.common.errors import InputError

from .budget import Budget
from .mapped_file import DamageError, printable
from .pytorch_pickle import HINT

# PyTorch's alignment of tensors, so that they can be used in place.
ALIGNMENT = 64

_END = b"PK\x05\x06"
_CENTRAL = b"PK\x01\x02"
_LOCAL = b"PK\x03\x04"
# Steps that an entry of the directory costs.
_ENTRY = 20
_ENCRYPTED = 1


class StoredZip:
    """The entries of a zip archive by name, each a view of the file; `read` verifies its CRC-32.

    Args:
        data: bytes of the whole file.
        budget: budget of the file, which every entry is charged to.

    Raises:
        InputError: the file is a TorchScript archive, or an entry is compressed or encrypted.
        DamageError: the directory is missing or wrong, or entries overlap or reach beyond the end of the file.
    """

    def __init__(self, data: memoryview, budget: Budget):
        source = budget.source
        self.data = data
        # Name -> (first byte, size, CRC-32).
        self.entries: dict[str, tuple[int, int, int]] = {}
        spans = []
        listing = list(_directory(data, budget))
        if any(name.endswith("/constants.pkl") or "/code/" in name for name, *_ in listing):
            raise InputError(
                f"{source}: a TorchScript archive (torch.jit.save), which holds a program. Load it with "
                f"torch.jit.load. {HINT}"
            )
        for name, method, flags, crc, packed, size, header in listing:
            if flags & _ENCRYPTED:
                raise InputError(f"{source}: its entry {printable(name)} is encrypted. Decrypt the file first.")
            if method or packed != size:
                raise InputError(
                    f"{source}: its entry {printable(name)} is compressed, which torch.save never does (a small file "
                    "could become a huge one). Unpack and re-save it with torch.save."
                )
            if name in self.entries:
                raise DamageError(f"its entry {printable(name)} is there twice")
            start = self._body(header, name)
            if start + size > len(data):
                raise DamageError(f"its entry {printable(name)} reaches beyond the end of the file")
            self.entries[name] = (start, size, crc)
            spans.append((header, start + size, name))
        spans.sort()
        for (_, end, name), (header, _, other) in pairwise(spans):
            if header < end:
                raise DamageError(f"its entries {printable(name)} and {printable(other)} share the same bytes")
        # torch.serialization.set_crc32_options(False) writes 0 everywhere.
        self.checked = any(crc for _, _, crc in self.entries.values())

    def _body(self, header: int, name: str) -> int:
        local = self.data[header : header + 30]
        if len(local) < 30 or local[:4] != _LOCAL:
            raise DamageError(f"its entry {printable(name)} is not where the directory says")
        (name_size,), (extra_size,) = struct.unpack_from("<H", local, 26), struct.unpack_from("<H", local, 28)
        if self.data[header + 30 : header + 30 + name_size] != name.encode("utf-8"):
            raise DamageError(f"its entry {printable(name)} has another name in its own header")
        return header + 30 + name_size + extra_size

    def size(self, name: str) -> int:
        """Return the number of bytes of an entry.

        Raises:
            DamageError: the archive has no entry of this name.
        """
        if name not in self.entries:
            raise DamageError(f"its entry {printable(name)} is missing")
        return self.entries[name][1]

    def read(self, name: str) -> memoryview:
        """Return the bytes of an entry.

        Raises:
            DamageError: the archive has no entry of this name, or its CRC-32 is wrong.
        """
        size = self.size(name)
        start, _, crc = self.entries[name]
        body = self.data[start : start + size]
        if self.checked and zlib.crc32(body) != crc:
            raise DamageError(f"the CRC-32 of {printable(name)} is wrong")
        return body


def _directory(data: memoryview, budget: Budget) -> Iterator[tuple[str, int, int, int, int, int, int]]:
    """Yield name, method, flags, CRC-32, packed size, size and header position of every entry."""
    # The record at the end of the archive has 22 bytes and a comment of at most 64 KiB.
    tail = bytes(data[-(22 + 0xFFFF) :])
    position = tail.rfind(_END)
    if position < 0 or len(tail) - position < 22:
        raise DamageError("it is truncated: the directory at the end of its zip archive is missing")
    end = len(data) - len(tail) + position
    _, _, _, _, count, size, at, _ = struct.unpack_from("<IHHHHIIH", data, end)
    locator = data[max(0, end - 20) : end]
    if len(locator) == 20 and locator[:4] == b"PK\x06\x07":
        (position,) = struct.unpack_from("<Q", locator, 8)
        record = data[position : position + 56]
        if len(record) < 56 or record[:4] != b"PK\x06\x06":
            raise DamageError("its zip64 directory is not where it should be")
        count, size, at = struct.unpack_from("<QQQ", record, 32)
    if at + size > end:
        raise DamageError("its zip directory reaches beyond the end of the file")
    for _ in range(count):
        budget.spend(_ENTRY)
        header = data[at : at + 46]
        if len(header) < 46 or header[:4] != _CENTRAL:
            raise DamageError("its zip directory has fewer entries than it says")
        flags, method = struct.unpack_from("<HH", header, 8)
        crc, packed, unpacked, name_size, extra_size, comment_size = struct.unpack_from("<IIIHHH", header, 16)
        (local,) = struct.unpack_from("<I", header, 42)
        at += 46
        name = str(data[at : at + name_size], "utf-8")
        extra = data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        unpacked, packed, local = _zip64(extra, (unpacked, packed, local), budget)
        yield name, method, flags, crc, packed, unpacked, local


def _zip64(extra: memoryview, values: tuple[int, ...], budget: Budget) -> list[int]:
    """Replace the values that did not fit into 32 bits by those of the zip64 extra field."""
    wide: list[int] = []
    while len(extra) >= 4:
        budget.spend(1)
        kind, size = struct.unpack_from("<HH", extra)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{min(size, len(extra) - 4) // 8}Q", extra, 4))
        extra = extra[4 + size :]
    return [wide.pop(0) if value == 0xFFFFFFFF and wide else value for value in values]


def write_zip(path: Path, records: Mapping[str, memoryview | bytes]) -> None:
    """Write uncompressed entries, aligned like PyTorch's, with a fixed date, so that the bytes are reproducible.

    Raises:
        OSError: the operating system reports an error.
    """
    with open(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, body in records.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 0
            entry.file_size = len(body)
            gap = -(file.tell() + 30 + len(name.encode("utf-8")) + 4) % ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", gap) + bytes(gap)
            with archive.open(entry, "w") as record:
                record.write(body)
            # The padding belongs to the local header only, not to the directory.
            entry.extra = b""
