"""Compiling a kernel for one device and running it on all its cores, one after another."""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, NeoNextError
from neonext_ms.common.files import explained

from ..soc import Soc
from ..soc import soc as find_soc
from .build import build

ALIGNMENT = 512
MOST_ARGUMENTS = 24
_MOST_BLOCKS = 250
_MOST_SECONDS = 10**6
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
        ("by_value", ctypes.c_int32),
    )


class _Settings(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("soc", ctypes.c_char_p),
        ("ub_bytes", ctypes.c_uint32),
        ("blocks", ctypes.c_int32),
        ("tiling_key", ctypes.c_uint64),
        ("report_hazards", ctypes.c_int32),
        ("typed", ctypes.c_int32),
        ("seconds", ctypes.c_double),
    )


class _Region:
    """One argument at an aligned address between red zones, in memory that a child process can share."""

    def __init__(self, array: np.ndarray, pad: int, shared: bool):
        self.array = array
        self.size = array.nbytes
        self.room = self.size + pad
        length = self.room + 2 * _RED_ZONE + ALIGNMENT
        raw = np.frombuffer(mmap.mmap(-1, length), np.uint8) if shared else np.empty(length, np.uint8)
        raw[:] = _RED
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


class _Library:
    """A compiled kernel and its way in. The object's state belongs to one launch at a time."""

    def __init__(self, path: Path):
        self.lock = threading.Lock()
        self._library = ctypes.CDLL(os.fspath(path))
        self.launch = self._library.neonext_twin_launch
        self.launch.restype = ctypes.c_int
        self.launch.argtypes = (ctypes.POINTER(_Settings), ctypes.POINTER(_Argument), ctypes.c_int)
        self.result = self._library.neonext_twin_result
        self.result.restype = ctypes.c_char_p
        self.parameters = None
        if hasattr(self._library, "neonext_twin_parameters"):
            parameters = self._library.neonext_twin_parameters
            parameters.restype = ctypes.c_char_p
            self.parameters = parameters().decode().split()

    def symbol(self, name: str) -> int | None:
        """Address of a function, or None."""
        if not hasattr(self._library, name):
            return None
        return ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value


@functools.cache
def _load(path: Path) -> _Library:
    """One library for each object: the loader gives all kernels of one object the same state."""
    return _Library(path)


def _by_value(value: object, kind: str, place: int) -> np.ndarray:
    """The bytes of an argument that the entry takes by value, as the parameter's type."""
    letter, size = kind[0], int(kind[1:])
    if letter in "biuf" and not (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.nbytes == size):
        try:
            given = np.asarray(value).reshape(1)
            converted = given.astype(f"{letter}{size}" if letter != "b" else "?")
            same = given.dtype.kind in "biuf" and (letter == "f" or bool((converted == given).all()))
        except (OverflowError, ValueError, TypeError):
            same = False
        if not same:
            raise InputError(f"argument {place} is {value!r}, which its parameter ({letter}{size}) cannot hold")
        return converted.view(np.uint8)
    data = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    if not isinstance(data, np.ndarray) or data.nbytes != size:
        found = f"{data.nbytes} bytes" if isinstance(data, np.ndarray) else repr(value)
        raise InputError(f"argument {place} is {found}; its parameter is a struct of {size} bytes, given as an array")
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def _takes_values(text: str, entry: str) -> bool:
    """Whether the source declares the entry with a parameter that is neither a pointer nor a GM_ADDR."""
    found = re.search(rf"\b{re.escape(entry)}\s*\(([^()]*)\)\s*\{{", text)
    parameters = [part for part in found[1].split(",") if part.strip()] if found else []
    return any("*" not in part and "GM_ADDR" not in part for part in parameters)


