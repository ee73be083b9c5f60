"""The AscendC kernels in the simulator, against the golden vectors, the reference and their own order of sums."""

from __future__ import annotations

import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import goldens, relative_max
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.models.registry import model_config
from neonext_ms.ops import NeoCellSpec, reference
from neonext_ms.ops.soc import VECTOR_CORE
from neonext_ms.ops.soc import soc as soc_of
from neonext_ms.ops.twin import SimulatorError, neo_cell

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the simulator needs g++")
# One for each architecture: 2002, 2201 and 3002.
SOCS = ("Ascend310P3", "Ascend910B3", "Ascend310B4")


def _weights(spec, rng, dtype=np.float64):
    return [[rng.standard_normal(s).astype(dtype) / s[-1] for s in shapes] for shapes in (spec.shapes_a, spec.shapes_b)]


def _golden(case):
    z, spec = case.load(".npz"), NeoCellSpec(case.entry["spec"])
    n = range(len(spec.groups))
    return z, spec, [z[f"weight_a.{i}"] for i in n], [z[f"weight_b.{i}"] for i in n]


def _left(x, weights, axes, size):
    """Multiply A of each channel and x in the kernel's order: taps ascending, each multiply-add rounded once."""
    y = np.zeros((*x.shape[:2], size, x.shape[3]), x.dtype)
    outputs = np.arange(size)
    channel = 0
    for axis, small in zip(axes, weights, strict=True):
        for c in range(axis.channels):
            first = axis.first_input(outputs)[c]
            row = (outputs - axis.shifts[c]) % axis.k_out
            for tap in range(axis.k_in):
                inside = (first + tap >= 0) & (first + tap < x.shape[2])
                values = x[:, channel, (first + tap)[inside]].astype(np.float32)
                factor = small[c, row[inside], tap].astype(np.float32)[:, None]
                y[:, channel, inside] = y[:, channel, inside].astype(np.float32) + factor * values
            channel += 1
    return y


def _turned(x, weights_b, spec):
    """Return the arguments of `_left` that multiply x and B, except for the size; the result is transposed."""
    return x.transpose(0, 1, 3, 2), [w.transpose(0, 2, 1) for w in weights_b], [g.axis_b for g in spec.groups]


def in_order(x, weights_a, weights_b, spec, bias=None, out=None):
    """Compute both products in the kernel's order and dtype."""
    out = out or spec.output_size(*x.shape[2:])
    y = _left(x, weights_a, [g.axis_a for g in spec.groups], out[0])
    y = _left(*_turned(y, weights_b, spec), out[1]).transpose(0, 1, 3, 2)
    return y if bias is None else (y.astype(np.float32) + bias.astype(np.float32)[:, None, None]).astype(x.dtype)


def gradients_in_order(x, dy, weights_a, weights_b, spec):
    """Return the gradients of A and B, summed in the kernel's order in float32, of maps that fit into one strip."""
    x, dy = x.astype(np.float32), dy.astype(np.float32)
    a, b = ([w.astype(np.float32) for w in weights] for weights in (weights_a, weights_b))
    mixed_b = _left(*_turned(x, b, spec), dy.shape[3]).transpose(0, 1, 3, 2)
    mixed_a = _left(x, a, [g.axis_a for g in spec.groups], dy.shape[2])
    grad_a = _sums(mixed_b, dy, [g.axis_a for g in spec.groups])
    turned = (v.transpose(0, 1, 3, 2) for v in (mixed_a, dy))
    return grad_a, [grad.transpose(0, 2, 1) for grad in _sums(*turned, [g.axis_b for g in spec.groups])]


def _sums(values, dy, axes):
    """Sum dy times values for each row and tap of the matrices: 8 places side by side, then a tree, for each image."""
    grads, channel = [], 0
    outputs = np.arange(dy.shape[2])
    for axis in axes:
        grad = np.zeros((axis.channels, axis.k_out, axis.k_in), np.float32)
        for c, row, tap in np.ndindex(grad.shape):
            of = outputs[(row + axis.shifts[c]) % axis.k_out :: axis.k_out]
            inputs = axis.first_input(of)[c] + tap
            inside = (inputs >= 0) & (inputs < values.shape[2])
            if not inside.any():
                continue
            products = dy[:, channel + c, of[inside]] * values[:, channel + c, inputs[inside]]
            places = products[..., :8].copy()
            for first in range(8, products.shape[2], 8):
                more = products[..., first : first + 8]
                places[..., : more.shape[2]] += more
            for image in _folded(_folded(places.transpose(1, 2, 0))):
                grad[c, row, tap] += image
        grads.append(grad)
        channel += axis.channels
    return grads


