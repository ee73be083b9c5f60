"""ONNX files in onnxruntime: on the CPU, and on an Ascend device through its CANN execution provider."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.runtime.base import load_onnx, one_line

from .. import inputs
from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings


class OnnxRuntimeCpu(Runtime):
    """onnxruntime's CPU execution provider. Inputs and outputs are the host's arrays: nothing is copied."""

    name = "onnxruntime"
    suffixes = (".onnx",)
    versions = ("onnxruntime",)

    def __init__(self):
        self._path = ""
        self._session = None
        self._feeds: dict[str, np.ndarray] = {}
        self._outputs: list[np.ndarray] = []

    @classmethod
    def missing(cls) -> str | None:
        return None

    def describe(self, path: str, settings: Settings) -> inputs.ImageInput:
        return inputs.of_onnx(path)

    def load(self, path: str, settings: Settings) -> None:
        self._path = path
        self._session = load_onnx(path, settings.threads)
        self._names = [value.name for value in self._session.get_inputs()]

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        self._feeds = dict(zip(self._names, arrays, strict=True))

    def execute(self) -> None:
        try:
            self._outputs = self._session.run(None, self._feeds)
        except Exception as error:
            raise _failed(self._path, error) from error

    def copy_out(self) -> list[np.ndarray]:
        return self._outputs

    def close(self) -> None:
        self._session, self._feeds, self._outputs = None, {}, []


class OnnxRuntimeCann(Runtime):
    """onnxruntime's CANN execution provider, with inputs and outputs bound to memory of the device.

    Options by https://onnxruntime.ai/docs/execution-providers/community-maintained/CANN-ExecutionProvider.html;
    nodes that CANN does not take fall back to the CPU, as onnxruntime does it.
    """

    name = "onnxruntime-cann"
    suffixes = (".onnx",)
    label = NOT_RUN_ON_A_DEVICE
    versions = ("onnxruntime-cann",)
    provider = "CANNExecutionProvider"

    def __init__(self):
        self._path = ""
        self._session = self._binding = None
        self._device = 0

    @classmethod
    def missing(cls) -> str | None:
        import onnxruntime

        if cls.provider in onnxruntime.get_available_providers():
            return None
        return (
            f"this onnxruntime ({onnxruntime.__version__}) has no {cls.provider}; on a machine with CANN install it "
            "with: pip uninstall onnxruntime && pip install onnxruntime-cann"
        )

    def describe(self, path: str, settings: Settings) -> inputs.ImageInput:
        return inputs.of_onnx(path)

    def load(self, path: str, settings: Settings) -> None:
        import onnxruntime

        self._path, self._device = path, settings.device
        options = {"device_id": settings.device, "enable_cann_graph": True, "arena_extend_strategy": "kNextPowerOfTwo"}
        try:
            session = onnxruntime.InferenceSession(path, providers=[(self.provider, options), "CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"{path}: onnxruntime cannot load it with CANN ({one_line(error)})") from error
        if self.provider not in session.get_providers():
            raise InputError(f"{path}: onnxruntime left out {self.provider}; is device {settings.device} there?")
        self._session = session
        self._binding = session.io_binding()
        for output in session.get_outputs():
            self._binding.bind_output(output.name, "cann", settings.device)

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        import onnxruntime

        for value, array in zip(self._session.get_inputs(), arrays, strict=True):
            on_device = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cann", self._device)
            self._binding.bind_ortvalue_input(value.name, on_device)

    def execute(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:
            raise _failed(self._path, error) from error

    def copy_out(self) -> list[np.ndarray]:
        return self._binding.copy_outputs_to_cpu()

    def close(self) -> None:
        self._session = self._binding = None


def _failed(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: onnxruntime cannot run it ({one_line(error)})")
