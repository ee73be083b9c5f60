"""Time of a task: its launch, and the longest of the cube's, the vector units' and memory's work for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from neonext_ms.ops.soc import Soc

from .kernel_model import kernel_counts, kernel_time
from .operators import CubeProduct
from .parameters import Parameters
from .reader import Graph
from .tasks import DeviceTask, tasks
from .unit_costs import FP16, REPEAT, Costs, tiles

# How steeply the share of a value that is found in L2 falls with the bytes that L2 would have to hold.
_EVICTION = 1.5
# How much further from its full rate L2 stays than the cube, where CANN chooses how cores divide a product.
_L2_WEIGHT = 2.0
UNITS = ("cube", "vector", "memory", "launch")


@dataclass(frozen=True)
class Demand:
    """Work of a task at a device's full rates, before any parameter.

    Attributes:
        kind: kind of the operator.
        cube_us: microseconds of the busiest core's cube.
        matrices: products of two values that the busiest core starts.
        vector_us: microseconds of all vector units.
        weights: bytes of constants that come from memory.
        tensors: bytes of each value read, then of the output.
        between: bytes that other tasks touched since each of those values was last touched; 0 for the output.
        l2_read, l2_written: bytes that all cores together read from and write to the level-2 cache.
        fixed_us: microseconds that no parameter scales: the cube's results on their way out, or a kernel with a model
            of its own.
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


def network_demands(
    graph: Graph, device: Soc, int8: bool = False, aipp: bool = False
) -> tuple[list[DeviceTask], list[Demand]]:
    """Return the tasks of a network on a device, and the work of each."""
    requant = device.npu_arch == 2002  # CANN's page of the pass names the 310P only
    launched = tasks(graph, int8=int8, aipp=aipp, split=device.split, requant=requant)
    demands = [_demand(task, graph, device) for task in launched]
    # L2 may hold all weights from one run to the next, beside the values of the largest task.
    largest = max((sum(demand.tensors) for demand in demands), default=0)
    if sum(demand.weights for demand in demands) + largest <= device.l2_bytes:
        demands = [replace(demand, weights=0) for demand in demands]
    return launched, demands


def _demand(task: DeviceTask, graph: Graph, device: Soc) -> Demand:
    operator, costs = task.operator, Costs()
    tensors, between = (*task.reads, task.written), (*task.between, 0)
    if operator.spec is not None:
        # The AscendC kernel as it is built, from its counts in the simulator.
        batch, _, height, width = graph.shape(operator.inputs[0])
        pipes = dict(
            kernel_time(kernel_counts(operator.spec, height, width, batch, device), device, costs).predicted_pipes_us
        )
        vector_us = pipes.pop("V")
        return Demand(
            "neocell", vector_us=vector_us, weights=task.weights, tensors=tensors, between=between,
            fixed_us=max(pipes.values()),
        )  # fmt: skip
    rate = device.vector_units * device.vector_mhz
    cycles = sum(n / REPEAT * costs.elementwise_cycles(quick, slow) for n, quick, slow in operator.vector)
    l2_read, cube, matrices, drain = float(sum(task.reads) + task.weights), 0.0, 0.0, 0.0
    if operator.product:
        if not device.split:  # the cube's results leave through the vector units, as float32
            drain = task.output_numbers * 2 * FP16 / device.l0c_to_ub_bytes_per_cycle / rate
        cube, l2_read = _divided(task, operator.product, device)
        if operator.kind == "batched matmul":
            matrices = operator.product.number / device.ai_cores
    return Demand(
        operator.kind, cube, matrices, cycles / rate, task.weights, tensors, between, l2_read, task.written, drain
    )


def _divided(task: DeviceTask, product: CubeProduct, device: Soc) -> tuple[float, float]:
    """Return the cube microseconds of the busiest core and the bytes read through L2, for the best division.

    Cores divide the rows of a product (positions of all images, and groups), its columns, or both. A group of rows
    reads all weights, and a group of columns all inputs.
    """
    first, *others = task.reads or [0]
    rows = product.number * product.rows
    choices = []
    for by_columns in range(1, min(device.ai_cores, product.columns) + 1):
        by_rows = min(device.ai_cores // by_columns, rows)
        cube = tiles(rows, by_rows) * tiles(product.columns, by_columns) * product.depth / device.cube_mhz
        weights = task.weights * by_rows if product.number == 1 else task.weights
        moved = first * by_columns + weights + sum(others)
        longest = max(cube, _L2_WEIGHT * moved / device.l2_read_bytes_per_second * 1e6)
        choices.append((longest, cube, moved))
    _, cube, moved = min(choices, key=lambda choice: choice[0])
    return cube, moved


class Demands:
    """The work of tasks as arrays, with an entry for each task.

    Args:
        demands: work of each task, of one network or several.
        device: device that runs them.
    """

    def __init__(self, demands: Sequence[Demand], device: Soc):
        self.device = device
        fields = ("cube_us", "matrices", "vector_us", "weights", "l2_read", "l2_written", "fixed_us")
        columns = np.array([[getattr(demand, name) for name in fields] for demand in demands], float)
        (self.cube_us, self.matrices, self.vector_us, self.weights, self.l2_read, self.l2_written,
         self.fixed_us) = np.ascontiguousarray(columns.T)  # fmt: skip
        widest = max(len(demand.tensors) for demand in demands)
        self.tensors, self.between = (
            np.array([(*values, *[0] * (widest - len(values))) for values in rows], float)
            for rows in ([demand.tensors for demand in demands], [demand.between for demand in demands])
        )
        kinds = np.array([demand.kind for demand in demands])
        self.neocell, self.layout, self.depthwise = (kinds == kind for kind in ("neocell", "layout", "depthwise"))

    def times(self, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """Predict the tasks' microseconds with these shares of the device's rates.

        Returns:
            those of each of `UNITS`, (4, tasks), and in total, (tasks,): launch, the longest of the other units, and
            the part of the shorter ones that is not hidden behind it.
        """
        p, device = parameters, self.device
        # Half of a value is still found when it and the bytes touched since its last use fill the held part of L2.
        filled = ((self.tensors + self.between) / (p.l2_held * device.l2_bytes)) ** _EVICTION
        missed = (self.tensors * filled / (1 + filled)).sum(axis=1)
        memory = (missed + self.weights) / p.memory_bytes_per_second(device)
        read, written = device.l2_read_bytes_per_second, device.l2_write_bytes_per_second
        l2 = np.maximum(self.l2_read / read, self.l2_written / written) / p.l2_share
        moving = 1e6 * np.maximum(memory, l2) / np.where(self.layout, p.layout_share, 1.0)
        cube = self.cube_us / (p.cube_share * np.where(self.depthwise, p.depthwise_share / p.cube_share, 1.0))
        cube = np.maximum(cube + self.matrices * p.matrix_start_cycles / device.cube_mhz, self.fixed_us)
        # The kernel of a NeoCell has a model of its own, whose times no share scales.
        cube = np.where(self.neocell, 0.0, cube)
        vector = self.vector_us / np.where(self.neocell, 1.0, p.vector_share)
        moving = np.where(self.neocell, np.maximum(moving, self.fixed_us), moving)
        units = np.array([cube, vector, moving])
        longest = units.max(axis=0)
        total = p.launch_us + longest + p.serial_share * (units.sum(axis=0) - longest)
        return np.vstack([units, np.full(len(cube), p.launch_us)]), total