def _folded(values):
    """Sum over the first axis: the second half is added to the first until one is left."""
    while (count := len(values)) > 1:
        upper = (count + 1) // 2
        values[: count - upper] += values[upper:]
        values = values[:upper]
    return values[0]


@pytest.mark.parametrize("soc", SOCS)
@pytest.mark.parametrize("case", goldens("neocell"))
def test_golden(case, soc):
    z, spec, a, b = _golden(case)
    run = neo_cell.forward(z["x"], a, b, spec, soc=soc, dtype="float32")
    assert relative_max(run.outputs[0], z["y"]) < 1e-5
    back = neo_cell.forward(
        z["dy"], a, b, spec, soc=soc, dtype="float32", transposed=True, output_size=z["x"].shape[2:]
    )
    assert relative_max(back.outputs[0], z["dx"]) < 1e-5
    grad_a, grad_b = neo_cell.gradients(z["x"], z["dy"], a, b, spec, soc=soc, dtype="float32").outputs
    for i in range(len(spec.groups)):
        assert relative_max(grad_a[i], z[f"grad/weight_a.{i}"]) < 1e-5
        assert relative_max(grad_b[i], z[f"grad/weight_b.{i}"]) < 1e-5


@pytest.mark.parametrize("soc", SOCS)
@pytest.mark.parametrize("case", goldens("neocell"))
def test_golden_in_float16_on_any_number_of_cores(case, soc):
    z, spec, a, b = _golden(case)
    x, dy = (z[name].astype(np.float16) for name in ("x", "dy"))
    a, b = ([w.astype(np.float16) for w in weights] for weights in (a, b))
    size = x.shape[2:]
    y = in_order(x, a, b, spec)
    turned = [
        {"h_in": g.h_out, "h_out": g.h_in, "w_in": g.w_out, "w_out": g.w_in, "channels": g.channels}
        | {"shift_a": g.shift_a, "shift_b": g.shift_b}
        for g in spec.groups
    ]
    dx = in_order(dy, *([w.transpose(0, 2, 1) for w in v] for v in (a, b)), NeoCellSpec(turned), out=size)
    _, exact_a, exact_b, _ = reference.backward(x, a, b, spec, dy)
    first = None
    device = soc_of(soc)
    most = device.vector_units + device.vector_cores_beside
    for blocks in range(1, most + 1):
        options = {"soc": soc, "blocks": blocks}
        np.testing.assert_array_equal(neo_cell.forward(x, a, b, spec, **options).outputs[0], y)
        back = neo_cell.forward(dy, a, b, spec, transposed=True, output_size=size, **options)
        np.testing.assert_array_equal(back.outputs[0], dx)
        if len(x) * -(-spec.channels // 16) < blocks < most:
            continue  # one core computes all of a map, and further cores get none
        grads = [grad for side in neo_cell.gradients(x, dy, a, b, spec, **options).outputs for grad in side]
        first = first or grads
        for grad, one, exact in zip(grads, first, (*exact_a, *exact_b), strict=True):
            assert relative_max(grad, exact) < 1e-5
            np.testing.assert_array_equal(grad, one)
    wide = neo_cell.forward(x, a, b, spec, soc=soc, accumulate_fp32=True)
    assert relative_max(wide.outputs[0], reference.forward(x, a, b, spec)) < 2**-11


def test_a_mask_given_as_a_number_fails_on_3002(tmp_path, monkeypatch):
    """There overloads with a number of lanes ignore the mask register, and 0 (MASK_PLACEHOLDER) computes nothing."""
    folder = shutil.copytree(neo_cell.PROJECT, tmp_path / "ascendc")
    path = folder / "op_kernel" / "neo_cell_base.h"
    text = path.read_text()
    assert text.count(", mask_, ") >= 4
    path.write_text(text.replace(", mask_, ", ", AscendC::MASK_PLACEHOLDER, "))
    monkeypatch.setattr(neo_cell, "PROJECT", folder)
    spec = NeoCellSpec([{"kernel": 4, "channels": 16}])
    weights = _weights(spec, np.random.RandomState(0), np.float16)
    x = np.ones((1, 16, 8, 8), np.float16)
    with pytest.raises(SimulatorError, match="a mask of 0 lanes: on __NPU_ARCH__ 3002"):
        neo_cell.forward(x, *weights, spec, soc="Ascend310B4")


@pytest.mark.parametrize("size", [(14, 14), (7, 7), (6, 19)])
def test_images_of_small_maps_share_strips(size):
    spec = NeoCellSpec([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 7, "channels": 40, "shift": 1}])
    rng = np.random.RandomState(4)
    x = rng.standard_normal((8, 60, *size)).astype(np.float16)
    a, b = _weights(spec, rng, np.float16)
    bias = rng.standard_normal(60).astype(np.float16)
    expected = in_order(x, a, b, spec, bias)
    groups = set()
    for blocks in (1, 2, 15):
        run = neo_cell.forward(x, a, b, spec, bias, blocks=blocks)
        groups.add(run.tiling.group)
        np.testing.assert_array_equal(run.outputs[0], expected)
    one = neo_cell.forward(x[:1], a, b, spec, bias, blocks=1)
    assert max(groups) > 3 and one.tiling.group == 1
    together = neo_cell.forward(x, a, b, spec, bias, blocks=1).counts["totals"]["V"]
    assert together["instructions"] < 8 * one.counts["totals"]["V"]["instructions"]
    exact = reference.forward(x, a, b, spec, bias)
    wide = neo_cell.forward(x, a, b, spec, bias, blocks=1, accumulate_fp32=True)
    assert wide.tiling.group > 1 and relative_max(wide.outputs[0], exact) < 2**-11
    halves = neo_cell.forward(x, a, b, spec, bias, blocks=1, dtype="float32", c0=8)
    assert halves.tiling.group > 1 and relative_max(halves.outputs[0], exact) < 1e-5