class Kernel:
    """A compiled kernel, ready to run any number of times.

    Attributes:
        soc: the device it was compiled for.
        path: its shared object.
    """

    def __init__(self, make: Callable[[str | None], Path], soc: Soc, entry: str, source: Path):
        self._make = make
        self.soc = soc
        self.entry = entry
        self.source = source
        # A template or a member of a namespace is no symbol of the object, and a symbol does not tell the types of its
        # parameters.
        with explained(source):
            text = source.read_text(encoding="utf-8", errors="replace")
        plain = entry.isidentifier() and not _takes_values(text, entry)
        self.path = make(None if plain else entry)
        self._plain = _load(self.path) if plain else None

    @functools.cached_property
    def _typed(self) -> _Library:
        try:
            return _load(self._make(self.entry))
        except InputError as error:
            words = str(error)
            if self._plain is not None:  # the source itself does compile
                words = (
                    next((line for line in words.splitlines() if "error:" in line), words)
                    .rpartition("error:")[2]
                    .strip()
                )
            raise InputError(
                f"{self.source} has no entry {self.entry!r}: expected a `__global__ __aicore__ void` function, a "
                f"template with all its arguments (`add<float>`). The compiler says: {words}"
            ) from error

    def launch(
        self,
        arguments: Sequence[np.ndarray | float | bytes | None],
        *,
        blocks: int,
        outputs: Iterable[int] = (),
        initialised: Iterable[int] = (),
        shared: Iterable[int] = (),
        tiling_key: int = 0,
        hazards: str = "refuse",
        pad: int = 0,
        isolated: bool = False,
        timeout: float = 600.0,
    ) -> dict:
        """Run the kernel on `blocks` cores, one after another.

        Args:
            arguments: one for each parameter of the entry. For a GM_ADDR or other pointer a C-contiguous array, or
                None for a null pointer; tiling data is an array of bytes. For a number taken by value a number, for
                a struct taken by value its bytes (an array or `bytes`).
            blocks: number of cores that the kernel is started on.
            outputs: indices of the arguments that the kernel writes; they are written in place.
            initialised: those of `outputs` whose content may be read before the kernel writes it (workspace that was
                cleared, an argument updated in place); all others count as unwritten at the start.
            shared: those of `outputs` that several cores may write at the same place.
            tiling_key: what `TILING_KEY_IS` compares with.
            hazards: "refuse" raises at the first hazard; "report" goes on and lists them under "hazards". Rules
                that are no hazards always raise.
            pad: bytes behind each argument that may be read and written (a framework rounds its allocations up).
            isolated: run in a process of its own (a fork), so that a kernel that crashes or does not end is a
                `TwinError` and not the end of Python. It costs 1 to 10 ms, more for a large Python process.
            timeout: seconds that an isolated kernel may take.

        Returns:
            the counts of each core and pipe, the totals, the counts by instruction, "hazards" and "notes".

        Raises:
            TwinError: the kernel broke a rule; the outputs are as they were.
            InputError: the arguments are not what the twin takes.
        """
        outputs, initialised, shared = set(outputs), set(initialised), set(shared)
        library, entry = self._way_in(arguments)
        values = list(arguments)
        for i, kind in enumerate(library.parameters or ()):
            if kind[0] != "p":
                values[i] = _by_value(values[i], kind, i)
        self._check(values, blocks, outputs, initialised, shared, hazards, pad, timeout)
        regions = [None if array is None else _Region(array, pad, isolated) for array in values]
        table = (_Argument * max(len(regions), 1))()
        for i, region in enumerate(regions):
            if region is not None:
                flags = (i in outputs, i in initialised, i in shared)
                by_value = library.parameters is not None and library.parameters[i][0] != "p"
                table[i] = _Argument(region.address, region.size, region.room, *flags, by_value)
        settings = _Settings(
            *(entry, self.soc.name.encode(), self.soc.ub_bytes, blocks, tiling_key, hazards == "report"),
            *(library.parameters is not None, timeout if isolated else 0.0),
        )
        with library.lock:
            failed = library.launch(settings, table, len(regions))
            if failed < 0:
                raise NeoNextError("the system makes no new process; launch the kernel with isolated=False")
            result = json.loads(library.result().decode("utf-8", "replace"))
        if failed:
            raise TwinError(Finding(**{**result, "file": result["file"] or os.fspath(self.source)}))
        for i, region in enumerate(regions):
            if region is not None and not region.intact():
                text = f"argument {i} was written beyond its end through a bare pointer"
                raise TwinError(Finding("gm-bounds", text, os.fspath(self.source), 0, blocks - 1))
        for i in outputs:
            if regions[i] is not None:
                arguments[i].reshape(-1).view(np.uint8)[:] = regions[i].bytes
        result["hazards"] = [Finding(**hazard) for hazard in result["hazards"]]
        return result

    def _way_in(self, arguments: Sequence) -> tuple[_Library, int]:
        """The library to launch with, and the address of the entry in it."""
        count = len(arguments)
        pointers = all(isinstance(value, np.ndarray | None) for value in arguments)
        if self._plain is not None and pointers:
            # An entry without extern "C" has its parameters in its name.
            mangled = f"_Z{len(self.entry)}{self.entry}" + ("Ph" + "S_" * (count - 1) if count else "v")
            for name in (self.entry, mangled):
                if (address := self._plain.symbol(name)) is not None:
                    return self._plain, address
        typed = self._typed
        if len(typed.parameters) != count:
            raise InputError(f"{count} arguments; the entry {self.entry!r} takes {len(typed.parameters)}")
        return typed, typed.symbol("neonext_twin_entry")

    @staticmethod
    def _check(arguments, blocks, outputs, initialised, shared, hazards, pad, timeout) -> None:
        if len(arguments) > MOST_ARGUMENTS:
            raise InputError(f"{len(arguments)} arguments; the twin takes at most {MOST_ARGUMENTS}")
        if not 1 <= blocks <= _MOST_BLOCKS:
            raise InputError(f"blocks is {blocks}; expected 1 to {_MOST_BLOCKS}")
        if hazards not in ("refuse", "report"):
            raise InputError(f'hazards is {hazards!r}; expected "refuse" or "report"')
        if pad < 0:
            raise InputError(f"pad is {pad}; expected 0 or more bytes")
        if not 0 < timeout <= _MOST_SECONDS:
            raise InputError(f"timeout is {timeout}; expected seconds above 0, at most {_MOST_SECONDS}")
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
        source: the C++ file with the kernel; the host's part of a public sample (`.asc`) in it is left out.
        soc: device, by the name that `atc --soc_version` takes.
        entry: name of the kernel's entry function; a template with its arguments (`"add<float>"`).
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
    return Kernel(functools.partial(build, path, device.npu_arch, every, folders), device, entry, path)
