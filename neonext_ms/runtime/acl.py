"""OM files on an Ascend device through pyACL, by the call sequence of CANN's documentation. Not run on a device.

init, set_device, create_context (once) -> load_from_file -> create_desc, get_desc -> create_dataset, and per input and
output: size by index, malloc, create_data_buffer, add_dataset_buffer -> memcpy (1: host to device) -> execute -> memcpy
(2: device to host) -> destroy_data_buffer, free, destroy_dataset, destroy_desc, unload -> destroy_context,
reset_device, finalize (once).
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from neonext_ms.common.errors import InputError

from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings, Signature, check_file
from .om_file import ACL_DTYPES, BATCH_INPUT
from .om_signature import om_signature

_HUGE_PAGES_FIRST = 0
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
# acl_base_rt.h and rt_error_codes.h.
MEANING = {
    100000: "an argument is invalid",
    100001: "pyACL is not initialised",
    100003: "the file is invalid",
    107001: "no such device; see --device and npu-smi info",
    107002: "there is no context",
    207001: "out of device memory",
    207004: "no device; is the driver installed?",
    207018: "out of device memory",
    545000: "an internal error of CANN's executor; see its log",
    545001: "CANN's executor cannot load the model; was it built for this device and version of CANN?",
}


class _Calls:
    """Checked calls of pyACL by name, and the calls that free what they took.

    Args:
        place: file or device that messages name.

    Raises:
        InputError: a call fails; the message names it.
    """

    def __init__(self, place: str):
        self.place = place
        self._undo: list[tuple] = []

    @staticmethod
    def plain(name: str, *arguments):
        """Return the result of a call that cannot fail, such as `mdl.get_num_inputs`."""
        import acl

        return attrgetter(name)(acl)(*arguments)

    def check(self, name: str, *arguments) -> None:
        """Make a call that returns a code, 0 for success."""
        if code := self.plain(name, *arguments):
            raise self._failure(name, code)

    def value(self, name: str, *arguments):
        """Return the value of a call that returns a value and a code."""
        value, code = self.plain(name, *arguments)
        if code:
            raise self._failure(name, code)
        return value

    def _failure(self, name: str, code: int) -> InputError:
        meaning = MEANING.get(code, "see aclError in the documentation of CANN")
        return InputError(f"{self.place}: acl.{name} failed with {code} ({meaning})")

    def handle(self, name: str, *arguments):
        """Return the result of a call that returns 0 or None on failure."""
        handle = self.plain(name, *arguments)
        if not handle:
            raise InputError(f"{self.place}: acl.{name} returned nothing; is the device out of memory?")
        return handle

    def later(self, name: str, *arguments) -> None:
        """Add a call for `free`."""
        self._undo.append((name, *arguments))

    def free(self) -> None:
        """Make the calls of `later` in reverse order; one failure does not stop the others."""
        failed = []
        while self._undo:
            name, *arguments = self._undo.pop()
            if code := self.plain(name, *arguments):
                failed.append(f"acl.{name} returned {code}")
        if failed:
            raise InputError(f"{self.place}: not everything could be freed: {'; '.join(failed)}")


class _Device(_Calls):
    """The device of this process. CANN lets a process initialise pyACL once, so all models share it until the end."""

    def __init__(self, number: int):
        super().__init__(f"device {number}")
        self.number = number
        try:
            self.check("init")
            self.later("finalize")
            self.check("rt.set_device", number)
            self.later("rt.reset_device", number)
            self.later("rt.destroy_context", self.value("rt.create_context", number))
        except BaseException:
            with contextlib.suppress(InputError):
                self.free()
            raise


class PyAcl(Runtime):
    """An OM file with static shapes, or with several batch sizes (`--dynamic_batch_size` of ATC)."""

    name = "pyacl"
    suffixes = (".om",)
    label = NOT_RUN_ON_A_DEVICE

    _device: _Device | None = None

    def __init__(self):
        self._calls = _Calls("")
        self._buffers: dict[str, list[tuple[int, int]]] = {"input": [], "output": []}
        self._shapes: list[tuple[tuple[int, ...], np.dtype]] = []
        self._batch: int | None = None

    @classmethod
    def missing(cls) -> str | None:
        try:
            import acl
        except ImportError:
            return "the module acl is not here; install CANN (toolkit or nnrt) and source its set_env.sh"
        return None if hasattr(acl, "mdl") else f"{acl.__file__} is not pyACL; put CANN's python folder before it"

    def describe(self, path: str, settings: Settings) -> Signature:
        try:
            self._open(path, settings)
            return self._signature()
        finally:
            self.close()

    def load(self, path: str, settings: Settings) -> None:
        try:
            self._open(path, settings)
            signature = self._signature()
            self._datasets = {side: self._dataset(side) for side in ("input", "output")}
            if self._extra_inputs():
                index = self._calls.value("mdl.get_input_index_by_name", self._desc, BATCH_INPUT)
                dataset = self._datasets["input"]
                self._calls.check("mdl.set_dynamic_batch_size", self._model, dataset, index, settings.batch)
            self._batch = settings.batch
            self._shapes = [self._output(i, signature) for i in range(len(self._buffers["output"]))]
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, settings: Settings) -> None:
        self.close()
        check_file(path)
        calls = self._calls = _Calls(path)
        if PyAcl._device is None:
            PyAcl._device = _Device(settings.device)
        elif PyAcl._device.number != settings.device:
            raise InputError(f"{path}: this run uses device {PyAcl._device.number} already; use one device in a run")
        self._model = calls.value("mdl.load_from_file", path)
        calls.later("mdl.unload", self._model)
        self._desc = calls.handle("mdl.create_desc")
        calls.later("mdl.destroy_desc", self._desc)
        calls.check("mdl.get_desc", self._desc, self._model)

    def _extra_inputs(self) -> int:
        return self._calls.plain("mdl.get_num_inputs", self._desc) - 1

    def _signature(self) -> Signature:
        """Read the signature; a second input is allowed if it only carries the batch size."""
        calls = self._calls
        dims = calls.value("mdl.get_input_dims", self._desc, 0)
        batches: Sequence[int] = ()
        if self._extra_inputs():
            batches = calls.value("mdl.get_dynamic_batch", self._desc)["batch"]
            if self._extra_inputs() != 1 or not batches:
                raise InputError(
                    f"{calls.place}: expected a model with one input, the images, or with --dynamic_batch_size; found "
                    f"{self._extra_inputs() + 1} inputs"
                )
        dtype = ACL_DTYPES.get(calls.plain("mdl.get_input_data_type", self._desc, 0), "unknown")
        outputs = calls.plain("mdl.get_num_outputs", self._desc)
        return om_signature(calls.place, dims.get("name", ""), dtype, dims["dims"], batches, outputs)

    def _dataset(self, side: str) -> int:
        """Create a dataset with device memory for every input or output, of the size of the largest batch."""
        calls = self._calls
        dataset = calls.handle("mdl.create_dataset")
        calls.later("mdl.destroy_dataset", dataset)
        for index in range(calls.plain(f"mdl.get_num_{side}s", self._desc)):
            size = calls.plain(f"mdl.get_{side}_size_by_index", self._desc, index)
            address = calls.value("rt.malloc", size, _HUGE_PAGES_FIRST)
            calls.later("rt.free", address)
            buffer = calls.handle("create_data_buffer", address, size)
            calls.later("destroy_data_buffer", buffer)
            calls.value("mdl.add_dataset_buffer", dataset, buffer)
            self._buffers[side].append((address, size))
        return dataset

    def _output(self, index: int, signature: Signature) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype of an output at the batch that was set; its dims are those of the largest batch."""
        place = self._calls.place
        dims = self._calls.value("mdl.get_output_dims", self._desc, index)["dims"]
        code = self._calls.plain("mdl.get_output_data_type", self._desc, index)
        if code not in ACL_DTYPES:
            raise InputError(f"{place}: output {index} has the data type {code}, which NumPy does not have")
        shape = (self._batch, *dims[1:]) if dims and len(signature.batches or ()) > 1 else tuple(dims)
        dtype = np.dtype(ACL_DTYPES[code])
        if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > self._buffers["output"][index][1]:
            raise InputError(f"{place}: output {index} is {dtype} {shape}, which its buffer cannot hold")
        return shape, dtype

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        address, size = self._buffers["input"][0]
        array = np.ascontiguousarray(arrays[0])
        if len(self._buffers["input"]) == 1 and array.nbytes != size:
            raise InputError(f"{self._calls.place}: its input takes {size} bytes, these images are {array.nbytes}")
        self._calls.check("rt.memcpy", address, size, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE)

    def execute(self) -> None:
        self._calls.check("mdl.execute", self._model, self._datasets["input"], self._datasets["output"])

    def copy_out(self) -> list[np.ndarray]:
        outputs = [np.empty(shape, dtype) for shape, dtype in self._shapes]
        for (address, _), output in zip(self._buffers["output"], outputs, strict=True):
            self._calls.check("rt.memcpy", output.ctypes.data, output.nbytes, address, output.nbytes, _DEVICE_TO_HOST)
        return outputs

    def close(self) -> None:
        self._datasets, self._shapes = {}, []
        self._buffers = {"input": [], "output": []}
        self._calls.free()

    @classmethod
    def shutdown(cls) -> None:
        device, PyAcl._device = PyAcl._device, None
        if device is not None:
            device.free()


# A command that opens a single model does not call it.
atexit.register(PyAcl.shutdown)
