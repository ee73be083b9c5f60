"""Kernels that keep the rules give the results of NumPy, bit for bit, and the counts that follow by hand."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from neonext_ms.ops import twin

KERNELS = Path(__file__).with_name("kernels")
SOURCE = KERNELS / "good.cpp"
ADD = KERNELS / "add.cpp"
MODES = ("none", "rint", "floor", "ceil", "round", "trunc", "odd")


def _kernel(entry):
    return twin.compile(SOURCE, soc="Ascend910B3", entry=entry)


def _tiling(*numbers):
    return np.array(numbers, np.uint32).view(np.uint8)


def _halves(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float16)


@pytest.mark.parametrize("entry", ["add_queues", "add_events"])
@pytest.mark.parametrize(("soc", "blocks"), [("Ascend310P3", 1), ("Ascend310P3", 3), ("Ascend310B1", 8)])
def test_add(entry, soc, blocks):
    x, y = _halves(5120), _halves(5120, 1)
    z = np.zeros_like(x)
    counts = twin.compile(ADD, soc=soc, entry=entry).launch([x, y, z, _tiling(5120)], blocks=blocks, outputs=(2,))
    assert np.array_equal(z, x + y)
    assert counts["soc"] == soc and counts["not_a_device"] is True and len(counts["cores"]) == blocks
    totals = counts["totals"]
    assert totals["MTE2"] == {"instructions": 40, "bursts": 40, "bytes": 2 * 2 * 5120}
    assert totals["MTE3"] == {"instructions": 20, "bursts": 20, "bytes": 2 * 5120}
    assert totals["V"] == {"instructions": 20, "repeats": 40, "elements": 5120, "macs": 0}
    assert counts["by_instruction"]["Add"]["repeats"] == 40
    assert {core["ub_bytes"] for core in counts["cores"]} == {3072 if entry == "add_queues" else 1536}
    assert sum(core["pipes"]["V"]["repeats"] for core in counts["cores"]) == 40
    assert counts["hazards"] == [] and counts["notes"] == []


def _cast(key, x, dtype, mode):
    padded = np.zeros(-(-x.size // 2048) * 2048, x.dtype)
    padded[: x.size] = x
    y = np.zeros(padded.size, dtype)
    tiling = _tiling(padded.size, MODES.index(mode))
    _kernel("cast").launch([padded, y, tiling], blocks=1, outputs=(1,), tiling_key=key)
    return y[: x.size]


def _same(a, b):
    """Assert that all bits agree, except those of NaNs."""
    nan = a != a  # np.isnan does not know bfloat16
    assert np.array_equal(nan, b != b)
    assert np.array_equal(a.view(f"u{a.itemsize}")[~nan], b.view(f"u{b.itemsize}")[~nan])


ALL_HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)


def _floats_around(values):
    """Return every value, the midpoints between neighbours, and the floats next to the midpoints."""
    finite = np.sort(values.astype(np.float32)[np.isfinite(values.astype(np.float32))])
    middle = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    up, down = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))
    special = np.array([np.inf, -np.inf, np.nan, 65519.9, 65520, 3e38, -3.4e38, 1e-40, -0.0], np.float32)
    return np.concatenate([finite, middle, up, down, special])


def test_cast_half_to_float_of_every_half():
    _same(_cast(0, ALL_HALVES, np.float32, "none"), ALL_HALVES.astype(np.float32))


def test_cast_float_to_half_around_every_half():
    x = _floats_around(ALL_HALVES)
    with np.errstate(over="ignore"):
        _same(_cast(1, x, np.float16, "none"), x.astype(np.float16))


@pytest.mark.parametrize(("mode", "function"), [("floor", np.floor), ("ceil", np.ceil), ("trunc", np.trunc)])
def test_cast_float_to_half_directed(mode, function):
    x = _floats_around(ALL_HALVES[::7])
    x = x[np.abs(x) < 65504]
    got = _cast(1, x, np.float16, mode).astype(np.float64)
    unit = 2.0 ** np.maximum(np.frexp(x)[1].astype(np.float64) - 11, -24)
    assert np.array_equal(got, function(x / unit) * unit)


def test_cast_float_to_half_odd():
    x = _floats_around(ALL_HALVES[::7])
    x = x[np.abs(x) < 65504]
    got = _cast(1, x, np.float16, "odd")
    exact = got.astype(np.float32) == x
    assert np.all(exact | (got.view(np.uint16) & 1 == 1))
    toward_zero = _cast(1, x, np.float16, "trunc").view(np.uint16).astype(int)
    assert np.all(got.view(np.uint16) - toward_zero <= 1)


def test_cast_bfloat16_both_ways():
    every = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
    _same(_cast(4, every, np.float32, "none"), every.astype(np.float32))
    x = _floats_around(every)
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        _same(_cast(3, x, ml_dtypes.bfloat16, "rint"), x.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("mode", "function"),
    [
        ("rint", np.rint),
        ("floor", np.floor),
        ("ceil", np.ceil),
        ("trunc", np.trunc),
        ("round", lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x)),
    ],
)
def test_cast_to_integers(mode, function):
    halves = ALL_HALVES[np.isfinite(ALL_HALVES)]
    exact = function(halves.astype(np.float64))
    assert np.array_equal(_cast(2, halves, np.int32, mode), exact.astype(np.int32))
    assert np.array_equal(_cast(5, halves, np.uint8, mode), np.clip(exact, 0, 255).astype(np.uint8))
    floats = np.array([0.5, 1.5, -0.5, -2.5, 1e30, -1e30, 2147483520, np.nan], np.float32)
    limits = np.clip(np.nan_to_num(function(floats.astype(np.float64))), -(2**31), 2**31 - 1)
    assert np.array_equal(_cast(6, floats, np.int32, mode), limits.astype(np.int32))


def test_cast_from_integers():
    x = np.array([0, 1, -1, 16777217, 16777219, -16777217, 2**31 - 1, -(2**31)], np.int32)
    assert np.array_equal(_cast(7, x, np.float32, "rint"), x.astype(np.float32))
    assert np.array_equal(
        _cast(7, x, np.float32, "floor"), np.float32([0, 1, -1, 2**24, 16777218, -16777218, 2147483520, -(2**31)])
    )
    small = np.arange(-128, 128, dtype=np.int8)
    assert np.array_equal(_cast(8, small, np.float16, "none"), small.astype(np.float16))


def _call(key, dtype, x=None, y=None):
    rng = np.random.default_rng(key)
    x = rng.standard_normal(1024).astype(dtype) if x is None else x
    y = rng.standard_normal(1024).astype(dtype) if y is None else y
    z = np.zeros(1024, dtype)
    entry = "call_half" if dtype == np.float16 else "call_float"
    counts = _kernel(entry).launch([x, y, z], blocks=1, outputs=(2,), tiling_key=key)
    return x, y, z, counts


def _tree(x):
    while x.shape[-1] > 1:
        x = x[..., 0::2] + x[..., 1::2]
    return x[..., 0]


def _gelu(x):
    return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


DTYPES = pytest.mark.parametrize("dtype", [np.float16, np.float32])


@DTYPES
class TestCalls:
    def test_mask_bits(self, dtype):
        x, y, z, counts = _call(0, dtype)
        lanes = 256 // np.dtype(dtype).itemsize
        words = (0x5555555555555555, 0xFFFF0000FFFF0000)[: lanes // 64]
        bits = np.array([[word >> i & 1 for i in range(64)] for word in words], bool).reshape(-1)
        assert np.array_equal(z.reshape(-1, lanes), np.where(bits, (x + y).reshape(-1, lanes), 0))
        assert counts["by_instruction"]["Add"]["elements"] == bits.sum() * (1024 // lanes)

    def test_multiply_add_with_zero_strides(self, dtype):
        x, y, z, counts = _call(1, dtype)
        block = 32 // np.dtype(dtype).itemsize
        wide = np.float32 if dtype == np.float16 else dtype
        exact = x.astype(wide) * np.tile(y[:block].astype(wide), 1024 // block)
        assert np.array_equal(z, exact.astype(dtype))
        assert counts["totals"]["V"]["macs"] == 1024

    def test_block_stride(self, dtype):
        x, _, z, _ = _call(2, dtype)
        block = 32 // np.dtype(dtype).itemsize
        expected = np.zeros_like(x).reshape(-1, block)
        expected[::2] = (x * dtype(3)).reshape(-1, block)[::2]
        assert np.array_equal(z, expected.reshape(-1))

    def test_mask_set_outside(self, dtype):
        x, y, z, _ = _call(3, dtype)
        lanes = 256 // np.dtype(dtype).itemsize
        expected = (x - y).reshape(-1, lanes)
        expected[:, 40:] = 0
        assert np.array_equal(z, expected.reshape(-1))

    def test_counter_mode(self, dtype):
        x, y, z, counts = _call(4, dtype)
        expected = np.maximum(x, y)
        expected[300:] = 0
        assert np.array_equal(z, expected)
        assert counts["by_instruction"]["Max"]["repeats"] == -(-300 * np.dtype(dtype).itemsize // 256)

    def test_axpy(self, dtype):
        x, _, z, _ = _call(5, dtype)
        assert np.array_equal(z, x * dtype(0.5))

    def test_compare_and_select(self, dtype):
        x, y, z, _ = _call(6, dtype)
        assert np.array_equal(z, np.where(x < y, x, y))
        x, _, z, _ = _call(7, dtype)
        assert np.array_equal(z, np.where(x >= 0, x, dtype(-1)))

    def test_reductions_of_repeats(self, dtype):
        lanes = 256 // np.dtype(dtype).itemsize
        x, _, z, _ = _call(8, dtype)
        assert np.array_equal(z[: 1024 // lanes], _tree(x.reshape(-1, lanes)))
        x, _, z, _ = _call(9, dtype)
        block = lanes // 8
        assert np.array_equal(z[: 1024 // block], x.reshape(-1, block).max(-1))
        x, _, z, _ = _call(10, dtype)
        assert np.array_equal(z[:512], x[0::2] + x[1::2])

    def test_reductions_of_a_tensor(self, dtype):
        x, _, z, _ = _call(11, dtype)
        assert z[0] == x.max()
        assert z[1:2].view(f"u{z.itemsize}")[0] == x.argmax()
        x, _, z, _ = _call(12, dtype)
        lanes = 256 // np.dtype(dtype).itemsize
        total = dtype(0)
        for repeat in _tree(x.reshape(-1, lanes)):
            total = dtype(total + repeat)
        assert z[0] == total

    def test_moving_lanes(self, dtype):
        block = 32 // np.dtype(dtype).itemsize
        x, _, z, _ = _call(13, dtype)
        assert np.array_equal(z, np.repeat(x[: 1024 // block], block))
        x, _, z, _ = _call(14, dtype)
        assert np.array_equal(z[:64], x[63::-1])
        x, _, z, _ = _call(15, dtype)
        assert np.array_equal(z[:512], x[1::2])
        assert z[1023] == 512

    def test_registers_of_reductions(self, dtype):
        x, _, z, _ = _call(20, dtype)
        bits = z.view(f"u{z.itemsize}")
        assert (z[1022], bits[1023]) == (x.max(), x.argmax())
        assert z[1021] == _call(12, dtype, x)[2][0]

    @pytest.mark.parametrize(
        ("key", "function"),
        [
            (21, lambda x, y: _gelu(x)),
            (
                22,
                lambda x, y: (
                    x * (np.sign(x) * (0.5 - 0.1444 * (np.minimum(0.7071 * abs(x), 1.769) - 1.769) ** 2) + 0.5)
                ),
            ),
            (23, lambda x, y: x * y / (1 + np.exp(-1.5 * y))),
            (24, lambda x, y: x * _gelu(y)),
            (25, np.fmod),
        ],
    )
    def test_library(self, dtype, key, function):
        x, y, z, counts = _call(key, dtype)
        exact = function(x.astype(np.float64), y.astype(np.float64)).astype(dtype)
        np.testing.assert_allclose(z, exact, rtol=2 * np.finfo(dtype).eps)
        assert len(counts["notes"]) == 1

    def test_operators_and_scalars(self, dtype):
        x, y, z, counts = _call(16, dtype)
        expected = x + y
        expected[5] = expected[4]
        assert np.array_equal(z, expected)
        assert counts["totals"]["S"]["instructions"] == 2

    def test_copy_within(self, dtype):
        x, _, z, _ = _call(17, dtype)
        block = 32 // np.dtype(dtype).itemsize
        expected = np.zeros_like(x)
        for i in range(4):
            expected[64 + 8 * i * block :][: 2 * block] = x[4 * i * block :][: 2 * block]
        assert np.array_equal(z, expected)

    def test_fused_and_leaky(self, dtype):
        x, y, z, _ = _call(18, dtype)
        total = dtype(0) * x + y
        assert np.array_equal(z, np.where(total >= 0, total, total * dtype(0.25)))

    def test_index(self, dtype):
        *_, z, _ = _call(19, dtype)
        assert np.array_equal(z, np.arange(7, 1031).astype(dtype))


def test_atomic_sum_of_cores_and_padded_copies():
    x = np.arange(45, dtype=np.float32)
    y = np.ones(45, np.float32)
    _kernel("add_up").launch([x, y], blocks=4, outputs=(1,), initialised=(1,))
    assert np.array_equal(y, 1 + 4 * x)
    with pytest.raises(twin.SimulatorError, match="gm-unwritten"):
        _kernel("add_up").launch([x, y], blocks=4, outputs=(1,))


def test_queues_of_depth_0():
    x, y = _halves(4096), np.zeros(4096, np.float16)
    twin.compile(ADD, soc="Ascend310P3", entry="in_place").launch([x, y, None], blocks=1, outputs=(1,))
    assert np.array_equal(y, x + np.float16(1))


def test_a_tensor_that_is_not_freed_is_noted():
    counts = twin.compile(ADD, soc="Ascend310P3", entry="forgetful").launch([_halves(4096), None, None], blocks=1)
    assert len(counts["notes"]) == 1 and "not freed" in counts["notes"][0]


def test_options_of_rounding():
    """Half overflow gives infinity, and a product is not rounded before the sum, unless a define says so.

    On a 310P's AI cores half always saturates.
    """
    options = {"NEONEXT_TWIN_SATURATE": None, "NEONEXT_TWIN_ROUND_PRODUCT": None}
    plain, changed, ai_core = (
        twin.compile(ADD, soc=soc, entry="square", defines=defines)
        for soc, defines in (("Ascend910B3", {}), ("Ascend910B3", options), ("Ascend310P3", {}))
    )
    x = np.zeros(4096, np.float16)
    x[:3] = 1.1, 300, -1.7
    exact = x[:2].astype(np.float32) ** 2

    def square(kernel):
        y = np.zeros(4096, np.float16)
        kernel.launch([x, y, None], blocks=1, outputs=(1,))
        return y

    with np.errstate(over="ignore"):
        assert np.array_equal(square(plain)[:2], (exact - 1).astype(np.float16))
    assert square(plain)[1] == np.inf and square(changed)[1] == square(ai_core)[1] == 65504
    assert square(changed)[0] == exact[0].astype(np.float16) - np.float16(1) != square(plain)[0]


def test_numbers_of_four_bits():
    x = np.linspace(-12, 12, 256).astype(np.float16)
    packed, y = np.zeros(128, np.uint8), np.zeros(256, np.float16)
    _kernel("four_bits").launch([x, packed, y], blocks=1, outputs=(1, 2))
    expected = np.clip(np.rint(x), -8, 7)
    assert np.array_equal(y, expected)
    nibbles = expected.astype(np.int8).view(np.uint8) & 15
    assert np.array_equal(packed, nibbles[::2] | nibbles[1::2] << 4)


def test_sorted_pairs():
    x = np.random.default_rng(3).integers(0, 20, 128).astype(np.float32)
    y = np.zeros(256, np.float32)
    _kernel("sort_pairs").launch([x, np.arange(128, dtype=np.uint32), y], blocks=1, outputs=(2,))
    order = np.argsort(-x, kind="stable")
    assert np.array_equal(y[::2], x[order]) and np.array_equal(y[1::2].view(np.uint32), order)


def test_copy_in_counter_mode():
    x = np.arange(18 * 64, dtype=np.int32)
    y = np.zeros(18 * 8, np.int32)
    _kernel("copy_rows").launch([x, y], blocks=1, outputs=(1,))
    assert np.array_equal(y, x.reshape(18, 64)[:, :8].ravel())


def test_scatter():
    x, places = np.arange(256, dtype=np.float32), np.random.default_rng(5).permutation(256)
    y = np.zeros_like(x)
    kernel = twin.compile(SOURCE, soc="Ascend310P3", entry="scatter")
    kernel.launch([x, (4 * places).astype(np.uint32), y], blocks=1, outputs=(2,))
    assert np.array_equal(y[places], x)
    with pytest.raises(twin.SimulatorError, match="lane 1 of repeat 0 goes to byte 8, as an earlier one does"):
        kernel.launch([x, np.full(256, 8, np.uint32), y], blocks=1, outputs=(2,))


def test_transpose_to_channels_last():
    x = _halves(192)
    y = np.zeros_like(x)
    counts = _kernel("channels_last").launch([x, y], blocks=1, outputs=(1,))
    assert np.array_equal(y, x.reshape(2, 3, 4, 8).transpose(0, 2, 3, 1).ravel())
    assert counts["notes"] == ["Transpose: counted as one instruction"]


def test_cores_wait_for_each_other():
    x = np.arange(5 * 8, dtype=np.int32)
    y = np.zeros_like(x)
    kernel, sync = _kernel("pass_on"), np.zeros(5 * 8, np.int32)
    counts = kernel.launch([x, y, sync], blocks=5, outputs=(0, 1), initialised=(0,))
    assert np.array_equal(y, np.roll(np.arange(5 * 8), 8)) and len(counts["cores"]) == 5
    assert {core["pipes"]["MTE3"]["bytes"] for core in counts["cores"]} == {64}
    kernel.launch([x, y, sync], blocks=5, outputs=(1,), tiling_key=1)
    assert np.array_equal(y.reshape(5, 8), np.arange(8) + np.array([5, 4, 3, 2, 1])[:, None])


def test_cores_take_turns():
    x, sync = np.ones(8, np.float32), np.full(4 * 8, 9, np.int32)
    _kernel("take_turns").launch([x, sync], blocks=4, outputs=(0,), initialised=(0,))
    expected = 1
    for core in (0, 1, 2, 3) * 2:
        expected = 2 * expected + core
    assert np.array_equal(x, np.full(8, expected))


def test_tiling_macros():
    y = np.zeros(2, np.uint32)
    _kernel("shape").launch([y, _tiling(3, 5)], blocks=1, outputs=(0,))
    assert y.tolist() == [3, 5]
