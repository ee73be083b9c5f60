"""Weights in files: PyTorch's `.pt`, MindSpore's `.ckpt` and `.safetensors`, read and written with one meaning.

Whatever the file, the tensors come out under the official names, checked against the architecture that they make.
Neither PyTorch nor MindSpore is needed to read one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, UsageError, listed
from neonext_ms.common.files import atomic
from neonext_ms.models.architecture import BATCH_COUNTER, STATISTICS, Architecture
from neonext_ms.models.names import mindspore_name

from . import metadata as meta
from . import mindspore_ckpt, pytorch
from .infer_architecture import read_architecture
from .mapped_file import FLOATS, map_file, printable
from .state_dict import official_weights, select_weights

__all__ = ["SUFFIXES", "Checkpoint", "load_checkpoint", "read_architecture", "require_shifts", "save_checkpoint"]

SUFFIXES = {
    ".pt": "PyTorch",
    ".pth": "PyTorch",
    ".ckpt": "MindSpore",
    ".safetensors": "safetensors",
}
_EXTRA_RECORD = f"{meta.KEY}.json"
# Elements looked at together for NaN and infinity: small enough for the cache.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a NeoNeXt and what came with them.

    Attributes:
        path: the file.
        arrays: tensors by official name in the order of `Architecture.tensors()`, with the types of the file (float16,
            bfloat16 of ml_dtypes, float32 or float64); read-only views of the file where possible.
        architecture: read off names and shapes; its shifts are None unless they were given or recorded in the file.
        metadata: what travelled inside the file (`shifts`, `image_size`, `labels`, `preprocessing`, ...), or {}.
        notes: what a person should hear.
        counters: values of BatchNorm's `num_batches_tracked` by official name, as far as the file has them.
        format: "PyTorch", "MindSpore" or "safetensors".
    """

    path: str
    arrays: dict[str, np.ndarray]
    architecture: Architecture
    metadata: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    format: str = "PyTorch"

    @property
    def dtypes(self) -> list[str]:
        """Names of the types of the tensors, the most frequent one first."""
        names = [str(array.dtype) for array in self.arrays.values()]
        return sorted(set(names), key=lambda name: (-names.count(name), name))

    def float32(self) -> dict[str, np.ndarray]:
        """The arrays as contiguous, aligned float32; those that are so already are not copied (and are read-only).

        Raises:
            InputError: a float64 value is beyond the range of float32.
        """
        result = {}
        for name, array in self.arrays.items():
            with np.errstate(over="ignore"):
                result[name] = np.require(array, np.float32, ["C", "A"])
            if array.dtype == np.float64 and not _finite(result[name]):
                raise InputError(f"{self.path}: {name} has a value beyond the range of float32; rescale or check it")
        return result


def load_checkpoint(path: str | os.PathLike, shifts: Sequence[int] | None = None, ema: bool = False) -> Checkpoint:
    """Read a checkpoint, whatever its format, which is told by its content.

    Args:
        path: a file of torch.save, of mindspore.save_checkpoint, or of safetensors, with official or MindSpore names,
            a bare state dict or one inside a training checkpoint.
        shifts: the shift of each stage; files of other programs do not record it.
        ema: take the moving average of the weights that a training checkpoint holds beside the weights.

    Raises:
        InputError: the file cannot be read, or does not hold the weights of one NeoNeXt; each message names the file
            and every tensor that is wrong.
    """
    source = os.fspath(path)
    tree, texts, kind = _read(path)
    metadata, counted = meta.decode(texts[meta.KEY], source) if meta.KEY in texts else ({}, {})
    values, notes = select_weights(tree, source, ema)
    tensors, extras = official_weights(values, source)
    counters, arrays = {}, {}
    for name, array in tensors.items():
        if name.endswith(BATCH_COUNTER):
            counters[name] = _counter(array, name, source)
        else:
            arrays[name] = array
    architecture = read_architecture({name: array.shape for name, array in arrays.items()}, source)
    arrays = {name: arrays[name] for name in architecture.tensors()}
    counters = _check_counters({**counted, **counters}, architecture, source)
    _check_values(arrays, source)
    if extras:
        notes.append(f"left aside what is no weight: {', '.join(map(printable, extras[:8]))}{_more(extras, 8)}")
    _check_labels(metadata, architecture, source)
    return Checkpoint(
        path=source,
        arrays=arrays,
        architecture=_with_shifts(architecture, shifts, metadata.get("shifts"), source),
        metadata=metadata,
        notes=notes,
        counters=counters,
        format=kind,
    )


