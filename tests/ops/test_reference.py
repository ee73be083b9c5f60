from __future__ import annotations

import numpy as np
import pytest

from conftest import goldens, relative_max
from neonext_ms.ops import NeoCellSpec, reference

# Specs and maps where the official code breaks: maps smaller than the matrix, the shift or both.
SMALL_MAPS = [
    ([{"kernel": 7, "channels": 14, "shift": 1}], (4, 4)),
    ([{"kernel": 7, "channels": 9, "shift": 3}], (2, 5)),
    ([{"kernel": 4, "channels": 5, "shift": 2}, {"kernel": 7, "channels": 7, "shift": 1}], (1, 1)),
    ([{"kernel_a": 4, "kernel_b": 7, "channels": 8, "shift": 1}], (2, 3)),
    ([{"h_in": 3, "h_out": 5, "w_in": 2, "w_out": 1, "channels": 2}], (1, 2)),
    ([{"kernel": 4, "channels": 4}, {"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 3, "channels": 3}], (7, 5)),
]


def _random(spec, shape, rng):
    x = rng.standard_normal((2, spec.channels, *shape))
    a = [rng.standard_normal(s) for s in spec.shapes_a]
    b = [rng.standard_normal(s) for s in spec.shapes_b]
    dy = rng.standard_normal((2, spec.channels, *spec.output_size(*shape)))
    return x, a, b, dy


@pytest.mark.parametrize("case", goldens("neocell"))
def test_golden(case):
    z, spec = case.load(".npz"), NeoCellSpec(case.entry["spec"])
    n = range(len(spec.groups))
    a, b = [z[f"weight_a.{i}"] for i in n], [z[f"weight_b.{i}"] for i in n]
    assert relative_max(reference.forward(z["x"], a, b, spec), z["y"]) < 1e-6
    dx, da, db, dbias = reference.backward(z["x"], a, b, spec, z["dy"])
    assert relative_max(dx, z["dx"]) < 1e-6
    for i in n:
        assert relative_max(da[i], z[f"grad/weight_a.{i}"]) < 1e-6
        assert relative_max(db[i], z[f"grad/weight_b.{i}"]) < 1e-6
    np.testing.assert_allclose(dbias, z["dy"].astype(np.float64).sum((0, 2, 3)))


def _backward_patchwise(x, weights_a, weights_b, spec, dy):
    """Return the gradients of equation 1, patch by patch; the arguments and results are those of `backward`."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    dx = np.zeros_like(x)
    # One array for all groups, as large as the largest matrix; each group takes its corner at the end.
    d_a = np.zeros((spec.channels, *np.max([s[1:] for s in spec.shapes_a], axis=0)))
    d_b = np.zeros((spec.channels, *np.max([s[1:] for s in spec.shapes_b], axis=0)))
    for channel, left, right, rows, columns in reference._patches(spec, weights_a, weights_b, x.shape, dy.shape):
        for i_in, i_out, pi, po in rows:
            for j_in, j_out, qi, qo in columns:
                patch, upstream = x[:, channel, i_in, j_in], dy[:, channel, i_out, j_out]
                dx[:, channel, i_in, j_in] += left[po, pi].T @ upstream @ right[qi, qo].T
                d_a[channel, po, pi] += (upstream @ right[qi, qo].T @ reference._t(patch)).sum(0)
                d_b[channel, qi, qo] += (reference._t(left[po, pi] @ patch) @ upstream).sum(0)
    small_a = [d_a[channels, : g.h_out, : g.h_in] for g, channels in spec.slices()]
    small_b = [d_b[channels, : g.w_in, : g.w_out] for g, channels in spec.slices()]
    return dx, small_a, small_b, dy.sum((0, 2, 3))


@pytest.mark.parametrize(("groups", "shape"), [*SMALL_MAPS, ([{"kernel": 5, "channels": 7, "shift": 2}], (13, 8))])
def test_patchwise_equals_block_diagonal(groups, shape):
    spec = NeoCellSpec(groups)
    x, a, b, dy = _random(spec, shape, np.random.RandomState(1))
    bias = np.arange(spec.channels) * 0.1
    np.testing.assert_allclose(
        reference.forward_patchwise(x, a, b, spec, bias), reference.forward(x, a, b, spec, bias), atol=1e-12
    )
    for one, two in zip(_backward_patchwise(x, a, b, spec, dy), reference.backward(x, a, b, spec, dy), strict=True):
        for p, q in zip(one, two, strict=True) if isinstance(one, list) else [(one, two)]:
            np.testing.assert_allclose(p, q, atol=1e-12)


def test_backward_is_the_derivative_of_forward():
    spec = NeoCellSpec([{"kernel": 4, "channels": 5, "shift": 1}, {"kernel_a": 2, "kernel_b": 3, "channels": 4}])
    rng = np.random.RandomState(2)
    x, a, b, dy = _random(spec, (7, 6), rng)
    dx, da, db, _ = reference.backward(x, a, b, spec, dy)
    steps = [rng.standard_normal(v.shape) for v in (x, *a, *b)]
    analytic = sum((g * s).sum() for g, s in zip((dx, *da, *db), steps, strict=True))

    def loss(t):
        x1, a0, a1, b0, b1 = (v + t * s for v, s in zip((x, *a, *b), steps, strict=True))
        return (reference.forward(x1, [a0, a1], [b0, b1], spec) * dy).sum()

    assert abs((loss(1e-5) - loss(-1e-5)) / 2e-5 / analytic - 1) < 1e-7
