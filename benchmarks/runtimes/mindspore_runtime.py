"""MindIR files in MindSpore: on the CPU, and on an Ascend device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.signals import signals_later
from neonext_ms.runtime.base import check_file, load_mindir, load_mindspore, manifest_of, mindir_signature, one_line

from .. import inputs
from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings


class MindSporeCpu(Runtime):
    """A MindIR file as a compiled graph. Its input is float32 (N, 3, H, W); open sizes come from its manifest."""

    name = "mindspore"
    suffixes = (".mindir",)
    versions = ("mindspore",)

    def __init__(self):
        self._path = ""
        self._cell = None
        self._inputs, self._outputs = [], []

    @classmethod
    def missing(cls) -> str | None:
        return None

    def _start(self, settings: Settings):
        return load_mindspore(settings.threads)

    def describe(self, path: str, settings: Settings) -> inputs.ImageInput:
        check_file(path)
        self._start(settings)
        shape, _ = mindir_signature(path)
        manifest = manifest_of(path)
        batch = shape[0] or manifest.get("batch")
        size = manifest.get("image_size")
        found = inputs.ImageInput("", "float32", tuple(shape), (batch,) if batch else None)
        return inputs.checked(path, found, size and tuple(size))

    def load(self, path: str, settings: Settings) -> None:
        self._path = path
        self._start(settings)
        self._cell = load_mindir(path)

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        import mindspore as ms

        self._inputs = [ms.Tensor(array) for array in arrays]

    def execute(self) -> None:
        try:
            # MindSpore aborts or loses signals while it compiles, which happens in the first call.
            with signals_later():
                outputs = self._cell(*self._inputs)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                self._wait(outputs)
        except Exception as error:
            raise InputError(f"{self._path}: MindSpore cannot run it ({one_line(error)})") from error
        self._outputs = outputs

    def _wait(self, outputs) -> None:
        # On the CPU MindSpore has no other way to wait; the logits are small.
        for output in outputs:
            output.asnumpy()

    def copy_out(self) -> list[np.ndarray]:
        return [output.asnumpy() for output in self._outputs]

    def close(self) -> None:
        self._cell = None
        self._inputs, self._outputs = [], []


class MindSporeAscend(MindSporeCpu):
    """The same on an Ascend device."""

    name = "mindspore-ascend"
    label = NOT_RUN_ON_A_DEVICE

    # MindSpore lets a process choose its device once.
    _chosen: int | None = None

    @classmethod
    def missing(cls) -> str | None:
        with signals_later():
            from mindspore import hal

            if hal.is_available("Ascend"):
                return None
        return "this MindSpore finds no Ascend device; install CANN and the driver, and source CANN's set_env.sh"

    def _start(self, settings: Settings):
        with signals_later():
            import mindspore as ms

            if MindSporeAscend._chosen != settings.device:
                try:
                    ms.set_device("Ascend", settings.device)
                except RuntimeError as error:
                    raise InputError(f"--device {settings.device}: MindSpore refuses it ({one_line(error)})") from error
                MindSporeAscend._chosen = settings.device
        return ms

    def _wait(self, outputs) -> None:
        import mindspore as ms

        ms.runtime.synchronize()
