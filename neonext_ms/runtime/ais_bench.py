"""OM files on an Ascend device through ais_bench, for a machine that has it and no pyACL. Not run on a device.

Calls of `ais_bench.infer.interface.InferSession` (Ascend/tools, ais-bench_workload/tool/ais_bench): the constructor,
`set_staticbatch` or `set_dynamic_batchsize`, and `run` with `out_array`, which copies, computes and copies back. Input
and batch sizes are read from the OM file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import one_line

from .base import NOT_RUN_ON_A_DEVICE, Runtime, Settings, Signature, check_file
from .om_file import read_om
from .om_signature import om_signature


class AisBench(Runtime):
    """An OM file with static shapes, or with several batch sizes. The time of `execute` includes the copies."""

    name = "ais_bench"
    suffixes = (".om",)
    label = NOT_RUN_ON_A_DEVICE

    def __init__(self):
        self._session: Any = None
        self._inputs: list[np.ndarray] = []
        self._outputs: list[np.ndarray] = []

    @classmethod
    def missing(cls) -> str | None:
        try:
            import ais_bench.infer.interface  # noqa: F401
        except ImportError:
            return "ais_bench is not here; install it with its aclruntime (https://gitee.com/ascend/tools)"
        return None

    def describe(self, path: str, settings: Settings) -> Signature:
        check_file(path)
        om = read_om(path)
        # The file lists the input that carries the batch size of a file with several, too.
        if not om.inputs or len(om.inputs) > 1 + bool(om.batches):
            raise InputError(f"{path}: expected a model with one input, the images (got {len(om.inputs)} inputs)")
        name, dtype, dims = om.inputs[0]
        return om_signature(path, name, dtype, dims, om.batches or (), len(om.outputs) or 1)

    def load(self, path: str, settings: Settings) -> None:
        from ais_bench.infer.interface import InferSession

        self.close()
        signature = self.describe(path, settings)
        try:
            self._session = InferSession(settings.device, path)
            if signature.shape[0] is None:
                self._session.set_dynamic_batchsize(settings.batch)
            else:
                self._session.set_staticbatch()
        except Exception as error:  # aclruntime raises RuntimeError, and ais_bench errors of its own.
            self.close()
            raise InputError(f"{path}: ais_bench cannot load it ({one_line(error)})") from error

    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        self._inputs = [np.ascontiguousarray(array) for array in arrays]

    def execute(self) -> None:
        try:
            self._outputs = [np.asarray(output) for output in self._session.run(self._inputs, out_array=True)]
        except Exception as error:
            raise InputError(f"ais_bench: the model fails ({one_line(error)})") from error

    def copy_out(self) -> list[np.ndarray]:
        return self._outputs

    def close(self) -> None:
        session, self._session = self._session, None
        # Its name depends on the version of ais_bench.
        free = getattr(session, "free_resource", None) or getattr(session, "finalize", None)
        if free:
            free()
