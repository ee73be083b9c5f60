"""ONNX files as every reader needs them: whole, of known types, with tensors of their sizes."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from neonext_ms.common.errors import InputError, NeoNextError
from neonext_ms.common.files import explained
from neonext_ms.common.text import one_line

from .base import check_file

if TYPE_CHECKING:
    import onnx

# A protobuf message has less than 2 GiB.
_MAX_BYTES = 1 << 31
_MAX_ELEMENTS = 1 << 40
_MAX_DIMENSIONS = 32
_MAX_DEPTH = 20
DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def read_onnx(path: str | os.PathLike) -> onnx.ModelProto:
    """Read an ONNX file and check its structure (`check_model`); weights in files of their own are not read.

    Raises:
        InputError: no such file, or not a whole ONNX file.
    """
    import onnx

    path = os.fspath(path)
    check_file(path)
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes, which no protobuf has")
        with explained(path), open(path, "rb") as file:
            model = onnx.load_model_from_string(file.read())
    except Exception as error:
        if isinstance(error, (InputError, MemoryError)):
            raise
        raise InputError(f"{path}: not a valid ONNX file ({one_line(error, 400)}); export it again") from error
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX file; it has no nodes")
    check_model(model, path)
    return model


def check_model(model: onnx.ModelProto, source: str) -> None:
    """Check what every reader of a graph relies on: readable names, outputs, an opset, and tensors of their sizes.

    Raises:
        InputError: a part of the model that no exporter writes; the message begins with `source`.
    """
    try:
        if not model.opset_import:
            raise ValueError("it names no opset")
        _check_text(*(entry.domain for entry in model.opset_import))
        _check_graph(model.graph, 0)
    # A string that is not UTF-8 shows when it is read.
    except ValueError as error:
        raise InputError(f"{source}: not a valid ONNX model ({one_line(error, 400)}); export it again") from error


def _check_graph(graph: onnx.GraphProto, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"graphs nested more than {_MAX_DEPTH} deep")
    for value in (*graph.input, *graph.output, *graph.value_info):
        if not 0 <= value.type.tensor_type.elem_type <= _last_type():
            raise ValueError(f"value {value.name!r} has the unknown type {value.type.tensor_type.elem_type}")
        if any(not -1 <= d.dim_value <= _MAX_ELEMENTS for d in dims_of(value)):
            raise ValueError(f"value {value.name!r} has the shape {[d.dim_value for d in dims_of(value)][:8]}")
        # Read, so that a name that is not UTF-8 is found here.
        [d.dim_param for d in dims_of(value)]
        _check_text(value.name)
    for tensor in graph.initializer:
        _check_text(tensor.name)
        check_tensor(tensor)
    for sparse in graph.sparse_initializer:
        check_tensor(sparse.values)
    for node in graph.node:
        if not any(node.output) or not node.op_type:
            raise ValueError(f"node {node.name!r} of type {node.op_type!r} has no type or no output")
        _check_text(node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            _check_text(attribute.name)
            for tensor in (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors:
                check_tensor(tensor)
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _check_graph(inner, depth + 1)


def _check_text(*names: str | bytes) -> None:
    """Refuse a name that is not UTF-8: protobuf raises an error when it is read, or returns bytes."""
    for name in names:
        if isinstance(name, bytes):
            raise ValueError(f"the name {name[:100]!r} is not UTF-8")


# What a reader raises that takes values of a malformed file for what they should be.
MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def sound(source: str) -> Iterator[None]:
    """Report what a malformed graph makes a reader of it trip over as an `InputError`.

    `check_model` cannot find everything: the rules of every operator would have to be written down once more.
    """
    try:
        yield
    except NeoNextError:
        raise
    except MALFORMED as error:
        raise InputError(
            f"{source}: its nodes do not fit together ({type(error).__name__}: {one_line(error, 300)}); export it again"
        ) from error


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Check that the data of a tensor are as many as its type and shape say.

    A tensor without any data is accepted: the data of large models lie in another file, or were left out.

    Raises:
        ValueError: an unknown type, a shape that cannot be, or too few or too many data.
    """
    import onnx

    kind, dims, label = tensor.data_type, list(tensor.dims), f"tensor {tensor.name[:100]!r}"
    if not 0 < kind <= _last_type():
        raise ValueError(f"{label} has the unknown type {kind}")
    if min(dims, default=0) < 0 or len(dims) > _MAX_DIMENSIONS or math.prod(dims) > _MAX_ELEMENTS:
        raise ValueError(f"{label} has the shape {dims[:8]}")
    if tensor.HasField("segment"):
        raise ValueError(f"{label} is a segment of a tensor, which no exporter writes")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if not any(entry.key == "location" and entry.value for entry in tensor.external_data):
            raise ValueError(f"{label} lies in another file, but which one is not said")
        return
    fields = {name: len(getattr(tensor, name)) for name in DATA_FIELDS if len(getattr(tensor, name))}
    if not fields:
        return
    ((name, length), *others) = fields.items()
    wanted = _field_of(kind)
    if others or name not in (wanted, "raw_data") or (name == "raw_data" and kind == onnx.TensorProto.STRING):
        raise ValueError(f"{label} has its data in {' and '.join(fields)} (expected in {wanted})")
    if name == "raw_data" or _bits(kind) < 8:
        expected = raw_bytes(tensor)
    else:
        expected = math.prod(dims) * (2 if kind in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1)
    if length != expected:
        raise ValueError(f"{label} of shape {dims[:8]} has {length} entries of {name} (expected {expected})")


def raw_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes that the numbers of a tensor take, as they are stored in `raw_data` and in files."""
    return (math.prod(tensor.dims) * _bits(tensor.data_type) + 7) // 8


def tensor_array(tensor: onnx.TensorProto, source: str, folder: str = "") -> np.ndarray:
    """Return the numbers of a tensor.

    Args:
        tensor: the tensor.
        source: name of the model, for messages.
        folder: folder of the model, where data in files of their own are.

    Raises:
        InputError: the tensor has no numbers, or not those of its shape.
    """
    from onnx import numpy_helper

    try:
        check_tensor(tensor)
        return np.asarray(numpy_helper.to_array(tensor, folder))
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(f"{source}: tensor {tensor.name!r} cannot be read ({one_line(error, 300)})") from error


@functools.cache
def _last_type() -> int:
    import onnx

    return max(onnx.TensorProto.DataType.values())


@functools.cache
def _field_of(kind: int) -> str:
    import onnx

    return "string_data" if kind == onnx.TensorProto.STRING else onnx.helper.tensor_dtype_to_field(kind)


@functools.cache
def _bits(kind: int) -> int:
    """Return the bits of an element, packed as in `raw_data`."""
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    narrow = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    return narrow.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def dims_of(value: onnx.ValueInfoProto):
    """Return the sizes of a value, protobuf messages with `dim_value` or `dim_param`."""
    return value.type.tensor_type.shape.dim
