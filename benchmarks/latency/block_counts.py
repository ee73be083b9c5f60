"""How often each unit of each core is used: by the NeoCell kernel in the twin, and by ideal forms of its work."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from neonext_ms.ops.lanes import BLOCK_BYTES, lane_multiply_adds
from neonext_ms.ops.packing import plan
from neonext_ms.ops.soc import Soc
from neonext_ms.ops.spec import NeoCellSpec

BLOCKS = 8  # of 32 bytes in a repeat
LANES = 16  # float16 channels of a block
REPEAT = BLOCKS * LANES
PIPES = ("V", "MTE2", "MTE3", "S")

Counts = Mapping  # the twin's JSON: `cores`, `totals`, `by_instruction`


@lru_cache(maxsize=256)
def twin_counts(spec: NeoCellSpec, height: int, width: int, batch: int, soc: Soc) -> Counts:
    """Counts of the float16 kernel as it is built, run in the twin on zeros.

    Args:
        spec: the NeoCell.
        height: rows of the map.
        width: columns of the map.
        batch: images.
        soc: the device.

    Raises:
        ToolchainError: there is no C++ compiler.
        InputError: the kernel does not take this NeoCell, or the twin not this device.
    """
    from neonext_ms.ops.twin import neo_cell

    x = np.zeros((batch, spec.channels, height, width), np.float16)
    weights = [[np.zeros(shape, np.float16) for shape in shapes] for shapes in (spec.shapes_a, spec.shapes_b)]
    return neo_cell.forward(x, *weights, spec, soc=soc.name).counts


def evened(counts: Counts) -> Counts:
    """The same work, shared evenly by all cores."""
    cores = counts["cores"]
    mean = {
        pipe: {
            what: sum(core["pipes"].get(pipe, {}).get(what, 0) for core in cores) / len(cores)
            for what in {name for core in cores for name in core["pipes"].get(pipe, {})}
        }
        for pipe in PIPES
    }
    return {**counts, "cores": [{"core": i, "pipes": mean} for i in range(len(cores))]}


def full_strips(built: Counts, spec: NeoCellSpec, height: int, width: int, batch: int, soc: Soc) -> Counts:
    """Counts of an ideal arrangement of the kernel's multiply-adds in blocks of 16 channels. Not a kernel.

    The cores share evenly, all repeats are full, and every strip, of several images if need be, fills the unified
    buffer (input and output twice, A x once, no margins). A tap of a phase is one instruction, but where the
    kernel needs fewer instructions than that, because they run over phases, it counts as it is.

    Args:
        built: the twin's counts of the kernel.
        spec, height, width, batch, soc: as in `twin_counts`.
    """
    made, out = plan(spec), spec.output_size(height, width)
    planes, cores = -(-spec.channels // LANES), soc.vector_units
    rows = len(made.index_a) + len(made.index_b)
    positions = batch * max(height * width, out[0] * out[1])
    strips = max(1, positions * 5 * BLOCK_BYTES / soc.ub_bytes, cores / planes)
    repeats = batch * lane_multiply_adds(spec, height, width, LANES) / REPEAT
    first = batch * planes * out[0] * (width + out[1]) / BLOCKS  # taps that write, all others add
    block = planes * BLOCK_BYTES
    totals: dict[str, dict[str, float]] = {
        "V": {"instructions": min(strips * rows, built["totals"]["V"]["instructions"]), "repeats": repeats},
        "MTE2": {"bytes": batch * height * width * block + rows * BLOCK_BYTES},
        "MTE3": {"bytes": batch * out[0] * out[1] * block},
    }
    for pipe in ("MTE2", "MTE3"):
        totals[pipe].update(instructions=strips * planes, bursts=strips * planes)
    core = {pipe: {what: number / cores for what, number in each.items()} for pipe, each in totals.items()}
    return {
        "cores": [{"core": i, "pipes": core} for i in range(cores)],
        "totals": totals,
        "by_instruction": {"Mul": {"repeats": first}, "MulAddDst": {"repeats": repeats - first}},
    }


def ideal_repeats(spec: NeoCellSpec, height: int, width: int, batch: int) -> float:
    """Repeats with all lanes used, for as many multiply-adds of an element as the matrices have inputs (2 k)."""
    out = spec.output_size(height, width)
    each = sum(g.channels * out[0] * (g.h_in * width + g.w_in * out[1]) for g in spec.groups)
    return batch * each / REPEAT
