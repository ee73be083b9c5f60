"""How many multiply-adds a vector unit with channels in its lanes needs, and whether reordering channels saves any.

Channels that share a vector instruction read the union of their taps. Where `k` x `k` matrices have the shifts S in
one block of lanes, an output in phase p needs `k + spread over s in S of ((p - s) mod k)` taps instead of `k`; the
mean over the phases is `k + sum of g (k - g) / k` over the cyclic gaps g between neighbouring shifts of S.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from .spec import NeoCellSpec, first_input

BLOCK_BYTES = 32
# Above this many kinds of channels of one matrix size, `best_order` tries neighbours only: all sets are 2^kinds.
_KINDS = 10

# What an instruction has to know of a channel: h_in, h_out, w_in, w_out, shift_a, shift_b.
Kind = tuple[int, int, int, int, int, int]


def kinds(spec: NeoCellSpec) -> list[Kind]:
    """Matrix sizes and shifts of every channel, in order."""
    result = []
    for group in spec.groups:
        shifts = zip(group.axis_a.shifts.tolist(), group.axis_b.shifts.tolist(), strict=True)
        result += [(group.h_in, group.h_out, group.w_in, group.w_out, a, b) for a, b in shifts]
    return result


def taps(k_in: int, k_out: int, shifts: Sequence[int], size_in: int, size_out: int) -> int:
    """Inputs that the outputs of one side read, over all outputs, where the lanes have these shifts.

    Inputs outside the map do not count.
    """
    first = first_input(np.arange(size_out)[:, None], k_in, k_out, np.array(sorted(set(shifts)))[None])
    start, stop = np.maximum(first.min(1), 0), np.minimum(first.max(1) + k_in, size_in)
    return int(np.maximum(stop - start, 0).sum())


@lru_cache(maxsize=4096)
def _block(members: frozenset[Kind], height: int, width: int, out: tuple[int, int]) -> int:
    """Multiply-adds of one block of lanes, one lane counted: A over all columns, then B over all rows of the output."""
    total = 0
    for size in {kind[:4] for kind in members}:
        same = [kind for kind in members if kind[:4] == size]
        total += taps(size[0], size[1], [kind[4] for kind in same], height, out[0]) * width
        total += taps(size[2], size[3], [kind[5] for kind in same], width, out[1]) * out[0]
    return total


def lane_multiply_adds(
    spec: NeoCellSpec, height: int, width: int, lanes: int = 16, order: Sequence[int] | None = None
) -> int:
    """Multiply-adds of all lanes for one image, those that meet a zero included: the least that whole blocks can do.

    Channels of different matrix sizes in one block take turns.

    Args:
        spec: the NeoCell.
        height: rows of the map.
        width: columns of the map.
        lanes: channels of a block of 32 bytes, 16 in float16 and 8 in float32.
        order: which channel comes at each place, if they are reordered.
    """
    each = kinds(spec)
    if order is not None:
        each = [each[channel] for channel in order]
    out = spec.output_size(height, width)
    blocks = (frozenset(each[start : start + lanes]) for start in range(0, len(each), lanes))
    return lanes * sum(_block(block, height, width, out) for block in blocks)


def lane_ratio(
    spec: NeoCellSpec, height: int, width: int, lanes: int = 16, order: Sequence[int] | None = None
) -> float:
    """`lane_multiply_adds` over the multiply-adds that the NeoCell needs (equation 5)."""
    return lane_multiply_adds(spec, height, width, lanes, order) / spec.multiply_adds(height, width)


def best_order(spec: NeoCellSpec, height: int, width: int, lanes: int = 16) -> np.ndarray:
    """An order of the channels with the fewest lane multiply-adds.

    It is the best one where every matrix size has a multiple of `lanes` channels and at most 10 different shifts:
    only which kinds of channels a block holds matters, so a whole-number program over all sets of kinds decides.
    Mixing matrix sizes never helps then, because they take turns. Otherwise it is a good order.

    Args:
        spec: the NeoCell.
        height: rows of the map.
        width: columns of the map.
        lanes: channels of a block.

    Returns:
        int64 `(channels,)`: which channel comes at each place.
    """
    each = kinds(spec)
    members: dict[Kind, list[int]] = {}
    for channel, kind in enumerate(each):
        members.setdefault(kind, []).append(channel)
    whole, rest = [], []
    for size in dict.fromkeys(kind[:4] for kind in members):
        counts = {kind: len(channels) for kind, channels in members.items() if kind[:4] == size}
        for block in _fill(counts, height, width, lanes, spec.output_size(height, width)):
            taken = [
                channel for kind, count in block.items() for channel in [members[kind].pop(0) for _ in range(count)]
            ]
            (whole if len(taken) == lanes else rest).append(sorted(taken))
    return np.array([channel for block in [*sorted(whole), *rest] for channel in block], np.int64)


def _candidates(counts: dict[Kind, int], lanes: int) -> Iterator[tuple[Kind, ...]]:
    names = sorted(counts)
    if len(names) <= _KINDS:
        for size in range(1, min(len(names), lanes) + 1):
            yield from combinations(names, size)
        return
    for start in range(len(names)):
        for size in range(1, min(len(names), lanes) + 1):
            yield tuple(names[(start + i) % len(names)] for i in range(size))


def _fill(
    counts: dict[Kind, int], height: int, width: int, lanes: int, out: tuple[int, int]
) -> Iterator[dict[Kind, int]]:
    """Cheapest division of channels of one matrix size into whole blocks and one for the remainder."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    full, left = divmod(sum(counts.values()), lanes)
    # Columns: for each shape of block (whole, then remainder) and candidate set, how many blocks; after them, how
    # many channels of each kind those blocks hold.
    sets = list(_candidates(counts, lanes))
    shapes = [(size, number) for size, number in ((lanes, full), (left, 1)) if size and number]
    blocks = [(size, chosen) for size, _ in shapes for chosen in sets]
    cells = [(column, kind) for column, (_, chosen) in enumerate(blocks) for kind in chosen]
    cost = [_block(frozenset(chosen), height, width, out) for _, chosen in blocks] + [0] * len(cells)
    rows, limits = [], []
    for size, number in shapes:
        rows.append([float(other == size) for other, _ in blocks] + [0.0] * len(cells))
        limits.append(number)
    for kind, count in counts.items():
        rows.append([0.0] * len(blocks) + [float(other == kind) for _, other in cells])
        limits.append(count)
    for column, (size, _) in enumerate(blocks):
        row = [0.0] * (len(blocks) + len(cells))
        row[column] = -size
        for i, (owner, _) in enumerate(cells):
            row[len(blocks) + i] = float(owner == column)
        rows.append(row)
        limits.append(0)
    solved = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), limits, limits),
        # With whole numbers of blocks the channels are a transport problem, whose best corners are whole numbers too.
        integrality=[1] * len(blocks) + [0] * len(cells),
        options={"mip_rel_gap": 0},
        bounds=Bounds(0, np.inf),
    )
    numbers = np.round(solved.x).astype(int)
    for column, (size, _) in enumerate(blocks):
        pool = {kind: int(numbers[len(blocks) + i]) for i, (owner, kind) in enumerate(cells) if owner == column}
        for _ in range(numbers[column]):
            block, free = {}, size
            for kind in pool:
                block[kind] = min(free, pool[kind])
                pool[kind] -= block[kind]
                free -= block[kind]
            yield {kind: count for kind, count in block.items() if count}
