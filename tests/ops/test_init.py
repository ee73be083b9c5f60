from __future__ import annotations

import numpy as np
import pytest

from neonext_ms.ops import neo_init, skewed_identity


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
