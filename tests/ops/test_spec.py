from __future__ import annotations

import numpy as np
import pytest

from neonext_ms.common.errors import InputError
from neonext_ms.ops import NeoCellSpec


def test_forms_of_the_official_keys():
    assert NeoCellSpec({"kernel": 4, "channels": 8}).groups[0].shape_a == (8, 4, 4)
    both = NeoCellSpec({"kernel_a": 4, "kernel_b": 7, "channels": 3}).groups[0]
    assert (both.shape_a, both.shape_b) == ((3, 4, 4), (3, 7, 7))
    down = NeoCellSpec({"h_in": 2, "h_out": 1, "w_in": 3, "w_out": 2, "channels": 5}).groups[0]
    assert (down.shape_a, down.shape_b) == ((5, 1, 2), (5, 3, 2))


def test_shift_defaults_and_precedence():
    assert NeoCellSpec({"kernel": 4, "channels": 8}).groups[0].shift_a == 0
    one = NeoCellSpec({"kernel": 4, "channels": 8, "shift": 3, "shift_a": 1}).groups[0]
    assert (one.shift_a, one.shift_b) == (1, 0)


@pytest.mark.parametrize(
    ("channels", "kernel", "step", "expected"),
    [
        (8, 4, 1, [0, 0, 1, 1, 2, 2, 3, 3]),
        (10, 4, 1, [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]),
        (7, 5, 2, [0, 0, 2, 2, 4, 4, 4]),
        (5, 7, 1, [6] * 5),
        (3, 4, 0, [0] * 3),
    ],
)
def test_shift_of_every_channel(channels, kernel, step, expected):
    spec = NeoCellSpec({"kernel": kernel, "channels": channels, "shift": step})
    assert spec.groups[0].axis_a.shifts.tolist() == expected


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"kernel": 4}, "no channels"),
        ({"channels": 4}, "exactly one form"),
        ({"kernel": 4, "kernel_a": 4, "kernel_b": 4, "channels": 4}, "exactly one form"),
        ({"kernel_a": 4, "channels": 4}, "exactly one form"),
        ({"kernal": 4, "channels": 4}, "did you mean kernel"),
        ({"kernel": 4, "channels": 8, "shift": 4}, "smaller than its matrix"),
        ({"kernel": 4, "channels": 8, "shift": -1}, "at least 0"),
        ({"kernel": 0, "channels": 8}, "at least 1"),
        ({"kernel": 4, "channels": 8.5}, "whole number"),
        ({"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": 6, "shift": 1}, "Only square matrices"),
    ],
)
def test_bad_groups_are_rejected(group, message):
    with pytest.raises(InputError, match=message):
        NeoCellSpec(group)


def test_no_group_is_rejected():
    with pytest.raises(InputError, match="at least one"):
        NeoCellSpec([])


def test_output_size_is_exact_where_floating_point_is_not():
    # 49 / 3.0 * 15 rounds below 245.
    spec = NeoCellSpec({"h_in": 3, "h_out": 15, "w_in": 2, "w_out": 1, "channels": 1})
    assert spec.output_size(49, 9) == (245, 4)


def test_empty_output_is_rejected():
    spec = NeoCellSpec({"h_in": 4, "h_out": 1, "w_in": 4, "w_out": 1, "channels": 6})
    with pytest.raises(InputError, match="3x3 map gives a 0x0 output"):
        spec.output_size(3, 3)


def test_groups_of_different_output_share_the_largest():
    spec = NeoCellSpec([{"kernel": 4, "channels": 1}, {"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": 1}])
    assert spec.output_size(6, 8) == (6, 8)
    ones = [np.ones(s, np.float32) for s in spec.shapes_a], [np.ones(s, np.float32) for s in spec.shapes_b]
    a, b = spec.matrices(*ones, 6, 8)
    assert not a[1, 3:].any() and not b[1, :, 4:].any()


@pytest.mark.parametrize("size", [3, 4, 9, 14])
def test_placement_multiplies_out_to_the_block_diagonal(size):
    group = NeoCellSpec({"kernel": 4, "channels": 9, "shift": 1}).groups[0]
    small = np.random.RandomState(0).standard_normal(group.shape_a)
    u_out, u_in, mask = group.axis_a.placement(size, size)
    expected = group.axis_a.block_diagonal(small, size, size)
    np.testing.assert_allclose((u_out @ small @ u_in) * mask, expected, atol=0)


def test_block_sum_is_the_transpose_of_block_diagonal():
    rng = np.random.RandomState(0)
    for group in (
        NeoCellSpec({"kernel": 5, "channels": 6, "shift": 2}).groups[0],
        NeoCellSpec({"h_in": 3, "h_out": 2, "w_in": 1, "w_out": 1, "channels": 6}).groups[0],
    ):
        axis = group.axis_a
        small, whole = rng.standard_normal(group.shape_a), rng.standard_normal((6, axis.output_size(11), 11))
        one = (axis.block_diagonal(small, 11, whole.shape[1]) * whole).sum()
        np.testing.assert_allclose(one, (small * axis.block_sum(whole)).sum())


def test_multiply_adds():
    spec = NeoCellSpec([{"kernel": 4, "channels": 3}, {"kernel": 7, "channels": 5}])
    assert spec.multiply_adds(28, 28) == 2 * (4 * 3 + 7 * 5) * 28 * 28
    assert spec.multiply_adds(28, 28, padded=True) == 2 * 8 * 28**3
    # The last block of a ragged map is cut off: 7 = 4 + 3.
    assert NeoCellSpec({"kernel": 4, "channels": 1}).multiply_adds(7, 7) == 2 * (16 + 9) * 7
