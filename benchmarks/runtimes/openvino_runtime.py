"""ONNX files in OpenVINO on the CPU, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.runtime.base import one_line

from .. import inputs
from .base import Runtime, Settings


class OpenVino(Runtime):
    """OpenVINO's CPU plugin, compiled for the batch and image size that it is run with; one request at a time."""

    name = "openvino"
    suffixes = (".onnx",)
    versions = ("openvino",)
    precision = "f32"
    capability = "FP32"

    def __init__(self):
        self._path = ""
        self._request = None

    @classmethod
    def missing(cls) -> str | None:
        try:
            import openvino
        except ImportError:
            return 'openvino is not installed; install it with: pip install "neonext_ms[openvino]"'
        if cls.capability not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return f"this CPU has no {cls.capability} arithmetic that OpenVINO uses"
        return None

    def describe(self, path: str, settings: Settings) -> inputs.ImageInput:
        return inputs.of_onnx(path)

    def load(self, path: str, settings: Settings) -> None:
        import openvino

        self._path = path
        options = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": settings.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        try:
            model = core.read_model(path)
            if len(model.inputs) == 1 and model.input().partial_shape.is_dynamic:
                channels = inputs.of_onnx(path).shape[1] or 3
                model.reshape([settings.batch, channels, *settings.image_size])
            self._request = core.compile_model(model, "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise InputError(f"{path}: OpenVINO cannot load it ({one_line(error)})") from error

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        import openvino

        for index, array in enumerate(arrays):
            self._request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))

    def execute(self) -> None:
        try:
            self._request.infer()
        except RuntimeError as error:
            raise InputError(f"{self._path}: OpenVINO cannot run it ({one_line(error)})") from error

    def copy_out(self) -> list[np.ndarray]:
        return [np.array(tensor.data) for tensor in self._request.output_tensors]

    def close(self) -> None:
        self._request = None


class OpenVinoBfloat16(OpenVino):
    """The same with arithmetic in bfloat16, where the CPU has it."""

    name = "openvino-bf16"
    precision = "bf16"
    capability = "BF16"
