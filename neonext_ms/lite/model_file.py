"""The dtype of the weights in a `.ms` file, which the runtime of MindSpore Lite does not tell.

The file is a FlatBuffer (`MSL2`) of the schema mindspore/lite/schema/model.fbs: a MetaGraph, of which field 7 is the
list of tensors, each with its type in field 1 and its data in field 6.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

from neonext_ms.common.files import explained

from .process import DTYPES

_TENSORS, _DTYPE, _DATA = 7, 1, 6
_MAX_TENSORS = 1 << 20


def weights_dtype(path: str | os.PathLike) -> str:
    """Return the dtype of most weights of a file, "float32" or "float16"; empty if it cannot be told.

    Raises:
        InputError: the file cannot be read.
    """
    with explained(path), open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 8:
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                sizes = _sizes(content)
            except struct.error:
                return ""
    return max(sizes, key=sizes.__getitem__, default="")


def _sizes(content: mmap.mmap) -> dict[str, int]:
    """Return dtype -> bytes of the constants in floating point; a struct.error says that the file is damaged."""
    sizes: dict[str, int] = {}
    for tensor in _elements(content, _field(content, _follow(content, 0), _TENSORS)):
        dtype = _field(content, tensor, _DTYPE)
        kind = DTYPES.get(struct.unpack_from("<i", content, dtype)[0]) if dtype else None
        if kind is not None and kind.kind == "f" and (data := _field(content, tensor, _DATA)):
            (count,) = struct.unpack_from("<I", content, _follow(content, data))
            sizes[kind.name] = sizes.get(kind.name, 0) + count
    return {kind: size for kind, size in sizes.items() if size}


def _follow(content: mmap.mmap, place: int) -> int:
    """Return where the offset at a place leads."""
    return place + struct.unpack_from("<I", content, place)[0]


def _field(content: mmap.mmap, table: int, number: int) -> int:
    """Return the place of a field of a table, or 0 if the table lacks it."""
    form = table - struct.unpack_from("<i", content, table)[0]
    if form < 0:
        raise struct.error("a table without a form")
    (length,) = struct.unpack_from("<H", content, form)
    entry = 4 + 2 * number
    offset = struct.unpack_from("<H", content, form + entry)[0] if entry + 2 <= length else 0
    return table + offset if offset else 0


def _elements(content: mmap.mmap, place: int) -> Iterator[int]:
    """Yield the places of the tables in a list."""
    if place:
        start = _follow(content, place)
        (count,) = struct.unpack_from("<I", content, start)
        for index in range(min(count, _MAX_TENSORS)):
            yield _follow(content, start + 4 + 4 * index)
