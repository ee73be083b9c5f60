"""PyTorch's `.pt` files, both the zip archives and the older format, read and written without PyTorch.

Nothing in a file is executed: see `torch_pickle`. Tensors are views of the mapped file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained

from .mapped_file import BFLOAT16, array_view, damage_named, map_file, printable
from .pytorch_pickle import HINT, Known, load_pickle
from .pytorch_zip import StoredZip, write_zip

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

# Name of torch's dtype and of its storage class -> NumPy's.
_DTYPES = {
    "float16": ("HalfStorage", np.dtype("<f2")),
    "bfloat16": ("BFloat16Storage", BFLOAT16),
    "float32": ("FloatStorage", np.dtype("<f4")),
    "float64": ("DoubleStorage", np.dtype("<f8")),
    "int8": ("CharStorage", np.dtype("i1")),
    "uint8": ("ByteStorage", np.dtype("u1")),
    "int16": ("ShortStorage", np.dtype("<i2")),
    "int32": ("IntStorage", np.dtype("<i4")),
    "int64": ("LongStorage", np.dtype("<i8")),
    "bool": ("BoolStorage", np.dtype("?")),
}
_STORAGES = {dtype: storage for storage, dtype in _DTYPES.values()}

# NumPy 1.26 allows 32.
_MAX_AXES = 32


class _StorageType:
    """torch.FloatStorage and its like, torch.float32 and its like; `dtype` is None for UntypedStorage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype | None):
        self.dtype = dtype


