"""Predicted time of NeoCell kernels on Ascend devices, and of their alternatives. Nothing here was measured.

A kernel takes as long as the busiest pipe of its slowest core, as if all pipes overlapped (double buffering), plus its
launch. Device figures come from `ops/soc.py`, all other costs from `unit_costs.py`. The instructions of the NeoCell
kernel are counted in the simulator, which needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.ops.packing import plan
from neonext_ms.ops.soc import MACS_PER_CYCLE, VECTOR_CORE, Soc
from neonext_ms.ops.spec import NeoCellSpec

from .unit_costs import FP16, REPEAT, TILE, Costs, tiles

DOCUMENTED = Costs()
_DEPTHWISE_SIDE = 7  # of ConvNeXt's depthwise convolution


@dataclass(frozen=True)
class KernelTime:
    """Predicted time of one kernel, or of several in sequence.

    Attributes:
        predicted_us: microseconds with launches.
        predicted_bound: longest part: a pipe ("V", "MTE2", "MTE3", "S", "cube", "MTE1"), "memory", "L2" or
            "launch".
        predicted_pipes_us: microseconds of each of those, in the slowest core.
        launches: number of kernels.
    """

    predicted_us: float
    predicted_bound: str
    predicted_pipes_us: Mapping[str, float]
    launches: int = 1

    @classmethod
    def overlapping(cls, pipes: Mapping[str, float], costs: Costs, launches: int = 1) -> KernelTime:
        """Return the time of work that runs in parallel on several pipes, given in microseconds."""
        launch = launches * costs.launch_us
        bound = max(pipes, key=pipes.__getitem__)
        longest = pipes[bound]
        return cls(longest + launch, bound if longest >= launch else "launch", dict(pipes), launches)

    @classmethod
    def in_sequence(cls, parts: Sequence[KernelTime]) -> KernelTime:
        """Return the time of kernels that run one after another."""
        pipes: dict[str, float] = {}
        bounds: dict[str, float] = {}
        for part in parts:
            for name, us in part.predicted_pipes_us.items():
                pipes[name] = pipes.get(name, 0.0) + us
            bounds[part.predicted_bound] = bounds.get(part.predicted_bound, 0.0) + part.predicted_us
        total = sum(part.predicted_us for part in parts)
        return cls(total, max(bounds, key=bounds.__getitem__), pipes, sum(part.launches for part in parts))


@lru_cache(maxsize=256)
def kernel_counts(
    spec: NeoCellSpec, height: int, width: int, batch: int, device: Soc, vector_cores: bool = True
) -> Mapping:
    """Count the instructions of the float16 NeoCell kernel as it is built, by running the simulator on zeros.

    Args:
        vector_cores: False to leave out a 310P's vector cores.

    Returns:
        the simulator's JSON: `cores`, `totals`, `by_instruction`.

    Raises:
        ToolchainError: there is no C++ compiler.
        InputError: the kernel does not support this NeoCell, or the simulator not this device.
    """
    from neonext_ms.ops.twin import neo_cell

    x = np.zeros((batch, spec.channels, height, width), np.float16)
    a, b = ([np.zeros(shape, np.float16) for shape in shapes] for shapes in (spec.shapes_a, spec.shapes_b))
    return neo_cell.forward(x, a, b, spec, soc=device.name, vector_cores=vector_cores).counts


def kernel_time(counts: Mapping, device: Soc, costs: Costs = DOCUMENTED) -> KernelTime:
    """Predict the time of a vector kernel from its counts in the simulator.

    Args:
        counts: `cores`, each with `pipes` of "V" (instructions, repeats), "MTE2" and "MTE3" (instructions, bursts,
            bytes) and "S" (instructions), and with `vector_core` (true for a 310P's vector cores); and
            `by_instruction`, the repeats of each vector instruction.
        device: device that runs the kernel.
        costs: costs of instructions and launches.

    Raises:
        InputError: the counts have no core.
    """
    cores = counts.get("cores")
    if not cores:
        raise InputError("kernel counts: no core in them. Expected the output of `neonext-ops simulate --json`.")

    def count(core: Mapping, pipe: str, unit: str) -> float:
        return core["pipes"].get(pipe, {}).get(unit, 0)

    # The simulator counts a core's repeats together, so each costs the mean over the kernel's instructions.
    repeats = {name: counted.get("repeats", 0) for name, counted in counts.get("by_instruction", {}).items()}
    all_repeats = sum(repeats.values())
    repeat = costs.repeat_cycles
    if all_repeats:
        repeat = sum(number * costs.cycles_of_repeat(name) for name, number in repeats.items()) / all_repeats
    from_l2 = costs.fits_l2(sum(count(core, pipe, "bytes") for core in cores for pipe in ("MTE2", "MTE3")), device)
    # Vector cores of a split device share the path of their AI core.
    share = device.ai_cores / device.vector_units
    pipes = dict.fromkeys(("V", "MTE2", "MTE3", "S"), 0.0)
    memory = 0.0
    for core in cores:
        kind = VECTOR_CORE if core.get("vector_core") else device.ai_core
        cycle = 1 / kind.mhz  # microseconds
        read = (kind.l2_read_bytes_per_cycle if from_l2 else kind.memory_bytes_per_cycle) * share
        write = (kind.l2_write_bytes_per_cycle if from_l2 else kind.memory_bytes_per_cycle) * share
        vector = count(core, "V", "instructions") * costs.vector_start_cycles + count(core, "V", "repeats") * repeat
        load, store = (
            count(core, pipe, "instructions") * costs.copy_start_cycles
            + count(core, pipe, "bursts") * costs.burst_cycles
            + count(core, pipe, "bytes") / rate
            for pipe, rate in (("MTE2", read), ("MTE3", write))
        )
        scalar = count(core, "S", "instructions") * costs.scalar_cycles
        for pipe, cycles in zip(pipes, (vector, load, store, scalar), strict=True):
            pipes[pipe] = max(pipes[pipe], cycles * cycle)
        # Memory's rate of a core is for both directions together, as in `memory_bound`.
        moved = count(core, "MTE2", "bytes") + count(core, "MTE3", "bytes")
        memory = max(memory, moved / read * cycle)
    if not from_l2:
        pipes["memory"] = memory
    return KernelTime.overlapping(pipes, costs)


def memory_bound(spec: NeoCellSpec, height: int, width: int, batch: int, device: Soc) -> float:
    """Return the least microseconds of a NeoCell whose input, output and coefficients cross memory once; no launch."""
    packing = plan(spec)
    coefficients = (packing.index_a.size + packing.index_b.size) * FP16
    return (sum(_map_bytes(spec, height, width, batch)) + coefficients) / device.memory_bytes_per_second * 1e6


def block_diagonal_matmuls(
    spec: NeoCellSpec,
    height: int,
    width: int,
    batch: int,
    device: Soc,
    costs: Costs = DOCUMENTED,
    transposed: bool = False,
) -> KernelTime:
    """Predict the two BatchMatMuls of a NeoCell with full block-diagonal matrices, one matrix for each channel.

    Maps and matrices are padded to multiples of 16 on both sides, as the cube requires. A and B change with every
    channel, so every product loads both operands anew.

    Args:
        transposed: include the two TransData tasks that convert the maps from the neighbours' NC1HWC0 and back.
    """
    out_height, out_width = spec.output_size(height, width)
    rows, columns, out_rows, out_columns = (tiles(n) * TILE for n in (height, width, out_height, out_width))
    kernels = [
        _product(out_rows, rows, columns, spec.channels, batch, 0, device, costs),
        _product(out_rows, columns, out_columns, spec.channels, batch, 1, device, costs),
    ]
    if transposed:
        before, after = _map_bytes(spec, height, width, batch)
        kernels.insert(0, _trans_data(before, batch * spec.channels * rows * columns * FP16, device, costs))
        kernels.append(_trans_data(after, batch * spec.channels * out_rows * out_columns * FP16, device, costs))
    return KernelTime.in_sequence(kernels)


def depthwise(
    spec: NeoCellSpec, height: int, width: int, batch: int, device: Soc, unit: str, costs: Costs = DOCUMENTED
) -> KernelTime:
    """Predict a depthwise 7x7 convolution of the same maps, without the start of instructions.

    Args:
        unit: "V" for the vector unit (49 taps for every element, all lanes used), or "cube" (diagonal 16x16 tiles, so
            that 15 of 16 products are zero).
    """
    read, written = _map_bytes(spec, height, width, batch)
    planes, taps = batch * tiles(spec.channels), _DEPTHWISE_SIDE**2
    if unit == "V":
        # The first tap writes, all others add; a repeat holds 8 positions of 16 channels.
        cycles = costs.repeat_cycles + (taps - 1) * costs.multiply_add_cycles
        us = planes * height * width / 8 * cycles / (device.vector_units * device.vector_mhz)
    else:
        us = planes * tiles(height * width) * taps / (device.ai_cores * device.cube_mhz)
    weights = taps * tiles(spec.channels) * TILE * FP16
    return KernelTime.overlapping({unit: us, **_moved(read + weights, written, device, costs)}, costs)


def _map_bytes(spec: NeoCellSpec, height: int, width: int, batch: int) -> tuple[int, int]:
    """Return the bytes of a NeoCell's input and output as NC1HWC0 in float16."""
    out_height, out_width = spec.output_size(height, width)
    channels = batch * tiles(spec.channels) * TILE * FP16
    return channels * height * width, channels * out_height * out_width


def _trans_data(read: int, written: int, device: Soc, costs: Costs) -> KernelTime:
    """Return the time of a vector task with one instruction for every float16 element of the larger side."""
    numbers = max(read, written) / FP16
    us = numbers / REPEAT * costs.elementwise_cycles(1) / (device.vector_units * device.vector_mhz)
    return KernelTime.overlapping({"V": us, **_moved(read, written, device, costs)}, costs)


def _moved(read: int, written: int, device: Soc, costs: Costs) -> dict[str, float]:
    """Return the microseconds of reading and writing so many bytes of maps, in the level-2 cache if they fit."""
    if costs.fits_l2(read + written, device):
        seconds = read / device.l2_read_bytes_per_second + written / device.l2_write_bytes_per_second
        return {"L2": seconds * 1e6}
    return {"memory": (read + written) / device.memory_bytes_per_second * 1e6}


def _product(m: int, k: int, n: int, channels: int, batch: int, shared: int, device: Soc, costs: Costs) -> KernelTime:
    """Return the time of `batch x channels` products `(m, k) @ (k, n)`; all images share operand number `shared`."""
    number = batch * channels
    operands = [number * m * k * FP16, number * k * n * FP16]
    operands[shared] //= batch
    rate = device.ai_cores * device.cube_mhz  # cycles of all cores in a microsecond
    to_l0 = max(m * k * FP16 / device.l1_to_l0a_bytes_per_cycle, k * n * FP16 / device.l1_to_l0b_bytes_per_cycle)
    pipes = {
        "cube": number * (m * n * k / MACS_PER_CYCLE + costs.cube_start_cycles) / rate,
        "MTE1": number * to_l0 / rate,
        # Results leave the cube as float32.
        "L0C": number * m * n * 2 * FP16 / device.l0c_to_ub_bytes_per_cycle / rate,
        **_moved(sum(operands), number * m * n * FP16, device, costs),
    }
    return KernelTime.overlapping(pipes, costs)
