"""`estimate`: predicted time of a network on a device, in total and for every task."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from neonext_ms.common.errors import InputError, nearest
from neonext_ms.ops.soc import MACS_PER_CYCLE, Soc, soc
from neonext_ms.runtime.onnx_file import sound

from .cost import UNITS, Demands, network_demands
from .parameters import Parameters, fitted
from .reader import read

if TYPE_CHECKING:
    import onnx

DTYPES = ("float16", "int8")


@dataclass(frozen=True)
class TaskEstimate:
    """Predicted time of one task.

    Attributes:
        name: name of the first node, or of the value whose layout or type the task changes.
        op: operator type.
        kind: "conv", "depthwise", "matmul", "batched matmul", "neocell", "vector", "copy" or "layout".
        fused: types of the operators that run inside.
        known: the device model knows the operator; if not, it counts as memory-bound work of the vector units.
        multiply_adds: multiply-adds that the network needs.
        bytes: bytes read and written, constants and padding included.
        predicted_us: microseconds.
        predicted_bound: the longest unit: "cube", "vector", "memory" or "launch".
        predicted_units_us: microseconds of each of those.
    """

    name: str
    op: str
    kind: str
    fused: tuple[str, ...]
    known: bool
    multiply_adds: int
    bytes: int
    predicted_us: float
    predicted_bound: str
    predicted_units_us: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """Predicted time of one run of a network.

    Attributes:
        network: name of the file or graph.
        soc: device.
        batch: images of a run.
        dtype: "float16" or "int8".
        predicted_run_us: microseconds of a run besides its tasks.
        tasks: tasks in order.
    """

    network: str
    soc: Soc
    batch: int
    dtype: str
    predicted_run_us: float
    tasks: tuple[TaskEstimate, ...]

    @cached_property
    def predicted_us(self) -> float:
        """Microseconds of a run."""
        return self.predicted_run_us + sum(task.predicted_us for task in self.tasks)

    @property
    def predicted_images_per_second(self) -> float:
        """Images of a run over its time."""
        return self.batch / self.predicted_us * 1e6

    @cached_property
    def predicted_units_us(self) -> dict[str, float]:
        """Microseconds that each unit works; they overlap within a task."""
        return {name: sum(task.predicted_units_us[name] for task in self.tasks) for name in UNITS}

    @cached_property
    def predicted_bounds_us(self) -> dict[str, float]:
        """Microseconds of the tasks that each unit bounds."""
        sums = dict.fromkeys(UNITS, 0.0)
        for task in self.tasks:
            sums[task.predicted_bound] += task.predicted_us
        return sums

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds that the network needs for a run."""
        return sum(task.multiply_adds for task in self.tasks)

    @property
    def predicted_share_of_peak(self) -> float:
        """Multiply-adds a second over the cube's peak in the same type."""
        peak = self.soc.ai_cores * self.soc.cube_mhz * MACS_PER_CYCLE * (2 if self.dtype == "int8" else 1)
        return self.multiply_adds / self.predicted_us / peak

    @property
    def unknown_ops(self) -> list[str]:
        """Operator types that the device model does not know."""
        return sorted({task.op for task in self.tasks if not task.known})


def estimate(
    model: onnx.ModelProto | str | os.PathLike,
    soc_name: str,
    *,
    batch: int | None = None,
    dtype: str = "float16",
    aipp: bool = False,
    parameters: Parameters | None = None,
) -> Estimate:
    """Predict the time of a network on a device, as an OM model compiled by ATC.

    Args:
        model: path of a file, or loaded model; weights are not read.
        soc_name: device as `atc --soc_version` names it.
        batch: images of a run (default: the model's own).
        dtype: "float16" (ATC's type for a float32 network), or "int8" for convolutions and linear layers in 8 bit.
        aipp: images arrive as bytes, and the first convolution packs 4 channels in a block.
        parameters: parameters of the device model (default: the fitted ones).

    Raises:
        UsageError: an unknown device.
        InputError: an unknown type, or a model that cannot be read (see `reader.read`).
        ToolchainError: the network has NeoCell nodes, and there is no C++ compiler to count their kernel with.
    """
    device = soc(soc_name)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: unknown{nearest(dtype, DTYPES)} (expected {' or '.join(DTYPES)})")
    parameters = parameters or fitted()
    graph = read(model, batch)
    with sound(graph.name):
        launched, demands = network_demands(graph, device, dtype == "int8", aipp)
        units, totals = Demands(demands, device).times(parameters)
        if not all(map(math.isfinite, totals.tolist())):
            raise OverflowError("a time without bounds")
    tasks = tuple(
        TaskEstimate(
            name=task.operator.name,
            op=task.operator.op,
            kind=task.operator.kind,
            fused=tuple(task.operator.fused),
            known=task.operator.known,
            multiply_adds=task.operator.multiply_adds,
            bytes=sum(task.reads) + task.written + task.weights,
            predicted_us=total,
            predicted_bound=UNITS[longest],
            predicted_units_us=dict(zip(UNITS, task_units, strict=True)),
        )
        for task, task_units, total, longest in zip(
            launched, units.T.tolist(), totals.tolist(), units.argmax(axis=0), strict=True
        )
    )
    return Estimate(graph.name, device, graph.batch, dtype, parameters.run_us, tasks)