class _Storage:
    """Bytes that tensors share; `data` is None while their place in the file is not known yet."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: np.dtype | None, data: memoryview | None):
        self.dtype = dtype
        self.data = data


class _Tensors:
    """What the globals of a torch.save file build, bounded by the size of the file."""

    def __init__(self, source: str, file_size: int):
        self.source = source
        # Expanded tensors take no room in the file. Whoever copies them must still have the memory.
        self.budget = self.limit = max(64 << 20, 8 * file_size)

    def known(self) -> dict[tuple[str, str], Known]:
        """The globals that a file may name."""
        table: dict[tuple[str, str], Known | _StorageType] = {
            ("collections", "OrderedDict"): Known("OrderedDict", _ordered_dict),
            ("torch", "Size"): Known("torch.Size", tuple),
            ("torch._utils", "_rebuild_tensor"): Known("_rebuild_tensor", self.rebuild),
            ("torch._utils", "_rebuild_tensor_v2"): Known("_rebuild_tensor_v2", self.rebuild_v2),
            ("torch._utils", "_rebuild_tensor_v3"): Known("_rebuild_tensor_v3", self.rebuild_v3),
            ("torch._utils", "_rebuild_parameter"): Known("_rebuild_parameter", _rebuild_parameter),
            ("torch.storage", "UntypedStorage"): _StorageType(None),
            ("torch", "UntypedStorage"): _StorageType(None),
        }
        for name, (storage, dtype) in _DTYPES.items():
            table["torch", name] = _StorageType(dtype)
            table["torch", storage] = table["torch.cuda", storage] = _StorageType(dtype)
        return table

    def rebuild(self, storage, offset, shape, strides, dtype: np.dtype | None = None) -> np.ndarray | None:
        if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
            raise ValueError("a tensor is built from something else than a storage")
        if len(shape) != len(strides) or len(shape) > _MAX_AXES:
            raise ValueError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
        dtype = dtype or storage.dtype
        if dtype is None:
            raise ValueError("a tensor has no type")
        if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
            raise ValueError("a tensor has a negative size, offset or stride")
        count = 1
        for size in shape:
            count *= size
        self.budget -= count * dtype.itemsize
        if self.budget < 0:
            raise InputError(
                f"{self.source}: its tensors are expanded to more than {self.limit >> 20} MiB, far more than the file "
                f"holds; make them contiguous, then {HINT}"
            )
        if storage.data is None:
            return None
        step = dtype.itemsize
        return array_view(storage.data, dtype, shape, offset * step, tuple(stride * step for stride in strides))

    def rebuild_v2(self, storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
        self._refuse_metadata(metadata)
        return self.rebuild(storage, offset, shape, strides)

    def rebuild_v3(self, storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
        self._refuse_metadata(metadata)
        if type(dtype) is not _StorageType:
            raise ValueError("a tensor has no type")
        return self.rebuild(storage, offset, shape, strides, dtype.dtype)

    def _refuse_metadata(self, metadata) -> None:
        # Conjugated or negated views: the bytes are not the values.
        if metadata:
            raise InputError(f"{self.source}: holds a tensor that is a conjugated or negated view; {HINT}")


def _ordered_dict(items=()) -> dict:
    if type(items) not in (tuple, list):
        raise ValueError("an OrderedDict is made of something else than pairs")
    result = {}
    for pair in items:
        if type(pair) not in (tuple, list) or len(pair) != 2 or type(pair[0]) not in (str, int):
            raise ValueError("an OrderedDict is made of something else than pairs")
        result[pair[0]] = pair[1]
    return result


def _rebuild_parameter(data, requires_grad=True, hooks=None):
    if data is not None and type(data) is not np.ndarray:
        raise ValueError("a parameter is built from something else than a tensor")
    return data


def read(path: str | os.PathLike) -> object:
    """What torch.save wrote, without PyTorch and without executing anything of it.

    Returns:
        A tree of dict, list, tuple, str, numbers, None and NumPy arrays. The arrays are read-only views of the file
        (bfloat16 has the type of ml_dtypes). The tree of a hostile file may contain itself.

    Raises:
        InputError: the file is not there, not written by torch.save, damaged, truncated, or names anything that is
            not a tensor; the message says what it is, and what to do.
    """
    return read_with_extra(path)[0]


def read_with_extra(path: str | os.PathLike) -> tuple[object, dict[str, bytes]]:
    """As `read`, with the records below `extra/` that `write` adds to the archive."""
    source = os.fspath(path)
    data = map_file(path)
    with damage_named(path, "a PyTorch file"):
        if data[:2] == b"PK":
            return _read_zip(data, source)
        if data[257:262] == b"ustar":
            raise InputError(f"{source}: is a tar archive as PyTorch wrote before 0.1.10; re-save it with PyTorch")
        return _read_legacy(data, source), {}


def _read_zip(data: memoryview, source: str) -> tuple[object, dict[str, bytes]]:
    archive = StoredZip(data, source)
    roots = [name.removesuffix("/data.pkl") for name in archive.entries if name.count("/") == 1]
    roots = [root for root in roots if f"{root}/data.pkl" in archive.entries]
    if len(set(roots)) != 1:
        raise InputError(
            f"{source}: is a zip archive, but not one of torch.save (it has no data.pkl); name a checkpoint file"
        )
    root = roots[0]
    order = "little"
    if f"{root}/byteorder" in archive.entries:
        order = bytes(archive.read(f"{root}/byteorder")[:16]).decode("ascii").strip()
    if order not in ("little", "big"):
        raise InputError(f"{source}: damaged, its byte order is {printable(order)}; expected little or big")
    storages: dict[str, _Storage] = {}

    def persistent(value):
        kind, key, count = _persistent_storage(value, 5)
        if key not in storages:
            step = kind.dtype.itemsize if kind.dtype else 1
            name = f"{root}/data/{key}"
            if archive.size(name) < count * step:
                raise InputError(
                    f"{source}: damaged, {printable(name)} has {archive.size(name)} bytes of {count * step}"
                )
            body = archive.read(name)[: count * step]
            if order == "big":
                if kind.dtype is None:
                    raise InputError(f"{source}: an untyped tensor of a big-endian machine cannot be read; {HINT}")
                body = memoryview(np.frombuffer(body, f"u{step}").byteswap().view(np.uint8))
            storages[key] = _Storage(kind.dtype, body)
        if kind.dtype != storages[key].dtype and order == "big":
            raise ValueError("a storage has two types")
        return _Storage(kind.dtype, storages[key].data)

    tensors = _Tensors(source, len(data))
    tree, _ = load_pickle(archive.read(f"{root}/data.pkl"), 0, source, tensors.known(), persistent)
    prefix = f"{root}/extra/"
    extra = {name[len(prefix) :]: name for name in archive.entries if name.startswith(prefix)}
    return tree, {name: bytes(archive.read(entry)) for name, entry in extra.items()}


def _persistent_storage(value, length: int) -> tuple[_StorageType, str, int]:
    if type(value) is not tuple or len(value) != length or value[0] != "storage":
        raise ValueError("a persistent id is not that of a storage")
    kind, key, _, count = value[1:5]
    if type(kind) is not _StorageType or type(key) is not str or type(count) is not int or count < 0:
        raise ValueError("a persistent id is not that of a storage")
    return kind, key, count


def _read_legacy(data: memoryview, source: str) -> object:
    def nothing(value):
        raise ValueError("a persistent id where none belongs")

    tensors = _Tensors(source, len(data))
    known = tensors.known()
    if data[:1] != b"\x80":
        raise InputError(f"{source}: is not a file of torch.save; name a checkpoint file")
    magic, at = load_pickle(data, 0, source, known, nothing)
    if type(magic) is not int or magic != MAGIC:
        raise InputError(f"{source}: is a pickle, but not one of torch.save; {HINT}")
    protocol, at = load_pickle(data, at, source, known, nothing)
    if type(protocol) is not int or protocol != PROTOCOL:
        raise InputError(f"{source}: unknown version of PyTorch's older format (expected {PROTOCOL}); {HINT}")
    _, at = load_pickle(data, at, source, known, nothing)

    # The tensors' bytes come after the pickle that describes them, so it is read twice: for the sizes, then the values.
    sizes: dict[str, tuple[np.dtype, int]] = {}
    storages: dict[str, memoryview] = {}

    def persistent(value):
        kind, key, count = _persistent_storage(value, 6)
        if kind.dtype is None:
            raise ValueError("a storage has no type")
        view = value[5]
        if sizes.setdefault(key, (kind.dtype, count)) != (kind.dtype, count):
            raise ValueError("a storage has two sizes")
        whole = storages.get(key)
        if view is None or whole is None:
            return _Storage(kind.dtype, whole)
        if type(view) is not tuple or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
            raise ValueError("a view of a storage is not described by its key, offset and size")
        step = kind.dtype.itemsize
        first, last = view[1] * step, (view[1] + view[2]) * step
        if last > len(whole):
            raise ValueError("a view reaches beyond its storage")
        return _Storage(kind.dtype, whole[first:last])

    start = at
    _, at = load_pickle(data, start, source, known, persistent)
    keys, at = load_pickle(data, at, source, known, nothing)
    if type(keys) is not list or any(type(key) is not str for key in keys) or set(keys) != set(sizes):
        raise ValueError("the list of storages does not agree with the tensors")
    for key in keys:
        dtype, count = sizes[key]
        if at + 8 + count * dtype.itemsize > len(data):
            raise InputError(f"{source}: is truncated: the bytes of its tensors end early; get the file again")
        if struct.unpack_from("<q", data, at)[0] != count:
            raise ValueError("a storage has another size than its tensors say")
        storages[key] = data[at + 8 : at + 8 + count * dtype.itemsize]
        at += 8 + count * dtype.itemsize
    tensors = _Tensors(source, len(data))
    return load_pickle(data, start, source, tensors.known(), persistent)[0]


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], extra: Mapping[str, bytes] | None = None) -> None:
    """Write a state dict as torch.save does: an OrderedDict of contiguous tensors that torch.load reads safely.

    The bytes depend on nothing but the arguments.

    Args:
        path: where to write; the name of the file has no influence on its content. Not atomic: see `files.atomic`.
        tensors: arrays of a type that PyTorch has, by name, in this order.
        extra: records that travel in the archive below `extra/`, which PyTorch does not look at.

    Raises:
        InputError: an array of another type, or an error of the operating system.
    """
    bodies: dict[str, memoryview] = {}
    for i, (name, array) in enumerate(tensors.items()):
        if array.dtype not in _STORAGES:
            known = ", ".join(str(dtype) for dtype in _STORAGES)
            raise InputError(f"{name}: cannot be written as {array.dtype}; convert it to one of {known}")
        whole = array if array.flags.c_contiguous else array.copy(order="C")
        bodies[f"archive/data/{i}"] = memoryview(whole.reshape(-1).view(np.uint8))
    records = {
        "archive/data.pkl": _pickle(tensors),
        "archive/byteorder": b"little",
        **bodies,
        "archive/version": b"3\n",
        **{f"archive/extra/{name}": body for name, body in (extra or {}).items()},
    }
    with explained(path):
        write_zip(Path(path), records)


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The opcodes, of protocol 2, that torch.save writes for an OrderedDict of tensors."""
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", empty, b"("]
    for i, (name, array) in enumerate(tensors.items()):
        strides, step = [], 1
        for size in reversed(array.shape):
            strides.insert(0, step)
            step *= max(size, 1)
        storage = _STORAGES[array.dtype]
        parts += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            f"ctorch\n{storage}\n".encode("ascii"),
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
