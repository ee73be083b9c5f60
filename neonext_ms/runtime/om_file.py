"""The description in an OM file: header, partitions, and inputs and outputs of the model. Nothing is run.

The layout is that of hicann/ge (commit ffdcbc9): `ModelFileHeader` and `ModelPartitionTable` in
inc/framework/common/framework_types_internal.h, the loader in base/common/helper/om_file_helper.cc, the messages in
graph_metadef/proto/ge_ir.proto, MODEL_INOUT_INFO in base/common/model/model_introduction.cc. All numbers are
little-endian. A file has a header of 256 bytes, then for each model a table of its partitions and the partitions.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import check_regular, explained
from neonext_ms.common.text import printable
from neonext_ms.common.wire import fields, integers

SUFFIX = ".om"
MAGIC = b"IMOD"
HEADER_BYTES = 256
# By number: framework_types_internal.h.
MODEL_TYPES = ("IR model", "standard", "tiny", "flow", "lite", "bundle")
PARTITIONS = {
    0: "MODEL_DEF", 1: "WEIGHTS_DATA", 2: "TASK_INFO", 3: "TBE_KERNELS", 4: "CUST_AICPU_KERNELS", 5: "SO_BINS",
    6: "FLOW_MODEL", 7: "FLOW_SUBMODEL", 8: "MODEL_INOUT_INFO", 9: "STATIC_TASK_DESC", 10: "DYNAMIC_TASK_DESC",
    11: "TASK_PARAM", 12: "TILING_DATA", 20: "PRE_MODEL_DESC", 21: "PRE_MODEL_SQE", 22: "PRE_KERNEL_ARGS",
    23: "PRE_MODEL_DESC_EXTEND", 24: "BUNDLE_MODEL_INFO", 25: "BUNDLE_MODEL_VAR_INFO", 26: "CUSTOM_OPS",
}  # fmt: skip
# aclDataType of acl_base.h, which is also ge::DataType; those that NumPy has.
ACL_DTYPES = {
    0: "float32", 1: "float16", 2: "int8", 3: "int32", 4: "uint8", 6: "int16", 7: "uint16", 8: "uint32", 9: "int64",
    10: "uint64", 11: "float64", 12: "bool",
}  # fmt: skip
# ge.proto.DataType numbers them otherwise.
_PROTO_DTYPES = {
    1: "float32", 2: "float16", 3: "int8", 4: "uint8", 5: "int16", 6: "uint16", 7: "int32", 8: "int64", 9: "uint32",
    10: "uint64", 11: "bool", 12: "float64", 27: "bfloat16",
}  # fmt: skip
_DATA_OPS = ("Data", "AippData", "AnnData")
# An input that ATC adds to a model of several batch sizes; it carries the one of the call.
BATCH_INPUT = "ascend_mbatch_shape_data"
# Attributes of the operator Case that chooses among the batch sizes: of what it chooses, and each size by its number.
_DYNAMIC_TYPE, _DYNAMIC_BATCH, _BATCH_SIZE = "mbatch_dynamic_type", 1, "_pred_value_"
_FLOW, _BUNDLE = 3, 5
# Padding of aligned partitions stays below.
_ALIGNMENT = 1024
# Far more than ATC writes. A file that claims more is damaged.
_MAX_PARTITIONS, _MAX_TENSORS, _MAX_DIMS = 4096, 1024, 256
# A larger description is not read, for time.
MAX_READ = 1 << 26


class BrokenOmError(InputError):
    """A file that is not a whole OM file; `problem` says what it is, without the name of the file and advice."""

    def __init__(self, path: str, problem: str, advice: str = ""):
        super().__init__(f"{path}: {problem}{advice}")
        self.problem = problem


class Partition(NamedTuple):
    """A part of an OM file: the number of its model, its kind, and its place in the file in bytes."""

    model: int
    kind: str
    offset: int
    size: int


class Tensor(NamedTuple):
    """An input or output of a model; -1 is an open dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def describe(self) -> str:
        """Return dtype and shape, such as `float32 1x3x224x224`."""
        return f"{self.dtype} {'x'.join('N' if side < 0 else str(side) for side in self.shape) or 'scalar'}"


