"""Checkpoints: `.pt` of PyTorch, `.ckpt` of MindSpore, and `.safetensors`, read and written with one meaning.

For every format the tensors come out under their official names, checked against the architecture that they form.
Neither PyTorch nor MindSpore is needed to read a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import atomic
from neonext_ms.common.text import list_names, plural
from neonext_ms.models.architecture import BATCH_COUNTER, STATISTICS, Architecture
from neonext_ms.models.names import mindspore_name

from . import metadata as meta
from . import mindspore_ckpt, pytorch, safetensors_file
from .budget import Budget
from .infer_architecture import infer_architecture
from .mapped_file import FLOATS, map_file, printable
from .state_dict import select_state_dict

# Suffix -> format that is written.
SUFFIXES = {".pt": "PyTorch", ".pth": "PyTorch", ".ckpt": "MindSpore", ".safetensors": "safetensors"}
_EXTRA_RECORD = f"{meta.KEY}.json"
# Elements that are checked for NaN and infinity at a time; they fit into the cache.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a NeoNeXt and the metadata of their file.

    Attributes:
        path: file name.
        arrays: tensors by official name in the order of `Architecture.tensors()`, in the dtypes of the file (float16,
            bfloat16 of ml_dtypes, float32 or float64); read-only views of the file where possible.
        architecture: options inferred from names and shapes; its shifts are None unless they were passed or recorded,
            and its activation is GELU unless another one was.
        metadata: metadata of the file (`shifts`, `activation`, `image_size`, `labels`, `preprocessing`, ...), or {}.
        notes: messages to show to the user.
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
        """Names of the dtypes of the tensors, the most frequent one first."""
        names = [str(array.dtype) for array in self.arrays.values()]
        return sorted(set(names), key=lambda name: (-names.count(name), name))

    def float32(self) -> dict[str, np.ndarray]:
        """Return the arrays as contiguous, aligned float32.

        An array that is so already is not copied and stays read-only.

        Raises:
            InputError: a float64 value is beyond the range of float32.
        """
        return self.cast("float32")

    def cast(self, dtype: str) -> dict[str, np.ndarray]:
        """Return the arrays in another dtype (`float16` or `float32`), rounded to nearest even, contiguous and aligned.

        Raises:
            InputError: a value is beyond the range of the dtype, or a variance becomes 0.
        """
        result = {}
        for name, array in self.arrays.items():
            with np.errstate(over="ignore"):
                result[name] = np.require(array, dtype, ["C", "A"])
            if array.dtype == dtype:
                continue
            if not _is_finite(result[name]):
                raise InputError(f"{self.path}: {name} has a value beyond the range of {dtype}. Check or rescale it.")
            if name.endswith("running_var") and np.any((result[name] == 0) & (array != 0)):
                raise InputError(f"{self.path}: {name} has a value that is 0 in {dtype}. Keep its dtype.")
        return result


def load_checkpoint(
    path: str | os.PathLike,
    shifts: Sequence[int] | None = None,
    ema: bool = False,
    key: str | None = None,
    activation: str | None = None,
) -> Checkpoint:
    """Load a checkpoint of any format; its content decides which.

    Args:
        path: file written by torch.save, mindspore.save_checkpoint or safetensors, of any name, with official or
            MindSpore names below any keys and prefixes.
        shifts: shift of each stage, which files of other programs do not record.
        ema: whether to take the moving average that a training checkpoint holds beside the weights.
        key: key or prefix of the weights, such as `teacher` or `model.backbone`, if the file holds several models.
        activation: activation, for a file that records none and is not of a network with GELU.

    Raises:
        InputError: the file cannot be read, or does not hold the weights of one NeoNeXt. The message names the file
            and every wrong tensor.
    """
    source = os.fspath(path)
    budget = Budget(source, os.path.getsize(path) if os.path.isfile(path) else 0)
    tree, text, kind = _read(path, budget)
    metadata, recorded = meta.decode(text, source) if text is not None else ({}, {})
    tensors, notes = select_state_dict(tree, budget, ema, key)
    arrays = {name: array for name, array in tensors.items() if not name.endswith(BATCH_COUNTER)}
    architecture = infer_architecture({name: array.shape for name, array in arrays.items()}, source)
    arrays = {name: arrays[name] for name in architecture.tensors()}
    # Many names may share the bytes of one tensor.
    budget.bytes = budget.limit
    for array in arrays.values():
        budget.expand(array.nbytes)
    counters, lost = _counters({name: array for name, array in tensors.items() if name not in arrays}, source)
    counters = _check_counters({**recorded, **counters}, architecture, source)
    if lost:
        notes.append(
            f"ignored {plural(lost, 'counter')} num_batches_tracked that a narrow dtype has turned into infinity; they "
            "do not change the outputs"
        )
    _check_values(arrays, source)
    _check_labels(metadata, architecture, source)
    architecture = _with_shifts(architecture, shifts, metadata.get("shifts"), source)
    architecture = _with_activation(architecture, activation, metadata.get("activation"), source)
    return Checkpoint(source, arrays, architecture, metadata, notes, counters, kind)


def require_shifts(checkpoint: Checkpoint) -> Architecture:
    """Return the architecture of a checkpoint whose shifts are known.

    Raises:
        UsageError: the shifts were neither passed nor recorded in the file.
    """
    if checkpoint.architecture.shifts is None:
        raise UsageError(
            f"{checkpoint.path}: the file does not record the shifts of the stages, and a wrong value cannot be "
            "detected from the weights. Pass --shifts a,b,c,d (the official models use 1,1,1,0 at 224 and 1,1,1,1 at "
            "384)."
        )
    return checkpoint.architecture


def save_checkpoint(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping | None = None,
    counters: Mapping[str, int] | None = None,
) -> None:
    """Write weights atomically in the format of the suffix, without changing their dtypes.

    `.pt` and `.pth` are what torch.save writes for the official model's state dict, `.safetensors` has the same names,
    `.ckpt` has MindSpore's.

    Args:
        path: file to write.
        arrays: every tensor of a NeoNeXt by its official name: float16, bfloat16, float32 or float64.
        metadata: metadata to record in the file, see `metadata.check`.
        counters: values of `num_batches_tracked` by official name; 0 for missing ones.

    Raises:
        UsageError: the suffix is not `.pt`, `.pth`, `.ckpt` or `.safetensors`.
        InputError: the arrays are not those of a NeoNeXt or hold NaN or infinity, or the file cannot be written.
    """
    path = Path(path)
    kind = format_for(path)
    source = f"{path} (not written)"
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    architecture = infer_architecture({name: array.shape for name, array in arrays.items()}, source)
    tensors = {name: arrays[name] for name in architecture.tensors()}
    _check_values(tensors, source)
    counters = _check_counters(dict(counters or {}), architecture, source)
    values = meta.check(dict(metadata or {}), source)
    _check_labels(values, architecture, source)
    _with_shifts(architecture, values.get("shifts"), None, source)
    with atomic(path) as staged:
        if kind == "MindSpore":
            # The format has no place for the counters, so they go into the metadata.
            renamed = {new: array for name, array in tensors.items() if (new := mindspore_name(name))}
            counters = {name: count for name, count in counters.items() if count}
            strings = {meta.KEY: meta.encode(values, counters, source)} if values or counters else {}
            mindspore_ckpt.write(staged, renamed, strings)
            return
        text = meta.encode(values, source=source) if values else ""
        official = _with_counters(tensors, counters)
        if kind == "PyTorch":
            pytorch.write(staged, official, {_EXTRA_RECORD: text.encode("ascii")} if text else {})
        else:
            safetensors_file.write(staged, official, {"format": "pt", **({meta.KEY: text} if text else {})})


def format_for(path: str | os.PathLike) -> str:
    """Return the format that `save_checkpoint` writes for a file name: "PyTorch", "MindSpore" or "safetensors".

    Raises:
        UsageError: unknown suffix.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UsageError(f"{os.fspath(path)}: unknown suffix (got {suffix!r}, expected one of {', '.join(SUFFIXES)})")
    return SUFFIXES[suffix]


