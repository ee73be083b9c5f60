"""MindSpore's `.ckpt` files, read without MindSpore and written by it.

A file is a protobuf message, read here field by field: `Checkpoint { repeated Value value = 1 }`,
`Value { string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3 }`,
`TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }`. A tensor above 512 MiB is
split into several values with one tag, each with the dims of the whole. `crc_num` and ten bytes may follow.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained

from .budget import Budget
from .mapped_file import DTYPES, MAX_AXES, DamageError, array_view, damage_named, map_file, printable

_DTYPES = {kind: dtype for dtype, _, _, kind, _ in DTYPES}
ENCRYPTED_MAGIC = b"\xd8\x5e\x3a\x7f"
_CRC_MARK, _CRC_SIZE = b"crc_num", 10
_MAX_TEXT = 16 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read(path: str | os.PathLike, budget: Budget | None = None) -> dict[str, np.ndarray | str]:
    """Read the tensors and strings of a MindSpore checkpoint, by their names in the file.

    Args:
        path: file to read.
        budget: budget to charge the work to (default: one for this file).

    Returns:
        Read-only arrays that are views of the file (bfloat16 has the dtype of ml_dtypes), and `str` for the strings
        of `append_dict`. Numbers of `append_dict` are arrays without axes.

    Raises:
        InputError: the file is missing, encrypted, damaged, truncated, or not a MindSpore checkpoint.
    """
    source = os.fspath(path)
    data = map_file(path)
    budget = budget or Budget(source, len(data))
    with damage_named(path, "a MindSpore checkpoint"):
        if data[:4] == ENCRYPTED_MAGIC:
            raise InputError(
                f"{source}: an encrypted MindSpore checkpoint. Load it with mindspore.load_checkpoint(dec_key=...) and "
                "save it without enc_key."
            )
        return _read(_without_crc(data), budget)


def _without_crc(data: memoryview) -> memoryview:
    trailer = len(_CRC_MARK) + _CRC_SIZE
    if len(data) < trailer or data[-trailer:-_CRC_SIZE] != _CRC_MARK:
        return data
    if zlib.crc32(data[:-trailer]) != int.from_bytes(data[-_CRC_SIZE:], "big"):
        raise DamageError("its CRC-32 is wrong")
    return data[:-trailer]


def _read(data: memoryview, budget: Budget) -> dict[str, np.ndarray | str]:
    parts: dict[str, tuple[list[int], str, list[memoryview]]] = {}
    last = None
    for field, value in _fields(data, budget):
        if field != 1:
            raise DamageError(f"a checkpoint has no field {field}")
        tag, dims, kind, content = _value(_view(field, value), budget)
        # An array is made of every value.
        budget.spend(10)
        if tag not in parts:
            parts[tag] = (dims, kind, [content])
        elif tag == last and parts[tag][:2] == (dims, kind):
            # The next piece of a large tensor.
            parts[tag][2].append(content)
        else:
            raise DamageError(f"it holds {printable(tag)} twice")
        last = tag
    return {tag: _decode(budget.source, tag, *part) for tag, part in parts.items()}


def _value(data: memoryview, budget: Budget) -> tuple[str, list[int], str, memoryview]:
    """Return name, dims, type and bytes of a value."""
    tag = tensor = kind = None
    for field, value in _fields(data, budget):
        if field == 1:
            tag = str(_view(field, value), "utf-8")
        elif field == 2:
            tensor = _view(field, value)
        elif field == 3:
            raise InputError(f"{budget.source}: {printable(tag)} is a MapParameter (a hash table). A NeoNeXt has none.")
    if tag is None or tensor is None:
        raise DamageError("a value has no name or no tensor")
    dims: list[int] = []
    content = memoryview(b"")
    for field, value in _fields(tensor, budget):
        if field == 1:
            dims += _dims(value)
            if len(dims) > MAX_AXES:
                raise DamageError(f"{printable(tag)} has more than {MAX_AXES} axes")
        elif field == 2:
            kind = str(_view(field, value), "utf-8")
        elif field == 3:
            content = _view(field, value)
    if kind is None:
        raise DamageError(f"{printable(tag)} has no type")
    return tag, dims, kind, content


def _view(field: int, value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise DamageError(f"field {field} is a number")
    return value


def _dims(value: int | memoryview) -> list[int]:
    """Return one number, or several packed ones, as newer versions of protobuf write them."""
    if isinstance(value, int):
        return [value]
    dims: list[int] = []
    at = 0
    while at < len(value) and len(dims) <= MAX_AXES:
        number, at = _varint(value, at)
        dims.append(number)
    return dims


def _decode(source: str, tag: str, dims: list[int], kind: str, pieces: list[memoryview]) -> np.ndarray | str:
    content = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
    if kind == "str":
        if len(content) > _MAX_TEXT:
            raise DamageError(f"the text {printable(tag)} has {len(content)} bytes, more than {_MAX_TEXT}")
        return str(content, "utf-32-le").rstrip("\0")
    if kind not in _DTYPES:
        raise InputError(
            f"{source}: {printable(tag)} has an unsupported type (got type {printable(kind)}, expected one of "
            f"{', '.join(_DTYPES)})"
        )
    dtype = _DTYPES[kind]
    # MindSpore writes [0] for a tensor without axes.
    shape = () if dims == [0] and len(content) == dtype.itemsize else tuple(dims)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise DamageError(f"{printable(tag)} of shape {shape} and type {kind} has {len(content)} bytes")
    return array_view(content, dtype, shape)


def _fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and content of every field of a message: an int for a varint, else a view."""
    at = 0
    while at < len(data):
        budget.spend(1)
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise DamageError(f"a checkpoint has no wire type {wire}")
        if at + size > len(data):
            raise DamageError("it is truncated, or not a MindSpore checkpoint")
        yield field, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DamageError("it is truncated, or not a MindSpore checkpoint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DamageError("a number has more than ten bytes")


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], strings: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint with `mindspore.save_checkpoint`; not atomic, see `files.atomic`.

    Args:
        path: file to write, ending in `.ckpt`.
        tensors: arrays by their names in the file; their dtypes are kept.
        strings: entries of its `append_dict`.

    Raises:
        InputError: the operating system reports an error.
    """
    import mindspore as ms

    values = [{"name": name, "data": ms.Tensor(np.array(array, order="C"))} for name, array in tensors.items()]
    with explained(path):
        ms.save_checkpoint(values, os.fspath(path), append_dict=dict(strings or {}))
