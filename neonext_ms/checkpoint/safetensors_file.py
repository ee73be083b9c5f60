"""`.safetensors` files: checked and written by the library of that name, read without a copy."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

import numpy as np
import safetensors
from safetensors.numpy import save_file

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import unique_keys

from .budget import ARRAY, CONTAINER, Budget
from .mapped_file import DTYPES, DamageError, array_view, damage_named, map_file, printable

_DTYPES = {kind: dtype for dtype, *_, kind in DTYPES}
# The header of a NeoNeXt has 100 bytes a tensor, and up to 4 MiB of metadata. The library itself allows 100 MB, which
# take gigabytes as Python's objects.
_MAX_HEADER = 8 << 20


def header_size(data: memoryview | bytes) -> int | None:
    """Return the length of the JSON header if `data` starts like a safetensors file, else None."""
    size = int.from_bytes(data[:8], "little")
    return size if len(data) > 8 and data[8] == 0x7B and 2 <= size < 1 << 40 else None


def read(path: str | os.PathLike, budget: Budget | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors by name and the strings of `__metadata__`.

    Args:
        path: file to read.
        budget: budget to charge the work to (default: one for this file).

    Returns:
        Read-only arrays that are views of the file (bfloat16 has the dtype of ml_dtypes), and the metadata.

    Raises:
        InputError: the file is missing, damaged, truncated, or not a safetensors file.
    """
    source = os.fspath(path)
    data = map_file(path)
    budget = budget or Budget(source, len(data))
    with damage_named(path, "a safetensors file"):
        size = header_size(data)
        if size is None:
            raise InputError(f"{source}: not a safetensors file. Name a checkpoint file.")
        if size > _MAX_HEADER:
            raise InputError(f"{source}: the header is too long (got {size} bytes, expected at most {_MAX_HEADER})")
        if 8 + size > len(data):
            raise DamageError("it is truncated in its header")
        text = bytes(data[8 : 8 + size])
        budget.spend(CONTAINER * (text.count(b"[") + text.count(b"{")))
        # The library, too, would take the last of several tensors of one name.
        header = json.loads(text, object_pairs_hook=unique_keys)
        metadata = header.pop("__metadata__", None) or {}
        # Checks, and an array for every tensor.
        budget.spend(ARRAY * len(header))
        end = 8 + size + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end > len(data):
            raise DamageError(f"it is truncated (got {len(data)} bytes, expected {end})")
        _check(source)
        body = data[8 + size :]
        return {name: _array(source, name, entry, body) for name, entry in header.items()}, metadata


def _check(source: str) -> None:
    """Let the library check that the tensors are where the header says, once each and without gaps."""
    try:
        with safetensors.safe_open(source, framework="np"):
            pass
    except safetensors.SafetensorError as error:
        raise DamageError(f"not a valid safetensors file ({printable(error, 200)})") from error


def _array(source: str, name: str, entry: Mapping, body: memoryview) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise InputError(
            f"{source}: {printable(name)} has an unsupported type (got type {printable(entry['dtype'])}, expected one "
            f"of {', '.join(_DTYPES)})"
        )
    first, last = entry["data_offsets"]
    return array_view(body[first:last], _DTYPES[entry["dtype"]], tuple(entry["shape"]))


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write tensors in their dtypes, and metadata; not atomic, see `files.atomic`, which explains an `OSError`.

    Raises:
        OSError: the operating system reports an error.
        InputError: the library rejects the tensors.
    """
    contiguous = {name: a if a.flags.c_contiguous else a.copy(order="C") for name, a in tensors.items()}
    try:
        save_file(contiguous, os.fspath(path), metadata=dict(metadata))
    except safetensors.SafetensorError as error:
        # The library reports errors of the operating system as text only.
        if match := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(match[1]), os.strerror(int(match[1])), os.fspath(path)) from error
        raise InputError(f"{os.fspath(path)}: cannot be written ({printable(error, 200)})") from error
