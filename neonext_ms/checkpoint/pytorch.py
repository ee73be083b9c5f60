"""PyTorch's `.pt` files, zip archives and the older format, read and written without PyTorch.

Nothing in a file is executed, see `pytorch_pickle`. Tensors are views of the mapped file.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained

from .budget import Budget
from .mapped_file import DTYPES, MAX_AXES, DamageError, array_view, damage_named, map_file, printable
from .pytorch_pickle import HINT, PickleFunction, dictionary_key, load_pickle
from .pytorch_zip import StoredZip, write_zip

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

_STORAGES = {dtype: storage for dtype, _, storage, *_ in DTYPES if storage}

# The longest metadata in a JSON record.
_MAX_RECORD = 4 << 20


@dataclass(frozen=True)
class _StorageType:
    """A storage class or a dtype of torch, such as torch.FloatStorage; `dtype` is None for UntypedStorage."""

    dtype: np.dtype | None


@dataclass(frozen=True)
class _Storage:
    """Bytes that tensors share; `data` is None while their place in the file is unknown."""

    dtype: np.dtype | None
    data: memoryview | None


class _Tensors:
    """The functions that a torch.save file calls to build its tensors, charged to the budget of the file."""

    def __init__(self, budget: Budget):
        self.budget = budget

    def known(self) -> dict[tuple[str, str], object]:
        """Return the globals that a file may name, by module and name."""
        table: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): PickleFunction(self.ordered_dict),
            ("collections", "Counter"): PickleFunction(self.ordered_dict),
            ("collections", "defaultdict"): PickleFunction(lambda factory=None: {}),
            ("torch", "Size"): PickleFunction(self.size),
            ("torch._utils", "_rebuild_tensor"): PickleFunction(self.rebuild),
            ("torch._utils", "_rebuild_tensor_v2"): PickleFunction(self.rebuild_v2),
            ("torch._utils", "_rebuild_tensor_v3"): PickleFunction(self.rebuild_v3),
            ("torch._utils", "_rebuild_parameter"): PickleFunction(_rebuild_parameter),
            ("torch._utils", "_rebuild_parameter_with_state"): PickleFunction(_rebuild_parameter),
            ("torch._tensor", "_rebuild_from_type_v2"): PickleFunction(_rebuild_from_type),
            ("torch.storage", "UntypedStorage"): _StorageType(None),
            ("torch", "UntypedStorage"): _StorageType(None),
        }
        for dtype, name, storage, *_ in DTYPES:
            if storage:
                for key in (("torch", name), ("torch", storage), ("torch.cuda", storage)):
                    table[key] = _StorageType(dtype)
        return table

    def ordered_dict(self, items=()) -> dict:
        if type(items) is dict:
            self.budget.spend(len(items))
            return dict(items)
        if type(items) not in (tuple, list):
            raise DamageError("an OrderedDict is not made of pairs")
        self.budget.spend(4 * len(items))
        result = {}
        for pair in items:
            if type(pair) not in (tuple, list) or len(pair) != 2 or type(pair[0]) not in (str, int):
                raise DamageError("an OrderedDict is not made of pairs")
            result[pair[0] if type(pair[0]) is str else dictionary_key(pair[0])] = pair[1]
        return result

    def size(self, sizes=()) -> tuple:
        if type(sizes) not in (tuple, list):
            raise DamageError("a torch.Size is not made of a list")
        self.budget.spend(len(sizes))
        return tuple(sizes)

    def rebuild(self, storage, offset, shape, strides, dtype: np.dtype | None = None) -> np.ndarray | None:
        if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
            raise DamageError("a tensor is not built from a storage")
        if len(shape) != len(strides) or len(shape) > MAX_AXES:
            raise DamageError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
        dtype = dtype or storage.dtype
        if dtype is None:
            raise DamageError("a tensor has no dtype")
        # Before the sizes are multiplied: they may be of any type.
        if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
            raise DamageError("a tensor has a negative size, offset or stride")
        self.budget.spend(10)
        self.budget.expand(math.prod(shape) * dtype.itemsize)
        if storage.data is None:
            return None
        step = dtype.itemsize
        return array_view(storage.data, dtype, shape, offset * step, tuple(stride * step for stride in strides))

    def rebuild_v2(self, storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
        self._reject_metadata(metadata)
        return self.rebuild(storage, offset, shape, strides)

    def rebuild_v3(self, storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
        self._reject_metadata(metadata)
        if type(dtype) is not _StorageType:
            raise DamageError("a tensor has no dtype")
        return self.rebuild(storage, offset, shape, strides, dtype.dtype)

    def _reject_metadata(self, metadata) -> None:
        # The bytes of a conjugated or negated view are not its values.
        if metadata:
            raise InputError(f"{self.budget.source}: holds a tensor that is a conjugated or negated view. {HINT}")


def _rebuild_parameter(data, requires_grad=True, hooks=None, state=None):
    if data is not None and type(data) is not np.ndarray:
        raise DamageError("a parameter is not built from a tensor")
    return data


def _rebuild_from_type(function, kind, arguments, state):
    # A tensor with attributes of its own.
    if type(function) is not PickleFunction or type(arguments) is not tuple:
        raise DamageError("a tensor is not built from a storage")
    return function.function(*arguments)


def read(path: str | os.PathLike, budget: Budget | None = None) -> tuple[Any, dict[str, bytes]]:
    """Read a file of torch.save, without PyTorch and without executing anything in it.

    Args:
        path: file to read.
        budget: budget to charge the work to (default: one for this file).

    Returns:
        A tree of dict, list, tuple, str, numbers, None, NumPy arrays and placeholders (see `load_pickle`), and the
        records below `extra/` that `write` adds. The arrays are read-only views of the file (bfloat16 has the dtype of
        ml_dtypes). The tree of a hostile file may contain itself.

    Raises:
        InputError: the file is missing, damaged, truncated, not written by torch.save, names a function that executes
            something, or exceeds the budget.
    """
    source = os.fspath(path)
    data = map_file(path)
    budget = budget or Budget(source, len(data))
    with damage_named(path, "a PyTorch file"):
        if data[:2] == b"PK":
            return _read_zip(data, budget)
        if data[257:262] == b"ustar":
            raise InputError(f"{source}: a tar archive as PyTorch wrote before 0.1.10. Re-save it with PyTorch.")
        return _read_legacy(data, budget), {}


def _read_zip(data: memoryview, budget: Budget) -> tuple[object, dict[str, bytes]]:
    source = budget.source
    archive = StoredZip(data, budget)
    roots = {name.removesuffix("/data.pkl") for name in archive.entries if name.count("/") == 1}
    roots = {root for root in roots if f"{root}/data.pkl" in archive.entries}
    if len(roots) != 1:
        raise InputError(
            f"{source}: a zip archive, but not one of torch.save (it has no data.pkl). Name a checkpoint file."
        )
    root = roots.pop()
    order = "little"
    if f"{root}/byteorder" in archive.entries:
        order = bytes(archive.read(f"{root}/byteorder")[:16]).decode("ascii").strip()
    if order not in ("little", "big"):
        raise DamageError(f"its byte order is {printable(order)}")
    storages: dict[str, _Storage] = {}

    def persistent(value) -> _Storage:
        kind, key, count = _persistent_storage(value, 5)
        if key not in storages:
            step = kind.dtype.itemsize if kind.dtype else 1
            name = f"{root}/data/{key}"
            if archive.size(name) < count * step:
                raise DamageError(f"{printable(name)} has {archive.size(name)} bytes of {count * step}")
            body = archive.read(name)[: count * step]
            if order == "big":
                if kind.dtype is None:
                    raise InputError(f"{source}: an untyped tensor of a big-endian machine cannot be read. {HINT}")
                body = memoryview(np.frombuffer(body, f"u{step}").byteswap().tobytes())
            storages[key] = _Storage(kind.dtype, body)
        if kind.dtype != storages[key].dtype and order == "big":
            raise DamageError("a storage has two dtypes")
        return _Storage(kind.dtype, storages[key].data)

    tree, _ = load_pickle(archive.read(f"{root}/data.pkl"), 0, budget, _Tensors(budget).known(), persistent)
    prefix = f"{root}/extra/"
    records = [name for name in archive.entries if name.startswith(prefix)]
    if long := [name for name in records if archive.size(name) > _MAX_RECORD]:
        raise InputError(
            f"{source}: its record {printable(long[0])} is too long (expected at most {_MAX_RECORD} bytes)"
        )
    return tree, {name[len(prefix) :]: bytes(archive.read(name)) for name in records}


def _persistent_storage(value, length: int) -> tuple[_StorageType, str, int]:
    """Return type, key and number of elements of a storage from its persistent id."""
    if type(value) is not tuple or len(value) != length or value[0] != "storage":
        raise DamageError("a persistent id is not that of a storage")
    kind, key, _, count = value[1:5]
    if type(kind) is not _StorageType or type(key) is not str or type(count) is not int or count < 0:
        raise DamageError("a persistent id is not that of a storage")
    return kind, key, count


def _read_legacy(data: memoryview, budget: Budget) -> object:
    source = budget.source

    def rejected(value):
        raise DamageError("a persistent id where none belongs")

    known = _Tensors(budget).known()
    if data[:1] != b"\x80":
        raise InputError(f"{source}: not a file of torch.save. Name a checkpoint file.")
    magic, at = load_pickle(data, 0, budget, known, rejected)
    if type(magic) is not int or magic != MAGIC:
        raise InputError(f"{source}: a pickle, but not one of torch.save. {HINT}")
    protocol, at = load_pickle(data, at, budget, known, rejected)
    if type(protocol) is not int or protocol != PROTOCOL:
        raise InputError(f"{source}: unknown version of PyTorch's older format (expected {PROTOCOL}). {HINT}")
    _, at = load_pickle(data, at, budget, known, rejected)

    # The bytes of the tensors follow the pickle that describes them, so it is read twice: for the sizes, then for the
    # values.
    sizes: dict[str, tuple[np.dtype, int]] = {}
    storages: dict[str, memoryview] = {}

    def persistent(value) -> _Storage:
        kind, key, count = _persistent_storage(value, 6)
        if kind.dtype is None:
            raise DamageError("a storage has no dtype")
        view = value[5]
        if sizes.setdefault(key, (kind.dtype, count)) != (kind.dtype, count):
            raise DamageError("a storage has two sizes")
        whole = storages.get(key)
        if view is None or whole is None:
            return _Storage(kind.dtype, whole)
        if type(view) is not tuple or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
            raise DamageError("a view of a storage is not described by its key, offset and size")
        step = kind.dtype.itemsize
        first, last = view[1] * step, (view[1] + view[2]) * step
        if last > len(whole):
            raise DamageError("a view reaches beyond its storage")
        return _Storage(kind.dtype, whole[first:last])

    start = at
    _, at = load_pickle(data, start, budget, known, persistent)
    keys, at = load_pickle(data, at, budget, known, rejected)
    if type(keys) is not list or any(type(key) is not str for key in keys) or set(keys) != set(sizes):
        raise DamageError("the list of storages does not agree with the tensors")
    for key in keys:
        dtype, count = sizes[key]
        size = count * dtype.itemsize
        if at + 8 + size > len(data):
            raise DamageError("it is truncated: the bytes of its tensors end early")
        if struct.unpack_from("<q", data, at)[0] != count:
            raise DamageError("a storage and its tensors disagree about its size")
        storages[key] = data[at + 8 : at + 8 + size]
        at += 8 + size
    # The first reading charged the same tensors.
    budget.bytes = budget.limit
    return load_pickle(data, start, budget, known, persistent)[0]


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], extra: Mapping[str, bytes] | None = None) -> None:
    """Write a state dict as torch.save does; not atomic, see `files.atomic`.

    The file holds an OrderedDict of contiguous tensors that torch.load reads with `weights_only`. Its bytes depend on
    nothing but the tensors and `extra`.

    Args:
        path: file to write.
        tensors: arrays of a dtype that PyTorch has, by name, in this order.
        extra: records for the archive below `extra/`, which PyTorch ignores.

    Raises:
        InputError: an array has another dtype, or the operating system reports an error.
    """
    bodies: dict[str, memoryview] = {}
    for i, (name, array) in enumerate(tensors.items()):
        if array.dtype not in _STORAGES:
            known = ", ".join(str(dtype) for dtype in _STORAGES)
            raise InputError(f"{name}: cannot be written as {array.dtype} (expected one of {known})")
        contiguous = array if array.flags.c_contiguous else array.copy(order="C")
        bodies[f"archive/data/{i}"] = contiguous.reshape(-1).view(np.uint8).data
    records: dict[str, memoryview | bytes] = {
        "archive/data.pkl": _pickle(tensors),
        "archive/byteorder": b"little",
        **bodies,
        "archive/version": b"3\n",
        **{f"archive/extra/{name}": body for name, body in (extra or {}).items()},
    }
    with explained(path):
        write_zip(Path(path), records)


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the opcodes, of protocol 2, that torch.save writes for an OrderedDict of tensors."""
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", empty, b"("]
    for i, (name, array) in enumerate(tensors.items()):
        strides = [math.prod(max(size, 1) for size in array.shape[axis + 1 :]) for axis in range(array.ndim)]
        parts += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            f"ctorch\n{_STORAGES[array.dtype]}\n".encode("ascii"),
            _text(str(i)),
            _text("cpu"),
            _integer(array.size),
            b"tQ",
            _integer(0),
            _tuple(array.shape),
            _tuple(strides),
            b"\x89",
            empty,
            b"tR",
        ]
    return b"".join([*parts, b"u."])


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 256:
        return b"K" + struct.pack("<B", value)
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    body = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(body)]) + body


def _tuple(values) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
