"""Predicted time of a whole NeoNeXt block on an Ascend device, and of its fused forms. Nothing here was measured.

A block is a list of `Step`s. `task_time` predicts the time of neighbouring steps that run as one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import MLP_RATIO, STAGES, Architecture
from neonext_ms.ops.soc import Soc

from .kernel_model import KernelTime, kernel_counts, kernel_time
from .unit_costs import FP16, GELU, REPEAT, TILE, Costs, tiles

# Each fusion as a list of tasks, and each task as a list of steps. A NeoCell with its bias is always one kernel.
FUSIONS = {
    "unfused": (("neocell",), ("fc_1",), ("gelu",), ("fc_2",), ("add",)),
    "GELU in fc_1": (("neocell",), ("fc_1", "gelu"), ("fc_2",), ("add",)),
    "GELU in fc_1, residual in fc_2": (("neocell",), ("fc_1", "gelu"), ("fc_2", "add")),
    "NeoCell and GELU in fc_1": (("neocell", "fc_1", "gelu"), ("fc_2", "add")),
    "MLP": (("neocell",), ("fc_1", "gelu", "fc_2", "add")),
    "whole block": (("neocell", "fc_1", "gelu", "fc_2", "add"),),
}


@dataclass(frozen=True)
class Step:
    """One operator of a block, over all cores.

    Attributes:
        name: name in `FUSIONS`.
        rows, columns, depth: size of a matrix product in tiles of 16; 0 for a step of the vector unit.
        vector_us: microseconds of the vector units, all busy; a NeoCell also runs on a 310P's vector cores.
        fused_us: the same in a task with a product, which has the AI cores only; None where it is `vector_us`.
        weights: bytes of weights.
        reads, writes: bytes of the tensors that the step reads and writes, by name.
    """

    name: str
    rows: int = 0
    columns: int = 0
    depth: int = 0
    vector_us: float = 0.0
    fused_us: float | None = None
    weights: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    @property
    def tiles(self) -> int:
        """16x16x16 products of the cube."""
        return self.rows * self.columns * self.depth


def block_steps(
    architecture: Architecture, stage: int, size: tuple[int, int], batch: int, device: Soc, costs: Costs
) -> dict[str, Step]:
    """Return the steps of a float16 block of a stage, 0 to 3, by name, with the NeoCell kernel as it is built."""
    channels, positions = architecture.dims[stage], batch * size[0] * size[1]
    outputs, hidden = channels * positions, MLP_RATIO * channels * positions
    small, large = outputs * FP16, hidden * FP16
    rows, narrow, wide = tiles(positions), tiles(channels), tiles(MLP_RATIO * channels)
    weights = MLP_RATIO * channels * channels * FP16

    def vector(numbers: float, cycles: float) -> float:
        return numbers / REPEAT * cycles / (device.vector_units * device.vector_mhz)

    mix, fused_mix = (
        kernel_time(
            kernel_counts(architecture.stage_spec(stage), *size, batch, device, vector_cores=beside), device, costs
        ).predicted_pipes_us["V"]
        for beside in (True, False)
    )
    gelu = vector(hidden, costs.elementwise_cycles(*GELU))
    add = vector(outputs, costs.elementwise_cycles(1))
    # Where cube and vector share a core, results leave the cube through the vector unit, as float32.
    drain = 0.0 if device.split else 2 * FP16 * REPEAT / device.l0c_to_ub_bytes_per_cycle
    grow, shrink = vector(hidden, drain), vector(outputs, drain)
    steps = (
        Step("neocell", vector_us=mix, fused_us=fused_mix, reads={"x": small}, writes={"mixed": small}),
        Step("fc_1", rows, wide, narrow, grow, None, weights, {"mixed": small}, {"hidden": large}),
        Step("gelu", vector_us=gelu, reads={"hidden": large}, writes={"active": large}),
        Step("fc_2", rows, narrow, wide, shrink, None, weights, {"active": large}, {"update": small}),
        Step("add", vector_us=add, reads={"update": small, "x": small}, writes={"y": small}),
    )
    return {step.name: step for step in steps}


def task_time(steps: Sequence[Step], device: Soc, costs: Costs, weights_held: bool = False) -> KernelTime:
    """Predict the time of steps that run as one task, with the best division of its products among the cores.

    Cores divide the rows of a product (positions), so that each group of rows reads all weights; or its columns, so
    that each group of columns reads all inputs; or both. Of two products in one task the hidden channels are divided
    instead of columns. Then every group adds its share of the result, in float32, in the level-2 cache, and a second
    task converts the sum to float16. Every group computes a NeoCell in front anew.

    A tensor that one step writes and another reads stays on the core. Where cube and vector are separate cores it goes
    through the level-2 cache when it changes sides. With `weights_held`, that cache still holds the weights of the
    previous inference.
    """
    cores = device.ai_cores if any(step.tiles for step in steps) else 1
    divisions = [(groups, cores // groups) for groups in range(1, cores + 1) if cores % groups == 0]
    times = [_divided(steps, device, costs, weights_held, *division) for division in divisions]
    return min(times, key=lambda time: time.predicted_us)


def _divided(
    steps: Sequence[Step], device: Soc, costs: Costs, weights_held: bool, by_rows: int, by_columns: int
) -> KernelTime:
    products = [step for step in steps if step.tiles]
    readers = {name: step for step in steps for name in step.reads}
    inner = readers.keys() & {name for step in steps for name in step.writes}
    weights = sum(step.weights for step in steps)
    memory = 0.0 if weights_held else weights
    l2_read, l2_write = float(weights * by_rows), 0.0
    for step in steps:
        for name, size in step.reads.items():
            # A tensor that two steps of the task read is read once.
            if name not in inner and readers[name] is step:
                l2_read += size * by_columns
                memory += 0 if costs.fits_l2(size, device) else size
        for name, size in step.writes.items():
            if name not in inner:
                l2_write += size
                memory += 0 if costs.fits_l2(size, device) else size
            elif device.split and bool(step.tiles) != bool(readers[name].tiles):
                l2_write += size
                l2_read += size
    partial_sums = len(products) > 1 and by_columns > 1
    if partial_sums:
        partial = 2 * products[-1].writes["update"]
        l2_write += partial * by_columns
        l2_read += partial
    cube = 0.0
    for step in products:
        columns = max(step.columns, step.depth) if len(products) > 1 else step.columns
        uneven = _uneven(step.rows, by_rows) * _uneven(columns, by_columns)
        cube += step.tiles * uneven / (device.ai_cores * device.cube_mhz)
    pipes = {
        "cube": cube,
        "vector": sum(_vector_us(step, by_columns, bool(products)) for step in steps),
        "memory": memory / device.memory_bytes_per_second * 1e6,
        "L2": (l2_read / device.l2_read_bytes_per_second + l2_write / device.l2_write_bytes_per_second) * 1e6,
    }
    return KernelTime.overlapping(pipes, costs, launches=2 if partial_sums else 1)


def _vector_us(step: Step, by_columns: int, with_product: bool) -> float:
    if not with_product or step.fused_us is None:
        return step.vector_us
    return step.fused_us * by_columns


def _uneven(number: int, groups: int) -> float:
    """Return the largest of `groups` shares of so many tiles over the mean share."""
    return tiles(number, groups) * groups / number


def _activations_us(step: Step, device: Soc, costs: Costs) -> float:
    """Return the microseconds of reading and writing the step's activations once, in L2 or memory, as they fit."""
    us = 0.0
    for tensors, l2 in (
        (step.reads, device.l2_read_bytes_per_second),
        (step.writes, device.l2_write_bytes_per_second),
    ):
        for size in tensors.values():
            us += size / (l2 if costs.fits_l2(size, device) else device.memory_bytes_per_second) * 1e6
    return us


