from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neonext_ms.errors import InputError
from neonext_ms.ops import NeoCellSpec, reference
from neonext_ms.ops.packing import pack, unpack


def _weights(spec, rng):
    return [[rng.standard_normal(s) for s in shapes] for shapes in (spec.shapes_a, spec.shapes_b)]


def _filter(x, coefficients, kernels, channels):
    """The periodic filter of the module's docstring over axis 2, element by element, as a kernel would run it."""
    largest, y, start = max(kernels), np.zeros_like(x), 0
    for k, count in zip(kernels, channels, strict=True):
        group = slice(start, start + count)
        for i in range(x.shape[2]):
            for t in range(2 * largest - 1):
                row = i + t - (largest - 1)
                if 0 <= row < x.shape[2]:
                    y[:, group, i] += coefficients[i % k, t, group, None] * x[:, group, row]
        start += count
    return y


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_packed_filter_is_the_neocell(data):
    draw = data.draw
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        a, b = draw(st.integers(1, 7)), draw(st.integers(1, 7))
        shifts = {"shift_a": draw(st.integers(0, a - 1)), "shift_b": draw(st.integers(0, b - 1))}
        groups.append({"kernel_a": a, "kernel_b": b, "channels": draw(st.integers(1, 9)), **shifts})
    spec = NeoCellSpec(groups)
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    a, b = _weights(spec, rng)
    x = rng.standard_normal((2, spec.channels, draw(st.integers(1, 15)), draw(st.integers(1, 15))))
    coef_a, coef_b = pack(spec, a, b)
    channels = [g.channels for g in spec.groups]
    kernels_a, kernels_b = [g.h_in for g in spec.groups], [g.w_in for g in spec.groups]
    y = _filter(x, coef_a, kernels_a, channels)
    y = _filter(y.transpose(0, 1, 3, 2), coef_b, kernels_b, channels).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(y, reference.forward(x, a, b, spec), rtol=0, atol=1e-10)
    whole_a, whole_b = spec.matrices(a, b, *x.shape[2:])
    np.testing.assert_array_equal(unpack(coef_a, kernels_a, channels, x.shape[2]), whole_a)
    np.testing.assert_array_equal(unpack(coef_b, kernels_b, channels, x.shape[3]).transpose(0, 2, 1), whole_b)


def test_smaller_matrices_take_the_first_phases_and_the_middle_taps():
    spec = NeoCellSpec([{"kernel": 4, "channels": 2, "shift": 1}, {"kernel": 7, "channels": 3, "shift": 1}])
    a, b = _weights(spec, np.random.RandomState(0))
    coef_a, coef_b = pack(spec, [w.astype(np.float32) for w in a], [w.astype(np.float32) for w in b])
    assert coef_a.shape == coef_b.shape == (7, 13, 5) and coef_a.dtype == np.float32
    assert not coef_a[4:, :, :2].any() and not coef_a[:, :3, :2].any() and not coef_a[:, 10:, :2].any()
    assert np.count_nonzero(coef_a[:, :, :2]) == 2 * 4 * 4
    assert np.count_nonzero(coef_a[:, :, 2:]) == 3 * 7 * 7


def test_what_cannot_be_packed():
    halve = NeoCellSpec({"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": 3})
    with pytest.raises(InputError, match="expected square matrices"):
        pack(halve, *_weights(halve, np.random.RandomState(0)))
    spec = NeoCellSpec({"kernel": 3, "channels": 2})
    with pytest.raises(InputError, match="A of group 0"):
        pack(spec, [np.zeros((2, 4, 4))], [np.zeros((2, 3, 3))])
    with pytest.raises(InputError, match="do not belong to groups"):
        unpack(np.zeros((3, 5, 2)), [3], [3], 8)
