"""Writing an ONNX model whose weights never exist as a protobuf message: straight from the arrays to the file.

A serialised message is the concatenation of its fields, in any order, and a nested one is its length and its bytes.
So the model without its initializers is serialised by protobuf, and each initializer is appended as a small header
and the array's own bytes. What is saved is two copies of all weights, and their time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_CHUNK = 1 << 20


def write_streamed(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write a model and its initializers as one ONNX file.

    Args:
        model: the model without the initializers in `weights`; it is not changed.
        weights: name -> array, of a dtype that ONNX knows.
        path: the file.

    Raises:
        OSError: the file cannot be written.
    """
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    graph = rest.graph.SerializeToString()
    rest.ClearField("graph")
    heads = [_tensor_head(name, array) for name, array in weights.items()]
    fields = [
        _tag(_GRAPH_INITIALIZER) + _varint(len(head) + array.nbytes) + head
        for head, array in zip(heads, weights.values(), strict=True)
    ]
    length = len(graph) + sum(map(len, fields)) + sum(array.nbytes for array in weights.values())
    with open(path, "wb") as file:
        file.write(rest.SerializeToString())
        file.write(_tag(_MODEL_GRAPH) + _varint(length) + graph)
        for field, array in zip(fields, weights.values(), strict=True):
            file.write(field)
            _write_array(file, array)


def _tensor_head(name: str, array: np.ndarray) -> bytes:
    """A TensorProto up to the bytes of its raw data."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    head = onnx.TensorProto(name=name, data_type=kind, dims=array.shape).SerializeToString()
    return head + _tag(_TENSOR_RAW_DATA) + _varint(array.nbytes)


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.flags.c_contiguous:
        # A view as bytes, since not every dtype (bfloat16) has a buffer of its own.
        file.write(array.reshape(-1).view(np.uint8).data)
        return
    rows = max(1, _CHUNK * len(array) // max(array.nbytes, 1)) if array.ndim else 1
    for start in range(0, len(array), rows):
        file.write(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data)


def _tag(field: int) -> bytes:
    return _varint(field << 3 | 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
