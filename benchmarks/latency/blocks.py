"""What bounds a whole NeoNeXt block on an Ascend device, and what fusing its parts would save. All predicted.

A block is a list of `Step`s; `fused` joins neighbours into one task, and `task_time` says how long a task takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import MLP_RATIO, STAGES, Architecture
from neonext_ms.ops.soc import Soc

from .block_counts import REPEAT, twin_counts
from .block_model import FP16, TILE, Prediction, in_order, kernel_time, predict
from .unit_costs import Costs, elementwise_cycles, gelu_cycles

STEPS = ("neocell", "fc_1", "gelu", "fc_2", "add")
# What is one task. A NeoCell with its bias is one kernel in all of them.
FUSIONS = {
    "unfused": (("neocell",), ("fc_1",), ("gelu",), ("fc_2",), ("add",)),
    "GELU in fc_1": (("neocell",), ("fc_1", "gelu"), ("fc_2",), ("add",)),
    "GELU in fc_1, residual in fc_2": (("neocell",), ("fc_1", "gelu"), ("fc_2", "add")),
    "NeoCell and GELU in fc_1": (("neocell", "fc_1", "gelu"), ("fc_2", "add")),
    "MLP": (("neocell",), ("fc_1", "gelu", "fc_2", "add")),
    "whole block": (STEPS,),
}


@dataclass(frozen=True)
class Step:
    """One operator, over all cores.

    Attributes:
        name: of the step.
        rows, columns, depth: of a product, in tiles of 16; 0 for a step of the vector unit.
        vector_us: microseconds of the vector units, all busy.
        weights: bytes of weights.
        reads, writes: bytes of the tensors it reads and writes, by name.
    """

    name: str
    rows: int = 0
    columns: int = 0
    depth: int = 0
    vector_us: float = 0.0
    weights: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    @property
    def tiles(self) -> int:
        """16 x 16 x 16 products of the cube."""
        return self.rows * self.columns * self.depth


def block_steps(
    architecture: Architecture,
    stage: int,
    size: tuple[int, int],
    batch: int,
    device: Soc,
    costs: Costs,
    gelu: str = "short",
) -> list[Step]:
    """The steps of a block of `stage` (0 to 3) in float16 on maps of `size`, with the NeoCell kernel as it is built."""
    channels, spec = architecture.dims[stage], architecture.stage_spec(stage)
    positions = batch * size[0] * size[1]
    small, large = channels * positions * FP16, MLP_RATIO * channels * positions * FP16
    rate = device.vector_units * device.vector_mhz
    counts = twin_counts(spec, *size, batch, device)
    neocell = kernel_time(counts, device, 0.0, costs).predicted_pipes_us["V"]
    rows, narrow, wide = -(-positions // TILE), -(-channels // TILE), -(-MLP_RATIO * channels // TILE)
    weights = MLP_RATIO * channels * channels * FP16

    def vector(numbers: float, cycles: float) -> float:
        return numbers / REPEAT * cycles / rate

    # Where cube and vector share a core, results leave the cube through the vector unit, as float32.
    drain = 0.0 if device.split else 2 * FP16 * REPEAT / device.l0c_to_ub_bytes_per_cycle
    hidden, outputs = MLP_RATIO * channels * positions, channels * positions
    mix, grow, act, shrink, add = (
        neocell,
        vector(hidden, drain),
        vector(hidden, gelu_cycles(gelu, costs)),
        vector(outputs, drain),
        vector(outputs, elementwise_cycles(1, 0, costs)),
    )
    return [
        Step("neocell", vector_us=mix, reads={"x": small}, writes={"mixed": small}),
        Step("fc_1", rows, wide, narrow, grow, weights, {"mixed": small}, {"hidden": large}),
        Step("gelu", vector_us=act, reads={"hidden": large}, writes={"active": large}),
        Step("fc_2", rows, narrow, wide, shrink, weights, {"active": large}, {"update": small}),
        Step("add", vector_us=add, reads={"update": small, "x": small}, writes={"y": small}),
    ]


def task_time(
    steps: Sequence[Step], device: Soc, costs: Costs, weights_held: bool = False, launch_us: float | None = None
) -> Prediction:
    """Predicted time of steps that run as one task, with the best division of its products over the cores.

    Cores divide the rows of a product (positions), so that each group of rows reads all weights, or its columns, so
    that each group of columns reads all inputs, or both. Of two products in one task the hidden channels are what is
    divided instead of columns: then every group adds its share of the result, in float32, in the level-2 cache, a
    second task turns the sum into float16, and a NeoCell in front is computed by every group.

    What one step writes and another reads stays on the core; where cube and vector are separate cores it goes through
    the level-2 cache when it changes sides.

    Args:
        steps: neighbours.
        device: whose rates to take.
        costs: all other figures.
        weights_held: whether the level-2 cache still holds the weights of the inference before.
        launch_us: instead of that of `costs`.
    """
    cores = device.ai_cores if any(step.tiles for step in steps) else 1
    ways = [(groups, cores // groups) for groups in range(1, cores + 1) if cores % groups == 0]
    return min((_divided(steps, device, costs, weights_held, launch_us, *way) for way in ways), key=_us)


def _us(prediction: Prediction) -> float:
    return prediction.predicted_us


def _divided(
    steps: Sequence[Step],
    device: Soc,
    costs: Costs,
    weights_held: bool,
    launch_us: float | None,
    by_rows: int,
    by_columns: int,
) -> Prediction:
    products = [step for step in steps if step.tiles]
    written = {name: step for step in steps for name in step.writes}
    read = {name: step for step in steps for name in step.reads}
    inner = written.keys() & read.keys()
    weights = sum(step.weights for step in steps)
    memory = 0.0 if weights_held else weights
    l2_read, l2_write = float(weights * by_rows), 0.0
    for step in steps:
        for name, size in step.reads.items():
            # A tensor that two steps of the task read is read once.
            if name not in inner and read[name] is step:
                l2_read += size * by_columns
                memory += 0 if costs.fits_l2(size, device) else size
        for name, size in step.writes.items():
            if name not in inner:
                l2_write += size
                memory += 0 if costs.fits_l2(size, device) else size
            elif device.split and bool(step.tiles) != bool(read[name].tiles):
                l2_write += size
                l2_read += size
    sums = len(products) > 1 and by_columns > 1
    if sums:
        partial = 2 * products[-1].writes["update"]
        l2_write += partial * by_columns
        l2_read += partial
    cube = 0.0
    for step in products:
        columns = max(step.columns, step.depth) if len(products) > 1 else step.columns
        uneven = _uneven(step.rows, by_rows) * _uneven(columns, by_columns)
        cube += step.tiles * uneven / (device.ai_cores * device.cube_mhz)
    vector = sum(step.vector_us * (by_columns if step.name == "neocell" and products else 1) for step in steps)
    pipes = {
        "cube": cube,
        "vector": vector,
        "memory": memory / device.memory_bytes_per_second * 1e6,
        "L2": (l2_read / device.l2_read_bytes_per_second + l2_write / device.l2_write_bytes_per_second) * 1e6,
    }
    return predict(pipes, 2 if sums else 1, costs.launch_us if launch_us is None else launch_us)


def _uneven(tiles: int, groups: int) -> float:
    """By how much the largest of `groups` shares of so many tiles exceeds the mean."""
    return -(-tiles // groups) * groups / tiles


def fused(steps: Iterable[Step], groups: Sequence[Sequence[str]]) -> list[list[Step]]:
    """Steps grouped into tasks by their names."""
    by_name = {step.name: step for step in steps}
    return [[by_name[name] for name in group] for group in groups]


def _activations_us(step: Step, device: Soc, costs: Costs) -> float:
    """Reading and writing its activations once, each from or to where it fits."""
    us = 0.0
    for tensors, l2 in (
        (step.reads, device.l2_read_bytes_per_second),
        (step.writes, device.l2_write_bytes_per_second),
    ):
        for size in tensors.values():
            us += size / (l2 if costs.fits_l2(size, device) else device.memory_bytes_per_second) * 1e6
    return us


def weights_held(architecture: Architecture, device: Soc, costs: Costs) -> bool:
    """Whether the level-2 cache holds all weights of the blocks from one inference to the next."""
    blocks = zip(architecture.per_stage_layers, architecture.dims, strict=True)
    return costs.fits_l2(sum(depth * 2 * MLP_RATIO * c * c * FP16 for depth, c in blocks), device)


@dataclass(frozen=True)
class BlockPrediction:
    """One block of a stage.

    Attributes:
        stage: 1 to 4.
        blocks: blocks of the stage.
        predicted_units_us: what each unit has to do for one block.
        predicted: for each fusion, one block.
    """

    stage: int
    blocks: int
    predicted_units_us: dict[str, float]
    predicted: dict[str, Prediction]


def block_predictions(
    architecture: Architecture,
    image_size: tuple[int, int],
    batch: int,
    device: Soc,
    costs: Costs | None = None,
    gelu: str = "short",
) -> list[BlockPrediction]:
    """Every stage of a model."""
    costs = costs or Costs()
    held = weights_held(architecture, device, costs)
    result = []
    for stage, size in enumerate(architecture.maps(image_size)[:STAGES]):
        steps = block_steps(architecture, stage, size, batch, device, costs, gelu)
        weights = sum(step.weights for step in steps)
        rate = device.l2_read_bytes_per_second if held else device.memory_bytes_per_second
        vector = {step.name: step.vector_us for step in steps}
        units = {
            "cube": sum(step.tiles for step in steps) / (device.ai_cores * device.cube_mhz),
            "vector: NeoCell": vector["neocell"],
            "vector: GELU": vector["gelu"],
            "vector: rest": vector["fc_1"] + vector["fc_2"] + vector["add"],
            "weights": weights / rate * 1e6,
            "activations, unfused": sum(_activations_us(step, device, costs) for step in steps),
            "launches, unfused": len(steps) * costs.launch_us,
        }
        predicted = {
            name: in_order([task_time(group, device, costs, held) for group in fused(steps, groups)])
            for name, groups in FUSIONS.items()
        }
        result.append(BlockPrediction(stage + 1, architecture.per_stage_layers[stage], units, predicted))
    return result


@dataclass(frozen=True)
class Budget:
    """How a whole block would fill the buffers of one core, in bytes, two of everything that is moved.

    Attributes:
        stage: 1 to 4.
        positions: rows of a tile of the products.
        hidden: hidden channels computed at a time.
        strip: rows of the map that NeoCell computes at a time.
        l0a, l0b: operands of a product, `positions x depth` and `depth x hidden`.
        l0c: the hidden channels twice and all outputs once, float32.
        l1_weights: both matrices of weights.
        l1_tiles: a strip of NeoCell's output, and the hidden channels twice.
        ub_neocell: input and output of a strip of 16 channels twice, A x once, coefficients.
        ub_gelu: the hidden channels three times: in, work, out.
    """

    stage: int
    positions: int
    hidden: int
    strip: int
    l0a: int
    l0b: int
    l0c: int
    l1_weights: int
    l1_tiles: int
    ub_neocell: int
    ub_gelu: int


def block_budget(architecture: Architecture, stage: int, size: tuple[int, int], device: Soc) -> Budget:
    """The largest tiles of a whole block of `stage` (0 to 3) that fit into the buffers of one core.

    Raises:
        InputError: not even 16 positions of all channels fit.
    """
    channels, spec = architecture.dims[stage], architecture.stage_spec(stage)
    height, width = size
    most = -(-height * width // TILE) * TILE
    choices = [
        (positions * hidden, positions, hidden)
        for positions in range(TILE, min(most, 256) + 1, TILE)
        for hidden in (16, 32, 64, 128)
        if 4 * positions * (channels + 2 * hidden) <= device.l0c_bytes
    ]
    if not choices:
        raise InputError(
            f"{channels} channels do not fit into the L0C of {device.name} ({device.l0c_bytes} bytes) beside hidden "
            "ones: a whole block would have to divide its outputs too"
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
    return Budget(
        stage + 1,
        positions,
        hidden,
        strip,
        2 * positions * depth * FP16,
        2 * depth * hidden * FP16,
        4 * positions * (channels + 2 * hidden),
        2 * MLP_RATIO * channels * channels * FP16,
        l1_tiles(strip),
        ub_neocell(strip),
        ub_gelu,
    )
