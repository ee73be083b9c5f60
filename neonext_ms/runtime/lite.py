"""Files of MindSpore Lite: `.ms` files on the CPU by our drivers, MindIR files on an Ascend device by its Python API.

`Lite` has run with MindSpore Lite 2.0.0, `LiteAscend` with a stand-in only: Context.target -> Model.build_from_file ->
get_inputs -> set_data_from_numpy -> predict -> get_data_to_numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import thread_count
from neonext_ms.common.text import one_line
from neonext_ms.lite.driver import missing
from neonext_ms.lite.model_file import weights_dtype
from neonext_ms.lite.process import DTYPES
from neonext_ms.lite.session import Session, Tensor

from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings, Signature, check_file, describe_type, exported_names
from .manifest import is_recorded, read_manifest

_NHWC = 1


class Lite(Runtime):
    """MindSpore Lite on the CPU, in a process of its own. It takes any batch, unless the file fixes it."""

    name = "mindspore-lite"
    suffixes = (".ms",)

    def __init__(self):
        self._session: Session | None = None

    @classmethod
    def missing(cls) -> str | None:
        return missing()

    def _start(self, path: str, settings: Settings) -> tuple[list[Tensor], list[Tensor]]:
        check_file(path)
        # A damaged weight changes the answers and nothing else.
        is_recorded(path)
        self.close()
        self._session = Session(path, thread_count(settings.threads))
        return self._session.load(path)

    def describe(self, path: str, settings: Settings) -> Signature:
        try:
            inputs, outputs = self._start(path, settings)
        finally:
            self.close()
        if len(inputs) != 1:
            raise InputError(f"{path}: expected a model with one input, the images (got {len(inputs)})")
        (tensor,) = inputs
        metadata, names = read_manifest(path)[0], tuple(output.name for output in outputs)
        shape = tuple(size if size > 0 else None for size in tensor.shape)
        signature = Signature(
            tensor.name,
            _dtype(tensor),
            shape,
            (shape[0],) if shape and shape[0] else None,
            "NHWC" if tensor.layout == _NHWC else "NCHW",
            names if len(set(names)) == len(names) else exported_names(len(names), metadata),
            tuple(_describe(output) for output in outputs),
            weights=weights_dtype(path),
            metadata=metadata,
            source="its manifest",
        )
        return signature.checked(path)

    def load(self, path: str, settings: Settings) -> None:
        self._start(path, settings)

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        assert self._session
        self._session.copy_in(arrays)

    def execute(self) -> None:
        assert self._session
        self._session.execute()

    def copy_out(self) -> list[np.ndarray]:
        assert self._session
        return self._session.copy_out()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _describe(output: Tensor) -> str:
    """Return type and shape of an output; the type alone where the batch is open, and with it the whole shape."""
    dtype = _dtype(output)
    return dtype if output.shape == (-1,) else describe_type(dtype, output.shape)


def _dtype(tensor: Tensor) -> str:
    return str(DTYPES.get(tensor.dtype, f"type {tensor.dtype}"))


class LiteAscend(Runtime):
    """MindSpore Lite on an Ascend device, by the Python API of a package with Ascend support; the file fixes its sizes.

    PyPI has none for this Python.
    """

    name = "mindspore-lite-ascend"
    suffixes = (".mindir",)
    label = NOT_RUN_ON_A_DEVICE

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
            return "mindspore_lite is not installed; for Ascend devices see https://www.mindspore.cn/lite, Downloads"
        return None

    def describe(self, path: str, settings: Settings) -> Signature:
        try:
            self.load(path, settings)
            if len(self._inputs) != 1:
                raise InputError(f"{path}: expected a model with one input, the images (got {len(self._inputs)})")
            tensor = self._inputs[0]
            shape = tuple(size if size > 0 else None for size in tensor.shape)
            layout = "NHWC" if tensor.format.name == "NHWC" else "NCHW"
            batches = (shape[0],) if shape[0] else None
            metadata, dtype = read_manifest(path)[0], tensor.dtype.name.lower()
            signature = Signature(tensor.name, dtype, shape, batches, layout, metadata=metadata, source="its manifest")
            return signature.checked(path)
        finally:
            self.close()

    def load(self, path: str, settings: Settings) -> None:
        import mindspore_lite as lite

        check_file(path)
        self._path = path
        context = lite.Context()
        context.target = ["ascend"]
        context.cpu.thread_num = thread_count(settings.threads)
        context.ascend.device_id = settings.device
        model = lite.Model()
        try:
            model.build_from_file(path, lite.ModelType.MINDIR, context)
            self._model, self._inputs = model, model.get_inputs()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: MindSpore Lite cannot load it ({one_line(error, 400)})") from error

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        try:
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
