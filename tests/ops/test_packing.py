from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neonext_ms.common.errors import InputError
from neonext_ms.ops import NeoCellSpec, reference
from neonext_ms.ops.packing import LANES, RUN_ATTRIBUTES, pack, pack_channels, plan, unpack, unpack_gradients


def _weights(spec, rng):
    return [[rng.standard_normal(s) for s in shapes] for shapes in (spec.shapes_a, spec.shapes_b)]


@st.composite
def specs(draw, square=False):
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = {key: draw(st.integers(1, 7)) for key in ("h_in", "h_out", "w_in", "w_out")}
        if square or draw(st.booleans()):
            sizes["h_out"], sizes["w_out"] = sizes["h_in"], sizes["w_in"]
        for side, size in (("a", "h"), ("b", "w")):
            largest = sizes[f"{size}_out"] - 1 if sizes[f"{size}_in"] == sizes[f"{size}_out"] else 0
            sizes[f"shift_{side}"] = draw(st.integers(0, largest))
        groups.append({**sizes, "channels": draw(st.integers(1, 40))})
    return NeoCellSpec(groups)


def _product(x, coefficients, runs, side, size_out):
    return np.einsum("coi,ncij->ncoj", unpack(coefficients, runs, side, x.shape[2], size_out), x)


@settings(max_examples=80, deadline=None)
@given(spec=specs(), height=st.integers(7, 15), width=st.integers(7, 15), seed=st.integers(0, 2**31))
def test_the_packed_products_are_the_neocell_and_its_gradients(spec, height, width, seed):
    rng = np.random.RandomState(seed)
    a, b = _weights(spec, rng)
    x = rng.standard_normal((2, spec.channels, height, width))
    out = spec.output_size(height, width)
    runs = plan(spec).attributes
    coef_a, coef_b = pack(spec, a, b)
    y = _product(x, coef_a, runs, "a", out[0])
    y = _product(y.transpose(0, 1, 3, 2), coef_b, runs, "b", out[1]).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(y, reference.forward(x, a, b, spec), rtol=0, atol=1e-10)
    dy = rng.standard_normal(y.shape)
    turned = plan(spec, True).attributes
    coef_a, coef_b = pack(spec, a, b, True)
    dx = _product(dy, coef_a, turned, "a", height)
    dx = _product(dx.transpose(0, 1, 3, 2), coef_b, turned, "b", width).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(dx, reference.backward(x, a, b, spec, dy)[0], rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(spec=specs(), seed=st.integers(0, 2**31))
def test_every_element_is_packed_once_and_found_again(spec, seed):
    a, b = _weights(spec, np.random.RandomState(seed))
    coef_a, coef_b = pack(spec, a, b)
    assert coef_a.shape[1] == coef_b.shape[1] == LANES
    assert np.count_nonzero(coef_a) == sum(w.size for w in a) and np.count_nonzero(coef_b) == sum(w.size for w in b)
    found_a, found_b = unpack_gradients(spec, coef_a, coef_b)
    for found, given_ in zip((*found_a, *found_b), (*a, *b), strict=True):
        np.testing.assert_array_equal(found, given_)


def test_taps_that_are_zero_for_a_whole_block_are_left_out():
    plain = NeoCellSpec({"kernel": 7, "channels": 32})
    assert plan(plain).index_a.shape == (2 * 7 * 7, LANES)
    shifted = NeoCellSpec({"kernel": 4, "channels": 48, "shift": 1})
    # 12 channels of each of four shifts: every block of 16 holds two neighbouring ones, one tap more but where the
    # first of them starts a new block, three more there.
    assert plan(shifted).index_a.shape == (3 * (4 * 4 + 3 * 1 + 3), LANES)
    assert plan(shifted).attributes == {
        "channels": [12] * 4,
        **{name: [4] * 4 for name in ("h_in", "h_out", "w_in", "w_out")},
        "shift_a": [0, 1, 2, 3],
        "shift_b": [0, 1, 2, 3],
    }


def test_sizes_that_meet_in_one_block_have_rows_of_their_own():
    spec = NeoCellSpec([{"kernel": 4, "channels": 10}, {"kernel": 7, "channels": 10}])
    index = plan(spec).index_a
    assert index.shape == (4 * 4 + 7 * 7 + 7 * 7, LANES)
    zero = index.max()
    assert (index[:16, 10:] == zero).all() and (index[16:65, :10] == zero).all() and (index[65:, 4:] == zero).all()


def test_a_bias_fills_whole_blocks():
    np.testing.assert_array_equal(pack_channels(np.ones(18)), [1] * 18 + [0] * 14)
    assert pack_channels(np.ones(16)).shape == (16,)


def test_what_does_not_belong_together():
    spec = NeoCellSpec({"kernel": 3, "channels": 2})
    with pytest.raises(InputError, match="A of group 0"):
        pack(spec, [np.zeros((2, 4, 4))], [np.zeros((2, 3, 3))])
    runs = dict(plan(spec).attributes)
    with pytest.raises(InputError, match=r"do not belong to the attributes .* expected \(9, 16\)"):
        unpack(np.zeros((8, 16)), runs, "a", 8, 8)
    with pytest.raises(InputError, match="h_out is missing"):
        unpack(np.zeros((9, 16)), {k: v for k, v in runs.items() if k != "h_out"}, "a", 8, 8)
    with pytest.raises(InputError, match="one number for each run"):
        unpack(np.zeros((9, 16)), {**runs, "h_in": [3, 3]}, "a", 8, 8)
    with pytest.raises(InputError, match="h_in must hold whole numbers of at least 1"):
        unpack(np.zeros((9, 16)), {**runs, "h_in": [0]}, "a", 8, 8)
    assert tuple(runs) == RUN_ATTRIBUTES