def require_shifts(checkpoint: Checkpoint) -> Architecture:
    """The architecture with its shifts.

    Raises:
        UsageError: they are neither given nor recorded in the file.
    """
    if checkpoint.architecture.shifts is None:
        raise UsageError(
            f"{checkpoint.path}: the file does not record the shifts of the stages, and a wrong value cannot be "
            "detected from the weights; pass --shifts a,b,c,d (the official models use 1,1,1,0 at 224 and 1,1,1,1 at "
            "384)"
        )
    return checkpoint.architecture


def save_checkpoint(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping | None = None,
    counters: Mapping[str, int] | None = None,
) -> None:
    """Write weights, atomically, in the format that the suffix names.

    `.pt` and `.pth` are what torch.save writes for the official model's state dict, `.safetensors` has the same names,
    `.ckpt` has MindSpore's. The types are kept.

    Args:
        path: where to write.
        arrays: every tensor of a NeoNeXt by its official name: float16, bfloat16, float32 or float64.
        metadata: what shall travel in the file, see `metadata.check`.
        counters: values of `num_batches_tracked` by official name; 0 for those left out.

    Raises:
        UsageError: the suffix is none of `.pt`, `.pth`, `.ckpt`, `.safetensors`.
        InputError: the arrays are not those of a NeoNeXt or hold NaN or infinity, or the file cannot be written.
    """
    path = Path(path)
    kind = format_for(path)
    source = f"{path} (to be written)"
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    architecture = read_architecture({name: array.shape for name, array in arrays.items()}, source)
    tensors = {name: arrays[name] for name in architecture.tensors()}
    _check_values(tensors, source)
    counters = _check_counters(dict(counters or {}), architecture, source)
    values = meta.check(dict(metadata or {}), source)
    _check_labels(values, architecture, source)
    if values.get("shifts"):
        _with_shifts(architecture, values["shifts"], None, source)
    with atomic(path) as staged:
        if kind == "MindSpore":
            renamed = {mindspore_name(name): array for name, array in tensors.items()}
            counters = {name: count for name, count in counters.items() if count}
            text = {meta.KEY: meta.encode(values, counters, source)} if values or counters else {}
            mindspore_ckpt.write(staged, renamed, text)
            return
        text = meta.encode(values, source=source) if values else None
        whole = _with_counters(tensors, counters)
        if kind == "PyTorch":
            pytorch.write(staged, whole, {_EXTRA_RECORD: text.encode("ascii")} if text else {})
        else:
            from . import safetensors_file

            safetensors_file.write(staged, whole, {"format": "pt", **({meta.KEY: text} if text else {})})