def format_of(path: str | os.PathLike) -> str | None:
    """Return the format of a checkpoint by its content: "PyTorch", "MindSpore" or "safetensors", or None.

    Raises:
        InputError: the file does not exist, is empty, or is not a regular file.
    """
    return _format_of(bytes(map_file(path)[:512]))


def _format_of(head: bytes) -> str | None:
    # First, because the length of the header may begin with the bytes of another format.
    if safetensors_file.header_size(head) is not None:
        return "safetensors"
    if head[:2] == b"PK" or head[:1] == b"\x80" or head[257:262] == b"ustar":
        return "PyTorch"
    if head[:1] == b"\x0a" or head[:4] == mindspore_ckpt.ENCRYPTED_MAGIC:
        return "MindSpore"
    return None


def _read(path: str | os.PathLike, budget: Budget) -> tuple[object, str | bytes | None, str]:
    """Return the values of a file, the text of its metadata if there is any, and the format."""
    head = bytes(map_file(path)[:512])
    kind = _format_of(head)
    if kind == "PyTorch":
        tree, extra = pytorch.read(path, budget)
        return tree, extra.get(_EXTRA_RECORD), kind
    if kind == "safetensors":
        arrays, strings = safetensors_file.read(path, budget)
        return arrays, strings.get(meta.KEY), kind
    if kind == "MindSpore":
        values = mindspore_ckpt.read(path, budget)
        text = values.pop(meta.KEY, None)
        return values, text if isinstance(text, str) else None, kind
    problem = _unknown_content(head)
    raise InputError(f"{os.fspath(path)}: {problem} (expected a checkpoint of PyTorch, MindSpore or safetensors)")


