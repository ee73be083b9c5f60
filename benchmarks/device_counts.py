"""How often each unit of each core is used by a NeoCell kernel: from the twin, or counted without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise

import numpy as np

from ..errors import ToolchainError
from ..ops.lanes import BLOCK_BYTES, Kind, kinds
from ..ops.soc import Soc
from ..ops.spec import NeoCellSpec, first_input
from .device_figures import Costs

GROUP = 8  # blocks of 32 bytes in a repeat
LANES = 16
ORIGINS = ("auto", "twin", "analytic")
REPEATS = 255  # most repeats of an instruction
STRIDE = 255  # most blocks from one repeat to the next
PIPES = ("V", "MTE2", "MTE3", "S")

Counts = dict  # the twin's JSON
Members = tuple[Kind, ...]  # the different kinds of channels of one block of 16


@dataclass(frozen=True)
class Schedule:
    """How a NeoCell kernel arranges its work; every choice is exact, they differ in instructions.

    One tap of one phase is a grid: along the outputs of the phase, and across them. The kernel as it is puts 8 across
    into a repeat and repeats along, or over groups of 8 across where that takes fewer instructions and the distances
    fit. Where it takes fewer instructions, "along" are neighbouring phases that read the same taps, period by period.

    Attributes:
        phase_rows: the rows of a strip lie in the buffer in the order of their phases, so that one instruction does
            one tap of A for all rows of a phase.
        column_blocks: B may take 8 columns of a phase as the blocks of a repeat and repeat over the rows.
        merge: a strip may hold the rows of several images, and an instruction may repeat over blocks of channels with
            the same shifts.
        balance: cores share the multiply-adds evenly; else the rows.
    """

    phase_rows: bool = False
    column_blocks: bool = False
    merge: bool = False
    balance: bool = False


BUILT = Schedule()
BEST = Schedule(True, True, True, True)


def counts_of(
    spec: NeoCellSpec, height: int, width: int, batch: int, soc: Soc, origin: str = "auto"
) -> tuple[Counts, str]:
    """Counts of the float16 kernel, and where they come from: "twin" or "analytic".

    Args:
        spec: the NeoCell.
        height: rows of the map.
        width: columns of the map.
        batch: images.
        soc: the device.
        origin: one of the two, or "auto" for the twin if it can run here.

    Returns:
        the twin's JSON (`cores`, `totals`, `by_instruction`) and its origin.

    Raises:
        NeoNextError: the twin was asked for and cannot run.
    """
    if origin != "analytic":
        try:
            return twin_counts(spec, height, width, batch, soc), "twin"
        except (ImportError, OSError, ToolchainError):
            if origin == "twin":
                raise
    return analytic_counts(spec, height, width, batch, soc), "analytic"


@lru_cache(maxsize=64)
def twin_counts(spec: NeoCellSpec, height: int, width: int, batch: int, soc: Soc) -> Counts:
    """Counts of the float16 kernel, run in the twin on zeros."""
    from ..ops.twin import neo_cell

    x = np.zeros((batch, spec.channels, height, width), np.float16)
    weights = [[np.zeros(shape, np.float16) for shape in shapes] for shapes in (spec.shapes_a, spec.shapes_b)]
    return neo_cell.forward(x, *weights, spec, soc=soc.name).counts


def analytic_counts(
    spec: NeoCellSpec, height: int, width: int, batch: int, soc: Soc, schedule: Schedule = BUILT
) -> Counts:
    """The same counts by arithmetic.

    Every core takes a share of the rows of all blocks of 16 channels of all images. A strip of rows is read once, A is
    applied to it in the buffer, then B, and the strip is written once.

    Args:
        spec: the NeoCell; matrices of a block of 16 channels must have one size.
        height: rows of the map.
        width: columns of the map.
        batch: images.
        soc: the device.
        schedule: how the kernel arranges its work.
    """
    each = kinds(spec)
    out = spec.output_size(height, width)
    planes = [tuple(sorted(set(each[c : c + LANES]))) for c in range(0, len(each), LANES)]
    made, by_instruction = [], Counter()
    for core, share in enumerate(_shares(planes, (height, width), out, batch, soc.vector_units, schedule.balance)):
        pipes = {name: Counter() for name in PIPES}
        copied: Counter = Counter()
        alike: dict[tuple, int] = Counter()
        for plane, parts in share:
            members = planes[plane]
            coefficients = BLOCK_BYTES * (_coefficients(members, 0) + _coefficients(members, 1))
            pipes["MTE2"].update(instructions=2, bursts=2, bytes=coefficients)
            kept = 0
            for strip in _strips(members, parts, (height, width), out, soc, schedule.merge):
                kept = _move(pipes, copied, members, strip, kept, (height, width), out, schedule.phase_rows)
                alike[members, strip] += 1
        for (members, strip), number in alike.items():
            work = _strip_work(members, strip, number if schedule.merge else 1, (height, width), out, schedule)
            for (name, what), amount in work.items():
                amount *= 1 if schedule.merge else number
                by_instruction[name, what] += amount
                pipes["V"][what] += amount
        for (name, what), amount in copied.items():
            by_instruction[name, what] += amount
            pipes["V"][what] += amount
        made.append({"core": core, "pipes": {name: dict(pipe) for name, pipe in pipes.items()}})
    totals = {name: Counter() for name in PIPES}
    for core in made:
        for name, pipe in core["pipes"].items():
            totals[name].update(pipe)
    nested: dict[str, dict[str, int]] = {}
    for (name, what), amount in by_instruction.items():
        nested.setdefault(name, {})[what] = amount
    return {"cores": made, "totals": {n: dict(t) for n, t in totals.items()}, "by_instruction": nested}


def _side(kind: Kind, side: int) -> tuple[int, int, int]:
    return kind[2 * side], kind[2 * side + 1], kind[4 + side]


@lru_cache(maxsize=8192)
def _union(members: Members, side: int, output: int) -> tuple[int, int]:
    """First tap that an output reads, and the one behind its last."""
    k_in, k_out, _ = _side(members[0], side)
    starts = [int(first_input(output, k_in, k_out, _side(kind, side)[2])) for kind in members]
    return min(starts), max(starts) + k_in


def _inside(members: Members, side: int, output: int, size: int) -> int:
    """Taps of an output that lie in the map."""
    start, stop = _union(members, side, output)
    return min(stop, size) - max(start, 0)


@lru_cache(maxsize=4096)
def _coefficients(members: Members, side: int) -> int:
    """Rows of 16 coefficients of one block of channels."""
    return sum(stop - start for start, stop in (_union(members, side, p) for p in range(_side(members[0], side)[1])))


@lru_cache(maxsize=4096)
def _phases(members: Members, side: int, begin: int, end: int, size: int) -> tuple[tuple[int, ...], ...]:
    """For each phase, how many of the outputs from `begin` to `end` it has, and for how many each tap is in the map.

    The taps come with the largest number first; taps that no output has in the map are left out.
    """
    k_in, k_out, _ = _side(members[0], side)
    result = []
    for phase in range(k_out):
        start, stop = _union(members, side, phase)
        outputs = [o for o in range(begin, end) if o % k_out == phase]
        inside = [sum(0 <= t + o // k_out * k_in < size for o in outputs) for t in range(start, stop)]
        if outputs:
            result.append((len(outputs), *sorted((number for number in inside if number), reverse=True)))
    return tuple(result)


Part = tuple[int, int]  # output rows of one image: first, and behind the last


def _shares(
    planes: Sequence[Members], size: tuple[int, int], out: tuple[int, int], batch: int, cores: int, balance: bool
) -> Iterator[list[tuple[int, list[Part]]]]:
    """For each core, its planes and which rows of how many images of each."""
    rows = batch * out[0]
    weights = [
        sum(_inside(members, 0, o, size[0]) for o in range(out[0])) * size[1]
        + sum(_inside(members, 1, o, size[1]) for o in range(out[1])) * out[0]
        for members in planes
    ]
    cores = min(cores, rows * len(planes))
    share, extra = divmod(rows * len(planes), cores)
    # Where the cores meet, in rows of all planes one after the other.
    bounds = [core * share + min(core, extra) for core in range(cores)]
    if balance:
        bounds, done, total = [0], 0, sum(weights) * rows
        for plane, weight in enumerate(weights):
            while len(bounds) < cores and done + weight * rows > total * len(bounds) // cores:
                bounds.append(plane * rows + round((total * len(bounds) / cores - done) / weight))
            done += weight * rows
    bounds.append(rows * len(planes))
    for first, last in pairwise(bounds):
        parts: dict[int, list[Part]] = {}
        at = first
        while at < last:
            plane, row = divmod(at, rows)
            start = row % out[0]
            stop = min(start + last - at, out[0])
            parts.setdefault(plane, []).append((start, stop))
            at += stop - start
        yield list(parts.items())


def _fits(members: Members, parts: Sequence[Part], size: tuple[int, int], out: tuple[int, int], soc: Soc) -> bool:
    """Whether two of each buffer have room for so many rows."""
    rows = sum(stop - start for start, stop in parts)
    window = sum(min(stop - start + 2 * (members[0][0] - 1), size[0]) for start, stop in parts) * size[1]
    coefficients = _coefficients(members, 0) + _coefficients(members, 1)
    return (2 * (window + rows * out[1]) + rows * size[1] + 2 * coefficients) * BLOCK_BYTES <= soc.ub_bytes


def _strips(
    members: Members, parts: Sequence[Part], size: tuple[int, int], out: tuple[int, int], soc: Soc, merge: bool
) -> Iterator[tuple[Part, ...]]:
    """What is in the buffer at a time: whole groups of 8 rows of one image, or whole images."""
    held: list[Part] = []
    for start, stop in parts:
        if held and not (merge and _fits(members, [*held, (start, stop)], size, out, soc)):
            yield tuple(held)
            held = []
        if _fits(members, [*held, (start, stop)], size, out, soc):
            held.append((start, stop))
            continue
        step = GROUP
        while _fits(members, [(0, step + GROUP)], size, out, soc):
            step += GROUP
        for begin in range(start, stop, step):
            yield ((begin, min(begin + step, stop)),)
    if held:
        yield tuple(held)


def _move(
    pipes: dict[str, Counter],
    copied: Counter,
    members: Members,
    strip: Sequence[Part],
    kept: int,
    size: tuple[int, int],
    out: tuple[int, int],
    phase_rows: bool,
) -> int:
    """Reading and writing a strip, but for the rows up to `kept` that the strip before it has left; what it leaves."""
    high = 0
    for start, stop in strip:
        low = max(min(_union(members, 0, o)[0] for o in range(start, stop)), 0)
        high = min(max(_union(members, 0, o)[1] for o in range(start, stop)), size[0])
        if low < kept < high:
            copied["DataCopy", "instructions"] += 1
            copied["DataCopy", "repeats"] += -(-(kept - low) * size[1] // GROUP)
            low = kept
        for pipe, rows, width in (("MTE2", high - low, size[1]), ("MTE3", stop - start, out[1])):
            copies = min(members[0][1], rows) if phase_rows else 1
            bursts = rows if phase_rows else 1
            pipes[pipe].update(instructions=copies, bursts=bursts, bytes=rows * width * BLOCK_BYTES)
    return high if stop < out[0] else 0


Grid = list[tuple[int, int]]  # (repeats, instructions)


def _grid(along: int, across: int, step: int, pitch: int) -> Grid:
    """Instructions for one tap: `along` outputs of a phase `step` blocks apart, `across` of them `pitch` apart."""
    groups, rest = divmod(across, GROUP)
    one_by_one = step > STRIDE
    grid = []
    if groups:
        if GROUP * pitch <= STRIDE and (one_by_one or along < groups):
            grid.append((groups, along))
        else:
            grid.append((1, along * groups) if one_by_one else (along, groups))
    if rest:
        grid.append((1, along) if one_by_one else (along, 1))
    return grid


@lru_cache(maxsize=65536)
def _taps(members: Members, side: int, begin: int, end: int, size: int) -> tuple[bool, tuple[tuple[str, int], ...]]:
    """What the kernel does along one side for the outputs from `begin` to `end`: instruction, and for how many outputs.

    Returns also whether "along" are phases, not periods.
    """
    k_in, k_out, _ = _side(members[0], side)
    unions = [_union(members, side, phase) for phase in range(k_out)]
    first, last = begin // k_out, (end - 1) // k_out
    runs = [list(phases) for _, phases in groupby(range(k_out), key=lambda phase: unions[phase])]
    together = len(runs) * (last - first + 1) < k_out
    result = []
    for run in runs if together else [[phase] for phase in range(k_out)]:
        start, stop = unions[run[0]]
        for sweep in range(stop - start):
            if together:
                for period in range(first, last + 1):
                    outputs = min(period * k_out + run[-1] + 1, end) - max(period * k_out + run[0], begin)
                    cut = period == 0 and start < 0
                    tap = 0 if cut and not sweep else start + sweep
                    if outputs > 0 and not (cut and sweep and tap <= 0):
                        inside = period * k_in + tap < size
                        if inside or not sweep:
                            name = "MulAddDst" if sweep else "Mul" if inside else "Duplicate"
                            result.append((name, outputs))
                continue
            low, high = first + (run[0] < begin % k_out), last - (run[0] > (end - 1) % k_out)
            if low > high:
                break
            # The block that a shifted grid starts with lies partly before the map: its first tap is tap 0.
            cut, tap = low == 0 and start < 0, start + sweep
            at, to = low + (cut and tap <= 0), high
            while at <= to and to * k_in + tap >= size:
                to -= 1
            result.append(("MulAddDst" if sweep else "Mul", to - at + 1))
            if not sweep:
                result += [("Mul", int(cut)), ("Duplicate", high - max(at, to + 1) + 1)]
    return together, tuple((name, outputs) for name, outputs in result if outputs > 0)


@lru_cache(maxsize=65536)
def _strip_work(
    members: Members, strip: tuple[Part, ...], planes: int, size: Part, out: Part, schedule: Schedule
) -> Counter:
    """Vector instructions for one strip, or for `planes` of them in different blocks of channels."""
    rows = sum(stop - start for start, stop in strip)
    k_a, k_b = members[0][1], members[0][3]
    plain_a: list[tuple[str, Grid]] = []
    for start, stop in strip:
        together, taps = _taps(members, 0, start, stop, size[0])
        step = size[1] if together else k_a * size[1]
        plain_a += [(name, _grid(n, size[1], step, 1)) for name, n in taps]
    together, taps = _taps(members, 1, 0, out[1], size[1])
    plain_b = [(name, _grid(n, rows, 1 if together else k_b, size[1])) for name, n in taps]
    a, b = [(plain_a, planes)], [(plain_b, planes)]
    apart = [_phases(members, 0, start, stop, size[0]) for start, stop in strip]
    phases_a = [phase for part in apart for phase in part]
    phases_b = _phases(members, 1, 0, out[1], size[1])
    if schedule.phase_rows:
        # Images that begin at different rows keep their own instructions.
        images = len(strip) if len(set(strip)) == 1 else 1
        phases = apart[0] if images > 1 else phases_a
        a.append((_chains(phases, lambda n: [(-(-n * size[1] * images // GROUP), 1)]), planes))
    if schedule.column_blocks:
        b.append((_chains(phases_b, lambda n: [(rows, -(-n // GROUP))]), planes))
    if schedule.merge and planes > 1:
        wide, groups = -(-size[1] // GROUP), -(-rows // GROUP)
        a.append((_chains(phases_a, lambda n: [(planes, wide * n)]), 1))
        b.append((_chains(phases_b, lambda n: [(planes, groups * n)]), 1))
    return _cheapest(a) + _cheapest(b)


def _chains(phases: Sequence[tuple[int, ...]], grid: Callable[[int], Grid]) -> list[tuple[str, Grid]]:
    """The instructions of every phase: the tap that all its outputs have writes, the others add.

    Without such a tap zeros are written first.
    """
    result = []
    for outputs, *taps in phases:
        whole = bool(taps) and taps[0] == outputs
        result += [] if whole else [("Duplicate", grid(outputs))]
        result += [("Mul" if whole and not i else "MulAddDst", grid(number)) for i, number in enumerate(taps)]
    return result


def _cheapest(choices: Sequence[tuple[list[tuple[str, Grid]], int]]) -> Counter:
    """The counts of the choice, instructions and how often they are done, that takes the fewest cycles."""
    costs, best = Costs(), None
    for chosen, times in choices:
        work: Counter = Counter()
        for name, grid in chosen:
            for repeats, instructions in grid:
                work[name, "instructions"] += times * instructions * -(-repeats // REPEATS)
                work[name, "repeats"] += times * instructions * repeats
        cycles = sum(
            amount * (costs.vector_start_cycles if what == "instructions" else costs.cycles_of_repeat(name))
            for (name, what), amount in work.items()
        )
        if best is None or cycles < best[0]:
            best = cycles, work
    return best[1]