def format_for(path: str | os.PathLike) -> str:
    """The format that `save_checkpoint` writes for this name: "PyTorch", "MindSpore" or "safetensors".

    Raises:
        UsageError: another suffix.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UsageError(f"{os.fspath(path)}: unknown suffix {suffix!r}; end the name in one of {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def _read(path: str | os.PathLike) -> tuple[object, dict[str, str | bytes], str]:
    """The tree of values, the texts that came with them, and the format."""
    start = map_file(path)
    head = bytes(start[:512])
    if head[:2] == b"PK" or head[:1] == b"\x80" or head[257:262] == b"ustar":
        tree, extra = pytorch.read_with_extra(path)
        return tree, {meta.KEY: extra[_EXTRA_RECORD]} if _EXTRA_RECORD in extra else {}, "PyTorch"
    if len(head) > 8 and head[8] == 0x7B and not any(head[5:8]):
        from . import safetensors_file

        return *safetensors_file.read(path), "safetensors"
    if head[:1] == b"\x0a" or head[:4] == mindspore_ckpt.ENCRYPTED_MAGIC:
        values = mindspore_ckpt.read(path)
        texts = {name: text for name, text in values.items() if isinstance(text, str)}
        return {name: value for name, value in values.items() if name != meta.KEY}, texts, "MindSpore"
    raise InputError(f"{os.fspath(path)}: {_what(head)}; expected a checkpoint of PyTorch, MindSpore or safetensors")


def _what(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself (git lfs pull fetches it)"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not a checkpoint (the download failed)"
    if head.startswith(b"\x93NUMPY"):
        return "is a NumPy array"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip (unpack it first)"
    printing = sum(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head)
    return "is a text file" if printing == len(head) else "has an unknown format, or its beginning is damaged"


def _counter(array: np.ndarray, name: str, source: str) -> int:
    if array.size != 1 or array.dtype.kind not in "iu" or int(array.reshape(-1)[0]) < 0:
        raise InputError(
            f"{source}: {printable(name)} must be one whole number of at least 0, got {array.dtype} of shape "
            f"{array.shape}"
        )
    return int(array.reshape(-1)[0])


def _counter_names(architecture: Architecture) -> list[str]:
    ending = STATISTICS[1]
    return [name.removesuffix(ending) + BATCH_COUNTER for name in architecture.tensors() if name.endswith(ending)]


def _check_counters(counters: dict[str, int], architecture: Architecture, source: str) -> dict[str, int]:
    known = _counter_names(architecture)
    if unexpected := [name for name in counters if name not in known]:
        raise InputError(
            f"{source}: {len(unexpected)} unexpected counters of a BatchNorm that is not there:\n"
            + listed(map(printable, unexpected), 200)
        )
    if wrong := [name for name, count in counters.items() if not 0 <= int(count) < 1 << 63]:
        raise InputError(f"{source}: counters out of range:\n{listed(wrong, 200)}")
    return {name: int(counters[name]) for name in known if name in counters}


def _with_counters(tensors: Mapping[str, np.ndarray], counters: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The tensors with a `num_batches_tracked` behind every running variance, as in the official state dict."""
    result = {}
    for name, array in tensors.items():
        result[name] = array
        if name.endswith(STATISTICS[1]):
            counter = name.removesuffix(STATISTICS[1]) + BATCH_COUNTER
            result[counter] = np.array(counters.get(counter, 0), np.int64)
    return result


def _check_values(arrays: Mapping[str, np.ndarray], source: str) -> None:
    typed = [f"{name}: {array.dtype}" for name, array in arrays.items() if array.dtype not in FLOATS]
    if typed:
        raise InputError(
            f"{source}: {len(typed)} tensors are not of a floating type (float16, bfloat16, float32, float64); save "
            f"the weights before they are quantised:\n{listed(typed, 200)}"
        )
    wrong = []
    for name, array in arrays.items():
        if not _finite(array):
            wrong.append(f"{name}: NaN or infinity")
        elif name.endswith(STATISTICS[1]) and array.size and array.astype(np.float64).min() < 0:
            wrong.append(f"{name}: a negative variance")
    if wrong:
        raise InputError(
            f"{source}: {len(wrong)} tensors hold values that no model can work with; take a checkpoint from before "
            f"they went wrong:\n{listed(wrong, 200)}"
        )


def _finite(array: np.ndarray) -> bool:
    # All bits of the exponent are set in NaN and infinity, and only there; integers compare fast for every type.
    kinds = {"float16": ("u2", 0x7C00), "bfloat16": ("u2", 0x7F80), "float32": ("u4", 0x7F800000)}
    kind, exponent = kinds.get(array.dtype.name, ("u8", 0x7FF0000000000000))
    bits = (array if array.flags.c_contiguous else array.copy()).reshape(-1).view(kind)
    exponent = np.dtype(kind).type(exponent)
    return all(not ((bits[at : at + _CHUNK] & exponent) == exponent).any() for at in range(0, bits.size, _CHUNK))


def _check_labels(metadata: Mapping, architecture: Architecture, source: str) -> None:
    labels = metadata.get("labels")
    if labels is not None and len(labels) != architecture.num_classes:
        raise InputError(
            f"{source}: {len(labels)} labels for {architecture.num_classes} classes; give one label per class"
        )


def _with_shifts(
    architecture: Architecture, given: Sequence[int] | None, recorded: Sequence[int] | None, source: str
) -> Architecture:
    if given is not None and recorded is not None and tuple(given) != tuple(recorded):
        raise InputError(
            f"{source}: the file records the shifts {','.join(map(str, recorded))}, but {','.join(map(str, given))} "
            "were given; leave them out, or check which file this is"
        )
    shifts = given if given is not None else recorded
    if shifts is None:
        return architecture
    try:
        return architecture.with_shifts(shifts)
    except InputError as error:
        raise InputError(f"{source}: shifts {','.join(map(str, shifts))}: {error}") from error


def _more(items: Sequence, shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""
