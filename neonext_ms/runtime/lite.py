"""MindIR and .ms files in MindSpore Lite, on the CPU or an Ascend device, by its Python API. Not run on a device.

Context.target -> Model.build_from_file -> get_inputs -> resize -> set_data_from_numpy -> predict -> get_data_to_numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import one_line

from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings, Signature, check_file
from .manifest import read_manifest


class Lite(Runtime):
    """MindSpore Lite on the CPU. `.ms` is the format of its converter, `.mindir` that of MindSpore."""

    name = "mindspore-lite"
    suffixes: tuple[str, ...] = (".ms", ".mindir")
    label = NOT_RUN_ON_A_DEVICE
    target = "cpu"

    def __init__(self):
        self._path = ""
        self._model: Any = None
        self._inputs: list = []
        self._outputs: list = []

    @classmethod
    def missing(cls) -> str | None:
        try:
            import mindspore_lite  # noqa: F401
        except ImportError:
            return "mindspore_lite is not installed; it is not on PyPI: see https://www.mindspore.cn/lite, Downloads"
        return None

    def describe(self, path: str, settings: Settings) -> Signature:
        try:
            self.load(path, settings)
            if len(self._inputs) != 1:
                raise InputError(f"{path}: expected a model with one input, the images; found {len(self._inputs)}")
            tensor = self._inputs[0]
            shape = tuple(size if size > 0 else None for size in tensor.shape)
            # Lite's converter keeps the channels last on the CPU.
            layout = "NHWC" if tensor.format.name == "NHWC" else "NCHW"
            signature = Signature(
                tensor.name,
                tensor.dtype.name.lower(),
                shape,
                self._batches(shape),
                layout,
                metadata=read_manifest(path)[0],
                source="its manifest",
            )
            return signature.checked(path)
        finally:
            self.close()

    def _batches(self, shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
        # On the CPU a model takes any batch after a resize.
        return None

    def load(self, path: str, settings: Settings) -> None:
        import mindspore_lite as lite

        check_file(path)
        self._path = path
        context = lite.Context()
        context.target = [self.target]
        context.cpu.thread_num = thread_count(settings.threads)
        if self.target == "ascend":
            context.ascend.device_id = settings.device
        kind = lite.ModelType.MINDIR_LITE if Path(path).suffix.lower() == ".ms" else lite.ModelType.MINDIR
        model = lite.Model()
        try:
            model.build_from_file(path, kind, context)
            self._model, self._inputs = model, model.get_inputs()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: MindSpore Lite cannot load it ({one_line(error, 400)})") from error

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        try:
            shapes = [list(array.shape) for array in arrays]
            if shapes != [list(tensor.shape) for tensor in self._inputs]:
                self._model.resize(self._inputs, shapes)
                self._inputs = self._model.get_inputs()
            for tensor, array in zip(self._inputs, arrays, strict=True):
                tensor.set_data_from_numpy(array)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{self._path}: MindSpore Lite rejects the input ({one_line(error, 400)})") from error

    def execute(self) -> None:
        try:
            self._outputs = self._model.predict(self._inputs)
        except RuntimeError as error:
            raise InputError(f"{self._path}: MindSpore Lite cannot run it ({one_line(error, 400)})") from error

    def copy_out(self) -> list[np.ndarray]:
        return [output.get_data_to_numpy() for output in self._outputs]

    def close(self) -> None:
        self._model = None
        self._inputs, self._outputs = [], []


class LiteAscend(Lite):
    """MindSpore Lite on an Ascend device; the file fixes its sizes."""

    name = "mindspore-lite-ascend"
    suffixes = (".mindir",)
    target = "ascend"

    def _batches(self, shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
        return (shape[0],) if shape[0] else None
