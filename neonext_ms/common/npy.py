"""A strict reader of `.npy` files: plain numbers only, the header by a grammar of its own, sizes checked first.

NumPy's reader evaluates the header as Python literals, takes pickles and archives by content, and ignores what follows
the array. None of this may happen to a file from elsewhere.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from .errors import InputError
from .files import check_regular, explained

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
_MAX_DIMENSIONS = 32
_ENTRY = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>\w+)(?P=quote)\s*:\s*"""
    r"""(?P<value>'[^']{0,20}'|"[^"]{0,20}"|True|False|\([0-9,\s]*\))\s*(?P<end>,|$)"""
)
_DTYPE = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1)")


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """Read the numbers of a `.npy` file, in the byte order of this machine.

    Raises:
        InputError: the file cannot be read, is not a whole `.npy` file, or holds something else than numbers.
    """
    name = os.fspath(path)
    check_regular(path)
    with explained(path), open(path, "rb") as file:
        with _whole(name):
            dtype, shape, fortran = _header(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
            if size - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{size - start} bytes of data, {math.prod(shape) * dtype.itemsize} by its header")
        values = np.fromfile(file, dtype)
    if values.size != math.prod(shape):
        raise InputError(f"{name}: became shorter while it was read. Write it again.")
    values = values.reshape(shape, order="F" if fortran else "C")
    return values.astype(dtype.newbyteorder("="), copy=False)


def npy_dtype(path: str | os.PathLike) -> np.dtype:
    """Return the dtype that the header of a `.npy` file states.

    Raises:
        InputError: the file cannot be read, or is not a `.npy` file of numbers.
    """
    check_regular(path)
    with explained(path), open(path, "rb") as file, _whole(os.fspath(path)):
        return _header(file)[0]


@contextlib.contextmanager
def _whole(name: str) -> Iterator[None]:
    """Name the file in an error about its contents."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{name}: not a complete .npy file of numbers ({error}). Write it with numpy.save.") from error


def _header(file: BinaryIO) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Parse the header; the file stands at the data afterwards."""
    start = file.read(8)
    if start[:6] != _MAGIC:
        kind = "an archive" if start[:2] == b"PK" else "a pickle" if start[:1] == b"\x80" else "another kind of file"
        raise ValueError(f"{kind} by its first bytes")
    if len(start) < 8 or start[6] not in (1, 2, 3):
        raise ValueError("an unknown version")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    text = file.read(length).decode("utf-8" if start[6] == 3 else "latin-1").strip()
    if len(text) < 2 or text[0] != "{" or text[-1] != "}":
        raise ValueError("no header")
    text, place = text[1:-1].strip(), 0
    entries: dict[str, str] = {}
    while place < len(text):
        entry = _ENTRY.match(text, place)
        if entry is None or entry["key"] in entries:
            raise ValueError("a malformed header")
        entries[entry["key"]] = entry["value"]
        place = entry.end()
    if entries.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("a header without descr, fortran_order and shape")
    descr = entries["descr"][1:-1]
    if entries["descr"][0] not in "'\"" or not _DTYPE.fullmatch(descr):
        raise ValueError(f"elements of type {entries['descr']}")
    if entries["fortran_order"] not in ("True", "False") or entries["shape"][0] != "(":
        raise ValueError("a malformed header")
    sides = [side.strip() for side in entries["shape"][1:-1].split(",")]
    # A tuple may end in a comma, and one of a single side has to.
    sides = sides[:-1] if sides[-1] == "" else sides
    if len(sides) > _MAX_DIMENSIONS or not all(re.fullmatch("[0-9]{1,18}", side) for side in sides):
        raise ValueError("a malformed shape")
    return np.dtype(descr), tuple(map(int, sides)), entries["fortran_order"] == "True"
