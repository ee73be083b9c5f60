"""Kernels of the simulator: compile a source for one device and run it on all cores, one after another."""

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
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError, NeoNextError
from neonext_ms.common.files import explained

from ..soc import Soc
from ..soc import soc as find_soc
from .build import build

_ALIGNMENT = 512
_MOST_ARGUMENTS = 24
_MOST_BLOCKS = 250
_MOST_SECONDS = 10**6
# Bytes around every argument; a change there is a write through a bare pointer beyond its end.
_RED_ZONE = 512
_RED = 0xA5


@dataclass(frozen=True)
class Finding:
    """One violation of a rule.

    Attributes:
        rule: id of the rule (docs/operator.md).
        text: function, operand, the number found and the limit.
        file, line: the call in the kernel's source.
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


class SimulatorError(NeoNextError):
    """A kernel broke a rule of the device.

    Attributes:
        finding: the violation.
        rule, file, line: the attributes of `finding` with these names.
    """

    def __init__(self, finding: Finding):
        super().__init__(str(finding))
        self.finding = finding
        self.rule, self.file, self.line = finding.rule, finding.file, finding.line


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
        ("ai_cores", ctypes.c_int32),
        ("cores", ctypes.c_int32),
        ("seconds", ctypes.c_double),
    )


class _Region:
    """A copy of one argument at an aligned address between red zones, optionally in memory shared with a child."""

    def __init__(self, array: np.ndarray, pad: int, shared: bool):
        self.array = array
        self.size = array.nbytes
        self.room = self.size + pad
        length = self.room + 2 * _RED_ZONE + _ALIGNMENT
        raw = np.frombuffer(mmap.mmap(-1, length), np.uint8) if shared else np.empty(length, np.uint8)
        raw[:] = _RED
        self.start = -(raw.ctypes.data + _RED_ZONE) % _ALIGNMENT + _RED_ZONE
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
    """A compiled kernel and its entry point. The state of the object serves one launch at a time."""

    def __init__(self, path: Path):
        self.lock = threading.Lock()
        self._library = ctypes.CDLL(os.fspath(path))
        self.launch = self._library.neonext_twin_launch
        self.launch.restype = ctypes.c_int
        self.launch.argtypes = (ctypes.POINTER(_Settings), ctypes.POINTER(_Argument), ctypes.c_int)
        self.result = self._library.neonext_twin_result
        self.result.restype = ctypes.c_char_p
        # Kinds of the entry's parameters, such as "p8" or "f4"; None if the object does not know its types.
        self.parameters: list[str] | None = None
        if hasattr(self._library, "neonext_twin_parameters"):
            parameters = self._library.neonext_twin_parameters
            parameters.restype = ctypes.c_char_p
            self.parameters = parameters().decode().split()

    def symbol(self, name: str) -> int | None:
        """Return the address of a function, or None."""
        if not hasattr(self._library, name):
            return None
        return ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value


# One library per object, because the loader gives all kernels of an object the same state.
_load = functools.cache(_Library)


def _by_value(value: object, kind: str, place: int) -> np.ndarray:
    """Return the bytes of an argument that the entry takes by value, converted to the type of the parameter."""
    letter, size = kind[0], int(kind[1:])
    if letter in "biuf" and not (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.nbytes == size):
        try:
            number = np.asarray(value).reshape(1)
            converted = number.astype(f"{letter}{size}" if letter != "b" else "?")
            # Rounding is normal for a float; an integer that changes would be a silent error.
            exact = number.dtype.kind in "biuf" and (letter == "f" or bool((converted == number).all()))
        except (OverflowError, ValueError, TypeError):
            exact = False
        if not exact:
            raise InputError(f"argument {place} is {value!r}, which its parameter ({letter}{size}) cannot hold")
        return converted.view(np.uint8)
    data = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    if not isinstance(data, np.ndarray) or data.nbytes != size:
        actual = f"{data.nbytes} bytes" if isinstance(data, np.ndarray) else repr(value)
        raise InputError(f"argument {place} is {actual}; its parameter is a struct of {size} bytes, given as an array")
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def _takes_values(text: str, entry: str) -> bool:
    """Return True if the source declares the entry with a parameter that is neither a pointer nor a GM_ADDR."""
    declaration = re.search(rf"\b{re.escape(entry)}\s*\(([^()]*)\)\s*\{{", text)
    parameters = [part for part in declaration[1].split(",") if part.strip()] if declaration else []
    return any("*" not in part and "GM_ADDR" not in part for part in parameters)


class Kernel:
    """A compiled kernel that can be launched any number of times.

    Attributes:
        soc: device that it was compiled for.
        entry: name of the entry function.
        source: C++ file.
        path: shared object.
    """

    def __init__(self, make: Callable[[str | None], Path], soc: Soc, entry: str, source: Path):
        self._make = make
        self.soc = soc
        self.entry = entry
        self.source = source
        # A template or a member of a namespace is not a symbol of the object, and a symbol does not show the types of
        # its parameters. Those kernels need a typed entry point, which costs a second compilation of the source.
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
            message = str(error)
            if self._plain is not None:
                # The source itself compiles, so the first error is about the entry.
                first = next((line for line in message.splitlines() if "error:" in line), message)
                message = first.rpartition("error:")[2].strip()
            raise InputError(
                f"{self.source} has no entry {self.entry!r}; expected a `__global__ __aicore__ void` function, a "
                f"template with all its arguments (`add<float>`). Compiler error: {message}"
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
        hazards: str = "raise",
        pad: int = 0,
        isolated: bool = False,
        timeout: float = 600.0,
    ) -> dict:
        """Run the kernel on `blocks` cores, one after another.

        Args:
            arguments: one argument per parameter of the entry. A GM_ADDR or another pointer takes a C-contiguous
                array, or None for a null pointer; tiling data is an array of bytes. A parameter by value takes a
                number, or the bytes of a struct (an array or `bytes`).
            blocks: number of cores.
            outputs: indices of the arguments that the kernel writes; they are written in place.
            initialised: those of `outputs` that the kernel may read before it writes them, such as a cleared
                workspace or an argument that is updated in place. All others count as unwritten at the start.
            shared: those of `outputs` in which several cores may write the same place.
            tiling_key: value that `TILING_KEY_IS` compares with.
            hazards: "raise" to raise an error at the first hazard, "report" to continue and list hazards in the
                result. Rules that are not hazards always raise an error.
            pad: bytes after each argument that may be read and written, as frameworks round allocations up.
            isolated: True to run in a forked process, so that a crash or an endless loop of the kernel is a
                `SimulatorError` instead of the end of Python. It costs 1 to 10 ms, more in a large process.
            timeout: time limit of an isolated kernel in seconds.

        Returns:
            the counts of each core and pipe, their totals, the counts by instruction, "hazards" and "notes".

        Raises:
            SimulatorError: the kernel broke a rule. The outputs are unchanged.
            InputError: an argument is invalid.
        """
        outputs, initialised, shared = set(outputs), set(initialised), set(shared)
        library, entry = self._entry_point(arguments)
        by_value = {i for i, kind in enumerate(library.parameters or ()) if kind[0] != "p"}
        arrays: list[Any] = list(arguments)
        for i in by_value:
            arrays[i] = _by_value(arrays[i], (library.parameters or [])[i], i)
        self._check(arrays, blocks, outputs, initialised, shared, hazards, pad, timeout)
        regions = {i: _Region(array, pad, isolated) for i, array in enumerate(arrays) if array is not None}
        table = (_Argument * max(len(arrays), 1))()
        for i, region in regions.items():
            flags = (i in outputs, i in initialised, i in shared, i in by_value)
            table[i] = _Argument(region.address, region.size, region.room, *flags)
        settings = _Settings(
            *(entry, self.soc.name.encode(), self.soc.ub_bytes, blocks, tiling_key, hazards == "report"),
            *(library.parameters is not None, self.soc.ai_cores, self.soc.vector_units, timeout if isolated else 0.0),
        )
        with library.lock:
            status = library.launch(settings, table, len(arrays))
            if status < 0:
                raise NeoNextError("the system cannot create a process; launch the kernel with isolated=False")
            result = json.loads(library.result().decode("utf-8", "replace"))
        if status:
            raise SimulatorError(Finding(**{**result, "file": result["file"] or os.fspath(self.source)}))
        for i, region in regions.items():
            if not region.intact():
                text = f"argument {i} was written beyond its end through a bare pointer"
                raise SimulatorError(Finding("gm-bounds", text, os.fspath(self.source), 0, blocks - 1))
        # Copied back last, so that an error leaves the outputs as they were.
        for i in outputs & regions.keys():
            arrays[i].reshape(-1).view(np.uint8)[:] = regions[i].bytes
        result["hazards"] = [Finding(**hazard) for hazard in result["hazards"]]
        return result

    def _entry_point(self, arguments: Sequence) -> tuple[_Library, int]:
        """Return the library to launch with and the address of the entry in it."""
        count = len(arguments)
        pointers = all(isinstance(value, np.ndarray | None) for value in arguments)
        if self._plain is not None and pointers:
            # Without extern "C", the symbol contains the parameters (Itanium C++ ABI: Ph, then S_ for each repeat).
            mangled = f"_Z{len(self.entry)}{self.entry}" + ("Ph" + "S_" * (count - 1) if count else "v")
            for name in (self.entry, mangled):
                if (address := self._plain.symbol(name)) is not None:
                    return self._plain, address
        typed = self._typed
        address = typed.symbol("neonext_twin_entry")
        if typed.parameters is None or address is None or len(typed.parameters) != count:
            expected = len(typed.parameters or ())
            raise InputError(f"{count} arguments; the entry {self.entry!r} takes {expected}")
        return typed, address

    @staticmethod
    def _check(arguments, blocks, outputs, initialised, shared, hazards, pad, timeout) -> None:
        if len(arguments) > _MOST_ARGUMENTS:
            raise InputError(f"{len(arguments)} arguments; the simulator takes at most {_MOST_ARGUMENTS}")
        if not 1 <= blocks <= _MOST_BLOCKS:
            raise InputError(f"blocks is {blocks}; expected 1 to {_MOST_BLOCKS}")
        if hazards not in ("raise", "report"):
            raise InputError(f'hazards is {hazards!r}; expected "raise" or "report"')
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
        for name, indices in (("outputs", outputs), ("initialised", initialised), ("shared", shared)):
            for i in indices:
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
    """Compile the source of a kernel for one device.

    Args:
        source: C++ file with the kernel. Host code in a public sample (`.asc`) is left out.
        soc: device, by its name for `atc --soc_version`.
        entry: name of the entry function, of a template with its arguments (`"add<float>"`).
        defines: preprocessor names and values, such as `{"DTYPE_X": "half"}`.
        include: folders searched for `#include`.
        tiling: name of the struct that `GET_TILING_DATA` reads, if the kernel does not register one.

    Raises:
        InputError: the device is unknown, or the source does not compile; the message shows the first errors.
        ToolchainError: there is no C++ compiler.
    """
    device = soc if isinstance(soc, Soc) else find_soc(soc)
    all_defines = dict(defines or {})
    if tiling is not None:
        all_defines["NEONEXT_TWIN_TILING"] = tiling
    path = Path(source).resolve()
    folders = [Path(folder).resolve() for folder in include]
    return Kernel(functools.partial(build, path, device.npu_arch, all_defines, folders), device, entry, path)