@pytest.mark.parametrize("soc", SOCS)
@pytest.mark.parametrize(("size", "group"), [((14, 14), 2), ((7, 7), 4), ((5, 9), 4)])
def test_sums_of_images_that_share_strips(size, group, soc):
    spec = NeoCellSpec([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 7, "channels": 40, "shift": 1}])
    rng = np.random.RandomState(5)
    x, dy = rng.standard_normal((2, 8, 60, *size)).astype(np.float16)
    a, b = _weights(spec, rng, np.float16)
    expected = gradients_in_order(x, dy, a, b, spec)
    device = soc_of(soc)
    groups = []
    for blocks in sorted({1, 7, device.vector_units, device.vector_units + device.vector_cores_beside}):
        run = neo_cell.gradients(x, dy, a, b, spec, soc=soc, blocks=blocks)
        groups.append(run.tiling.group)
        for grad, exact in zip((*run.outputs[0], *run.outputs[1]), (*expected[0], *expected[1]), strict=True):
            np.testing.assert_array_equal(grad, exact)
    assert max(groups) >= group
    one, together = (
        neo_cell.gradients(x[:n], dy[:n], a, b, spec, soc=soc, blocks=1).counts["totals"]["V"] for n in (1, 8)
    )
    assert together["instructions"] < 0.65 * 8 * one["instructions"]


def test_the_vector_cores_of_a_310p_take_their_share():
    """The cores of each kind work equally long, and without vector cores the result is the same."""
    spec = NeoCellSpec([{"kernel": 4, "channels": 48, "shift": 1}, {"kernel": 7, "channels": 48, "shift": 1}])
    rng = np.random.RandomState(3)
    x = rng.standard_normal((2, 96, 56, 56)).astype(np.float16)
    a, b = _weights(spec, rng, np.float16)
    both = neo_cell.forward(x, a, b, spec)
    alone = neo_cell.forward(x, a, b, spec, vector_cores=False)
    np.testing.assert_array_equal(both.outputs[0], alone.outputs[0])
    assert (both.tiling.cores, alone.tiling.cores) == (15, 8)
    cores = both.counts["cores"]
    assert [core["vector_core"] for core in cores] == [False] * 8 + [True] * 7
    assert not any(core["vector_core"] for core in alone.counts["cores"])
    device = soc_of("Ascend310P3")

    def time(core):
        kind, pipes = VECTOR_CORE if core["vector_core"] else device.ai_core, core["pipes"]
        moved = pipes["MTE2"]["bytes"] + pipes["MTE3"]["bytes"]
        return max(2 * pipes["V"]["repeats"], moved / kind.memory_bytes_per_cycle) / kind.mhz

    times = [time(core) for core in cores]
    assert np.mean(times[:8]) == pytest.approx(np.mean(times[8:]), rel=0.15)
    assert max(times) < 1.2 * np.mean(times)
    assert max(times) < 0.85 * max(map(time, alone.counts["cores"]))