def weights_held(architecture: Architecture, device: Soc, costs: Costs) -> bool:
    """Return if the level-2 cache holds all weights of the blocks from one inference to the next."""
    blocks = zip(architecture.per_stage_layers, architecture.dims, strict=True)
    return costs.fits_l2(sum(depth * 2 * MLP_RATIO * c * c * FP16 for depth, c in blocks), device)


def block_times(
    architecture: Architecture, image_size: tuple[int, int], batch: int, device: Soc
) -> list[tuple[dict[str, float], dict[str, KernelTime]]]:
    """Predict one block of every stage: the microseconds that each unit works for it, and its time by fusion."""
    costs = Costs()
    held = weights_held(architecture, device, costs)
    weight_rate = device.l2_read_bytes_per_second if held else device.memory_bytes_per_second
    result = []
    for stage, size in enumerate(architecture.maps(image_size)[:STAGES]):
        steps = block_steps(architecture, stage, size, batch, device, costs)
        units = {
            "cube": sum(step.tiles for step in steps.values()) / (device.ai_cores * device.cube_mhz),
            "vector: NeoCell": steps["neocell"].vector_us,
            "vector: GELU": steps["gelu"].vector_us,
            "vector: rest": sum(steps[name].vector_us for name in ("fc_1", "fc_2", "add")),
            "weights": sum(step.weights for step in steps.values()) / weight_rate * 1e6,
            "activations, unfused": sum(_activations_us(step, device, costs) for step in steps.values()),
            "launches, unfused": len(steps) * costs.launch_us,
        }
        predicted = {
            fusion: KernelTime.in_sequence(
                [task_time([steps[name] for name in task], device, costs, held) for task in tasks]
            )
            for fusion, tasks in FUSIONS.items()
        }
        result.append((units, predicted))
    return result


