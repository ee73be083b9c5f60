"""ONNX files in OpenVINO on the CPU, in float32 or bfloat16."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import saturates, thread_count
from neonext_ms.common.signals import faults_told
from neonext_ms.common.text import one_line

from .base import Settings, Signature
from .onnx import OnnxFileRuntime, layout_of


def import_openvino():
    """Import OpenVINO without its telemetry, which writes an id below the home folder and reports every import."""
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        # It then takes a stub of its own, as where that package is not installed.
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if absent:
            del sys.modules[name]
    return openvino


class OpenVino(OnnxFileRuntime):
    """OpenVINO's CPU plugin, compiled for the batch and image size of its settings; one request at a time."""

    name = "openvino"
    versions = ("openvino",)
    precision = "f32"
    capability = "FP32"

    def __init__(self):
        self._path = ""
        self._request: Any = None

    @classmethod
    def missing(cls) -> str | None:
        try:
            openvino = import_openvino()
        except ImportError:
            return 'openvino is not installed; install it with: pip install "neonext_ms[openvino]"'
        if cls.capability not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return f"this CPU has no {cls.capability} arithmetic that OpenVINO uses"
        return None

    def load(self, path: str, settings: Settings) -> None:
        openvino = import_openvino()
        self._path, self._tensor = path, openvino.Tensor
        options = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": thread_count(settings.threads),
        }
        if saturates():
            # 8-bit layers then compute in float32: slower, but what the file says.
            options["LP_TRANSFORMS_MODE"] = False
        core = openvino.Core()
        try:
            model = core.read_model(path)
            if settings.image_size and len(model.inputs) == 1 and model.input().partial_shape.is_dynamic:
                found = [None if side.is_dynamic else side.get_length() for side in model.input().partial_shape]
                signature = Signature("", "", tuple(found), layout=layout_of(found))
                # -1 leaves the batch open.
                model.reshape(signature.shape_of(settings.batch or -1, settings.image_size))
            with faults_told(path):
                self._request = core.compile_model(model, "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise InputError(f"{path}: OpenVINO cannot load it ({one_line(error, 400)})") from error

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        # Not in `execute`, whose time is measured.
        with faults_told(self._path):
            return super().run(arrays)

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        for index, array in enumerate(arrays):
            self._request.set_input_tensor(index, self._tensor(array, shared_memory=True))

    def execute(self) -> None:
        try:
            self._request.infer()
        except RuntimeError as error:
            raise InputError(f"{self._path}: OpenVINO cannot run it ({one_line(error, 400)})") from error

    def copy_out(self) -> list[np.ndarray]:
        return [np.array(tensor.data) for tensor in self._request.output_tensors]

    def close(self) -> None:
        self._request = None


class OpenVinoBfloat16(OpenVino):
    """OpenVINO with arithmetic in bfloat16, where the CPU has it."""

    name = "openvino-bf16"
    precision = "bf16"
    capability = "BF16"
