"""The C++ kernels for the CPU against float64, and the behaviour without a compiler."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from conftest import relative_max
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.models.activations import ACTIVATIONS
from neonext_ms.models.neonext import NeoBottleneck
from neonext_ms.ops import NeoCellSpec, compiled, neo_cell, reference
from neonext_ms.ops.cpu import library, operators
from neonext_ms.ops.spec import Axis
from neonext_ms.training.controlled import _SampledDropPath

ms.set_device("CPU")

needs_kernels = pytest.mark.skipif(not operators.available(ms.float32), reason="no C++ compiler")


def _random(*shape):
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def no_library(monkeypatch):
    """Reset the caches, as if nothing had been compiled, before and after the test."""
    library.library.cache_clear()
    library.has_products.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    library.library.cache_clear()
    library.has_products.cache_clear()


@needs_kernels
@pytest.mark.parametrize("jit", [False, True], ids=["pynative", "jit"])
def test_gelu(jit):
    x = np.linspace(-16, 16, 20001).astype(np.float32)
    exact = x.astype(np.float64)
    phi = 0.5 * np.array([math.erfc(-v / math.sqrt(2)) for v in exact])
    slope = phi + exact * np.exp(-exact * exact / 2) / math.sqrt(2 * math.pi)

    def both(x):
        return operators.gelu(x).sum(), operators.gelu(x)

    step = ms.value_and_grad(both, 0, has_aux=True)
    (_, y), dx = (ms.jit(step) if jit else step)(Tensor(x))
    assert (np.abs(y.asnumpy() - exact * phi) <= 2e-7 * np.maximum(1, np.abs(x))).all()
    assert np.abs(dx.asnumpy() - slope).max() < 2e-7


@needs_kernels
def test_gelu_of_what_is_not_finite():
    y = operators.gelu(Tensor(np.array([np.nan, np.inf, 3e38, -3e38], np.float32))).asnumpy()
    assert np.isnan(y[0]) and y[1] == np.inf and y[2] == np.float32(3e38) and abs(y[3]) < 1e-30


THREADS = """\
import hashlib
import mindspore as ms
import numpy as np
from mindspore import Tensor
from neonext_ms.models.neonext import NeoBottleneck
from neonext_ms.ops import NeoCellSpec
from neonext_ms.ops.cpu import operators
ms.set_device("CPU")
digest = hashlib.sha256()
for n, inputs, outputs, side in ((2, 24, 400, 14), (5, 96, 9, 7), (3, 7, 200, 3)):
    rng = np.random.RandomState(0)
    shapes = (n, inputs, side, side), (outputs, inputs), outputs
    x, w, b = (Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    step = ms.value_and_grad(lambda *a: (operators.pointwise(*a) ** 2).sum(), (0, 1, 2))
    value, gradients = step(x, w, b)
    for tensor in (value, *gradients, operators.sum_of_squares((x, w), Tensor(np.ones(1, np.float32)))):
        digest.update(tensor.asnumpy().tobytes())
for n, channels, side in ((3, 40, 9), (2, 16, 40)):
    block = NeoBottleneck(NeoCellSpec({"kernel": 4, "channels": channels, "shift": 1}), channels, True, True, 0.0)
    block.set_train()
    weights = ms.ParameterTuple(block.trainable_params())
    for weight in weights:
        weight.set_data(Tensor(np.random.RandomState(1).standard_normal(weight.shape).astype(np.float32)))
    x = Tensor(np.random.RandomState(0).standard_normal((n, channels, side, side)).astype(np.float32))
    value, (dx, gradients) = ms.value_and_grad(lambda x: (block(x) ** 2).sum(), 0, weights)(x)
    for tensor in (value, dx, *gradients):
        digest.update(tensor.asnumpy().tobytes())
print(digest.hexdigest())
"""


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    """Workers that share a machine have fewer threads than a single process."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", THREADS],
            env={**os.environ, "OMP_NUM_THREADS": count},
            capture_output=True,
            text=True,
        ).stdout
        for count in ("1", "3")
    ]
    assert digests[0] == digests[1] and len(digests[0]) > 60


