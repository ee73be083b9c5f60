"""Values dumped on a board, as a `Side` of a comparison: which file is which value, and what its bytes mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, listed, nearest
from neonext_ms.common.files import explained

from .onnx_side import Side, aligned

_DUMP_DTYPES = ("float32", "float16", "float64")


@dataclass(frozen=True)
class DumpFile:
    """A file of a dump, as its name tells.

    Attributes:
        path: the file.
        op: name of the operator, as it is in the file name.
        index: number of the output.
        run: number of the execution (the folder `data_index` of an acl dump); -1 if there is none.
        shape: in the file name or a sidecar, or None.
        dtype: in a sidecar, or None.
    """

    path: Path
    op: str
    index: int = 0
    run: int = -1
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


_CONVERTED = re.compile(r"\.output\.(\d+)(?:\.(\d+(?:x\d+)*))?$")
_INPUT = re.compile(r"\.input\.\d+(?:\.\d+(?:x\d+)*)?$")
_RAW = re.compile(r"^\w+\.[\w-]+(?:\.\d+){2,}$")
_NPY = re.compile(r"^(.+)\.(\d+)\.(\d{10,})$")
_SLICE = re.compile(r"_lxslice\d+$")
_BENCH = re.compile(r"^(pure_infer_data|input(?:_\d+)?)_(\d+)$")


def parse_dump_name(path: Path) -> DumpFile | None:
    """What the name of a `.npy` or `.bin` file says: the forms are listed in docs/compare.md.

    Returns:
        the file's operator and output, or None for the dump of an input or of a slice of an operator.
    """
    stem = path.name[: -len(path.suffix)]
    run = int(path.parent.name) if path.parent.name.isascii() and path.parent.name.isdigit() else -1
    if _INPUT.search(stem):
        return None
    index, shape = 0, None
    if found := _CONVERTED.search(stem):
        index, stem = int(found[1]), stem[: found.start()]
        shape = tuple(map(int, found[2].split("x"))) if found[2] else None
    if _RAW.match(stem):
        op = stem.split(".")[1]
    elif found := _NPY.match(stem):
        op, index = found[1], int(found[2])
    elif found := _BENCH.match(stem):
        return DumpFile(path, "", int(found[2]), run)
    else:
        op = stem
    return None if _SLICE.search(op) else DumpFile(path, op, index, run, shape)


def mangled(name: str) -> str:
    """A name as the dump writes it: `.`, `/`, `\\` and blanks become `_`."""
    return re.sub(r"[./\\\s]", "_", name)


class DumpSide(Side):
    """A folder of values dumped on a board: `.npy`, or `.bin` with the shapes of the other side.

    `bind` must be called before `values`, with the model that was compiled for the board (the same operators make other
    values before folding than after it) or with its checkpoint. What the files hold was computed from images that this
    program has not seen.

    Raises:
        InputError: no such folder, or no file in it that could be a value.
    """

    kind = "dump"
    dtype = "float16"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        with explained(path):
            found = sorted(file for file in Path(path).rglob("*") if file.is_file())
        parsed = [parse_dump_name(file) for file in found if file.suffix in (".npy", ".bin")]
        self._files = [file for file in parsed if file is not None]
        raw = [file for file in found if _RAW.match(file.name)]
        if not self._files:
            hint = "expected .npy or .bin files"
            if raw:
                hint = (
                    f"{len(raw)} files such as {raw[0].name} are raw dumps; convert them first: "
                    "python3 msaccucmp.py convert -d FOLDER -out FOLDER.npy -t npy"
                )
            raise InputError(f"{self.path}: no dumped values here; {hint}")
        if raw:
            self.notes.append(f"{self.path}: {len(raw)} raw dumps were left aside; convert them with msaccucmp.py")
        self._matched: dict[str, list[DumpFile]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.unmatched: list[str] = []

    def bind(self, other: Side) -> None:
        """Find the values of the other side among the files; files that belong to none are listed in `unmatched`.

        Raises:
            InputError: no file belongs to any value of the other side.
        """
        known: dict[str, str] = {}
        for name in (*other.outputs, *other.names):
            known.setdefault(mangled(name), name)
        # Dumps are named by operators, so an operator's name goes before a value's.
        for node in other.nodes:
            if node.name and node.outputs and node.outputs[0] in {*other.names, *other.outputs}:
                known[mangled(node.name)] = node.outputs[0]
        known.update((mangled(name), value) for name, value in other.aliases.items())
        produced = {node.outputs[0]: node.outputs for node in other.nodes if node.outputs}
        self._matched, self.unmatched = {}, []
        for file in self._files:
            name = self._value(file, known, produced, other)
            if name is None:
                self.unmatched.append(str(file.path.relative_to(self.path)))
            else:
                self._matched.setdefault(name, []).append(file)
        if not self._matched:
            raise InputError(
                f"{self.path}: none of {len(self._files)} files belongs to a value of {other.path}; expected names "
                f"such as {mangled((other.outputs or ('logits',))[0])}.npy; found:\n" + listed(self.unmatched, 8)
            )
        norms = [node.outputs[0] for node in other.nodes if node.op == "BatchNormalization"]
        inner = set(self._matched) - set(other.outputs)
        if norms and inner and not other.aliases and not inner & set(norms):
            self.notes.append(
                f"{self.path}: there is no BatchNorm in it, but {other.path} has {len(norms)}; compare with the ONNX "
                "file that was compiled for the board, or with the checkpoint: the same operator makes another value "
                "where BatchNorm is folded into it"
            )
        self.outputs = tuple(name for name in other.outputs if name in self._matched)
        order = dict.fromkeys((*other.names, *other.outputs))
        self.names = tuple(name for name in order if name in self._matched)
        self._shapes = {name: shape for name in self.names if (shape := other.shape(name)) is not None}
        self.input_size = other.input_size

    def _value(self, file: DumpFile, known: Mapping[str, str], produced: Mapping, other: Side) -> str | None:
        if not file.op:
            return other.outputs[file.index] if file.index < len(other.outputs) else None
        op = mangled(file.op)
        name = known.get(op) or known.get(_last_part(op, known) or "")
        if name is not None and file.index:
            outputs = produced.get(name, (name,))
            name = outputs[file.index] if file.index < len(outputs) else None
        if name is None and (found := re.fullmatch(r"(.+)_(\d+)", op)) and int(found[2]) == 0:
            # Tools append the number of the output.
            name = known.get(found[1])
        return name

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        for name in self.names if names is None else names:
            if name not in self._matched:
                raise InputError(f"{self.path}: there is no value {name!r}{nearest(name, self._matched)}")
            files = sorted(self._matched[name], key=lambda file: (file.run, str(file.path)))
            value = np.concatenate([self._array(file, name, max(len(images) // len(files), 1)) for file in files])
            if len(value) > len(images):
                raise InputError(
                    f"{self.path}: {name} was dumped for {len(value)} images, but {len(images)} are compared; give the "
                    "images of the board with --inputs or --samples"
                )
            yield name, value

    def _array(self, file: DumpFile, name: str, count: int) -> np.ndarray:
        shape = self._shapes.get(name)
        if file.path.suffix == ".npy":
            try:
                with explained(file.path):
                    value = np.load(file.path, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise InputError(f"{file.path}: not a whole .npy file ({error}); dump it again") from error
        else:
            value = self._binary(file, shape, count)
        if value.dtype.kind != "f":
            raise InputError(f"{file.path}: expected floating-point values, found {value.dtype}")
        return aligned(value, shape, str(file.path))

    def _binary(self, file: DumpFile, shape: tuple[int, ...] | None, count: int) -> np.ndarray:
        with explained(file.path):
            data = file.path.read_bytes()
        whole, dtype = _sidecar(file)
        if whole is None and shape is None:
            raise InputError(
                f'{file.path}: its shape is not known; put {{"shape": [...], "dtype": "float32"}} into '
                f"{file.path.with_suffix('.json').name} beside it"
            )
        one = int(np.prod(shape)) if shape else 0
        # Float16 of two images has as many bytes as float32 of one: first as many images as there should be.
        for images in (count, 1):
            elements = int(np.prod(whole)) if whole else images * one
            for kind in (dtype,) if dtype else _DUMP_DTYPES:
                if elements * np.dtype(kind).itemsize == len(data):
                    return np.frombuffer(data, kind).reshape(whole or (images, *shape))
        raise InputError(
            f"{file.path}: {len(data)} bytes are not {' or '.join((dtype,) if dtype else _DUMP_DTYPES[:2])} of shape "
            f"{'x'.join(map(str, whole or ('N', *(shape or ()))))}; put shape and dtype into "
            f"{file.path.with_suffix('.json').name} beside it"
        )


def _sidecar(file: DumpFile) -> tuple[tuple[int, ...] | None, str | None]:
    path = file.path.with_suffix(".json")
    if not path.is_file():
        return file.shape, file.dtype
    with explained(path):
        text = path.read_bytes()
    try:
        values = json.loads(text)
        shape = values.get("shape")
        dtype = values.get("dtype")
        if not (shape is None or all(type(side) is int and side > 0 for side in shape)):
            raise ValueError("shape")
        if dtype not in (None, *_DUMP_DTYPES):
            raise ValueError("dtype")
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path}: expected {{"shape": [1, 96, 56, 56], "dtype": "float16"}}; known types: {", ".join(_DUMP_DTYPES)}'
        ) from error
    return (tuple(shape) if shape else file.shape), dtype or file.dtype


def _last_part(op: str, known: Mapping[str, str]) -> str | None:
    """The last of several known names that a fused operator's name is made of, or None."""
    ends: dict[int, str] = {0: ""}
    for end in range(1, len(op) + 1):
        for start in list(ends):
            part = op[start:end]
            if part in known or (start and part.startswith("_") and part[1:] in known):
                ends[end] = part if part in known else part[1:]
    return ends.get(len(op))