def _unknown_content(head: bytes) -> str:
    for matches, problem in (
        (head.startswith(b"version https://git-lfs"), "a Git LFS pointer instead of the file; run git lfs pull"),
        (head.lstrip()[:1] == b"<", "a web page; the download failed"),
        (head.startswith(b"\x93NUMPY"), "a NumPy array"),
        (head.startswith(b"\x1f\x8b"), "compressed with gzip; decompress it first"),
        (head.lstrip()[:1] == b"{", "a JSON file; if it is the index of several files, join their tensors in one"),
        (all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head), "a text file"),
    ):
        if matches:
            return problem
    return "unknown format, or damaged at the start"


def _counters(arrays: Mapping[str, np.ndarray], source: str) -> tuple[dict[str, int], int]:
    """Return the BatchNorm counters, and the number of those that a cast to a narrow dtype has turned into infinity."""
    counters, lost = {}, 0
    for name, array in arrays.items():
        value = array.reshape(-1)[0] if array.size == 1 and (array.dtype in FLOATS or array.dtype.kind in "iu") else -1
        if array.dtype in FLOATS and not np.isfinite(value):
            lost += 1
        elif value < 0 or int(value) != value:
            raise InputError(
                f"{source}: {printable(name)} must be one whole number of at least 0 (got {array.dtype} of shape "
                f"{array.shape})"
            )
        else:
            counters[name] = int(value)
    return counters, lost


def _check_counters(counters: dict[str, int], architecture: Architecture, source: str) -> dict[str, int]:
    """Return the counters in the order of the BatchNorms; reject those of a BatchNorm that does not exist."""
    ending = STATISTICS[1]
    variances = (name for name in architecture.tensors() if name.endswith(ending))
    known = dict.fromkeys(name.removesuffix(ending) + BATCH_COUNTER for name in variances)
    if unexpected := [name for name in counters if name not in known]:
        names = list_names(map(printable, unexpected), 200)
        raise InputError(f"{source}: {len(unexpected)} unexpected counters, of no BatchNorm of the model:\n{names}")
    if wrong := [name for name, count in counters.items() if not 0 <= int(count) < 1 << 63]:
        raise InputError(f"{source}: counters out of range:\n{list_names(wrong, 200)}")
    return {name: int(counters[name]) for name in known if name in counters}


