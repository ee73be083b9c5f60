from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest

from neonext_ms.models.registry import model_config
from neonext_ms.ops import NeoCellSpec
from neonext_ms.ops.lanes import best_order, kinds, lane_multiply_adds, lane_ratio, taps


@pytest.mark.parametrize("k", [2, 4, 7])
def test_the_mean_taps_of_mixed_shifts_follow_from_their_gaps(k):
    for count in range(1, k + 1):
        for shifts in combinations(range(k), count):
            gaps = np.diff([*shifts, shifts[0] + k])
            periods = 50
            # Both edges of a map cut off what lies outside; a map of many periods shows the mean.
            whole = taps(k, k, shifts, 3 * periods * k, 3 * periods * k)
            part = taps(k, k, shifts, 2 * periods * k, 2 * periods * k)
            assert (whole - part) / periods == k * k + sum(g * (k - g) for g in gaps)


def test_the_figures_of_released_t():
    """Those of the issue: multiply-adds of full lanes within the map over those needed, cut-off blocks as they are."""
    architecture = model_config("neonext_t.released_224").architecture
    ratios, lanes, needed = [], 0, 0
    for stage, (height, width) in enumerate(architecture.maps((224, 224))):
        spec, depth = architecture.stage_spec(stage), architecture.per_stage_layers[stage]
        ratios.append(round(lane_ratio(spec, height, width), 3))
        lanes += depth * lane_multiply_adds(spec, height, width)
        needed += depth * spec.multiply_adds(height, width)
    assert ratios == [1.402, 1.185, 1.066, 1.0]
    assert lanes / needed == pytest.approx(1.235, abs=5e-4)


def test_sides_with_different_shifts_and_sizes():
    spec = NeoCellSpec({"kernel_a": 2, "kernel_b": 3, "shift_a": 1, "channels": 4})
    # A: shifts 0 and 1 of 2, so 3 taps for every row but where the map ends; B: 3 taps, no shift.
    assert lane_multiply_adds(spec, 4, 3, lanes=4) == 4 * ((2 + 3 + 3 + 2) * 3 + 3 * 3 * 4)
    halve = NeoCellSpec({"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": 16})
    assert lane_ratio(halve, 8, 8) == 1.0


def test_matrix_sizes_of_one_block_take_turns():
    spec = NeoCellSpec([{"kernel": 2, "channels": 2}, {"kernel": 3, "channels": 2}])
    assert lane_multiply_adds(spec, 6, 6, lanes=4) == 4 * 36 * 2 * (2 + 3)
    assert lane_multiply_adds(spec, 6, 6, lanes=2) == 2 * 36 * 2 * (2 + 3)


def _least(spec, height, width, lanes):
    """The fewest lane multiply-adds over all divisions of the channels into blocks."""
    each = kinds(spec)

    @cache
    def least(left):
        if not left:
            return 0
        first, rest = left[0], left[1:]
        return min(
            cost((first, *others)) + least(tuple(c for c in rest if c not in others))
            for others in combinations(rest, min(lanes, len(left)) - 1)
        )

    @cache
    def cost(block):
        order = [*block, *(c for c in range(len(each)) if c not in block)]
        part = NeoCellSpec([{"kernel": each[c][0], "channels": 1} for c in block])
        assert part.channels == len(block)
        return _of_block(tuple(each[c] for c in block), order and (height, width), lanes)

    return least(tuple(range(len(each))))


def _of_block(block, size, lanes):
    total = 0
    for matrix in {kind[:4] for kind in block}:
        same = [kind for kind in block if kind[:4] == matrix]
        total += taps(matrix[0], matrix[1], [kind[4] for kind in same], size[0], size[0]) * size[1]
        total += taps(matrix[2], matrix[3], [kind[5] for kind in same], size[1], size[1]) * size[0]
    return lanes * total


@pytest.mark.parametrize(
    ("groups", "lanes"),
    [
        ([{"kernel": 4, "channels": 12, "shift": 1}], 4),
        ([{"kernel": 3, "channels": 12, "shift": 1}], 3),
        ([{"kernel": 5, "channels": 10, "shift": 1}], 4),
        ([{"kernel": 7, "channels": 10, "shift": 1}], 5),
        ([{"kernel": 2, "channels": 4, "shift": 1}, {"kernel": 4, "channels": 8, "shift": 1}], 4),
    ],
)
def test_the_best_order_is_the_best_of_all(groups, lanes):
    spec = NeoCellSpec(groups)
    order = best_order(spec, 9, 11, lanes)
    assert sorted(order) == list(range(spec.channels))
    assert lane_multiply_adds(spec, 9, 11, lanes, order) == _least(spec, 9, 11, lanes)


def test_an_order_helps_where_groups_do_not_line_up_with_lanes():
    spec = model_config("neonext_t.released_224").architecture.stage_spec(2)
    order = best_order(spec, 14, 14)
    assert round(lane_ratio(spec, 14, 14), 3) == 1.066 and round(lane_ratio(spec, 14, 14, order=order), 3) == 1.061
