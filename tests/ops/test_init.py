from __future__ import annotations

import numpy as np
import pytest

from neonext_ms.ops import neo_init, skewed_identity
from neonext_ms.ops.init import INITIALIZATIONS, initial_matrices


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3), np.eye(3)),
        ((1, 2), [[0.5, 0.5]]),
        ((2, 1), [[0.5], [0.5]]),
        ((2, 4), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]),
        ((2, 3), [[0.5, 0.5, 0], [0, 0, 1]]),
        ((3, 2), [[0.5, 0], [0.5, 0], [0, 1]]),
        ((2, 5), [[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0]]),
    ],
)
def test_skewed_identity(shape, expected):
    np.testing.assert_array_equal(skewed_identity(*shape), np.float32(expected))


def test_steps_that_leave_nothing_for_the_last_row_stay_finite():
    assert np.isfinite(skewed_identity(4, 6)).all()


@pytest.mark.parametrize("shape", [(4000, 4, 4), (4000, 1, 2), (4000, 3, 2)])
def test_noise_has_the_papers_deviation(shape):
    noise = neo_init(shape, np.random.RandomState(0)) - skewed_identity(*shape[1:])
    assert noise.dtype == np.float32
    assert abs(noise.std() * np.sqrt(shape[1] * shape[2]) - 1) < 0.02
    assert np.abs(noise.mean(0)).max() < 0.05


@pytest.mark.parametrize(
    ("name", "deviation_a", "deviation_b"),
    [("neoinit", 1 / 14**0.5, 1 / 14**0.5), ("normal", 1 / 2**0.5, 1 / 7**0.5),
     ("noise", 1 / 14**0.5, 1 / 14**0.5), ("figure5", 1 / 14, 1 / 14)],
)  # fmt: skip
def test_initializations_differ_in_identity_and_deviation(name, deviation_a, deviation_b):
    for side, deviation in (("a", deviation_a), ("b", deviation_b)):
        values = initial_matrices((4000, 2, 7), np.random.RandomState(0), name, side)
        identity = skewed_identity(2, 7) if name in ("neoinit", "figure5") else np.zeros((2, 7))
        assert np.abs(values.mean(0) - identity).max() < 0.05
        assert (values - identity).std() == pytest.approx(deviation, rel=0.02)


def test_initializations_take_the_same_random_numbers():
    first = {name: initial_matrices((3, 4, 4), np.random.RandomState(1), name, "b") for name in INITIALIZATIONS}
    np.testing.assert_allclose(first["neoinit"] - np.eye(4), first["noise"], atol=1e-6)
    np.testing.assert_allclose((first["figure5"] - np.eye(4)) * 4, first["noise"], atol=1e-6)
    np.testing.assert_array_equal(first["normal"], first["noise"] * 2)