def block_buffers(architecture: Architecture, stage: int, size: tuple[int, int], device: Soc) -> dict[str, int]:
    """Fill the buffers of one core with the largest tiles of a whole block, two of everything that is moved.

    Returns:
        positions: rows of a tile of the products;
        hidden: hidden channels computed at a time;
        strip: rows of the map that NeoCell computes at a time;
        l0a, l0b: bytes of a product's operands, `positions x depth` and `depth x hidden`;
        l0c: bytes of the hidden channels twice and all outputs once, float32;
        l1_weights: bytes of both weight matrices;
        l1_tiles: bytes of a strip of NeoCell's output, and of the hidden channels twice;
        ub_neocell: bytes of a strip's input and output, 16 channels, twice, A x once, and the coefficients;
        ub_gelu: bytes of the hidden channels three times: in, work, out.

    Raises:
        InputError: not even 16 positions of all channels fit.
    """
    channels, spec = architecture.dims[stage], architecture.stage_spec(stage)
    height, width = size
    choices = [
        (positions * hidden, positions, hidden)
        for positions in range(TILE, min(tiles(height * width) * TILE, 256) + 1, TILE)
        for hidden in (16, 32, 64, 128)
        if 4 * positions * (channels + 2 * hidden) <= device.l0c_bytes
    ]
    if not choices:
        raise InputError(
            f"{device.name}: {channels} channels do not fit into its L0C ({device.l0c_bytes} bytes) beside hidden "
            "channels. A whole block would have to divide its outputs too."
        )
    _, positions, hidden = max(choices)
    depth = min(channels, device.l0a_bytes // (2 * FP16 * positions), device.l0b_bytes // (2 * FP16 * hidden))
    depth = depth // TILE * TILE
    ub_gelu = 3 * positions * hidden * FP16
    k = max(max(group.h_in, group.w_in) for group in spec.groups)
    coefficients = 2 * 2 * k * (2 * k - 1) * 32

    def ub_neocell(rows: int) -> int:
        window = min(rows + 2 * (k - 1), height)
        return (2 * window + 3 * rows) * width * 32 + coefficients

    def l1_tiles(rows: int) -> int:
        return (rows * width * channels + 2 * positions * hidden) * FP16

    fitting = [
        rows
        for rows in range(1, height + 1)
        if ub_neocell(rows) + ub_gelu <= device.ub_bytes and l1_tiles(rows) <= device.l1_bytes
    ]
    strip = max(fitting, default=1)
    return {
        "positions": positions,
        "hidden": hidden,
        "strip": strip,
        "l0a": 2 * positions * depth * FP16,
        "l0b": 2 * depth * hidden * FP16,
        "l0c": 4 * positions * (channels + 2 * hidden),
        "l1_weights": 2 * MLP_RATIO * channels * channels * FP16,
        "l1_tiles": l1_tiles(strip),
        "ub_neocell": ub_neocell(strip),
        "ub_gelu": ub_gelu,
    }