def _with_counters(tensors: Mapping[str, np.ndarray], counters: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the tensors with `num_batches_tracked` after every running variance, as in the official state dict."""
    result = {}
    for name, array in tensors.items():
        result[name] = array
        if name.endswith(STATISTICS[1]):
            counter = name.removesuffix(STATISTICS[1]) + BATCH_COUNTER
            result[counter] = np.array(counters.get(counter, 0), np.int64)
    return result


def _check_values(arrays: Mapping[str, np.ndarray], source: str) -> None:
    if integers := [f"{name}: {array.dtype}" for name, array in arrays.items() if array.dtype not in FLOATS]:
        raise InputError(
            f"{source}: {len(integers)} tensors are not floating-point (expected float16, bfloat16, float32 or "
            f"float64). Save the weights before they are quantized.\n{list_names(integers, 200)}"
        )
    wrong = []
    for name, array in arrays.items():
        if not _is_finite(array):
            wrong.append(f"{name}: NaN or infinity")
        elif name.endswith(STATISTICS[1]) and array.size and array.astype(np.float64).min() < 0:
            wrong.append(f"{name}: a negative variance")
    if wrong:
        raise InputError(
            f"{source}: {len(wrong)} tensors have invalid values. Use a checkpoint from before the training diverged."
            f"\n{list_names(wrong, 200)}"
        )


def _is_finite(array: np.ndarray) -> bool:
    # NaN and infinity are the values whose exponent bits are all set. Integers compare fast for every dtype, also for
    # bfloat16, which NumPy knows as an extension only.
    kinds = {"float16": ("u2", 0x7C00), "bfloat16": ("u2", 0x7F80), "float32": ("u4", 0x7F800000)}
    kind, exponent_bits = kinds.get(array.dtype.name, ("u8", 0x7FF0000000000000))
    bits = (array if array.flags.c_contiguous else array.copy()).reshape(-1).view(kind)
    exponent = np.dtype(kind).type(exponent_bits)
    return all(not ((bits[at : at + _CHUNK] & exponent) == exponent).any() for at in range(0, bits.size, _CHUNK))


def _check_labels(metadata: Mapping, architecture: Architecture, source: str) -> None:
    labels = metadata.get("labels")
    if labels is not None and len(labels) != architecture.num_classes:
        raise InputError(f"{source}: {len(labels)} labels for {architecture.num_classes} classes. Give one per class.")


def _with_shifts(
    architecture: Architecture, passed: Sequence[int] | None, recorded: Sequence[int] | None, source: str
) -> Architecture:
    """Return the architecture with the shifts that were passed or recorded; the two must not contradict each other."""
    shifts = passed if passed is not None else recorded
    if shifts is None:
        return architecture
    text = ",".join(map(str, shifts))
    if recorded is not None and tuple(shifts) != tuple(recorded):
        raise InputError(
            f"{source}: the file records the shifts {','.join(map(str, recorded))} (got {text}). Leave them out, or "
            "check which file this is."
        )
    try:
        return architecture.with_shifts(shifts)
    except InputError as error:
        raise InputError(f"{source}: shifts {text}: {error}") from error


def _with_activation(architecture: Architecture, passed: str | None, recorded: str | None, source: str) -> Architecture:
    """Return the architecture with the activation that was passed or recorded, GELU by default, as `_with_shifts`."""
    if passed is not None and recorded not in (None, passed):
        raise InputError(
            f"{source}: the file records the activation {recorded} (got {passed}). Leave it out, or check which file "
            "this is."
        )
    activation = passed or recorded
    return architecture if activation is None else architecture.with_activation(activation)
