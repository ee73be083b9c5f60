"""Pieces of the pickles that torch.save writes, opcode by opcode, for tests that put them together wrongly."""

from __future__ import annotations

import struct


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