@needs_kernels
@pytest.mark.parametrize("size", [1, 17, (1 << 16) + 5, 3 << 16])
def test_sum_of_squares_and_scaled(size):
    x, factor = _random(size), np.array([0.37], np.float32)
    exact = float(((x.astype(np.float64) * factor) ** 2).sum())
    parts = Tensor(x[: size // 2 + 1]), Tensor(x[size // 2 + 1 :].reshape(1, -1))
    parts = parts if size > 1 else parts[:1]
    assert operators.sum_of_squares(parts, Tensor(factor)).asnumpy()[0] == pytest.approx(exact, rel=1e-6)
    np.testing.assert_array_equal(operators.scaled(Tensor(x), Tensor(factor)).asnumpy(), x * factor)
    x[-1] = np.nan
    assert np.isnan(operators.sum_of_squares((Tensor(x),), Tensor(factor)).asnumpy()[0])
    assert not operators.scaled(Tensor(x), Tensor(np.zeros(1, np.float32))).asnumpy().any()


@needs_kernels
@pytest.mark.parametrize("jit", [False, True], ids=["pynative", "jit"])
def test_adamw_and_moving_average_change_parameters(jit):
    shapes = (3, 70), (20000,)
    names = "gradient", "weight", "first", "second", "average"
    rng = np.random.RandomState(0)
    values = {name: [rng.standard_normal(shape).astype(np.float32) for shape in shapes] for name in names}
    values["second"] = [v * v for v in values["second"]]
    stored = {
        name: ms.ParameterTuple([ms.Parameter(Tensor(v), name=f"{name}{i}") for i, v in enumerate(arrays)])
        for name, arrays in values.items()
    }
    weights, first, second, averages = (stored[name] for name in names[1:])
    rates = Tensor(np.array([[1, 0.1], [0.5, 0]], np.float32))

    def step(settings, share, *gradients):
        # The sum reads the weights before the update.
        before = weights[0].sum()
        done = operators.adamw(settings, rates, gradients, weights, first, second)
        return before, ops.depend(operators.moving_average(share, averages, weights), done)

    step = ms.jit(step) if jit else step
    gradients = [Tensor(v) for v in values["gradient"]]
    factor, rate, beta_1, beta_2, eps, share = 0.7, 0.1, 0.9, 0.99, 1e-3, 0.25
    settings = np.array([factor, rate, beta_1, beta_2, eps, 1], np.float32)
    before, _ = step(Tensor(settings), Tensor(np.array([share], np.float32)), *gradients)
    assert before.asnumpy() == pytest.approx(values["weight"][0].sum(), rel=1e-4)
    for i, (own, decay) in enumerate(rates.asnumpy()):
        g, w, m, v, average = (values[name][i].astype(np.float64) for name in names)
        m, v = m + (1 - beta_1) * (factor * g - m), v + (1 - beta_2) * ((factor * g) ** 2 - v)
        w = w - rate * own * (m / (np.sqrt(v) + eps) + decay * w)
        average = average * (1 - share) + w * share
        for name, expected in zip(names[1:], (w, m, v, average), strict=True):
            assert relative_max(stored[name][i].asnumpy(), expected) < 1e-6, name
    # A step that is skipped: no rate, betas of 1, gradients that are not finite.
    kept = [parameter.asnumpy().copy() for parameter in (*weights, *first, *second)]
    settings = Tensor(np.array([0, 0, 1, 1, eps, 1], np.float32))
    step(settings, Tensor(np.zeros(1, np.float32)), *(gradient * np.nan for gradient in gradients))
    for parameter, expected in zip((*weights, *first, *second), kept, strict=True):
        np.testing.assert_array_equal(parameter.asnumpy(), expected)


@needs_kernels
def test_waiting_for_a_graph():
    @ms.jit
    def graph(x):
        return operators.finished(x * 2)

    for _ in range(3):
        finish = operators.Finish()
        y = graph(Tensor(np.ones(3, np.float32)))
        finish.wait()
        assert (y.asnumpy() == 2).all()


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "outputs"),
    # AMX or AVX2, where there is one, computes the last two.
    [
        ((1, 5, 20, 3), 7),
        ((3, 6, 7, 7), 7),
        ((67, 4, 2, 2), 7),
        ((2, 16, 16, 15), 7),
        ((2, 165, 11, 12), 70),
        ((1, 600, 9, 7), 50),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise(shape, outputs, bias):
    if not library.has_products():
        pytest.skip("MindSpore has no oneDNN here")
    n, inputs, h, w = shape
    x, weight, dy = _random(*shape), _random(outputs, inputs), _random(n, outputs, h, w)
    shift = _random(outputs) if bias else None

    def product(x, weight, *shift):
        y = operators.pointwise(x, weight, *shift)
        return (y * Tensor(dy)).sum(), y

    given = [x, weight, *([shift] if bias else [])]
    step = ms.value_and_grad(product, tuple(range(len(given))), has_aux=True)
    (_, y), gradients = ms.jit(step)(*map(Tensor, given))
    exact, up = x.astype(np.float64), dy.astype(np.float64)
    expected = np.einsum("oi,nihw->nohw", weight, exact) + (shift[:, None, None] if bias else 0)
    assert relative_max(y.asnumpy(), expected) < 1e-6
    assert relative_max(gradients[0].asnumpy(), np.einsum("oi,nohw->nihw", weight, up)) < 1e-6
    assert relative_max(gradients[1].asnumpy(), np.einsum("nohw,nihw->oi", up, exact)) < 1e-6
    if bias:
        assert relative_max(gradients[2].asnumpy(), up.sum((0, 2, 3))) < 1e-6


@needs_kernels
def test_layer_scale_and_batch_norm_gradients():
    x, dy, gamma = _random(3, 5, 9, 4) + 2, _random(9, 4, 3, 5).transpose(2, 3, 0, 1).copy(), _random(5)
    step = ms.grad(lambda x, gamma: (operators.layer_scale(x, gamma) * Tensor(dy)).sum(), (0, 1))
    dx, dgamma = step(Tensor(x), Tensor(gamma))
    assert relative_max(dx.asnumpy(), dy * gamma[:, None, None]) < 1e-6
    assert relative_max(dgamma.asnumpy(), (x.astype(np.float64) * dy).sum((0, 2, 3))) < 1e-6
    axes, eps = (0, 2, 3), np.float32(1e-3)
    exact, up = x.astype(np.float64), dy.astype(np.float64)
    inverse = 1 / np.sqrt(exact.var(axes, keepdims=True) + eps)
    normal = (exact - exact.mean(axes, keepdims=True)) * inverse
    sums = [up.mean(axes, keepdims=True), (up * normal).mean(axes, keepdims=True)]
    given = operators.batch_norm_grad(*map(Tensor, (x, dy, gamma, eps.reshape(1))))
    expected = (up - sums[0] - normal * sums[1]) * inverse * gamma[:, None, None]
    assert relative_max(given[0].asnumpy(), expected) < 1e-6
    assert relative_max(given[1].asnumpy(), (up * normal).sum(axes)) < 1e-6
    assert relative_max(given[2].asnumpy(), up.sum(axes)) < 1e-6


@needs_kernels
@pytest.mark.parametrize("channels", [5, 9])
def test_maps_that_do_not_fit_the_weights(channels):
    """The kernels would read other weights, or memory that is not theirs."""
    x, block = Tensor(_random(2, channels, 8, 8)), _block(8, 0.0, "gelu")
    calls = [
        lambda: operators.pointwise(x, Tensor(_random(7, 8))),
        lambda: operators.pointwise(x, Tensor(_random(7, 8)), Tensor(_random(7))),
        lambda: operators.layer_scale(x, Tensor(_random(8))),
        lambda: block(x),
    ]
    for call in calls:
        with pytest.raises(InputError, match=f"got {channels}, expected 8"):
            call()


@needs_kernels
def test_drop_path_of_another_batch():
    block = _block(8, 0.5, "gelu")
    block.ops.drop_path = _SampledDropPath(ms.Parameter(Tensor(np.ones((1, 4), np.float32))), 0).set_train()
    with pytest.raises(InputError, match="got 4, expected 1 or 6"):
        block(Tensor(_random(6, 8, 5, 5)))


@needs_kernels
def test_a_variance_that_overflows_is_seen():
    """1 / sqrt(infinity) would normalise the map to zeros, whose loss and gradients are finite."""
    x = Tensor(_random(2, 8, 4, 4) * np.float32(1e25))
    block = _block(8, 0.0, "relu")
    assert np.isnan(block(x).asnumpy()).all()
    dx, dgamma, _ = operators.batch_norm_grad(
        x, Tensor(_random(2, 8, 4, 4)), Tensor(_random(8)), Tensor(_random(1) ** 2)
    )
    assert np.isnan(dx.asnumpy()).all() and np.isnan(dgamma.asnumpy()).all()


def _block(channels, drop_path, activation, seed=0):
    spec = NeoCellSpec([{"kernel": k, "channels": channels // 2, "shift": 1} for k in (3, 4)])
    block = NeoBottleneck(
        spec, channels, layer_scale=True, linear_bias=True, drop_path=drop_path, activation=activation
    )
    rng = np.random.RandomState(seed)
    for parameter in block.trainable_params():
        parameter.set_data(Tensor(0.3 * rng.standard_normal(parameter.shape).astype(np.float32)))
    block.set_train()
    return block


@needs_kernels
# Few columns, which the threads share; many, of several images in each panel, and of a part of an image.
@pytest.mark.parametrize(
    ("shape", "drop_path", "activation"),
    [
        ((3, 12, 9, 5), 0.0, "gelu"),
        ((35, 70, 8, 8), 0.5, "gelu"),
        ((2, 8, 37, 41), 0.0, "gelu"),
        *(((3, 12, 9, 5), 0.0, activation) for activation in ACTIVATIONS[1:]),
    ],
)
def test_a_block_as_two_kernels(shape, drop_path, activation, monkeypatch):
    x, dy = _random(*shape), Tensor(_random(*shape[::-1]).transpose(3, 2, 1, 0).copy())
    results = []
    for switch in ("1", "0"):
        monkeypatch.setenv(library.SWITCH, switch)
        block = _block(shape[1], drop_path, activation)
        if drop_path:
            # Some images with the branch, in the same places for both.
            keep = (np.arange(shape[0])[None] % 3 * 0.8).astype(np.float32)
            block.ops.drop_path = _SampledDropPath(ms.Parameter(Tensor(keep), requires_grad=False), 0)
            block.set_train()
        assert block.ops.content.fusable(ms.float32) == (switch == "1")
        weights = ms.ParameterTuple(block.trainable_params())
        step = ms.value_and_grad(lambda x, block=block: ((block(x) * dy).sum(), block(x)), 0, weights, has_aux=True)
        (_, y), (dx, gradients) = step(Tensor(x))
        moving = [block.ops.content.norm.moving_mean, block.ops.content.norm.moving_variance]
        results.append([value.asnumpy() for value in (y, dx, *gradients, *moving)])
    for value, expected in zip(*results, strict=True):
        assert relative_max(value, expected) < 2e-5


@needs_kernels
@pytest.mark.parametrize("jit", [False, True], ids=["pynative", "jit"])
def test_the_kernels_of_a_block_compute_what_it_has(jit, monkeypatch):
    """A frozen BatchNorm keeps its statistics, and a new activation is the one that is computed."""
    x, results, fused = Tensor(_random(3, 8, 6, 6)), {}, []
    make = operators._cached_block
    monkeypatch.setattr(operators, "_cached_block", lambda *geometry: fused.append(kind) or make(*geometry))
    for switch in ("1", "0"):
        monkeypatch.setenv(library.SWITCH, switch)
        for kind in ("as made", "frozen", "another"):
            block = _block(8, 0.0, "relu")
            content = block.ops.content
            if kind == "frozen":
                content.norm.set_train(False)
            elif kind == "another":
                content.act = nn.Tanh()
            y = (ms.jit(block.construct) if jit else block)(x)
            results[kind, switch] = y.asnumpy(), content.norm.moving_mean.asnumpy().copy()
    assert set(fused) == {"as made"}
    assert not results["frozen", "1"][1].any()
    for kind in ("as made", "frozen", "another"):
        for value, expected in zip(results[kind, "1"], results[kind, "0"], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize(
    "groups",
    [
        [{"kernel": 4, "channels": 9, "shift": 1}, {"kernel": 7, "channels": 10, "shift": 2}],
        [{"h_in": 2, "h_out": 3, "w_in": 3, "w_out": 2, "channels": 4}, {"h_in": 2, "h_out": 1, "w_in": 1, "w_out": 2,
         "channels": 2}],
        [{"kernel_a": 18, "kernel_b": 3, "channels": 3, "shift_b": 1}],
    ],
)  # fmt: skip
# The lanes of a vector hold images, if there are enough of them, or columns.
@pytest.mark.parametrize(("images", "size"), [(2, (4, 3)), (2, (17, 33)), (21, (4, 3)), (16, (7, 9))])
def test_neo_cell(groups, images, size):
    spec = NeoCellSpec(groups)
    x = _random(images, spec.channels, *size)
    a, b = [_random(*s) for s in spec.shapes_a], [_random(*s) for s in spec.shapes_b]
    dy = _random(images, spec.channels, *spec.output_size(*size))
    n = len(a)

    def product(x, *weights):
        y = operators.neo_cell(x, weights[:n], weights[n:], spec)
        return (y * Tensor(dy)).sum(), y

    step = ms.value_and_grad(product, tuple(range(1 + 2 * n)), has_aux=True)
    (_, y), gradients = step(*map(Tensor, (x, *a, *b)))
    dx, da, db, _ = reference.backward(x, a, b, spec, dy)
    assert relative_max(y.asnumpy(), reference.forward(x, a, b, spec)) < 1e-6
    for value, expected in zip(gradients, (dx, *da, *db), strict=True):
        assert np.abs(value.asnumpy() - expected).max() <= 1e-6 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(
    ("k_in", "k_out", "shift", "sizes"), [(4, 4, 1, (13, 13)), (3, 2, 0, (8, 5)), (7, 7, 2, (3, 3))]
)
def test_tiles_are_the_block_diagonal_matrix(k_in, k_out, shift, sizes):
    axis = Axis(k_in, k_out, shift, 9)
    small = _random(9, k_out, k_in)
    whole = np.zeros((9, sizes[1], sizes[0]), np.float32)
    tiles = axis.tiles(*sizes)
    for channel, own in enumerate(axis.shifts.tolist()):
        for i, inputs, p, o, outputs, q in tiles[own]:
            whole[channel, o : o + outputs, i : i + inputs] = small[channel, q : q + outputs, p : p + inputs]
    np.testing.assert_array_equal(whole, axis.block_diagonal(small, *sizes))


@needs_kernels
def test_both_ways_of_neo_cell_agree_and_the_switch_chooses(monkeypatch):
    spec = NeoCellSpec({"kernel": 4, "channels": 8, "shift": 1})
    given = Tensor(_random(2, 8, 9, 9)), (Tensor(_random(8, 4, 4)),), (Tensor(_random(8, 4, 4)),)
    calls = []
    kernel = operators.neo_cell
    monkeypatch.setattr(operators, "neo_cell", lambda *arguments: calls.append(1) or kernel(*arguments))
    by_kernel = neo_cell(*given, spec).asnumpy()
    monkeypatch.setenv(library.SWITCH, "0")
    by_products = neo_cell(*given, spec).asnumpy()
    assert calls == [1]
    assert relative_max(by_kernel, by_products) < 1e-6


class _Activation(nn.Cell):
    def construct(self, x):
        if operators.usable(x.dtype):
            return operators.gelu(x)
        return ops.gelu(x, approximate="none")


@needs_kernels
def test_an_exported_file_does_not_need_the_kernels(tmp_path):
    cell, x = _Activation(), Tensor(_random(2, 3))
    cell(x)
    ms.export(cell, x, file_name=str(tmp_path / "cell"), file_format="MINDIR")
    path = tmp_path / "cell.mindir"
    assert b".so" not in path.read_bytes()
    assert relative_max(nn.GraphCell(ms.load(str(path)))(x).asnumpy(), cell(x).asnumpy()) < 1e-6


def test_other_types_take_the_ordinary_way():
    assert not operators.available(ms.float16)
    assert not operators.available(ms.float64)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_one_line_says_so(compiler, no_library, tmp_path, caplog):
    no_library.setenv("CXX", compiler)
    no_library.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert not operators.available(ms.float32) and not operators.available(ms.float32)
        x = _random(3, 4)
        assert not operators.usable(ms.float32)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert compiler in message and "Install g++" in message and "\n" not in message
    assert ops.gelu(Tensor(x)).shape == (3, 4)


def test_a_source_that_does_not_compile_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "bad.cpp").write_text("this is not C++\n")
    with pytest.raises(ToolchainError, match="exit code 1"):
        compiled.shared_object("test", source, ["-shared", "-fPIC"])
    assert not list((tmp_path / "cache" / "neonext_ms" / "test").iterdir())


def test_the_cache_follows_source_options_and_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "value.h").write_text("#define VALUE 1\n")
    (source / "one.cpp").write_text('#include "value.h"\nextern "C" int value() { return VALUE; }\n')
    options = ["-shared", "-fPIC"]
    first = compiled.shared_object("test", source, options, ["one machine"])
    assert compiled.shared_object("test", source, options, ["one machine"]) == first
    others = {compiled.shared_object("test", source, options, ["another machine"])}
    others.add(compiled.shared_object("test", source, [*options, "-O1"], ["one machine"]))
    (source / "value.h").write_text("#define VALUE 2\n")
    others.add(compiled.shared_object("test", source, options, ["one machine"]))
    assert len(others | {first}) == 4
