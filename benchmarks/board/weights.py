"""ONNX files of one network without their weights, and the weights once, in float16: what makes a kit small.

The forms of a network differ in a few constants only, and ATC rounds weights to float16 anyway. A file is cut at its
large float32 tensors; `run.py` of the kit puts it together again from the shared pool of halves. The low bytes of
halves are noise and the high bytes are not, so the two are compressed apart. A block-diagonal matrix is mostly zeros:
of those the pool holds the other values, and a bit for each place. With the channels last, equal blocks follow each
other; the values of a padded matrix are those of the plain one.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from neonext_ms.common.files import check_regular

from .kit import run

# Bytes of a tensor from which on it goes into the pool.
_LARGE = 4096
# Share of zeros from which on only the other values are stored.
_SPARSE = 0.2
# Files of a pool below data/, in the order of what `kit/run.py` reads of them.
_POOL_FILES = ("dense_low.z", "dense_high.z", "sparse_low.z", "sparse_high.z", "places.z")


class Pool:
    """Float16 values that several files share; equal ones are stored once."""

    def __init__(self) -> None:
        self._dense, self._sparse, self._places = _Store(), _Store(), _Store()

    def add(self, values: np.ndarray) -> list[int]:
        """Add a tensor, float16, unless it is there.

        Returns:
            start and number of its values. For a tensor with many zeros, whose other values these are, also start and
            number of its places, and the number of its columns: all dimensions but the last two.
        """
        if values.ndim < 2 or np.count_nonzero(values) > (1 - _SPARSE) * values.size:
            return [self._dense.add(values.ravel()), values.size]
        columns = values.size // (values.shape[-1] * values.shape[-2])
        flat = values.reshape(columns, -1).T.ravel()
        places = flat.view(np.uint16) != 0
        kept = flat[places]
        return [self._sparse.add(kept), kept.size, self._places.add(places), flat.size, columns]

    def write(self, folder: Path) -> None:
        """Write the files that `kit/run.py` reads."""
        halves = (
            store.joined(np.dtype("<f2")).view(np.uint8).reshape(-1, 2).T for store in (self._dense, self._sparse)
        )
        places = np.packbits(self._places.joined(np.dtype(bool)))
        for name, values in zip(_POOL_FILES, (*chain(*halves), places), strict=True):
            (folder / name).write_bytes(compressed(values.tobytes()))


class _Store:
    """Arrays, one after the other; equal ones are stored once."""

    def __init__(self) -> None:
        self._starts: dict[bytes, int] = {}
        self._parts: list[np.ndarray] = []
        self._count = 0

    def add(self, values: np.ndarray) -> int:
        """Add values unless they are there; return where they start."""
        key = values.tobytes()
        if key not in self._starts:
            self._starts[key] = self._count
            self._parts.append(values)
            self._count += values.size
        return self._starts[key]

    def joined(self, dtype: np.dtype) -> np.ndarray:
        """Return all values in a dtype."""
        return np.concatenate([np.empty(0, dtype), *self._parts]).astype(dtype)


def compressed(content: bytes) -> bytes:
    """Return bytes for `zlib.decompress`: without matches where those cost more than they save, as among weights."""
    kinds = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)
    streams = (zlib.compressobj(9, zlib.DEFLATED, 15, 9, strategy) for strategy in kinds)
    return min((stream.compress(content) + stream.flush() for stream in streams), key=len)


def split(path: Path, pool: Pool, parts: Path) -> list[list[int]]:
    """Move the large float32 tensors of an ONNX file into a pool, rounded to float16.

    Args:
        path: the ONNX file.
        pool: receives the tensors.
        parts: file to write, with what is left, compressed.

    Returns:
        for each piece of the file the number of bytes of what is left, and the place in the pool (`Pool.add`) of the
        tensor that follows.
    """
    content = path.read_bytes()
    model = onnx.load_from_string(content)
    segments, left, place = [], [], 0
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if tensor.data_type != onnx.TensorProto.FLOAT or len(raw) < _LARGE:
            continue
        with np.errstate(over="ignore"):
            halves = np.frombuffer(raw, "<f4").astype(np.float16).reshape(list(tensor.dims))
        start = content.find(raw, place)
        # A weight that float16 cannot hold stays as it is.
        if start < 0 or not np.isfinite(halves).all():
            continue
        segments.append([start - place, *pool.add(halves)])
        left.append(content[place:start])
        place = start + len(raw)
    segments.append([len(content) - place, 0, 0])
    parts.write_bytes(compressed(b"".join([*left, content[place:]])))
    return segments


def join(kit: Path, models: Mapping[str, Any], name: str) -> bytes:
    """Return the ONNX file of one of the models of `kit.json`, as run.py makes it on the board.

    Raises:
        InputError: one of its files is missing, or no regular file.
        run.Problem: one of them is damaged, or larger inside than the description says.
    """
    model = models[name]
    parts = [model["parts"], *(f"data/{name}" for name in _POOL_FILES)] if model["segments"] else [model["onnx"]]
    for part in parts:
        check_regular(kit / part)
    if not model["segments"]:
        return (kit / model["onnx"]).read_bytes()
    return b"".join(run.onnx_parts(kit, model, run.read_pool(kit, models)))
