"""Pieces of the pickles that torch.save writes, opcode by opcode, for tests that put them together wrongly."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from neonext_ms.checkpoint.mapped_file import DTYPES

_STORAGES = {dtype: kind for dtype, _, kind, *_ in DTYPES}


class Opcodes(bytes):
    """Opcodes that stand for a value in a tree of `write_archive`."""


class _Pickler(pickle._Pickler):
    """Pickle's own writer, which writes arrays as torch.save writes tensors."""

    # MindSpore imports dill, which puts functions of its own into pickle's table.
    dispatch: ClassVar[dict] = {
        **{kind: save for kind, save in pickle._Pickler.dispatch.items() if save.__module__ == "pickle"},
        dict: pickle._Pickler.save_dict,
        type: pickle._Pickler.save_type,
    }

    def __init__(self, file, protocol: int):
        super().__init__(file, protocol)
        self.bodies: list[bytes] = []

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Opcodes):
            self.write(obj)
        elif isinstance(obj, np.ndarray) and _STORAGES.get(obj.dtype):
            strides = [step // obj.itemsize for step in obj.strides]
            self.write(tensor(str(len(self.bodies)), obj.size, 0, obj.shape, strides, _STORAGES[obj.dtype]))
            self.bodies.append(obj.tobytes())
        else:
            super().save(obj, save_persistent_id)


def write_archive(path: Path, tree: object, protocol: int = 2) -> Path:
    """Pickle a tree as torch.save does: arrays become tensors, all else what pickle makes of it."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol)
    pickler.dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for i, data in enumerate(pickler.bodies):
            archive.writestr(f"archive/data/{i}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", count=6, kind="FloatStorage", tail=b"") -> bytes:
    return (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + tail + b"tQ"
    )


def tensor(key="0", count=6, offset=0, shape=(6,), strides=(1,), kind="FloatStorage", tail=b"") -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage(key, count, kind, tail)
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def state_dict(**tensors: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + body for name, body in tensors.items()) + b"u."


def varint(value: int) -> bytes:
    """A number of a protobuf message, cut to ten bytes."""
    value &= (1 << 70) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, body: bytes | int) -> bytes:
    """A field of a protobuf message."""
    if isinstance(body, int):
        return varint(number << 3) + varint(body)
    return varint(number << 3 | 2) + varint(len(body)) + body
