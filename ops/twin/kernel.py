"""Compiling a kernel for one device and running it on all its cores, one after another."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, NeoNextError
from ..soc import Soc
from ..soc import soc as find_soc
from .build import build

ALIGNMENT = 512
MOST_ARGUMENTS = 24
_MOST_BLOCKS = 250
_RED_ZONE = 512
_RED = 0xA5


@dataclass(frozen=True)
class Finding:
    """One breach of a rule.

    Attributes:
        rule: the rule's id (docs/twin.md, or `neonext_ms.ops.twin.rules()`).
        text: function, operand, the number found and the limit.
        file, line: the kernel's own call.
        core: index of the core that ran.
    """

    rule: str
    text: str
    file: str
    line: int
    core: int

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else ""
        return f"{place}{self.text} [{self.rule}, core {self.core}]"


class TwinError(NeoNextError):
    """A kernel broke a rule of the device.

    Attributes:
        finding: the rule, the place and the numbers.
    """

    def __init__(self, finding: Finding):
        super().__init__(str(finding))
        self.finding = finding

    @property
    def rule(self) -> str:
        return self.finding.rule

    @property
    def file(self) -> str:
        return self.finding.file

    @property
    def line(self) -> int:
        return self.finding.line


class _Argument(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("padded", ctypes.c_uint64),
        ("writable", ctypes.c_int32),
        ("initialised", ctypes.c_int32),
        ("shared", ctypes.c_int32),
    )


class _Region:
    """One argument at an aligned address between red zones."""

    def __init__(self, array: np.ndarray, pad: int):
        self.array = array
        self.size = array.nbytes
        self.room = self.size + pad
        raw = np.full(self.room + 2 * _RED_ZONE + ALIGNMENT, _RED, np.uint8)
        self.start = -(raw.ctypes.data + _RED_ZONE) % ALIGNMENT + _RED_ZONE
        self.raw = raw
        self.bytes[:] = array.reshape(-1).view(np.uint8)
        raw[self.start + self.size : self.start + self.room] = 0

    @property
    def address(self) -> int:
        return self.raw.ctypes.data + self.start

    @property
    def bytes(self) -> np.ndarray:
        return self.raw[self.start : self.start + self.size]

    def intact(self) -> bool:
        return bool((self.raw[: self.start] == _RED).all() and (self.raw[self.start + self.room :] == _RED).all())


class Kernel:
    """A compiled kernel, ready to run any number of times.

    Attributes:
        soc: the device it was compiled for.
        path: its shared object.
    """

    def __init__(self, path: Path, soc: Soc, entry: str, source: Path):
        self.path = path
        self.soc = soc
        self.entry = entry
        self.source = source
        # The object's state belongs to one launch at a time.
        self._lock = threading.Lock()
        self._library = ctypes.CDLL(os.fspath(path))
        self._launch = self._library.neonext_twin_launch
        self._launch.restype = ctypes.c_int
        self._launch.argtypes = (
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint64, ctypes.c_int),
            *(ctypes.POINTER(_Argument), ctypes.c_int),
        )
        self._result = self._library.neonext_twin_result
        self._result.restype = ctypes.c_char_p

    def launch(
        self,
        arguments: Sequence[np.ndarray | None],
        *,
        blocks: int,
        outputs: Iterable[int] = (),
        initialised: Iterable[int] = (),
        shared: Iterable[int] = (),
        tiling_key: int = 0,
        hazards: str = "refuse",
        pad: int = 0,
    ) -> dict:
        """Run the kernel on `blocks` cores, one after another.

        Args:
            arguments: one for each GM_ADDR of the entry: a C-contiguous array, or None for a null pointer. Tiling
                data is an array of bytes.
            blocks: number of cores that the kernel is started on.
            outputs: indices of the arguments that the kernel writes; they are written in place.
            initialised: those of `outputs` whose content may be read before the kernel writes it (workspace that was
                cleared, an argument updated in place); all others count as unwritten at the start.
            shared: those of `outputs` that several cores may write at the same place.
            tiling_key: what `TILING_KEY_IS` compares with.
            hazards: "refuse" raises at the first hazard; "report" goes on and lists them under "hazards". Rules
                that are no hazards always raise.
            pad: bytes behind each argument that may be read and written (a framework rounds its allocations up).

        Returns:
            the counts of each core and pipe, the totals, the counts by instruction, "hazards" and "notes".

        Raises:
            TwinError: the kernel broke a rule; the outputs are as they were.
            InputError: the arguments are not what the twin takes.
        """
        outputs, initialised, shared = set(outputs), set(initialised), set(shared)
        self._check(arguments, blocks, outputs, initialised, shared, hazards, pad)
        regions = [None if array is None else _Region(array, pad) for array in arguments]
        table = (_Argument * max(len(regions), 1))()
        for i, region in enumerate(regions):
            if region is not None:
                flags = (i in outputs, i in initialised, i in shared)
                table[i] = _Argument(region.address, region.size, region.room, *flags)
        entry = ctypes.cast(self._entry(len(regions)), ctypes.c_void_p)
        soc = self.soc
        with self._lock:
            failed = self._launch(
                *(entry, soc.name.encode(), soc.ub_bytes, blocks, tiling_key, hazards == "report"),
                *(table, len(regions)),
            )
            result = json.loads(self._result().decode("utf-8", "replace"))
        if failed:
            raise TwinError(Finding(**result))
        for i, region in enumerate(regions):
            if region is not None and not region.intact():
                text = f"argument {i} was written beyond its end through a bare pointer"
                raise TwinError(Finding("gm-bounds", text, os.fspath(self.source), 0, blocks - 1))
        for i in outputs:
            if regions[i] is not None:
                arguments[i].reshape(-1).view(np.uint8)[:] = regions[i].bytes
        result["hazards"] = [Finding(**hazard) for hazard in result["hazards"]]
        return result

    def _entry(self, count: int):
        # An entry without extern "C" has its parameters in its name.
        mangled = f"_Z{len(self.entry)}{self.entry}" + ("Ph" + "S_" * (count - 1) if count else "v")
        for name in (self.entry, mangled):
            if hasattr(self._library, name):
                return getattr(self._library, name)
        raise InputError(
            f'{self.source} has no entry {self.entry!r} with {count} arguments; declare it `extern "C" __global__ '
            "__aicore__ void` with one GM_ADDR for each argument"
        )

    @staticmethod
    def _check(arguments, blocks, outputs, initialised, shared, hazards, pad) -> None:
        if len(arguments) > MOST_ARGUMENTS:
            raise InputError(f"{len(arguments)} arguments; the twin takes at most {MOST_ARGUMENTS}")
        if not 1 <= blocks <= _MOST_BLOCKS:
            raise InputError(f"blocks is {blocks}; expected 1 to {_MOST_BLOCKS}")
        if hazards not in ("refuse", "report"):
            raise InputError(f'hazards is {hazards!r}; expected "refuse" or "report"')
        if pad < 0:
            raise InputError(f"pad is {pad}; expected 0 or more bytes")
        for i, array in enumerate(arguments):
            if array is None:
                continue
            if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
                raise InputError(f"argument {i} is not a C-contiguous NumPy array; use np.ascontiguousarray")
            if i in outputs and not array.flags.writeable:
                raise InputError(f"argument {i} is an output and its array is read-only")
        for name, chosen in (("outputs", outputs), ("initialised", initialised), ("shared", shared)):
            for i in chosen:
                if not 0 <= i < len(arguments):
                    raise InputError(f"{name} names argument {i}; there are {len(arguments)}, counted from 0")
                if i not in outputs:
                    raise InputError(f"{name} names argument {i}, which is not one of the outputs")


def compile(
    source: str | os.PathLike,
    soc: str | Soc,
    entry: str,
    defines: Mapping[str, str | int | None] | None = None,
    include: Sequence[str | os.PathLike] = (),
    tiling: str | None = None,
) -> Kernel:
    """Compile a kernel's source for one device.

    Args:
        source: the C++ file with the kernel.
        soc: device, by the name that `atc --soc_version` takes.
        entry: name of the kernel's entry function, declared `extern "C"`.
        defines: preprocessor names and values, such as `{"DTYPE_X": "half"}`.
        include: folders searched for `#include`.
        tiling: name of the struct that `GET_TILING_DATA` reads, when the kernel does not register one.

    Raises:
        InputError: the device is unknown, or the source does not compile; the message has the compiler's first lines.
        ToolchainError: there is no C++ compiler.
    """
    device = soc if isinstance(soc, Soc) else find_soc(soc)
    every = dict(defines or {})
    if tiling is not None:
        every["NEONEXT_TWIN_TILING"] = tiling
    path = Path(source).resolve()
    folders = [Path(folder).resolve() for folder in include]
    return Kernel(build(path, device.npu_arch, every, folders), device, entry, path)
