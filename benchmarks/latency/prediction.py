"""`of_onnx`: predicted time of a network, in total and for every task."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from neonext_ms.common.errors import InputError, nearest
from neonext_ms.ops.soc import MACS_PER_CYCLE, Soc, soc

from .cost import BOUNDS, Demands, demand
from .parameters import Parameters, fitted
from .reader import Graph, read
from .tasks import Task, tasks

if TYPE_CHECKING:
    import onnx

DTYPES = ("float16", "int8")


@dataclass(frozen=True)
class NodeTime:
    """Predicted time of one task.

    Attributes:
        name: of its first node; a task that changes the layout of a value has the value's name.
        op: operator type.
        kind: "conv", "depthwise", "matmul", "batched matmul", "neocell", "vector", "copy" or "layout".
        fused: operator types that run inside.
        known: whether the model knows the operator; if not, it counts as memory-bound work of the vector units.
        multiply_adds: that the network needs.
        bytes: of what it reads, writes, and of its constants, padding included.
        predicted_us: microseconds.
        predicted_bound: what takes longest: "cube", "vector", "memory" or "launch".
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
class Prediction:
    """Predicted time of one run of a network.

    Attributes:
        network: name of the file or graph.
        soc: the device.
        batch: images of a run.
        dtype: "float16" or "int8".
        predicted_run_us: microseconds of a run besides its tasks.
        nodes: its tasks, in order.
    """

    network: str
    soc: Soc
    batch: int
    dtype: str
    predicted_run_us: float
    nodes: tuple[NodeTime, ...]

    @cached_property
    def predicted_us(self) -> float:
        """Microseconds of a run."""
        return self.predicted_run_us + sum(node.predicted_us for node in self.nodes)

    @property
    def predicted_images_per_second(self) -> float:
        """Images of a run over its time."""
        return self.batch / self.predicted_us * 1e6

    @cached_property
    def predicted_units_us(self) -> dict[str, float]:
        """Microseconds that each unit works; they overlap within a task."""
        return {name: sum(node.predicted_units_us[name] for node in self.nodes) for name in BOUNDS}

    @cached_property
    def predicted_bounds_us(self) -> dict[str, float]:
        """Microseconds of the tasks that each unit bounds."""
        sums = dict.fromkeys(BOUNDS, 0.0)
        for node in self.nodes:
            sums[node.predicted_bound] += node.predicted_us
        return sums

    @property
    def predicted_bound(self) -> str:
        """What bounds most of the time."""
        return max(self.predicted_bounds_us, key=self.predicted_bounds_us.__getitem__)

    @property
    def multiply_adds(self) -> int:
        """That the network needs for a run."""
        return sum(node.multiply_adds for node in self.nodes)

    @property
    def predicted_share_of_peak(self) -> float:
        """Multiply-adds a second over those of the cube at its peak, in the same type."""
        peak = self.soc.ai_cores * self.soc.cube_mhz * MACS_PER_CYCLE * (2 if self.dtype == "int8" else 1)
        return self.multiply_adds / self.predicted_us / peak

    @property
    def unknown_ops(self) -> list[str]:
        """Operator types that the model does not know."""
        return sorted({node.op for node in self.nodes if not node.known})


def of_onnx(
    model: onnx.ModelProto | str | os.PathLike,
    soc_name: str,
    *,
    batch: int | None = None,
    dtype: str = "float16",
    aipp: bool = False,
    parameters: Parameters | None = None,
) -> Prediction:
    """Predicted time of a network on a device as an OM model that ATC makes of it.

    Args:
        model: a file or a loaded model; weights are not read.
        soc_name: device as `atc --soc_version` names it.
        batch: images of a run; None: as the model says.
        dtype: "float16" (what ATC makes of float32), or "int8" for convolutions and linear layers in 8 bit.
        aipp: images arrive as bytes, and the first convolution takes 4 channels in a block.
        parameters: instead of the fitted ones.

    Raises:
        InputError: an unknown device or type, or a model that cannot be read (see `reader.read`).
        ToolchainError: the network has NeoCell nodes and there is no C++ compiler to count their kernel with.
    """
    device = soc(soc_name)
    if dtype not in DTYPES:
        raise InputError(f"unknown type {dtype!r}{nearest(dtype, DTYPES)}; expected {' or '.join(DTYPES)}")
    graph = read(model, batch)
    made = network_tasks(graph, device, dtype == "int8", aipp)
    needs = Demands([demand(task, graph, device) for task in made], device)
    parameters = parameters or fitted()
    times = needs.times(parameters)
    units = {name: getattr(times, name).tolist() for name in BOUNDS}
    nodes = tuple(
        NodeTime(
            task.operator.name,
            task.operator.op,
            task.operator.kind,
            tuple(task.operator.fused),
            task.operator.known,
            task.operator.multiply_adds,
            sum(task.reads) + task.written + task.weights,
            total,
            bound,
            {name: units[name][i] for name in BOUNDS},
        )
        for i, (task, total, bound) in enumerate(zip(made, times.total.tolist(), times.bounds, strict=True))
    )
    return Prediction(graph.name, device, graph.batch, dtype, parameters.run_us, nodes)


def network_tasks(graph: Graph, device: Soc, int8: bool = False, aipp: bool = False) -> list[Task]:
    """Tasks of a network on a device."""
    return tasks(graph, int8=int8, aipp=aipp, split=device.split)
