from __future__ import annotations

import numpy as np
import pytest

from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.resample import resample_kernels
from neonext_ms.ops import reference
from neonext_ms.ops.init import neo_init
from neonext_ms.ops.resample import READINGS, resample_matrices
from neonext_ms.ops.spec import NeoCellSpec


@pytest.mark.parametrize("reading", READINGS)
def test_the_same_size_and_the_sums_of_the_rows(reading):
    matrices = neo_init((3, 5, 5), np.random.RandomState(0))
    assert np.array_equal(resample_matrices(matrices, 5, reading), matrices)
    # Rows that each add up to one number keep it: an even region keeps its brightness.
    even = matrices / matrices.sum(2, keepdims=True)
    for size in (1, 2, 4, 7, 12):
        result = resample_matrices(even, size, reading)
        assert result.shape == (3, size, size) and result.dtype == np.float32
        assert np.abs(result.sum(2) - 1).max() < 1e-6


def test_offsets_keep_filters_and_the_identity():
    identity = np.eye(4)[None]
    assert np.array_equal(resample_matrices(identity, 7), np.eye(7)[None])
    assert np.array_equal(resample_matrices(identity, 2), np.eye(2)[None])
    # A filter over three pixels is the same filter inside a larger block.
    blur = (0.5 * np.eye(6) + 0.25 * np.eye(6, k=1) + 0.25 * np.eye(6, k=-1))[None]
    assert np.allclose(resample_matrices(blur, 9)[0, 2:7], resample_matrices(blur, 11)[0, 3:8, 1:10])
    assert np.allclose(resample_matrices(blur, 9)[0, 4, 3:6], [0.25, 0.5, 0.25])
    # The other reading widens it.
    assert np.count_nonzero(resample_matrices(identity, 8, "scale")[0, 3]) > 1


def test_wrong_matrices_are_named():
    for matrices, size, reading in ((np.zeros((2, 3, 4)), 4, "offset"), (np.eye(3)[None], 0, "offset"),
                                    (np.eye(3)[None], 4, "bicubic")):  # fmt: skip
        with pytest.raises(InputError, match="resample"):
            resample_matrices(matrices, size, reading)


def test_both_sides_of_a_network_are_resampled():
    architecture = make_architecture(3, (1, 0, 1, 1), (4, 4, 4, 4), kernel_spec="4+7", shifts=(1, 1, 0, 0))
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    cell = "stage_1.0.ops.content.neocell"
    # Matrices that move the map by one pixel do so in blocks of any size, along rows and columns.
    for side, turn in (("a", 1), ("b", -1)):
        for group, size in enumerate((4, 7)):
            arrays[f"{cell}.weight_{side}.{group}"] = np.tile(np.eye(size, k=turn, dtype=np.float32), (2, 1, 1))
    result, changed = resample_kernels(arrays, architecture, "5+8")
    assert changed.kernels[0] == (5, 8) and changed.dims == architecture.dims
    assert result["head.fc.weight"] is arrays["head.fc.weight"]
    weights = [[result[f"{cell}.weight_{side}.{group}"] for group in (0, 1)] for side in "ab"]
    spec = NeoCellSpec([{"kernel": size, "channels": 2} for size in (5, 8)])
    x = np.random.RandomState(1).standard_normal((1, 4, 40, 40))
    y = reference.forward(x, *weights, spec)
    inside = [i for i in range(39) if i % 5 not in (3, 4) and i % 8 not in (6, 7)]
    assert np.allclose(y[:, :, inside][..., inside], x[:, :, [i + 1 for i in inside]][..., [i + 1 for i in inside]])
    for spec, message in (("4", "another number of kernel sizes"), ("1+7", "must be smaller than its matrix")):
        with pytest.raises(InputError, match=message):
            resample_kernels(arrays, architecture, spec)
