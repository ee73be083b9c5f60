"""Time of a task: its launch, and the longest of what the cube, the vector units and memory have to do for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neonext_ms.ops.soc import Soc

from .block_counts import REPEAT, twin_counts
from .block_model import FP16, kernel_time
from .neocell import spec_of
from .operators import Operator
from .parameters import Parameters
from .tasks import Task
from .unit_costs import Costs, elementwise_cycles

# How steeply what is found in L2 falls with what it would have to hold.
_EVICTION = 1.5
# How much further from its full rate L2 stays than the cube, where CANN chooses how cores divide a product.
_L2_WEIGHT = 2.0
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
        between: bytes that other work touched since each of those values was; 0 for what is written.
        l2_read, l2_written: bytes that all cores together read from and write to the level-2 cache.
        fixed_us: of what is counted by itself: the cube's results on their way out, or a kernel with its own model.
    """

    kind: str
    cube_us: float = 0.0
    matrices: float = 0.0
    vector_us: float = 0.0
    weights: int = 0
    tensors: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    l2_read: float = 0.0
    l2_written: float = 0.0
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
    serial_share: float

    @property
    def total(self) -> np.ndarray:
        """Launch, the longest of the others, and what of the shorter ones is not hidden behind it."""
        units = np.array([self.cube, self.vector, self.memory])
        longest = units.max(axis=0)
        return self.launch + longest + self.serial_share * (units.sum(axis=0) - longest)

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
    l2, cube, matrices, drain = activations + task.weights, 0.0, 0.0, 0.0
    if operator.product:
        if not device.split:
            drain = task.output_numbers * 2 * FP16 / device.l0c_to_ub_bytes_per_cycle / rate
        cube, l2, matrices = _divided(operator, task, device)
    return Demand(
        operator.kind,
        cube,
        matrices,
        cycles / rate,
        task.weights,
        (*task.reads, task.written),
        (*task.between, 0),
        l2,
        task.written,
        drain,
    )


def _neocell(task: Task, graph, device: Soc, costs: Costs) -> Demand:
    """The AscendC kernel as it is built, from its counts in the twin."""
    node = task.operator.node
    batch, _, height, width = graph.shape(node.inputs[0])
    made = kernel_time(twin_counts(spec_of(node), height, width, batch, device), device, 0.0, costs)
    pipes = made.predicted_pipes_us
    moving = max(us for name, us in pipes.items() if name != "V")
    return Demand("neocell", vector_us=pipes["V"], tensors=(*task.reads, task.written),
                  between=(*task.between, 0), weights=task.weights, fixed_us=moving)  # fmt: skip


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
        moved = operands + others
        longest = max(cube, _L2_WEIGHT * moved / device.l2_read_bytes_per_second * 1e6)
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
        self._masks: dict[str, np.ndarray] = {}
        for name in ("cube_us", "matrices", "vector_us", "weights", "l2_read", "l2_written", "fixed_us"):
            setattr(self, name, np.array([getattr(need, name) for need in needs], float))
        widest = max((len(need.tensors) for need in needs), default=0)
        self.tensors, self.between = (
            np.array([getattr(need, name) + (0,) * (widest - len(need.tensors)) for need in needs], float).reshape(
                len(needs), widest
            )
            for name in ("tensors", "between")
        )
        self.is_own = np.array([kind == "neocell" for kind in self.kinds])
        # Whether L2 holds all weights from one run to the next, beside what the largest task works on.
        held = self.weights.sum() + self.tensors.sum(axis=1).max(initial=0) <= device.l2_bytes
        self.from_memory = self.weights * (not held)

    @classmethod
    def joined(cls, parts: Sequence[Demands]) -> Demands:
        """The tasks of several networks on one device, one after the other."""
        made = cls([], parts[0].device)
        widest = max(part.tensors.shape[1] for part in parts)
        for name, value in vars(parts[0]).items():
            arrays = [getattr(part, name) for part in parts]
            if name in ("tensors", "between"):
                arrays = [np.pad(array, ((0, 0), (0, widest - array.shape[1]))) for array in arrays]
            if isinstance(value, np.ndarray):
                setattr(made, name, np.concatenate(arrays))
        made.kinds = [kind for part in parts for kind in part.kinds]
        return made

    def times(self, parameters: Parameters) -> Times:
        """Predicted times with these shares of the device's rates."""
        p, device = parameters, self.device
        # Of a value as large as the held part, with what was touched since, half is still found.
        filled = ((self.tensors + self.between) / (p.l2_held * device.l2_bytes)) ** _EVICTION
        missed = (self.tensors * filled / (1 + filled)).sum(axis=1)
        memory = (missed + self.from_memory) / p.memory_bytes_per_second(device)
        l2 = (
            np.maximum(
                self.l2_read / device.l2_read_bytes_per_second, self.l2_written / device.l2_write_bytes_per_second
            )
            / p.l2_share
        )
        moving = 1e6 * np.maximum(memory, l2) / self._shares(layout=p.layout_share)
        cube = self.cube_us / (p.cube_share * self._shares(depthwise=p.depthwise_share / p.cube_share))
        cube = cube + self.matrices * p.matrix_start_cycles / device.cube_mhz
        vector = self.vector_us / np.where(self.is_own, 1.0, p.vector_share)
        cube = np.where(self.is_own, 0.0, np.maximum(cube, self.fixed_us))
        moving = np.where(self.is_own, np.maximum(moving, self.fixed_us), moving)
        return Times(cube, vector, moving, np.full(len(cube), p.launch_us), p.serial_share)

    def _shares(self, **by_kind: float) -> np.ndarray:
        """A number for each task by its kind, 1 for the kinds not given."""
        shares = np.ones(len(self.kinds))
        for kind, share in by_kind.items():
            shares[self._of_kind(kind)] = share
        return shares

    def _of_kind(self, kind: str) -> np.ndarray:
        if kind not in self._masks:
            self._masks[kind] = np.array([k == kind for k in self.kinds], bool)
        return self._masks[kind]
