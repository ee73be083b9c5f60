"""Writing an ONNX model whose weights never exist as a protobuf message: straight from the arrays to the file.

A serialised message is the concatenation of its fields, in any order, and a nested message is its length and its
bytes. So protobuf serialises the model without its initializers, and each initializer is appended as a small header
and the bytes of its array. That saves two copies of all weights and their time.

Over protobuf's 2 GB the weights go into a second file, `<name>.onnx.data`, which the model names relative to its own
folder; the two have to stay together.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Protobuf cannot write 2 GB in one piece; the names and shapes beside the weights get a margin.
MAX_BYTES = 2**31 - 2**24
# In a file with external data, smaller tensors (shapes, scalars) stay inside, and larger ones start at a page.
_INSIDE, _PAGE = 1024, 4096
# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_CHUNK = 1 << 20


def write_model(model: onnx.ModelProto, path: str | Path) -> list[Path]:
    """Write a model with its initializers inside to a file, with a second file for weights over 2 GB.

    Args:
        model: the model; it is not changed.
        path: path of the file.

    Returns:
        the files that were written, the model first.

    Raises:
        OSError: a file cannot be written.
    """
    path = Path(path)
    if sum(_bytes(tensor) for tensor in model.graph.initializer) <= MAX_BYTES:
        path.write_bytes(model.SerializeToString())
        return [path]
    light = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    light.opset_import.extend(model.opset_import)
    light.metadata_props.extend(model.metadata_props)
    light.graph.name = model.graph.name
    # Field by field: a copy of the whole message would be a copy of its weights.
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    return write_weights(light, _Initializers(model), path)


def write_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], path: Path) -> list[Path]:
    """Write a model and its weights as one ONNX file, or as two over 2 GB.

    Args:
        model: the model without the initializers in `weights`; tensors of external data are added to it.
        weights: arrays by name, of a dtype that ONNX knows.
        path: path of the file.

    Returns:
        the files that were written, the model first.

    Raises:
        OSError: a file cannot be written.
    """
    if sum(array.nbytes for array in weights.values()) <= MAX_BYTES:
        write_streamed(model, weights, path)
        return [path]
    data = path.with_name(f"{path.name}.data")
    inside = {}
    with open(data, "wb") as file:
        for name, array in weights.items():
            if array.nbytes < _INSIDE:
                inside[name] = array
                continue
            file.write(bytes(-file.tell() % _PAGE))
            _add_external(model, name, array, data.name, file.tell())
            _write_array(file, array)
    write_streamed(model, inside, path)
    return [path, data]


def write_streamed(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write a model and its initializers as one ONNX file.

    Args:
        model: the model without the initializers in `weights`; it is not changed.
        weights: arrays by name, of a dtype that ONNX knows.
        path: path of the file.

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
    # The length of the graph comes before its content, so it is computed, not measured.
    length = len(graph) + sum(map(len, fields)) + sum(array.nbytes for array in weights.values())
    with open(path, "wb") as file:
        file.write(rest.SerializeToString())
        file.write(_tag(_MODEL_GRAPH) + _varint(length) + graph)
        for field, array in zip(fields, weights.values(), strict=True):
            file.write(field)
            _write_array(file, array)


class _Initializers(Mapping):
    """The initializers of a model as arrays, each made on access."""

    def __init__(self, model: onnx.ModelProto):
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def __getitem__(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._tensors[name])

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _add_external(model: onnx.ModelProto, name: str, array: np.ndarray, file: str, offset: int) -> None:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = model.graph.initializer.add(name=name, data_type=kind, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def _tensor_head(name: str, array: np.ndarray) -> bytes:
    """Return a TensorProto up to the bytes of its raw data."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    head = TensorProto(name=name, data_type=kind, dims=array.shape).SerializeToString()
    return head + _tag(_TENSOR_RAW_DATA) + _varint(array.nbytes)


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    # Raw data is little-endian by definition.
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.flags.c_contiguous:
        # A view as bytes, since not every dtype (bfloat16) has a buffer of its own.
        file.write(array.reshape(-1).view(np.uint8).data)
        return
    # In pieces of rows, so that a transposed weight is not copied as a whole.
    rows = max(1, _CHUNK * len(array) // max(array.nbytes, 1)) if array.ndim else 1
    for start in range(0, len(array), rows):
        file.write(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data)


def _tag(field: int) -> bytes:
    """Return the tag of a length-delimited field (wire type 2)."""
    return _varint(field << 3 | 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
