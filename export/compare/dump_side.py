"""Activations that a board dumped to files: which file holds which value, and how to read its bytes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import atomic, check_distinct, check_regular, explained, read_json
from neonext_ms.common.npy import npy_dtype, read_npy
from neonext_ms.common.text import format_size, list_names, nearest, plural

from .dump_folders import open_folder
from .side import Activations, Node, aligned

_DTYPES = ("float32", "float16", "float64")


@dataclass(frozen=True)
class DumpFile:
    """A file of a dump, as its name describes it.

    Attributes:
        path: the file.
        op: operator name as the file name spells it; empty for a final value.
        index: number of the output.
        run: number of the execution (the folder `data_index` of an acl dump), or -1.
        shape: shape in the file name, or None.
    """

    path: Path
    op: str
    index: int = 0
    run: int = -1
    shape: tuple[int, ...] | None = None


_CONVERTED = re.compile(r"\.output\.(\d+)(?:\.(\d+(?:x\d+)*))?$")
_INPUT = re.compile(r"\.input\.\d+(?:\.\d+(?:x\d+)*)?$")
# Type, operator, task, stream, timestamp and perhaps more numbers; older releases have no stream. A name with two
# numbers is the documented `operator.output.timestamp` too, so it counts as raw only where `.output.` says so.
_RAW = re.compile(r"^\w+\.(.+?)(?:\.\d+){3,}$")
_RAW_OLDER = re.compile(r"^\w+\.([\w-]+)(?:\.\d+){2}$")
# Names in the documentation of msprobe lack an operator or a task.
_RAW_FILE = re.compile(r"^\w+(?:\.[\w-]+)+(?:\.\d+)*\.\d{10,}$")
_NPY = re.compile(r"^(.+)\.(\d+)\.(\d{10,})$")
_SLICE = re.compile(r"_lxslice\d+$")
_BENCH = re.compile(r"^(pure_infer_data|input(?:_\d+)?)_(\d+)$")
# CANN's ONNX parser replaces some nodes by several, named `PartitionedCall_<node>_<part>_<counter>`
# (ExpandNodeToSubgraph in hicann/ge parser/parser/common/parser_utils.cc; the plugins that om/onnx_plugins.csv lists
# name the parts). Of the parts of one node, the first in this list that was dumped has its value; parts that are not
# listed have other values.
_VALUE_PARTS = ("add", "LayerNorm", "MatMulV2", "ReduceMean", "Transpose", "ConcatD", "ClipByValue", "gatherv2")
_PART = re.compile(rf"PartitionedCall_((?:(?!PartitionedCall_).)+)_({'|'.join(_VALUE_PARTS)})_\d+(?:_0)?$")


def parse_dump_name(path: Path) -> DumpFile | None:
    """Parse the name of a `.npy` or `.bin` file; docs/deploy.md lists the forms.

    Returns:
        the file's operator and output, or None for the dump of an input or of a slice of an operator.
    """
    stem = path.name[: -len(path.suffix)]
    run = int(path.parent.name) if path.parent.name.isascii() and path.parent.name.isdigit() else -1
    if _INPUT.search(stem):
        return None
    index, shape = 0, None
    if converted := _CONVERTED.search(stem):
        index, stem = int(converted[1]), stem[: converted.start()]
        shape = tuple(map(int, converted[2].split("x"))) if converted[2] else None
    if match := _RAW.match(stem) or (_RAW_OLDER.match(stem) if converted else None):
        op = match[1]
    elif match := _NPY.match(stem):
        op, index = match[1], int(match[2])
    elif match := _BENCH.match(stem):
        return DumpFile(path, "", int(match[2]), run)
    else:
        op = stem
    return None if _SLICE.search(op) else DumpFile(path, op, index, run, shape)


def mangled(name: str) -> str:
    """Return a name as a dump spells it: `.`, `/`, `\\` and blanks become `_`."""
    return re.sub(r"[./\\\s]", "_", name)


class DumpActivations(Activations):
    """A folder of values dumped on a board: `.npy`, or `.bin` with the shapes of the other side.

    Call `bind` before `values`, with the model that was compiled for the board or with its checkpoint: the same
    operators compute other values before folding than after it. The board computed the values from images that this
    program has not seen.

    Raises:
        InputError: no such folder, or no file in it that could hold a value.
    """

    kind = "dump"
    dtype = "float16"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        folder = open_folder(path)
        self.dtype, self.inputs, self.notes = folder.dtype, folder.inputs, [*folder.notes]
        parsed = [
            (path, parse_dump_name(path.with_name(name)))
            for path, name in folder.files.items()
            if path.suffix in (".npy", ".bin")
        ]
        self._files = [replace(file, path=path) for path, file in parsed if file is not None]
        raw = [path for path in folder.files if _RAW_FILE.match(path.name)]
        if not self._files:
            hint = "expected .npy or .bin files"
            if raw:
                hint = (
                    f"{len(raw)} files such as {raw[0].name} are raw dumps; convert them first: "
                    "python3 msaccucmp.py convert -d FOLDER -out FOLDER.npy -t npy"
                )
            raise InputError(f"{self.path}: no dumped values here; {hint}")
        if raw:
            self.notes.append(f"{self.path}: ignored {len(raw)} raw dumps. Convert them with msaccucmp.py.")
        self._matched: dict[str, list[DumpFile]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.unmatched: list[str] = []

    def bind(self, other: Activations) -> None:
        """Match the files with the values of the other side; the rest is listed in `unmatched`.

        Raises:
            InputError: no file that matches any value of the other side.
        """
        self.factors = other.factors
        known: dict[str, str] = {}
        for name in (*other.outputs, *other.names):
            known.setdefault(mangled(name), name)
        # Dumps are named after operators, so the name of an operator goes before that of a value.
        for node in other.nodes:
            if node.name and node.outputs and node.outputs[0] in {*other.names, *other.outputs}:
                known[mangled(node.name)] = node.outputs[0]
        known.update((mangled(name), value) for name, value in other.aliases.items())
        produced = {node.outputs[0]: node.outputs for node in other.nodes if node.outputs}
        self._matched, self.unmatched = {}, []
        parts: dict[str, dict[str, list[DumpFile]]] = {}
        for file in self._without_integers(other):
            value = _value_of(file, known, produced, other.outputs)
            part = _PART.search(mangled(file.op))
            if value is None and part and file.index == 0 and part[1] in known:
                parts.setdefault(known[part[1]], {}).setdefault(part[2], []).append(file)
            elif value is None:
                self._unmatch([file])
            else:
                self._matched.setdefault(value, []).append(file)
        self._match_parts(parts, {node.outputs[0]: node for node in other.nodes if node.outputs})
        self._prefer_outputs()
        if not self._matched:
            raise InputError(
                f"{self.path}: none of {len(self._files)} files belongs to a value of {other.path}; expected names "
                f"such as {mangled((other.outputs or ('logits',))[0])}.npy; found:\n" + list_names(self.unmatched, 8)
            )
        norms = [node.outputs[0] for node in other.nodes if node.op == "BatchNormalization"]
        inner = set(self._matched) - set(other.outputs)
        if norms and inner and not other.aliases and not inner & set(norms):
            self.notes.append(
                f"{self.path}: the dump has no BatchNorm, but {other.path} has {len(norms)}. Compare with the ONNX "
                "file that was compiled for the board, or with the checkpoint: an operator computes another value "
                "once BatchNorm is folded into it."
            )
        self.outputs = tuple(name for name in other.outputs if name in self._matched)
        if self.outputs and (missing := [name for name in other.outputs if name not in self._matched]):
            raise InputError(
                f"{self.path}: no file holds {', '.join(missing)}, which {other.path} computes too, so the outputs "
                "cannot be said to agree. Dump all outputs."
            )
        order = dict.fromkeys((*other.names, *other.outputs))
        self.names = tuple(name for name in order if name in self._matched)
        self._shapes = {name: shape for name in self.names if (shape := other.shape(name)) is not None}
        self.input_size = other.input_size

    def _without_integers(self, other: Activations) -> list[DumpFile]:
        """Return the files but the codes and sums of layers in 8 bit.

        The node that computes the sums has the name of the layer, whose own value AscendDequant computes.
        """
        files = [file for file in self._files if not _holds_integers(file)]
        count = len(self._files) - len(files)
        self.int8 = other.int8 or count > 0
        if count:
            self.notes.append(f"{self.path}: {plural(count, 'file')} of integers, as in layers in 8 bit, not compared")
        if count and not other.int8:
            self.notes.append(
                f"{other.path}: not in 8 bit. The dump may hold channels divided by the factors of equalization, which "
                "the 8-bit ONNX file records: compare its layers with that file."
            )
        return files

    def _unmatch(self, files: Sequence[DumpFile]) -> None:
        self.unmatched += [str(file.path.relative_to(self.path)) for file in files]

    def _match_parts(self, parts: Mapping[str, Mapping[str, list[DumpFile]]], nodes: Mapping[str, Node]) -> None:
        """Match the parts of the nodes that the parser expanded: value -> part -> files."""
        for value, files in parts.items():
            # What the model returned goes before any part.
            best = None if value in self._matched else min(files, key=_VALUE_PARTS.index)
            for part, others in files.items():
                if part == best:
                    self._matched[value] = others
                else:
                    self._unmatch(others)
            node = nodes.get(value)
            if best == "MatMulV2" and node is not None and node.op == "Gemm" and len(node.inputs) > 2:
                self.notes.append(
                    f"{self.path}: of {value} only the product was dumped, not the addition of its bias. It is right "
                    "only if CANN fused the two."
                )

    def _prefer_outputs(self) -> None:
        """Keep what the model returned where the operator that computes it was dumped, too."""
        for value, files in self._matched.items():
            returned = [file for file in files if not file.op]
            if returned and len(returned) < len(files):
                self.unmatched += [str(file.path.relative_to(self.path)) for file in files if file.op]
                self._matched[value] = returned

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        for name in self.names if names is None else names:
            if name not in self._matched:
                raise InputError(f"{self.path}: there is no value {name!r}{nearest(name, self._matched)}")
            files = sorted(self._matched[name], key=lambda file: (file.run, str(file.path)))
            shape = self._shapes.get(name)
            value = np.concatenate([_read(file, shape, max(len(images) // len(files), 1)) for file in files])
            if len(value) > len(images):
                raise InputError(
                    f"{self.path}: {name} was dumped for {len(value)} images, but {len(images)} are compared. Give the "
                    "images of the board with --inputs or --samples."
                )
            yield name, self._unscaled(name, value)


def _value_of(
    file: DumpFile, known: Mapping[str, str], produced: Mapping[str, Sequence[str]], outputs: Sequence[str]
) -> str | None:
    """Return the value that a file holds, or None.

    Args:
        file: the file.
        known: mangled names of operators and values -> values.
        produced: first output of every operator -> all its outputs.
        outputs: final values.
    """
    if not file.op:
        return outputs[file.index] if file.index < len(outputs) else None
    op = mangled(file.op)
    if op.startswith("input_") and op not in known:
        # An input of an operator, as msprobe names it.
        return None
    name = known.get(op) or known.get(_last_part(op, known) or "")
    if name is not None and file.index:
        siblings = produced.get(name, (name,))
        name = siblings[file.index] if file.index < len(siblings) else None
    if name is None and (match := re.fullmatch(r"(.+)_(\d+)", op)) and int(match[2]) == 0:
        # Tools append the number of the output.
        name = known.get(match[1])
    return name


def _holds_integers(file: DumpFile) -> bool:
    return file.path.suffix == ".npy" and npy_dtype(file.path).kind in "iu"


def _last_part(op: str, known: Mapping[str, str]) -> str | None:
    """Return the last of several known names that the name of a fused operator consists of, or None."""
    ends: dict[int, str] = {0: ""}
    for end in range(1, len(op) + 1):
        for start in list(ends):
            part = op[start:end]
            if part in known or (start and part.startswith("_") and part[1:] in known):
                ends[end] = part if part in known else part[1:]
    return ends.get(len(op))


def _read(file: DumpFile, shape: tuple[int, ...] | None, count: int) -> np.ndarray:
    """Read a file as `count` images of a shape, if that is known."""
    value = read_npy(file.path) if file.path.suffix == ".npy" else _read_binary(file, shape, count)
    if value.dtype.kind != "f":
        raise InputError(f"{file.path}: expected floating-point values, found {value.dtype}")
    return aligned(value, shape, str(file.path))


def _read_binary(file: DumpFile, shape: tuple[int, ...] | None, count: int) -> np.ndarray:
    batch_shape, dtype = _sidecar(file)
    check_regular(file.path)
    with explained(file.path):
        data = file.path.read_bytes()
    sidecar = file.path.with_suffix(".json").name
    if batch_shape is None and shape is None:
        raise InputError(
            f'{file.path}: its shape is not known. Put {{"shape": [...], "dtype": "float32"}} into {sidecar} beside it.'
        )
    dtypes = (dtype,) if dtype else _DTYPES
    # Float16 of two images has as many bytes as float32 of one, so the expected number of images is tried first.
    for images in (count, 1):
        candidate = batch_shape or (images, *(shape or ()))
        for kind in dtypes:
            if math.prod(candidate) * np.dtype(kind).itemsize == len(data):
                return np.frombuffer(data, kind).reshape(candidate)
    raise InputError(
        f"{file.path}: {len(data)} bytes are not {' or '.join(dtypes[:2])} of shape "
        f"{format_size(batch_shape or ('N', *(shape or ())))}. Put shape and dtype into {sidecar} beside it."
    )


def _sidecar(file: DumpFile) -> tuple[tuple[int, ...] | None, str | None]:
    """Return shape and dtype of a `.bin` file from the `.json` beside it, or the shape in its name."""
    path = file.path.with_suffix(".json")
    if not path.exists():
        return file.shape, None
    values = read_json(path, "the shape and dtype of a dumped value")
    shape, dtype = (values.get("shape"), values.get("dtype")) if isinstance(values, dict) else ("", "")
    sides = isinstance(shape, list) and len(shape) <= 32 and all(type(side) is int and side > 0 for side in shape)
    if not (shape is None or sides) or dtype not in (None, *_DTYPES):
        raise InputError(
            f'{path}: expected {{"shape": [1, 96, 56, 56], "dtype": "float16"}}; known dtypes: {", ".join(_DTYPES)}'
        )
    return (tuple(shape) if shape else file.shape), dtype


def read_inputs(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the images that a dump was computed from, float32 (N, 3, height, width).

    Raises:
        InputError: a file that cannot be read, or does not hold such images.
    """
    check_regular(path)
    with explained(path):
        data = path.read_bytes()
    if not data or len(data) % (12 * math.prod(size)):
        raise InputError(
            f"{path}: {len(data)} bytes are not float32 images of {format_size(('N', 3, *size))}. Give those of the "
            "board with --inputs."
        )
    return np.frombuffer(data, "<f4").reshape(-1, 3, *size)


def write_inputs(
    folder: str | os.PathLike, images: np.ndarray, read: Sequence[str | os.PathLike | None] = ()
) -> list[Path]:
    """Write images to feed on a board: `input.npy` with all, and `input_000.bin` ... with one each, raw float32 NCHW.

    Args:
        folder: folder of the files.
        images: the images.
        read: files that they were read from.

    Raises:
        InputError: a file that cannot be written.
        UsageError: a file to write is one of those that were read.
    """
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    images = np.ascontiguousarray(images, np.dtype("<f4"))
    paths = [folder / "input.npy", *(folder / f"input_{i:03d}.bin" for i in range(len(images)))]
    for path in paths:
        check_distinct(path, read)
    with atomic(paths[0]) as staged, open(staged, "wb") as file:
        np.save(file, images)
    for path, image in zip(paths[1:], images, strict=True):
        with atomic(path) as staged:
            staged.write_bytes(image.tobytes())
    return paths
