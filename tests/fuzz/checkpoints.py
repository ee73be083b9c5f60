"""Mutated checkpoints of every format for `make fuzz`: damaged with knowledge of their structure, then byte by byte."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from neonext_ms.checkpoint.checkpoint import load_checkpoint
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.names import mindspore_name
from pickles import tensor, text

_TINY = make_architecture(2, (0, 1, 0, 0), (2, 2, 2, 2), kernel_spec="2", shifts=None)
_ARRAYS = {name: np.full(shape, 0.5, np.float32) for name, shape in _TINY.tensors().items()}
_METADATA = '{"shifts": [0, 1, 0, 0], "image_size": 8, "labels": ["a", "b"], "preprocessing": {"crop": 0.9}}'
_NUMBERS = (0, 1, -1, 2, 32, 33, 255, 1 << 16, (1 << 31) - 1, 1 << 32, (1 << 61) - 1, 1 << 62, (1 << 63) - 1, 1 << 64)
_TEXTS = [
    "",
    "model",
    "model_ema",
    "ema.",
    "\x1b[31m",
    "stem.conv.weight",
    "num_batches_tracked",
    "__metadata__",
    "0",
    "../x",
    "猫",
]
_TEXTS += ["module." * 300, "a" * 2000]
_GLOBALS = "collections OrderedDict|collections Counter|collections defaultdict|torch Size|os system|x.y Z|builtins set"
_GLOBALS += "|torch._utils _rebuild_parameter|torch._utils _rebuild_tensor_v2|torch._tensor _rebuild_from_type_v2"
_GLOBALS += "|builtins getattr|_codecs encode"
_OPCODES = [bytes([code]) for code in b"()]}012NRQabdeghijlopqrstu\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94"]
_VALUES = ({1, 2}, b"ab", 1.5, {(1, 2): 3}, [None, True], 1 + 2j)


def read(path: Path) -> None:
    """Read a file as the commands do; anything but a result or an `InputError` is a fault."""
    load_checkpoint(
        path, ema=path.name.startswith("ema"), key="model" if path.name.startswith("key") else None
    ).float32()


def _damage(data: bytes, chance: random.Random) -> bytes:
    """Change, remove, repeat or insert a few pieces of any length."""
    out = bytearray(data)
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        at, start = chance.randrange(len(out) + 1), chance.randrange(len(out) + 1)
        length = min(chance.choice((0, 1, 1, 2, 4, 8, 64)), len(out))
        repeated = out[start : start + length] * chance.choice((1, 1, 2, 50))
        number = struct.pack("<Q", chance.choice(_NUMBERS) & (1 << 64) - 1)
        out[at : at + chance.choice((0, length))] = chance.choice((b"", repeated, number, chance.randbytes(length)))
    return bytes(out[: chance.randrange(len(out) + 1)] if chance.random() < 0.05 else out)


def _opcodes(chance: random.Random) -> bytes:
    """Return a few opcodes: plain values, globals, calls, memo positions."""
    name = chance.choice(_GLOBALS.split("|")).replace(" ", "\n").encode()
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: chance.choice(_OPCODES) * chance.choice((1, 1, 3, 300)),
        lambda: text(chance.choice(_TEXTS)),
        lambda: b"c" + name + b"\n" + chance.choice((b"", b")R", b"(", b")\x81}b")),
        lambda: b"q" + bytes([chance.randrange(4)]) + b"0h" + bytes([chance.randrange(4)]),
        lambda: chance.choice((b"p", b"g", b"I", b"L")) + str(chance.choice(_NUMBERS)).encode() + b"\n",
        lambda: _tensor(chance),
        lambda: pickle.dumps(chance.choice((*_VALUES, *_NUMBERS)), chance.randrange(1, 6))[2:-1],
    )
    return b"".join(chance.choice(makers)() for _ in range(chance.randrange(1, 6)))


def _tensor(chance: random.Random) -> bytes:
    def some(usual) -> int:
        return chance.choice(_NUMBERS) if chance.random() < 0.3 else usual

    shape = [some(2) for _ in range(chance.choice((0, 1, 2, 4, 40)))]
    kind = chance.choice(("FloatStorage", "LongStorage", "HalfStorage", "UntypedStorage"))
    return tensor(chance.choice(("0", "1", "x")), some(2), some(0), shape, [some(1) for _ in shape], kind)


def _pickle(chance: random.Random, tail: bytes = b"") -> tuple[bytes, list[bytes]]:
    """Return the pickle of a training checkpoint with strange values in it, and the bytes of its tensors."""
    parts, bodies = [], []
    prefix = chance.choice(("", "", "module.", "net.", chance.choice(_TEXTS)))
    for name, array in _ARRAYS.items():
        strides = [step // 4 for step in array.strides]
        body = tensor(str(len(bodies)), array.size, 0, array.shape, strides, tail=tail)
        bodies.append(array.tobytes())
        if chance.random() < 0.005:
            body = chance.choice((_opcodes, _tensor))(chance)
        parts.append(text(prefix + name) + body)
    if chance.random() < 0.5:
        parts.insert(chance.randrange(len(parts)), text(chance.choice(_TEXTS)) + _opcodes(chance))
    body = b"}(" + b"".join(parts) + b"u"
    for _ in range(chance.choice((0, 0, 1, 2))):
        body = b"}(" + text(chance.choice(_TEXTS)) + body + text("epoch") + _opcodes(chance) + b"u"
    return b"\x80\x02" + body + b".", bodies


def _zip(chance: random.Random) -> bytes:
    body, bodies = _pickle(chance)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", 0 if chance.random() < 0.95 else 8) as archive:
        archive.writestr("a/data.pkl", _damage(body, chance) if chance.random() < 0.5 else body)
        for i, data in enumerate(bodies):
            archive.writestr(f"a/data/{i}", data)
        archive.writestr("a/byteorder", b"little" if chance.random() < 0.9 else chance.choice((b"big", b"x")))
        archive.writestr("a/extra/neonext_ms.json", _json(json.loads(_METADATA), chance))
    return _damage(file.getvalue(), chance) if chance.random() < 0.5 else file.getvalue()


def _legacy(chance: random.Random) -> bytes:
    body, bodies = _pickle(chance, tail=b"N")
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    keys = pickle.dumps([str(i) for i in range(len(bodies))], 2)
    return _damage(head + body + keys + b"".join(struct.pack("<q", len(d) // 4) + d for d in bodies), chance)


def _json(value: object, chance: random.Random) -> bytes:
    """Return JSON in which some values are replaced."""

    rate = chance.choice((0.0, 0.001, 0.01))

    def change(value):
        if chance.random() < rate:
            return chance.choice((*_NUMBERS, *_TEXTS, None, True, 0.5, [], {}, [value] * 40, {"a": value}))
        if isinstance(value, dict):
            return {chance.choice(_TEXTS) if chance.random() < rate else k: change(v) for k, v in value.items()}
        return [change(v) for v in value] if isinstance(value, list) else value

    return json.dumps(change(value)).encode()


def _safetensors(chance: random.Random) -> bytes:
    header: dict = {"__metadata__": {"neonext_ms": _json(json.loads(_METADATA), chance).decode()}}
    at = 0
    for name, array in _ARRAYS.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    encoded = _json(header, chance)
    if chance.random() < 0.3:
        encoded = _damage(encoded, chance)
    data = struct.pack("<Q", len(encoded)) + encoded + b"".join(array.tobytes() for array in _ARRAYS.values())
    return _damage(data, chance) if chance.random() < 0.3 else data


def _varint(value: int) -> bytes:
    value &= (1 << 70) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, body: bytes | int) -> bytes:
    if isinstance(body, int):
        return _varint(number << 3) + _varint(body)
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _mindspore(chance: random.Random) -> bytes:
    def some(usual):
        return chance.choice((*_NUMBERS, b"", b"\x01\x02")) if chance.random() < 0.001 else usual

    values = []
    for name, array in _ARRAYS.items():
        tag = chance.choice(_TEXTS) if chance.random() < 0.005 else mindspore_name(name) or name
        kind = chance.choice(("Float16", "Int64", "str", "BFloat16", "?")) if chance.random() < 0.005 else "Float32"
        content = b"".join(_field(1, some(size)) for size in array.shape)
        content += _field(2, kind.encode()) + _field(3, some(array.tobytes()))
        values.append(_field(1, _field(1, tag.encode()) + _field(3 if chance.random() < 0.001 else 2, content)))
    string = _json(json.loads(_METADATA), chance).decode().encode("utf-32-le")
    record = _field(1, b"\0") + _field(2, b"str") + _field(3, string)
    values.insert(chance.randrange(len(values)), _field(1, _field(1, b"neonext_ms") + _field(2, record)))
    data = b"".join(values)
    data = _damage(data, chance) if chance.random() < 0.5 else data
    return data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big") if chance.random() < 0.3 else data


# File name -> function that makes a mutated file.
FORMATS: dict[str, Callable[[random.Random], bytes]] = dict.fromkeys(("zip.pt", "ema.pth.tar", "key.bin"), _zip)
FORMATS |= {"legacy.pt": _legacy, "x.safetensors": _safetensors, "x.ckpt": _mindspore}
