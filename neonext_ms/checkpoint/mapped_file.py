"""A checkpoint's bytes, mapped into memory and never copied: what every reader of a format starts from."""

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

# Whatever a damaged or hostile file makes a reader stumble over. KeyError and UnicodeError are among them.
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


def map_file(path: str | os.PathLike) -> memoryview:
    """The bytes of a file, read-only; they stay mapped as long as any view of them lives.

    Raises:
        InputError: there is no such file, it is no ordinary file, it is empty, or it must not be read.
    """
    with explained(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a folder" if os.path.isdir(path) else "not an ordinary file"
            raise InputError(f"{os.fspath(path)}: this is {kind}; name a checkpoint file")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise InputError(f"{os.fspath(path)}: the file is empty; get it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@contextlib.contextmanager
def damage_named(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Turn every error that the content of a file can cause inside the block into one `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {printable(error, 200)}"
        raise InputError(
            f"{os.fspath(path)}: damaged, it cannot be read as {what} ({reason}); get the file again"
        ) from error


def array_view(
    data: memoryview, dtype: np.dtype, shape: Sequence[int], offset: int = 0, strides: Sequence[int] | None = None
) -> np.ndarray:
    """A read-only array over `data`.

    Args:
        data: the bytes.
        dtype: type of an element.
        shape: non-negative whole numbers.
        offset: of the first element, in bytes.
        strides: in bytes, not negative; None for an array in C order.

    Raises:
        ValueError: a negative number, or an element outside of `data`.
    """
    numbers = (*shape, offset, *(strides or ()))
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("negative size, offset or stride")
    if 0 in shape:
        array = np.empty(shape, dtype)
    else:
        if strides is None:
            last = (math.prod(shape) - 1) * dtype.itemsize
        else:
            last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if offset + last + dtype.itemsize > len(data):
            raise ValueError("a tensor reaches beyond its data")
        array = np.ndarray(shape, dtype, data, offset, strides)
    array.flags.writeable = False
    return array


def printable(value, limit: int = 100) -> str:
    """A name found in a file, safe to print: one line, ASCII, not too long."""
    text = str(value)
    shown = text[:limit].encode("unicode_escape").decode("ascii")
    return shown if len(text) <= limit else shown + "..."
