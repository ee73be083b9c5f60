"""The process in which MindSpore Lite converts and runs models, by our drivers (`cpp`)."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.worker import Arrays, answer_calls

_TEXT = 4096
_MAX_RANK = 8
# Values of mindspore::DataType (include/api/data_type.h).
DTYPES: dict[int, np.dtype] = {
    **{30: np.dtype(np.bool_), 32: np.dtype(np.int8), 33: np.dtype(np.int16), 34: np.dtype(np.int32)},
    **{35: np.dtype(np.int64), 37: np.dtype(np.uint8), 42: np.dtype(np.float16), 43: np.dtype(np.float32)},
}


def serve(descriptors: Sequence[int], path: str) -> None:
    """Answer calls of `session`; the body of the process.

    Args:
        descriptors: see `answer_calls`.
        path: the shared object of the drivers.
    """
    drivers = _Drivers(path)

    def answer(command: str, arrays: Arrays) -> Arrays:
        name, *arguments = json.loads(command)
        return getattr(drivers, name)(arrays, *arguments) or ()

    answer_calls(descriptors, answer)


class _Drivers:
    """The functions of the drivers. Each method is a call: it takes the arrays and the arguments of a command."""

    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)

    def _call(self, function: str, *arguments) -> None:
        error = ctypes.create_string_buffer(_TEXT)
        if getattr(self._library, function)(*arguments, error, _TEXT):
            raise InputError(error.value.decode("utf-8", "replace").strip() or "no reason was given")

    def convert(self, arrays: Arrays, source: str, output: str, half_weights: bool) -> None:
        """Convert the ONNX file `source` to `output` + `.ms`."""
        self._call("neonext_convert", os.fsencode(source), os.fsencode(output), int(half_weights))

    def load(self, arrays: Arrays, path: str, threads: int) -> Arrays:
        """Load a model and return its description: names, then (dtype, format, *shape) of each input and output."""
        self._call("neonext_load", os.fsencode(path), threads)
        inputs, outputs = self._tensors(0), self._tensors(1)
        names = [np.array([name for name, _ in tensors], dtype=str) for tensors in (inputs, outputs)]
        return [*names, *(np.array(values, np.int64) for _, values in (*inputs, *outputs))]

    def _tensors(self, of_outputs: int) -> list[tuple[str, list[int]]]:
        tensors = []
        for index in range(self._library.neonext_count(of_outputs)):
            name, values = ctypes.create_string_buffer(_TEXT), (ctypes.c_int64 * (3 + _MAX_RANK))()
            if self._library.neonext_describe(of_outputs, index, name, _TEXT, values):
                raise InputError(f"a tensor has more than {_MAX_RANK} dimensions")
            dtype, layout, rank, *shape = values
            tensors.append((name.value.decode("utf-8", "replace"), [dtype, layout, *shape[:rank]]))
        return tensors

    def copy_in(self, arrays: Arrays) -> None:
        """Resize the model where necessary, and copy the inputs."""
        if len(arrays) != self._library.neonext_count(0):
            raise InputError(f"{len(arrays)} inputs, expected {self._library.neonext_count(0)}")
        for index, array in enumerate(arrays):
            _, (dtype, _, *shape) = self._tensors(0)[index]
            if DTYPES.get(dtype) != array.dtype:
                raise InputError(f"input {index} is {array.dtype}, expected {DTYPES.get(dtype, dtype)}")
            if list(array.shape) != shape:
                sizes = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
                self._call("neonext_resize", index, sizes, array.ndim)
        for index, array in enumerate(arrays):
            content = np.ascontiguousarray(array)
            pointer = content.ctypes.data_as(ctypes.c_void_p)
            self._call("neonext_copy_in", index, pointer, ctypes.c_int64(content.nbytes))

    def execute(self, arrays: Arrays) -> None:
        """Run the model."""
        self._call("neonext_run")

    def copy_out(self, arrays: Arrays) -> Arrays:
        """Return the outputs."""
        outputs = []
        for index, (name, (dtype, _, *shape)) in enumerate(self._tensors(1)):
            kind = DTYPES.get(dtype)
            if kind is None or min(shape, default=1) < 0:
                raise InputError(f"output {name!r} has type {dtype} and shape {shape}, which cannot be read")
            output: np.ndarray = np.empty(tuple(shape), dtype=kind)
            pointer = output.ctypes.data_as(ctypes.c_void_p)
            self._call("neonext_copy_out", index, pointer, ctypes.c_int64(output.nbytes))
            outputs.append(output)
        return outputs
