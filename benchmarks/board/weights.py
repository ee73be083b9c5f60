"""ONNX files of one network without their weights, and the weights once, in float16: what makes a kit small.

The forms of a network differ in a few constants only, and ATC rounds weights to float16 anyway. A file is cut at its
large float32 tensors; `join`, and `run.py` on the board, put it together again from the shared pool of halves. The low
bytes of halves are noise, the high bytes are not, so the two are compressed apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

# Bytes of a tensor from which on it goes into the pool.
_LARGE = 4096
POOL = ("weights_high.z", "weights_low.z")


class Pool:
    """Float16 values that several files share; equal tensors are stored once."""

    def __init__(self) -> None:
        self._starts: dict[bytes, int] = {}
        self._parts: list[np.ndarray] = []
        self._count = 0

    def add(self, values: np.ndarray) -> int:
        """Add values, float16 (N,), unless they are there; return where they start."""
        key = values.tobytes()
        if key not in self._starts:
            self._starts[key] = self._count
            self._parts.append(values)
            self._count += values.size
        return self._starts[key]

    def write(self, folder: Path) -> None:
        """Write the compressed high and low bytes of all values."""
        halves = np.concatenate([*self._parts, np.empty(0, np.float16)]).astype("<f2")
        low, high = halves.view(np.uint8).reshape(-1, 2).T
        for name, part in zip(POOL, (high, low), strict=True):
            (folder / name).write_bytes(zlib.compress(np.ascontiguousarray(part).tobytes(), 9))


def split(path: Path, pool: Pool, parts: Path) -> list[list[int]]:
    """Move the large float32 tensors of an ONNX file into a pool, rounded to float16.

    Args:
        path: the ONNX file.
        pool: receives the tensors.
        parts: file to write, with what is left, compressed.

    Returns:
        for each piece of the file the number of bytes of what is left, and the start and the number of the values from
        the pool that follow.
    """
    content = path.read_bytes()
    model = onnx.load_from_string(content)
    segments, left, place = [], [], 0
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if tensor.data_type != onnx.TensorProto.FLOAT or len(raw) < _LARGE:
            continue
        with np.errstate(over="ignore"):
            halves = np.frombuffer(raw, "<f4").astype(np.float16)
        start = content.find(raw, place)
        # A weight that float16 cannot hold stays as it is.
        if start < 0 or not np.isfinite(halves).all():
            continue
        segments.append([start - place, pool.add(halves), halves.size])
        left.append(content[place:start])
        place = start + len(raw)
    segments.append([len(content) - place, 0, 0])
    parts.write_bytes(zlib.compress(b"".join([*left, content[place:]]), 9))
    return segments


def join(kit: Path, model: Mapping[str, Any]) -> bytes:
    """Return the ONNX file of a model of `kit.json`, as run.py makes it on the board."""
    if not model["segments"]:
        return (kit / model["onnx"]).read_bytes()
    high, low = (np.frombuffer(zlib.decompress((kit / "data" / name).read_bytes()), np.uint8) for name in POOL)
    values = np.stack([low, high], 1).view("<f2").astype("<f4").ravel()
    left, place, pieces = zlib.decompress((kit / model["parts"]).read_bytes()), 0, []
    for length, start, count in model["segments"]:
        pieces += [left[place : place + length], values[start : start + count].tobytes()]
        place += length
    return b"".join(pieces)
