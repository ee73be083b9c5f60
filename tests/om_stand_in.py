"""A writer of small OM files for tests, by the layout that `neonext_ms.runtime.om_file` reads; standard library only.

As a program it writes one for a stand-in of ATC: `python om_stand_in.py OUTPUT.om [SOC]`.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

MODEL_DEF, WEIGHTS, TASKS, KERNELS, INOUT = 0, 1, 2, 3, 8
DTYPES = {"float32": (0, 1), "float16": (1, 2), "int32": (3, 7), "uint8": (4, 4)}
IMAGES = ("input", "float32", (1, 3, 8, 8))
LOGITS = ("logits", "float32", (1, 2))
BATCH_INPUT = "ascend_mbatch_shape_data"


def _varint(value: int) -> bytes:
    value %= 1 << 64
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    """Return a protobuf field: a varint, or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def attribute(number: int, name: str, value: bytes) -> bytes:
    """Return an entry of a map of attributes."""
    return field(number, field(1, name) + field(2, value))


def _descriptor(dtype: str, shape) -> bytes:
    return field(2, DTYPES[dtype][1]) + field(3, field(1, b"".join(map(_varint, shape)))) + field(4, "NCHW")


def model_def(name="net", soc="Ascend310P3", inputs=(IMAGES,), outputs=(LOGITS,), batches=()) -> bytes:
    """Return a message ModelDef with one graph of Data, NetOutput and what lies between."""
    ops = b""
    # Backwards, so that a reader has to look at their index.
    for index, (tensor, dtype, shape) in reversed(list(enumerate(inputs))):
        op = field(1, tensor) + field(2, "Data") + attribute(10, "index", field(3, index))
        ops += field(6, op + field(33, _descriptor(dtype, shape)) + field(34, _descriptor(dtype, shape)))
    ops += field(6, field(1, "fc") + field(2, "MatMulV2"))
    if batches:
        case = field(1, "case") + field(2, "Case") + attribute(10, "mbatch_dynamic_type", field(3, 1))
        for index, size in enumerate(batches):
            case += attribute(10, f"_pred_value_{index}", field(1, field(3, _varint(size)) + field(20, 2)))
        ops += field(6, case)
    end = field(1, "Node_Output") + field(2, "NetOutput")
    for tensor, dtype, shape in outputs:
        end += field(24, tensor) + field(33, _descriptor(dtype, shape))
    ops += field(6, end + field(25, bytes(len(outputs))))
    texts = {"soc_version": soc, "atc_version": "8.0.RC3"}
    attributes = b"".join(attribute(11, key, field(2, text)) for key, text in texts.items() if text)
    return field(1, name) + field(7, field(1, name) + ops) + attributes


def inout_info(inputs=(IMAGES,), outputs=(LOGITS,), batches=()) -> bytes:
    """Return MODEL_INOUT_INFO: blocks of type, length and value."""

    def block(kind: int, value: bytes) -> bytes:
        return struct.pack("<II", kind, len(value)) + value

    def tensors(rows) -> bytes:
        out = struct.pack("<I", len(rows))
        for name, dtype, shape in rows:
            dims = struct.pack(f"<{len(shape)}q", *shape)
            out += struct.pack("<QIIIIII", 0, 0, DTYPES[dtype][0], len(name), len(dims), len(dims), 0)
            out += name.encode() + dims + dims
        return out

    info = block(0, tensors(inputs)) + block(1, tensors(outputs)) + block(77, b"of a later release")
    return info + (block(2, struct.pack(f"<I{len(batches)}q", len(batches), *batches)) if batches else b"")


def om_bytes(models, name="net", wide=True, **header) -> bytes:
    """Return an OM file.

    Args:
        models: partitions of each model, as pairs of type and content.
        name: name in the header.
        wide: False for the tables and the length of older files.
        header: `model_type`, `encrypted`, `dynamic`, `platform_version`.
    """
    body = b""
    for parts in models:
        offset, table = 0, struct.pack("<I4x" if wide else "<I", len(parts))
        for kind, content in parts:
            table += struct.pack("<I4xQQ" if wide else "<III", kind, offset, len(content))
            offset += len(content)
        body += table + b"".join(content for _, content in parts)
    head = bytearray(256)
    struct.pack_into("<4sII", head, 0, b"IMOD", 256, 0x20000000)
    struct.pack_into("<I", head, 76, 0 if wide else len(body))
    head[80], head[82], head[193] = (header.get(key, 0) for key in ("encrypted", "model_type", "dynamic"))
    head[84:115] = name.encode()[:31].ljust(31, b"\0")
    struct.pack_into("<I", head, 156, len(models) if wide else 0)
    head[160:180] = header.get("platform_version", "1.84.15.1").encode().ljust(20, b"\0")
    struct.pack_into("<Q", head, 184, len(body) if wide else 0)
    return bytes(head) + body


def small_om(soc="Ascend310P3", note=b"", inputs=(IMAGES,), outputs=(LOGITS,), batches=()) -> bytes:
    """Return a valid OM file for a device; `note` goes where the tasks are and is not looked at."""
    parts = [(INOUT, inout_info(inputs, outputs, batches)), (MODEL_DEF, model_def("net", soc, inputs, outputs))]
    return om_bytes([[*parts, (WEIGHTS, bytes(64)), (TASKS, note or b"task"), (KERNELS, b"kernels")]])


def inputs_of(given: dict[str, str]) -> tuple[list, list[int]]:
    """Return the inputs and batch sizes of the model that ATC compiles with these arguments."""
    name, _, shape = given["input_shape"].rpartition(":")
    dims = [int(side) for side in shape.split(",")]
    batches = [int(part) for part in given.get("dynamic_batch_size", "").split(",") if part]
    inputs = [(name, "float32", dims)]
    if "insert_op_conf" in given:
        lines = map(str.strip, Path(given["insert_op_conf"]).read_text().splitlines())
        fields = dict(line.split(": ") for line in lines if ": " in line)
        sides = int(fields["src_image_size_h"]), int(fields["src_image_size_w"])
        inputs = [(name, "uint8", [dims[0], *sides, 3])]
    return inputs + ([(BATCH_INPUT, "int32", (1,))] if batches else []), batches


def compiled(given: dict[str, str], note=b"") -> bytes:
    """Return the OM file that ATC writes with these arguments; see `small_om`."""
    inputs, batches = inputs_of(given)
    return small_om(given["soc_version"], note, inputs, batches=batches)


def partition(content: bytes, wanted: int) -> bytes:
    """Return a partition of the first model of an OM file."""
    (count,) = struct.unpack_from("<I", content, 256)
    start = 264 + 24 * count
    for index in range(count):
        kind, offset, size = struct.unpack_from("<I4xQQ", content, 264 + 24 * index)
        if kind == wanted:
            return content[start + offset : start + offset + size]
    raise KeyError(wanted)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(small_om(*sys.argv[2:]))
