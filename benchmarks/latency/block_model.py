"""Predicted time of NeoCell kernels on Ascend devices, against what one would use instead. Nothing here was measured.

    python -m neonext_ms.benchmarks.latency.block_model [--soc Ascend310P3,Ascend910B3] [--models t,s,b] [--image-size 224,384]
        [--batch 1,8] [--json]
    python -m neonext_ms.benchmarks.latency.block_model --aims        repeats over ideal ones, times over the memory bound
    python -m neonext_ms.benchmarks.latency.block_model --blocks      what bounds whole blocks, fused and not
    python -m neonext_ms.benchmarks.latency.block_model --ideal       the same without launches and starts of instructions
    python -m neonext_ms.benchmarks.latency.block_model --budgets     how a whole block would fill the buffers of a core
    python -m neonext_ms.benchmarks.latency.block_model --schedules   the kernel against an ideal arrangement of its work
    python -m neonext_ms.benchmarks.latency.block_model --lanes       multiply-adds of full lanes, channels reordered or not
    python -m neonext_ms.benchmarks.latency.block_model --update docs/davinci.md

A kernel takes as long as the longest pipe of its slowest core, as if everything overlapped (double buffering), plus
its launch. Figures of a device come from `ops/soc.py`, all others from `Costs` (`device_figures.py`), and counts of
the NeoCell kernel from the twin, which needs g++ (exit code 3 without it; --budgets and --lanes do not need it).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neonext_ms.common.cli import Parser, run
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.ops.packing import plan
from neonext_ms.ops.soc import MACS_PER_CYCLE, Soc
from neonext_ms.ops.spec import NeoCellSpec

from .. import documents
from .unit_costs import Costs, elementwise_cycles

FP16 = 2
TILE = 16  # rows, columns and depth of what the cube multiplies in a cycle
_COMMAND = "python -m neonext_ms.benchmarks.latency.block_model"


@dataclass(frozen=True)
class Prediction:
    """Predicted time of one or more kernels one after the other.

    Attributes:
        predicted_us: microseconds with launches.
        predicted_bound: what takes longest: a pipe ("V", "MTE2", "MTE3", "S", "cube", "MTE1"), "memory", "L2" or
            "launch".
        predicted_pipes_us: microseconds of each of those, of the slowest core.
        launches: kernels.
    """

    predicted_us: float
    predicted_bound: str
    predicted_pipes_us: Mapping[str, float] = field(default_factory=dict)
    launches: int = 1


def predict(pipes: Mapping[str, float], launches: int, launch_us: float) -> Prediction:
    """A prediction from what runs side by side, in microseconds."""
    launch = launches * launch_us
    bound = max(pipes, key=pipes.__getitem__)
    longest = pipes[bound]
    return Prediction(longest + launch, bound if longest >= launch else "launch", dict(pipes), launches)


def in_order(parts: Sequence[Prediction]) -> Prediction:
    """Kernels one after the other."""
    pipes: dict[str, float] = {}
    for part in parts:
        for name, us in part.predicted_pipes_us.items():
            pipes[name] = pipes.get(name, 0.0) + us
    bounds: dict[str, float] = {}
    for part in parts:
        bounds[part.predicted_bound] = bounds.get(part.predicted_bound, 0.0) + part.predicted_us
    total = sum(part.predicted_us for part in parts)
    return Prediction(total, max(bounds, key=bounds.__getitem__), pipes, sum(part.launches for part in parts))


def kernel_time(
    counts: Mapping,
    device: Soc,
    launch_us: float | None = None,
    costs: Costs | None = None,
    from_l2: bool | None = None,
) -> Prediction:
    """Predicted time of a vector kernel from the twin's counts.

    Args:
        counts: `cores`, each with `pipes` of "V" (instructions, repeats), "MTE2" and "MTE3" (instructions, bursts,
            bytes) and "S" (instructions); and `by_instruction`, how often each vector instruction occurs.
        device: whose rates to take.
        launch_us: instead of that of `costs`.
        costs: all other figures.
        from_l2: whether what the kernel reads and writes is in the level-2 cache; None: if it fits.

    Raises:
        InputError: the counts have no core.
    """
    costs = costs or Costs()
    if not counts.get("cores"):
        raise InputError("the counts name no core; expected what `neonext-ops twin --json` prints")
    cycle = 1 / device.vector_mhz  # microseconds
    repeat = _mean_repeat(counts.get("by_instruction", {}), costs)
    moved = sum(_of(core, pipe, "bytes") for core in counts["cores"] for pipe in ("MTE2", "MTE3"))
    held = costs.fits_l2(moved, device) if from_l2 is None else from_l2
    # Vector cores of a split device share the path of their AI core.
    share = device.ai_cores / device.vector_units
    read = (device.l2_read_bytes_per_cycle if held else device.memory_bytes_per_cycle) * share
    write = (device.l2_write_bytes_per_cycle if held else device.memory_bytes_per_cycle) * share
    pipes = dict.fromkeys(("V", "MTE2", "MTE3", "S"), 0.0)
    for core in counts["cores"]:
        vector = _of(core, "V", "instructions") * costs.vector_start_cycles + _of(core, "V", "repeats") * repeat
        load, store = (
            _of(core, pipe, "instructions") * costs.copy_start_cycles
            + _of(core, pipe, "bursts") * costs.burst_cycles
            + _of(core, pipe, "bytes") / rate
            for pipe, rate in (("MTE2", read), ("MTE3", write))
        )
        scalar = _of(core, "S", "instructions") * costs.scalar_cycles
        for pipe, cycles in zip(pipes, (vector, load, store, scalar), strict=True):
            pipes[pipe] = max(pipes[pipe], cycles * cycle)
    if not held:
        # A core's rate is for both directions together, as in `memory_bound`.
        both = (_of(core, "MTE2", "bytes") + _of(core, "MTE3", "bytes") for core in counts["cores"])
        pipes["memory"] = max(both) / read * cycle
    return predict(pipes, 1, costs.launch_us if launch_us is None else launch_us)


def _of(core: Mapping, pipe: str, what: str) -> float:
    return core["pipes"].get(pipe, {}).get(what, 0)


def _mean_repeat(by_instruction: Mapping, costs: Costs) -> float:
    """Cycles of a repeat, averaged over the instructions of the kernel."""
    repeats = {name: counted.get("repeats", 0) for name, counted in by_instruction.items()}
    total = sum(repeats.values())
    if not total:
        return costs.repeat_cycles
    return sum(number * costs.cycles_of_repeat(name) for name, number in repeats.items()) / total


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE


def _activations(spec: NeoCellSpec, height: int, width: int, batch: int) -> tuple[int, int]:
    """Bytes of the input and the output of a NeoCell as NC1HWC0 in float16."""
    out_height, out_width = spec.output_size(height, width)
    channels = batch * _padded(spec.channels) * FP16
    return channels * height * width, channels * out_height * out_width


def memory_bound(spec: NeoCellSpec, height: int, width: int, batch: int, device: Soc) -> float:
    """Predicted least microseconds from and to memory: input once, output once, coefficients once, no launch."""
    made = plan(spec)
    coefficients = (made.index_a.size + made.index_b.size) * FP16
    return (sum(_activations(spec, height, width, batch)) + coefficients) / device.memory_bytes_per_second * 1e6


def block_diagonal_matmuls(
    spec: NeoCellSpec,
    height: int,
    width: int,
    batch: int,
    device: Soc,
    costs: Costs | None = None,
    transposed: bool = False,
) -> Prediction:
    """Predicted time of the two BatchMatMuls with whole block-diagonal matrices, one matrix for each channel.

    Maps and matrices are padded to multiples of 16 on both sides, as the cube takes them; A and B change with every
    channel, so every product loads both sides anew.

    Args:
        transposed: with the two tasks (TransData) that bring maps from the neighbours' NC1HWC0 into that form and back.
    """
    costs = costs or Costs()
    out_height, out_width = spec.output_size(height, width)
    around = []
    if transposed:
        for plain, rows, columns in zip(
            _activations(spec, height, width, batch), (height, out_height), (width, out_width), strict=True
        ):
            padded = batch * spec.channels * _padded(rows) * _padded(columns) * FP16
            around.append(_elementwise(plain, padded, device, costs))
    left = _product(_padded(out_height), _padded(height), _padded(width), spec.channels, batch, 0, device, costs)
    right = _product(_padded(out_height), _padded(width), _padded(out_width), spec.channels, batch, 1, device, costs)
    return in_order([*around[:1], left, right, *around[1:]])


def _elementwise(read: int, written: int, device: Soc, costs: Costs) -> Prediction:
    """A task of the vector unit with one instruction for every element of the larger side, in float16."""
    numbers = max(read, written) / FP16
    us = numbers / 128 * elementwise_cycles(1, 0, costs) / (device.vector_units * device.vector_mhz)
    return predict({"V": us, **_moved(read, written, device, costs)}, 1, costs.launch_us)


def _moved(read: int, written: int, device: Soc, costs: Costs) -> dict[str, float]:
    """Microseconds of reading and writing so many bytes of activations: from memory, or the level-2 cache."""
    if costs.fits_l2(read + written, device):
        seconds = read / device.l2_read_bytes_per_second + written / device.l2_write_bytes_per_second
        return {"L2": seconds * 1e6}
    return {"memory": (read + written) / device.memory_bytes_per_second * 1e6}


def _product(m: int, k: int, n: int, channels: int, batch: int, matrix: int, device: Soc, costs: Costs) -> Prediction:
    """`batch x channels` products `(m, k) @ (k, n)`; operand number `matrix` is the same for all images."""
    number = batch * channels
    operands = [number * m * k * FP16, number * k * n * FP16]
    operands[matrix] //= batch
    result = number * m * n * FP16
    rate = device.ai_cores * device.cube_mhz  # cycles of all cores in a microsecond
    pipes = {
        "cube": number * (m * n * k / MACS_PER_CYCLE + costs.cube_start_cycles) / rate,
        "MTE1": number
        * max(m * k * FP16 / device.l1_to_l0a_bytes_per_cycle, k * n * FP16 / device.l1_to_l0b_bytes_per_cycle)
        / rate,
        # The cube leaves float32.
        "L0C": number * m * n * 2 * FP16 / device.l0c_to_ub_bytes_per_cycle / rate,
        **_moved(sum(operands), result, device, costs),
    }
    return predict(pipes, 1, costs.launch_us)


def depthwise_vector(
    spec: NeoCellSpec, height: int, width: int, batch: int, device: Soc, costs: Costs | None = None, side: int = 7
) -> Prediction:
    """Predicted time of a depthwise convolution on the vector unit: `side`^2 taps for every element, full lanes.

    The start of instructions is left out, so it is what a good kernel could reach.
    """
    costs = costs or Costs()
    taps = costs.repeat_cycles + (side * side - 1) * costs.multiply_add_cycles
    return _depthwise(spec, height, width, batch, device, costs, side, taps, "V")


def depthwise_cube(
    spec: NeoCellSpec, height: int, width: int, batch: int, device: Soc, costs: Costs | None = None, side: int = 7
) -> Prediction:
    """Predicted time of a depthwise convolution on the cube: 16 x 16 diagonal tiles, so 15 of 16 products are zero.

    16 positions by `side`^2 taps of 16 channels by 16 channels; the start of instructions is left out.
    """
    # One tile a cycle and tap does 16 positions; a vector unit does 8 in a repeat.
    return _depthwise(spec, height, width, batch, device, costs or Costs(), side, side * side, "cube")


def _depthwise(
    spec: NeoCellSpec,
    height: int,
    width: int,
    batch: int,
    device: Soc,
    costs: Costs,
    side: int,
    cycles: float,
    pipe: str,
) -> Prediction:
    read, written = _activations(spec, height, width, batch)
    planes = batch * _padded(spec.channels) // TILE
    if pipe == "V":
        us = planes * height * width / 8 * cycles / (device.vector_units * device.vector_mhz)
    else:
        us = planes * -(-height * width // TILE) * cycles / (device.ai_cores * device.cube_mhz)
    weights = side * side * _padded(spec.channels) * FP16
    return predict({pipe: us, **_moved(read + weights, written, device, costs)}, 1, costs.launch_us)


def _printed(arguments: Sequence[str]) -> str:
    from . import block_tables

    parser = Parser(prog="python -m neonext_ms.benchmarks.latency.block_model", description=__doc__)
    parser.add_argument("--soc", default="Ascend310P3,Ascend910B3", help="devices, separated by commas")
    parser.add_argument("--models", default="t,s,b", help="sizes of released models: t, s, b, l, xl")
    parser.add_argument("--image-size", default="224,384", help="224 and 384, with the shifts of that release")
    parser.add_argument("--batch", default="1,8", help="images at a time")
    parser.add_argument("--totals", action="store_true", help="only the sums over a model")
    parser.add_argument("--json", action="store_true", help="the rows of the table as JSON")
    what = parser.add_mutually_exclusive_group()
    for name in block_tables.TABLES[1:]:
        what.add_argument(f"--{name}", dest="table", action="store_const", const=name)
    what.add_argument("--update", metavar="FILE", help="print every table of a document anew, in its place")
    args = parser.parse_args(arguments)
    if args.update:
        return updated(args.update)
    table = args.table or block_tables.TABLES[0]
    if args.totals and table not in block_tables.SUMMED:
        raise UsageError(f"--totals: the table of --{table} has no sums over a model; leave it out")
    chosen = block_tables.Choice.parse(args.soc, args.models, args.image_size, args.batch)
    rows = getattr(block_tables, f"{table}_rows")(chosen)
    if args.totals:
        rows = [row for row in rows if row["stage"] == "all"]
    if args.json:
        return json.dumps(rows, indent=2)
    return getattr(block_tables, f"{table}_text")(rows)


def tables_of(text: str) -> list[tuple[str, str]]:
    """Arguments and text of every table of this command in a document."""
    return documents.tables_of(text, _COMMAND)


def updated(path: str | os.PathLike) -> str:
    """Replace every table of a document by what its command prints now; say how many changed."""
    return documents.updated(path, _COMMAND, _printed)


def _main(argv: Sequence[str] | None = None) -> None:
    print(_printed(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(run(_main))
