"""Time of a task: its launch, and the longest of what the cube, the vector units and memory have to do for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ops.soc import Soc
from ..device_counts import REPEAT, twin_counts
from ..device_figures import Costs, elementwise_cycles
from ..device_model import FP16, kernel_time
from .neocell import spec_of
from .operators import Operator
from .parameters import Parameters
from .tasks import Task

BOUNDS = ("cube", "vector", "memory", "launch")


@dataclass(frozen=True)
class Demand:
    """What a task needs of a device at its full rates, before any parameter.

    Attributes:
        kind: of its operator.
        cube_us: of the busiest core.
        matrices: products of two values that the busiest core starts.
        vector_us: of all vector units.
        weights: bytes of constants.
        tensors: bytes of each value read, then of what is written.
        l2_bytes: what all cores together read from and write to the level-2 cache.
        fixed_us: of a kernel that has a model of its own.
    """

    kind: str
    cube_us: float = 0.0
    matrices: float = 0.0
    vector_us: float = 0.0
    weights: int = 0
    tensors: tuple[int, ...] = ()
    l2_bytes: float = 0.0
    fixed_us: float = 0.0


@dataclass(frozen=True)
class Times:
    """Predicted microseconds of tasks, one number each.

    Attributes:
        cube, vector, memory, launch: of each unit.
    """

    cube: np.ndarray
    vector: np.ndarray
    memory: np.ndarray
    launch: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Launch and the longest of the others."""
        return self.launch + np.maximum(np.maximum(self.cube, self.vector), self.memory)

    @property
    def bounds(self) -> list[str]:
        """Which one is longest."""
        longest = np.argmax([getattr(self, name) for name in BOUNDS], axis=0)
        return [BOUNDS[i] for i in longest]


def demand(task: Task, graph, device: Soc, costs: Costs | None = None) -> Demand:
    """What a task needs of a device.

    Args:
        task: with its sizes.
        graph: whose task it is.
        device: whose rates and cores to take.
        costs: of vector instructions.
    """
    costs = costs or Costs()
    operator = task.operator
    if operator.kind == "neocell":
        return _neocell(task, graph, device, costs)
    # Work that the network's shape leaves to the vector units: instructions, and the cube's results on their way out.
    rate = device.vector_units * device.vector_mhz
    cycles = sum(n / REPEAT * elementwise_cycles(quick, slow, costs) for n, quick, slow in operator.vector)
    activations = sum(task.reads)
    l2, cube, matrices = activations + task.written, 0.0, 0.0
    if operator.product:
        if not device.split:
            cycles += task.output_numbers / REPEAT * (2 * FP16 * REPEAT / device.l0c_to_ub_bytes_per_cycle)
        cube, l2, matrices = _divided(operator, task, device)
    return Demand(
        operator.kind, cube, matrices, cycles / rate, task.weights, (*task.reads, task.written), l2
    )


def _neocell(task: Task, graph, device: Soc, costs: Costs) -> Demand:
    """The AscendC kernel as it is built, from its counts in the twin."""
    node = task.operator.node
    batch, _, height, width = graph.shape(node.inputs[0])
    made = kernel_time(twin_counts(spec_of(node), height, width, batch, device), device, 0.0, costs)
    pipes = made.predicted_pipes_us
    moving = max(us for name, us in pipes.items() if name != "V")
    return Demand("neocell", vector_us=pipes["V"], tensors=(*task.reads, task.written), weights=task.weights,
                  fixed_us=moving)  # fmt: skip


def _divided(operator: Operator, task: Task, device: Soc) -> tuple[float, float, float]:
    """Cube microseconds of the busiest core, bytes through L2, products of the busiest core; the best division.

    Cores divide the rows of a product (positions of all images, and groups), its columns, or both. A group of rows
    reads all weights, and a group of columns all inputs.
    """
    product, cores = operator.product, device.ai_cores
    first = task.reads[0] if task.reads else 0
    others = sum(task.reads) - first
    rows = product.number * product.rows
    best = None
    for by_columns in (n for n in range(1, cores + 1) if n <= product.columns):
        by_rows = min(cores // by_columns, rows)
        tiles = -(-rows // by_rows) * -(-product.columns // by_columns) * product.depth
        cube = tiles / device.cube_mhz
        operands = first * by_columns + (task.weights * by_rows if product.number == 1 else task.weights)
        moved = operands + others + task.written
        longest = max(cube, moved / device.l2_read_bytes_per_second * 1e6)
        if best is None or longest < best[0]:
            best = (longest, cube, moved)
    started = product.number / cores if operator.kind == "batched matmul" else 0.0
    return best[1], best[2], started


class Demands:
    """What the tasks of a network need of a device, as arrays.

    Args:
        needs: of every task.
        device: the same.
    """

    def __init__(self, needs: Sequence[Demand], device: Soc):
        self.device = device
        self.kinds = [need.kind for need in needs]
        for name in ("cube_us", "matrices", "vector_us", "weights", "l2_bytes", "fixed_us"):
            setattr(self, name, np.array([getattr(need, name) for need in needs], float))
        widest = max((len(need.tensors) for need in needs), default=0)
        self.tensors = np.array([need.tensors + (0,) * (widest - len(need.tensors)) for need in needs], float)
        self.is_depthwise = np.array([kind == "depthwise" for kind in self.kinds])
        self.is_layout = np.array([kind == "layout" for kind in self.kinds])
        self.is_own = np.array([kind == "neocell" for kind in self.kinds])
        # Whether L2 holds all weights from one run to the next, beside what the largest task works on.
        self.held = self.weights.sum() + self.tensors.sum(axis=1).max(initial=0) <= device.l2_bytes

    def times(self, parameters: Parameters) -> Times:
        """Predicted times with these shares of the device's rates."""
        p, device = parameters, self.device
        missed = np.maximum(0.0, self.tensors - p.l2_held * device.l2_bytes).sum(axis=1)
        memory = (missed + (0 if self.held else self.weights)) / p.memory_bytes_per_second(device)
        l2 = self.l2_bytes / (device.l2_read_bytes_per_second * p.l2_share)
        moving = 1e6 * np.maximum(memory, l2) / np.where(self.is_layout, p.layout_share, 1.0)
        cube = self.cube_us / np.where(self.is_depthwise, p.depthwise_share, p.cube_share)
        cube = cube + self.matrices * p.matrix_start_cycles / device.cube_mhz
        vector = self.vector_us / np.where(self.is_own, 1.0, p.vector_share)
        return Times(cube, vector, np.maximum(moving, self.fixed_us), np.full(len(cube), p.launch_us))