def test_overflow_is_that_of_each_kind_of_core():
    spec = NeoCellSpec([{"kernel": 2, "channels": 16}])
    a, b = [np.full((16, 2, 2), 200, np.float16)], [np.full((16, 2, 2), 200, np.float16)]
    x = np.full((1, 16, 60, 8), 1000, np.float16)
    run = neo_cell.forward(x, a, b, spec)
    (y,) = run.outputs
    assert run.tiling.cores == 15
    assert y[0, 0, 0, 0] == 65504 and y[0, 0, -1, 0] == np.inf  # an AI core's row, a vector core's row
    assert set(np.unique(y)) == {65504, np.inf}
    assert (neo_cell.forward(x, a, b, spec, vector_cores=False).outputs[0] == 65504).all()
    assert (neo_cell.forward(x, a, b, spec, soc="Ascend910B3").outputs[0] == np.inf).all()


PAIRS = {"channels": [16], "h_in": [2], "h_out": [1], "w_in": [2], "w_out": [1], "shift_a": [0], "shift_b": [0]}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 2, 65540, 16), "longer than 65536 blocks"),
        ((1, 1, 20_000_000, 2, 16), "higher than 16777216 rows"),
        ((65536, 1, 65536, 2, 16), "more than 2147483647 rows"),
        ((1, 12500, 2, 2, 16), "more than 131072 channels"),
    ],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_sizes_that_the_kernels_cannot_count_are_refused(shape, message, gradient):
    runs = PAIRS | {"channels": [16 * shape[1]]}
    with pytest.raises(InputError, match=message):
        neo_cell.tiling(shape, runs, cores=8, ub_bytes=1 << 18, element_bytes=2, compute_bytes=2, gradient=gradient)


@pytest.mark.parametrize("size", [(65540, 2), (2, 65536)])
def test_maps_of_more_periods_than_16_bits_count(size):
    spec = NeoCellSpec([{name: PAIRS[name][0] for name in ("channels", "h_in", "h_out", "w_in", "w_out")}])
    x = np.random.RandomState(7).standard_normal((1, 16, *size)).astype(np.float16)
    ones = [np.ones((16, 1, 2), np.float16)], [np.ones((16, 2, 1), np.float16)]
    pairs = x[:, :, 0::2] + x[:, :, 1::2]
    run = neo_cell.forward(x, *ones, spec)
    np.testing.assert_array_equal(run.outputs[0], pairs[..., 0::2] + pairs[..., 1::2])


def test_a_bias_is_added_last():
    spec = NeoCellSpec([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 7, "channels": 25, "shift": 1}])
    rng = np.random.RandomState(0)
    x = rng.standard_normal((2, 45, 13, 9)).astype(np.float16)
    a, b = _weights(spec, rng, np.float16)
    bias = rng.standard_normal(45).astype(np.float16)
    np.testing.assert_array_equal(neo_cell.forward(x, a, b, spec, bias).outputs[0], in_order(x, a, b, spec, bias))


def test_bfloat16_is_computed_in_float32():
    spec = NeoCellSpec([{"kernel": 7, "channels": 16, "shift": 1}])
    rng = np.random.RandomState(1)
    x = rng.standard_normal((1, 16, 21, 12)).astype(ml_dtypes.bfloat16)
    a, b = _weights(spec, rng, ml_dtypes.bfloat16)
    run = neo_cell.forward(x, a, b, spec, soc="Ascend910B3", dtype="bfloat16")
    exact = reference.forward(
        *(np.asarray(v, np.float64) for v in (x,)), *([np.float64(w) for w in v] for v in (a, b)), spec
    )
    assert relative_max(run.outputs[0].astype(np.float64), exact) < 2**-8
    with pytest.raises(UsageError, match="Ascend310P3 has no bfloat16"):
        neo_cell.forward(x, a, b, spec, soc="Ascend310P3", dtype="bfloat16")


def _shapes():
    """Return every distinct NeoCell of T, S, B and L at 224 and 384, with the released shifts."""
    found = {}
    for name in "tsbl":
        for variant in ("released_224", "released_384"):
            config = model_config(f"neonext_{name}.{variant}")
            for stage, size in enumerate(config.architecture.maps(config.image_size)):
                found.setdefault((config.architecture.stage_spec(stage), size), f"{name}.{size[0]}.{stage + 1}")
    return [pytest.param(*shape, id=name) for shape, name in found.items()]


