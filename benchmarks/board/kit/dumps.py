"""Reading the files in which CANN dumps the values of operators, without CANN's own program (msaccucmp.py).

A file holds the length of a header (8 bytes), the header, the inputs that were dumped, and the outputs. The header is a
message DumpData of protobuf: hicann/runtime 681ef76, src/aicpu_sched/aicpu_schedule/proto/dump_data.proto.
"""

import re

import numpy as np

# Fields by number.
OUTPUT, INPUT, OP_NAME = 3, 4, 6
DTYPE, FORMAT, SHAPE, INPUT_SIZE, OUTPUT_SIZE, ORIGINAL_SHAPE = 1, 2, 3, 5, 6, 7
DUMP_DTYPES = {1: "<f4", 2: "<f2", 3: "<i1", 4: "<u1", 7: "<i4"}
NC1HWC0, FRACTAL_NZ = 3, 29


def read_number(data, place):
    """Return a number of protobuf, seven bits a byte, and the place behind it."""
    value, bits = 0, 0
    while True:
        value |= (data[place] & 127) << bits
        place, bits = place + 1, bits + 7
        if data[place - 1] < 128:
            return value, place


def read_message(data):
    """Return the fields of a message of protobuf: number -> values, whole numbers or bytes."""
    fields, place = {}, 0
    while place < len(data):
        key, place = read_number(data, place)
        value, place = read_number(data, place)
        if key & 7 == 2:
            value, place = data[place : place + value], place + value
        elif key & 7:
            raise ValueError("not a dump")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def read_shape(output, field):
    data, place, shape = read_message(output.get(field, [b""])[0]).get(1, [b""])[0], 0, []
    while place < len(data):
        size, place = read_number(data, place)
        shape.append(size)
    return shape


def read_dump(path):
    """Return the name of an operator and its first output in a plain layout; None for what this does not read."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = read_message(data[8:start])
        output = read_message(header[OUTPUT][0])
        start += sum(read_message(part).get(INPUT_SIZE, [0])[0] for part in header.get(INPUT, ()))
        end, shape = start + output[OUTPUT_SIZE][0], read_shape(output, SHAPE)
        value = np.frombuffer(data[start:end], DUMP_DTYPES[output[DTYPE][0]]).reshape(shape)
    except (ValueError, LookupError):
        return path.name.split(".")[1] if "." in path.name else path.name, None
    kind = output.get(FORMAT, [0])[0]
    if kind == NC1HWC0:
        value = value.transpose(0, 1, 4, 2, 3).reshape(shape[0], -1, *shape[2:4])
    if kind == FRACTAL_NZ:
        value = np.moveaxis(value, -4, -2).reshape(*shape[:-4], shape[-3] * shape[-2], -1)
    # Without the padding of its layout.
    original = read_shape(output, ORIGINAL_SHAPE)
    if value.ndim == len(original) and kind in (NC1HWC0, FRACTAL_NZ):
        value = value[tuple(slice(size) for size in original)]
    name = header[OP_NAME][0].decode("utf-8", "replace") if OP_NAME in header else path.name.split(".")[1]
    return re.sub(r"[./\\\s]", "_", name), value