@dataclass(frozen=True)
class OmFile:
    """The description of an OM file.

    Attributes:
        path: the file.
        bytes: its size.
        name: name of the model; the header keeps its first 31 bytes.
        model_type: one of MODEL_TYPES.
        encrypted: whether everything after the header is encrypted, so that nothing else is known.
        dynamic: whether shapes are known only when the model runs.
        platform_version: version of CANN's framework that wrote the file; empty if it is not recorded.
        soc: device that the file was compiled for; empty likewise.
        atc_version: version of ATC; empty likewise.
        models: number of models.
        partitions: parts of all models, in the order of the file.
        inputs, outputs: tensors of the first model; empty where the file does not describe them.
        batches: batch sizes of `--dynamic_batch_size`.
    """

    path: str
    bytes: int
    name: str
    model_type: str
    encrypted: bool
    dynamic: bool
    platform_version: str = ""
    soc: str = ""
    atc_version: str = ""
    models: int = 1
    partitions: tuple[Partition, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    batches: tuple[int, ...] = ()

    def to_dict(self) -> dict:
        """Return plain values for neonext-info."""
        return {
            "model_name": self.name,
            "model_type": self.model_type,
            "encrypted": self.encrypted,
            "dynamic_shapes": self.dynamic,
            "platform_version": self.platform_version or None,
            "soc": self.soc or None,
            "atc_version": self.atc_version or None,
            "models": self.models,
            "inputs": {tensor.name: tensor.describe() for tensor in self.inputs},
            "outputs": {tensor.name: tensor.describe() for tensor in self.outputs},
            "batch_sizes": list(self.batches),
            "bytes": self.bytes,
            "partitions": [f"{part.kind} {part.size:,}" for part in self.partitions],
        }


def read_om(path: str | os.PathLike) -> OmFile:
    """Read the description of an OM file and check that its sizes add up.

    Raises:
        BrokenOmError: it is not an OM file, or is damaged.
        InputError: the file cannot be read.
    """
    name = os.fspath(path)
    check_regular(path)
    with explained(path), open(path, "rb") as file:
        start = file.read(HEADER_BYTES)
        if start[:4] != MAGIC:
            hint = "; this may be OM2, which is not read here" if start[:2] == b"PK" else ""
            problem = f"not an OM file (it starts with {start[:4]!r}, expected {MAGIC!r}){hint}"
            raise BrokenOmError(name, problem, ". Name a file that ATC wrote.")
        try:
            return _read(_Contents(file), name)
        except (ValueError, struct.error) as error:
            advice = ". Compile it again, or copy it again in binary mode."
            raise BrokenOmError(name, f"not a complete OM file ({error})", advice) from error


class _Contents:
    """The bytes of a file; `at` never reads beyond its end."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def at(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`; a ValueError says that they are not there."""
        if count > self.size - offset:
            raise ValueError(f"{count:,} bytes at {offset:,} of a file of {self.size:,}")
        self.file.seek(offset)
        content = self.file.read(count)
        if len(content) < count:
            raise ValueError("it became shorter while it was read")
        return content


def _read(contents: _Contents, path: str) -> OmFile:
    header = contents.at(0, HEADER_BYTES)
    (size,), (old_length,), (length,) = (
        struct.unpack_from(form, header, place) for form, place in (("<I", 4), ("<I", 76), ("<Q", 184))
    )
    if size != HEADER_BYTES:
        raise ValueError(f"a header of {size} bytes, expected {HEADER_BYTES}")
    # Files of up to 4 GB by older releases have their length in 32 bits, and smaller tables.
    claimed, wide = (length, True) if length else (old_length, header[82] == _FLOW)
    # That of a bundle counts the header.
    claimed += 0 if header[82] == _BUNDLE or not claimed else HEADER_BYTES
    if claimed != contents.size:
        raise ValueError(f"{contents.size:,} bytes, {claimed:,} by its header")
    (models,) = struct.unpack_from("<I", header, 156)
    om = OmFile(
        path=path,
        bytes=contents.size,
        name=_text(header[84:116]),
        model_type=MODEL_TYPES[header[82]] if header[82] < len(MODEL_TYPES) else f"type {header[82]}",
        encrypted=bool(header[80]),
        dynamic=bool(header[193]),
        platform_version=_text(header[160:180]),
        models=max(models, 1),
    )
    if om.encrypted or header[82] == _BUNDLE:
        return om
    om = replace(om, partitions=tuple(_partitions(contents, om.models, wide)))
    return _describe(contents, om)


def _text(field: bytes | memoryview) -> str:
    """Return text that a file holds, up to its first NUL, safe for a terminal."""
    return printable(bytes(field).partition(b"\0")[0].decode("utf-8", "replace"))


def _partitions(contents: _Contents, models: int, wide: bool) -> Iterator[Partition]:
    """Yield the partitions of all models; they fill the file up to its end.

    Args:
        contents: the file.
        models: number of models, each with a table of its own.
        wide: whether a table has offsets and sizes of 64 bits.
    """
    head, entry = (8, struct.Struct("<I4xQQ")) if wide else (4, struct.Struct("<III"))
    place, count = HEADER_BYTES, 0
    for model in range(models):
        (number,) = struct.unpack_from("<I", contents.at(place, head))
        count += number
        if not 0 < number <= count <= _MAX_PARTITIONS:
            raise ValueError(f"model {model} of {models} has {number:,} partitions")
        table = contents.at(place + head, number * entry.size)
        start = place = place + head + len(table)
        for kind, offset, size in entry.iter_unpack(table):
            # Some files are aligned, with padding between their partitions. A partition never starts earlier.
            if start + offset < place or start + offset + size > contents.size:
                raise ValueError(f"a partition of {size:,} bytes at {start + offset:,} of {contents.size:,}")
            yield Partition(model, PARTITIONS.get(kind, f"type {kind}"), start + offset, size)
            place = start + offset + size
    if contents.size - place >= _ALIGNMENT:
        raise ValueError(f"{contents.size - place:,} bytes after its last partition")


def _describe(contents: _Contents, om: OmFile) -> OmFile:
    """Add what MODEL_DEF and MODEL_INOUT_INFO of the first model say; the latter goes first."""
    parts = {part.kind: part for part in reversed(om.partitions) if part.model == 0 and part.size <= MAX_READ}
    if "MODEL_DEF" in parts:
        om = _model_def(memoryview(contents.at(*parts["MODEL_DEF"][2:])), om)
    if "MODEL_INOUT_INFO" in parts:
        om = _inout_info(memoryview(contents.at(*parts["MODEL_INOUT_INFO"][2:])), om)
    return om


def _inout_info(data: memoryview, om: OmFile) -> OmFile:
    """Read MODEL_INOUT_INFO: blocks of type, length and value, of which other releases may know more."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from("<II", data, place)
        place += 8
        if size > len(data) - place:
            raise ValueError(f"a block of {size} bytes where {len(data) - place} are left")
        value = data[place : place + size]
        place += size
        if kind == 0:
            om = replace(om, inputs=tuple(_tensors(value)))
        elif kind == 1:
            om = replace(om, outputs=tuple(_tensors(value)))
        elif kind == 2:
            (count,) = struct.unpack_from("<I", value)
            om = replace(om, batches=tuple(_numbers(value, 4, 8 * count)))
    return om


def _tensors(data: memoryview) -> Iterator[Tensor]:
    (count,) = struct.unpack_from("<I", data)
    if count > _MAX_TENSORS:
        raise ValueError(f"{count:,} inputs or outputs")
    base, place = struct.Struct("<QIIIIII"), 4
    for _ in range(count):
        _, _, dtype, name, dims, second, ranges = base.unpack_from(data, place)
        place += base.size
        if name + dims + second + ranges > len(data) - place:
            raise ValueError("an input or output that does not fit its block")
        # Of a model with AIPP the first shape is the one that is fed, the second the network's.
        shape = tuple(_numbers(data, place + name, dims))
        yield Tensor(_text(data[place : place + name]), ACL_DTYPES.get(dtype, f"type {dtype}"), shape)
        place += name + dims + second + ranges


def _numbers(data: memoryview, place: int, size: int) -> tuple[int, ...]:
    if size % 8 or size > 8 * _MAX_DIMS:
        raise ValueError(f"a list of numbers in {size} bytes")
    return struct.unpack_from(f"<{size // 8}q", data, place)


def _model_def(data: memoryview, om: OmFile) -> OmFile:
    """Read the message ModelDef: its attributes, and the ends of its first graph."""
    attributes: dict[str, memoryview] = {}
    graph = None
    for number, value in fields(data):
        if number == 7 and graph is None:
            graph = _message(value)
        elif number == 11:
            attributes.update(_attribute(value))
    versions = {name: _text(_last(attributes.get(name), 2)) for name in ("soc_version", "atc_version")}
    om = replace(om, soc=versions["soc_version"], atc_version=versions["atc_version"])
    return om if graph is None else _graph(graph, om)


def _graph(graph: memoryview, om: OmFile) -> OmFile:
    inputs: list[tuple[int, Tensor]] = []
    outputs: list[Tensor] = []
    for number, value in fields(graph):
        if number != 6:
            continue
        op = _message(value)
        kind = _text(_last(op, 2))
        if kind in _DATA_OPS:
            inputs.append(_input(op, len(inputs)))
        elif kind == "NetOutput":
            outputs += _outputs(op, len(outputs))
        elif kind == "Case":
            om = replace(om, batches=_batches(op))
        if len(inputs) + len(outputs) > _MAX_TENSORS:
            raise ValueError(f"more than {_MAX_TENSORS:,} inputs and outputs")
    inputs.sort(key=lambda pair: pair[0])
    return replace(om, inputs=tuple(tensor for _, tensor in inputs), outputs=tuple(outputs))


def _input(op: memoryview, position: int) -> tuple[int, Tensor]:
    """Return the index and the tensor of an operator Data."""
    attributes: dict[str, memoryview] = {}
    descriptor = memoryview(b"")
    for number, value in fields(op):
        if number == 10:
            attributes.update(_attribute(value))
        elif number == 33:
            descriptor = _message(value)
    dtype, shape = _descriptor(descriptor)
    for name in ("_mbatch_origin_input_dims", "_dynamic_aipp_input_dims"):
        if name in attributes:
            shape = _repeated(_last(attributes[name], 1), 3)
    index = next((v for n, v in fields(attributes.get("index", memoryview(b""))) if n == 3), position)
    return (index if isinstance(index, int) else position), Tensor(_text(_last(op, 1)), dtype, shape)


def _batches(op: memoryview) -> tuple[int, ...]:
    """Return the batch sizes that an operator Case chooses among; empty if it chooses among something else."""
    attributes = dict(pair for number, value in fields(op) if number == 10 for pair in _attribute(value))
    kind = next((value for number, value in fields(attributes.get(_DYNAMIC_TYPE, memoryview(b""))) if number == 3), 0)
    if kind != _DYNAMIC_BATCH:
        return ()
    sizes = [attributes.get(f"{_BATCH_SIZE}{i}") for i in range(len(attributes))]
    return tuple(size for attribute in sizes if attribute for size in _repeated(_last(attribute, 1), 3)[:1])


def _outputs(op: memoryview, position: int) -> list[Tensor]:
    """Return the tensors that an operator NetOutput reads, named as CANN names outputs."""
    sources = [_text(_message(value)) for number, value in fields(op) if number == 24]
    indices = _repeated(op, 25)
    tensors = [_descriptor(_message(value)) for number, value in fields(op) if number == 33]
    names = [
        f"output_{position + i}_{name}_{index}" for i, (name, index) in enumerate(zip(sources, indices, strict=False))
    ]
    names += [f"output_{position + i}" for i in range(len(names), len(tensors))]
    return [Tensor(name, *tensor) for name, tensor in zip(names, tensors, strict=False)]


def _descriptor(descriptor: memoryview) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a TensorDescriptor."""
    dtype = next((value for number, value in reversed(list(fields(descriptor))) if number == 2), 0)
    name = _PROTO_DTYPES.get(dtype, f"type {dtype}") if isinstance(dtype, int) else "unknown"
    return name, _repeated(_last(descriptor, 3), 1)


def _attribute(entry: int | memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield name and value of an entry of a map of attributes, unless it is empty."""
    message = _message(entry)
    name, value = _last(message, 1), _last(message, 2)
    if len(name):
        yield _text(name), value


def _last(message: memoryview | None, wanted: int) -> memoryview:
    """Return the last string or message with a number, as protobuf does; empty if there is none."""
    found = memoryview(b"")
    for number, value in fields(message) if message is not None else ():
        if number == wanted:
            found = _message(value)
    return found


def _repeated(message: memoryview, wanted: int) -> tuple[int, ...]:
    """Return the integers of a repeated field, packed or not."""
    numbers: list[int] = []
    for number, value in fields(message):
        if number == wanted:
            numbers += integers(value)
        if len(numbers) > _MAX_DIMS:
            raise ValueError(f"more than {_MAX_DIMS} numbers in a list")
    return tuple(numbers)


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value
