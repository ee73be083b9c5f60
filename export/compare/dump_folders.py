"""Folders of dumped values: which files in one hold values, and by which name each is read.

msprobe (`msprobe offline_dump` and `compare`; Ascend/msprobe, docs/en/dump/infer_offline_dump_instruct.md and
python/msprobe/infer/offline/compare/msquickcmp) writes `OUTPUT/{timestamp}[/{input}-{shape}]/` with `dump_data/npu`,
values of the device, `dump_data/onnx`, those of onnxruntime with the inputs of every operator, `input/input_0.bin`, and
`model`. Read as one folder, values of the device and of onnxruntime would be mixed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained, read_lines
from neonext_ms.common.text import list_names

_DATA, _INPUTS = "dump_data", "input/input_0.bin"
# Where values come from, the device first.
_SIDES = {"npu": "float16", "npu_golden": "float16", "onnx": "float32"}


@dataclass(frozen=True)
class DumpFolder:
    """The files of a dump.

    Attributes:
        files: path of every file -> the name by which it is read.
        dtype: dtype of the computation.
        inputs: file with the images that the values were computed from, float32 in the layout of the model; or None.
        notes: messages to show to the user.
    """

    files: Mapping[Path, str]
    dtype: str = "float16"
    inputs: Path | None = None
    notes: tuple[str, ...] = field(default=())


def open_folder(path: str | os.PathLike) -> DumpFolder:
    """List the files of a dump.

    Raises:
        InputError: no such folder, or several runs of msprobe in it.
    """
    folder = Path(path)
    with explained(folder):
        os.listdir(folder)
        data = _msprobe(folder)
        if data is None:
            return DumpFolder({file: file.name for file in _files(folder)})
        named = dict(_named(data))
    inputs = data.resolve().parents[1] / _INPUTS
    note = f"{folder}: a folder of msprobe; the values are those of {_DATA}/{data.resolve().name}"
    if others := [side for side in _SIDES if side != data.resolve().name and (data.resolve().parent / side).is_dir()]:
        note += f", and those of {_DATA}/{others[0]} are ignored. Name that folder to read them"
    return DumpFolder(named, _SIDES[data.resolve().name], inputs if inputs.is_file() else None, (note,))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _msprobe(folder: Path) -> Path | None:
    """Return the folder of one side of one run of msprobe that a path means, or None for another dump."""
    here = folder.resolve()
    if here.parent.name == _DATA and here.name in _SIDES:
        return folder
    # The folder of a run, of all shapes of a run, or of several runs.
    depths = ("",) if here.name == _DATA else (_DATA, f"*/{_DATA}", f"*/*/{_DATA}")
    places = [place for depth in depths for place in (sorted(folder.glob(depth)) if depth else [folder])]
    found = [[place / side for side in _SIDES if (place / side).is_dir()] for place in places]
    runs = [sides[0] for sides in found if sides]
    if len(runs) > 1:
        raise InputError(
            f"{folder}: holds the values of {len(runs)} runs of msprobe, and one can be compared. Name it:\n"
            f"{list_names((run.parents[1] for run in runs), 8)}"
        )
    return runs[0] if runs else None


def _named(data: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of one side of msprobe with their names; inputs of operators are left out."""
    files, side = _files(data), data.resolve().name
    present, long_names = set(files), _long_names(data / "mapping.csv")
    for file in files:
        name = long_names.get(file.name, file.name)
        if side == "onnx":
            if not name.startswith("input_"):
                yield file, name
        elif not name.startswith("output_"):
            yield file, name
        elif file.suffix == ".npy" or file.with_suffix(".npy") not in present:
            # The final values, as ais_bench names them.
            yield file, name.replace("output", "pure_infer_data", 1)


def _long_names(mapping: Path) -> dict[str, str]:
    """Read the names that msprobe shortened: `file,name` in each line."""
    if not mapping.is_file():
        return {}
    pairs = (line.partition(",") for line in read_lines(mapping))
    return {short.strip(): Path(name.strip()).name for short, _, name in pairs if name.strip()}
