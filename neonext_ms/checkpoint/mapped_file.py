"""The bytes of a checkpoint, mapped into memory and never copied: the starting point of every reader."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype("float16"), BFLOAT16, np.dtype("float32"), np.dtype("float64"))
# NumPy's dtype and its name in torch, torch's storage class, MindSpore and safetensors; PyTorch lacks some.
DTYPES = (
    (np.dtype("<f2"), "float16", "HalfStorage", "Float16", "F16"),
    (BFLOAT16, "bfloat16", "BFloat16Storage", "BFloat16", "BF16"),
    (np.dtype("<f4"), "float32", "FloatStorage", "Float32", "F32"),
    (np.dtype("<f8"), "float64", "DoubleStorage", "Float64", "F64"),
    (np.dtype("i1"), "int8", "CharStorage", "Int8", "I8"),
    (np.dtype("u1"), "uint8", "ByteStorage", "UInt8", "U8"),
    (np.dtype("<i2"), "int16", "ShortStorage", "Int16", "I16"),
    (np.dtype("<u2"), "", "", "UInt16", "U16"),
    (np.dtype("<i4"), "int32", "IntStorage", "Int32", "I32"),
    (np.dtype("<u4"), "", "", "UInt32", "U32"),
    (np.dtype("<i8"), "int64", "LongStorage", "Int64", "I64"),
    (np.dtype("<u8"), "", "", "UInt64", "U64"),
    (np.dtype("?"), "bool", "BoolStorage", "Bool", "BOOL"),
)

# NumPy 1.26 allows 32.
MAX_AXES = 32

# Every exception that a damaged or hostile file can cause in a reader; LookupError and ValueError include KeyError and
# UnicodeError.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class DamageError(ValueError):
    """An error about damaged content; `damage_named` adds the name of the file and the advice."""


def map_file(path: str | os.PathLike) -> memoryview:
    """Map the bytes of a file, read-only; they stay mapped as long as any view of them lives.

    Raises:
        InputError: the file does not exist, is not a regular file, is empty, or cannot be read.
    """
    with explained(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a folder" if os.path.isdir(path) else "not an ordinary file"
            raise InputError(f"{os.fspath(path)}: this is {kind}. Name a checkpoint file.")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise InputError(f"{os.fspath(path)}: the file is empty. Get it again.")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@contextlib.contextmanager
def damage_named(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Turn every exception that damaged content can cause in the block into one `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        problem = f"cannot be read as {kind} ({type(error).__name__}: {printable(error, 200)})"
        if isinstance(error, DamageError):
            problem = str(error)
        raise InputError(f"{os.fspath(path)}: damaged, {problem}. Get the file again.") from error


def array_view(
    data: memoryview, dtype: np.dtype, shape: Sequence[int], offset: int = 0, strides: Sequence[int] | None = None
) -> np.ndarray:
    """Return a read-only array over `data`.

    Args:
        data: bytes that hold the elements.
        dtype: dtype of the elements.
        shape: non-negative whole numbers.
        offset: position of the first element, in bytes.
        strides: non-negative strides in bytes; None for C order.

    Raises:
        DamageError: a number is negative, or an element lies outside of `data`.
    """
    if len(shape) > MAX_AXES:
        raise DamageError(f"a tensor has {len(shape)} axes, more than {MAX_AXES}")
    numbers = (*shape, offset, *(strides or ()))
    if any(type(number) is not int or number < 0 for number in numbers):
        raise DamageError("a tensor has a negative size, offset or stride")
    if 0 in shape:
        array = np.empty(shape, dtype)
    else:
        # Python's integers do not overflow, so the bound holds for sizes that no machine has.
        if strides is None:
            last = (math.prod(shape) - 1) * dtype.itemsize
        else:
            last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if offset + last + dtype.itemsize > len(data):
            raise DamageError("a tensor reaches beyond its data")
        array = np.ndarray(shape, dtype, data, offset, strides)
    array.flags.writeable = False
    return array


def printable(value: object, limit: int = 100) -> str:
    """Return a name from a file in a form that is safe to print: one line of ASCII, cut to `limit` characters."""
    text = str(value)
    shown = text[:limit].encode("unicode_escape").decode("ascii")
    return shown if len(text) <= limit else shown + "..."
