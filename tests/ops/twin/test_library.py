"""Functions of AscendC's library on rows give the results of NumPy; what a device does not have is an error."""

from pathlib import Path

import numpy as np
import pytest

from neonext_ms.ops import twin

SOURCE = Path(__file__).with_name("kernels") / "library.cpp"
SOCS = {2002: "Ascend310P3", 2201: "Ascend910B3"}


def _run(entry, x, y, z=None, arch=2201):
    outputs = (1,) if z is None else (1, 2)
    twin.compile(SOURCE, soc=SOCS[arch], entry=entry).launch([x, y, z], blocks=1, outputs=outputs)
    return y, z


def _rejected(entry, arch, rule):
    x = np.ones(1024, np.float32)
    with pytest.raises(twin.SimulatorError) as caught:
        _run(entry, x, np.zeros_like(x), np.zeros_like(x), arch)
    assert caught.value.rule == rule
    return caught.value.finding.text


def _normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("arch", SOCS)
def test_sum_and_mean(arch):
    x = _normal(3, 208, dtype=np.float16)
    sums, means = _run("sums_of_rows", x, np.zeros(16, np.float16), np.zeros(16, np.float16), arch)
    exact = x[:, :200].astype(np.float64).sum(1)
    np.testing.assert_allclose(sums[:3], exact, rtol=2e-3, atol=0.02)
    assert np.array_equal(means[:3], (exact / 200).astype(np.float16))  # in float, and rounded once
    assert np.all(sums[3:] == 0)


@pytest.mark.parametrize("arch", SOCS)
def test_broadcast(arch):
    x = _normal(16, dtype=np.float16)
    y, z = _run("broadcasts", x, np.zeros((16, 16), np.float16), np.zeros((16, 16), np.float16), arch)
    assert np.array_equal(y, np.broadcast_to(x, (16, 16)))
    assert np.array_equal(z, y.T)


@pytest.mark.parametrize("arch", SOCS)
def test_softmax(arch):
    x = _normal(4, 32, dtype=np.float16)
    y, sums = np.zeros((4, 32), np.float16), np.zeros((4, 8), np.float32)
    _run("softmax", x, y, sums, arch)
    part = x[:, :19].astype(np.float64)
    powers = np.exp(part - part.max(1, keepdims=True))
    np.testing.assert_allclose(y[:, :19], powers / powers.sum(1, keepdims=True), rtol=1e-3)
    np.testing.assert_allclose(sums, np.repeat(powers.sum(1), 8).reshape(4, 8), rtol=1e-6)


def test_padding_and_shapes_of_a_softmax():
    assert "was never written" in _rejected("softmax_of_padding", 2201, "unwritten")
    assert "SetShapeInfo" in _rejected("softmax_without_a_shape", 2201, "argument")


def test_normalization():
    # Rows of 13, padded with three zeros: in the device's variance each of them counts as a deviation from the mean.
    x = _normal(96)
    x[:64].reshape(4, 16)[:, 13:] = 0
    y, variances = _run("layer_norm", x, np.zeros(64, np.float32), np.zeros(8, np.float32))
    rows = x[:64].astype(np.float64).reshape(4, 16)
    deviations = rows - rows.sum(1, keepdims=True) / 13
    variance = (deviations**2).sum(1, keepdims=True) / 13
    np.testing.assert_allclose(variances[:4], variance[:, 0], rtol=1e-6)
    scaled = deviations / np.sqrt(variance + 1e-3)
    np.testing.assert_allclose(y.reshape(4, 16), scaled * x[64:80] + x[80:], rtol=1e-4, atol=1e-6)
    x = _normal(96, dtype=np.float16)
    y, _ = _run("rms_norm", x, np.zeros(80, np.float16))
    rows = x[:80].astype(np.float64).reshape(5, 16)
    expected = rows / np.sqrt((rows**2).mean(1, keepdims=True) + np.float16(0.001)) * x[80:]
    np.testing.assert_allclose(y.reshape(5, 16), expected, rtol=1e-3, atol=1e-3)


def test_reductions_by_pattern():
    x = np.round(_normal(5, 8) * 2)
    y, _ = _run("patterns", x, np.zeros((7, 8), np.float32))
    assert np.array_equal(y[0, :5], x.sum(1)) and np.array_equal(y[1], x.max(0))
    assert np.array_equal(y[2, :5], x.min(1)) and np.array_equal(y[4], x.prod(0))
    np.testing.assert_allclose(y[3], x.mean(0), rtol=1e-6)
    assert np.array_equal(y[5, :5], x.any(1)) and np.array_equal(y[6, :5], x.all(1))


def test_cumulated_sums():
    x = np.arange(32, dtype=np.float32).reshape(2, 16)
    y, last = _run("cumulated", x, np.zeros_like(x), np.zeros(16, np.float32))
    assert np.array_equal(y, x.cumsum(1)) and np.array_equal(last, x.sum(0))


def test_quantization():
    x = _normal(64)
    y, z = _run("quantized", x, np.zeros(64, np.int8), np.zeros(16, np.float16))
    half = x.astype(np.float16)
    first = (half * np.float16(10) + np.float16(3)).astype(np.float32)
    second = (half[:32] * np.tile(half[56:], 4) + np.float16(0.5)).astype(np.float32)
    assert np.array_equal(y, np.concatenate([np.rint(second), np.rint(first[32:])]))
    assert np.array_equal(z, np.arange(16) * 0.75)


def test_sorting():
    x = _normal(64, dtype=np.float16)
    y, order = _run("sorted", x, np.zeros_like(x), np.zeros(64, np.uint32))
    assert np.array_equal(y, np.sort(x)[::-1]) and np.array_equal(x[order], y)


def test_powers_and_bits():
    x = np.linspace(-2, 2, 64, dtype=np.float32)
    y, _ = _run("numbers", x, np.zeros_like(x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(y, 2 ** (exact**2), rtol=1e-6)
    y, _ = _run("series", x, np.zeros_like(x))
    np.testing.assert_allclose(y, np.exp(exact), rtol=1e-6)
    bits = np.arange(-32, 32, dtype=np.int16)
    for arch in SOCS:
        y, _ = _run("bits", bits, np.zeros(32, np.int16), arch=arch)
        assert np.array_equal(y, bits[:32] ^ bits[32:])


def test_scratch_and_source_do_not_share_their_place():
    assert "was never written" in _rejected("scratch_over_the_source", 2201, "unwritten")


def test_what_a_device_does_not_have():
    assert "has no Rint" in _rejected("nearest", 2201, "not-on-arch")
    assert "does not have it" in _rejected("series", 2002, "not-on-arch")


def test_buffers_without_a_gap():
    x = np.arange(1, 97, dtype=np.float32)
    y, _ = _run("close_together", x, np.zeros_like(x))
    assert np.all(y[:95] == 1)