@pytest.mark.parametrize(("spec", "size"), _shapes())
def test_every_shape_of_the_models(spec, size):
    rng = np.random.RandomState(2)
    x = rng.standard_normal((1, spec.channels, *size)).astype(np.float16)
    a, b = _weights(spec, rng, np.float16)
    exact = reference.forward(x, a, b, spec)
    halves = in_order(x, a, b, spec)
    for soc in SOCS[:2]:  # 3002 differs from them in the masks only, which the golden cases reach
        assert relative_max(neo_cell.forward(x, a, b, spec, soc=soc, dtype="float32").outputs[0], exact) < 1e-5
        np.testing.assert_array_equal(neo_cell.forward(x, a, b, spec, soc=soc).outputs[0], halves)


def test_repeats_and_bytes_of_released_t():
    """The vector unit's repeats against 2 k multiply-adds for each value over full lanes; bytes against the least."""
    config = model_config("neonext_t.released_224")
    soc = soc_of("Ascend310P3")
    repeats = ideal = 0
    for stage, (h, w) in enumerate(config.architecture.maps(config.image_size)):
        spec, count = config.architecture.stage_spec(stage), config.architecture.per_stage_layers[stage]
        a, b = _weights(spec, np.random.RandomState(0), np.float16)
        x = np.zeros((1, spec.channels, h, w), np.float16)
        counts = neo_cell.forward(x, a, b, spec, vector_cores=False).counts
        repeats += count * counts["totals"]["V"]["repeats"]
        ideal += count * sum((g.h_in + g.w_in) * g.channels for g in spec.groups) * h * w / 128
        least = 2 * x.nbytes + sum(weights.nbytes for weights in (*a, *b))
        bound = least / (soc.memory_bytes_per_cycle * soc.vector_units)
        slowest = max(
            max(pipes["V"]["repeats"], (pipes["MTE2"]["bytes"] + pipes["MTE3"]["bytes"]) / soc.memory_bytes_per_cycle)
            for pipes in (core["pipes"] for core in counts["cores"])
        )
        assert slowest < 1.3 * bound
    assert repeats < 1.5 * ideal


@st.composite
def problems(draw):
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = {key: draw(st.integers(1, 9)) for key in ("h_in", "h_out", "w_in", "w_out")}
        if draw(st.booleans()):
            sizes["h_out"], sizes["w_out"] = sizes["h_in"], sizes["w_in"]
        for side, size in (("a", "h"), ("b", "w")):
            largest = sizes[f"{size}_out"] - 1 if sizes[f"{size}_in"] == sizes[f"{size}_out"] else 0
            sizes[f"shift_{side}"] = draw(st.integers(0, largest))
        groups.append({**sizes, "channels": draw(st.integers(1, 30))})
    shape = draw(st.integers(1, 3)), draw(st.integers(9, 40)), draw(st.integers(9, 40))
    return (
        NeoCellSpec(groups),
        shape,
        draw(st.integers(1, 8)),
        draw(st.sampled_from((20, 48, 256))),
        draw(st.integers(0, 9)),
    )


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_any_sizes_shifts_cores_and_buffers(problem):
    spec, (n, h, w), blocks, kib, seed = problem
    rng = np.random.RandomState(seed)
    x = rng.standard_normal((n, spec.channels, h, w)).astype(np.float32)
    a, b = _weights(spec, rng, np.float32)
    bias = rng.standard_normal(spec.channels).astype(np.float32) if seed % 2 else None
    dy = rng.standard_normal((n, spec.channels, *spec.output_size(h, w))).astype(np.float32)
    options = {"dtype": "float32", "blocks": blocks, "ub_bytes": kib << 10, "c0": 8 if seed % 3 == 0 else 16}
    try:
        run = neo_cell.forward(x, a, b, spec, bias, **options)
        back = neo_cell.forward(dy, a, b, spec, transposed=True, output_size=(h, w), **options)
    except InputError as error:
        # Groups that shrink the map differently read places far apart for one output.
        ratios = {
            (g.h_in * r.h_out == r.h_in * g.h_out, g.w_in * r.w_out == r.w_in * g.w_out)
            for g in spec.groups
            for r in spec.groups
        }
        assert kib < 256 or ratios != {(True, True)}
        assert "too large for the unified buffer" in str(error)
        return
    exact_x, exact_a, exact_b, _ = reference.backward(x, a, b, spec, dy)
    np.testing.assert_allclose(run.outputs[0], reference.forward(x, a, b, spec, bias), rtol=0, atol=1e-4)
    np.testing.assert_allclose(back.outputs[0], exact_x, rtol=0, atol=1e-4)
    if kib == 256:
        grad_a, grad_b = neo_cell.gradients(x, dy, a, b, spec, **options).outputs
        for found, exact in zip((*grad_a, *grad_b), (*exact_a, *exact_b), strict=True):
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * max(1, np.abs(exact).max()))
