"""The MindSpore side of the AscendC operator on the CPU, with an emulation in place of the operator itself."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.ops.operations._custom_ops_utils import CustomCodeGenerator

from conftest import relative_max
from neonext_ms.common.errors import InputError
from neonext_ms.ops import NeoCellSpec, ascend, device_check, neocell, package, packing, reference

ms.set_device("CPU")

SPECS = {
    "shifted": ([{"kernel": 4, "channels": 9, "shift": 1}, {"kernel": 7, "channels": 11, "shift": 1}], 9, 8),
    "plain": ([{"kernel": 7, "channels": 16}], 7, 14),
    "ragged": ([{"h_in": 2, "h_out": 1, "w_in": 3, "w_out": 2, "channels": 5}], 7, 8),
}


class Emulation:
    """The operators in NumPy, computed from their arguments and the list of specs that may occur."""

    def __init__(self, *specs):
        self.specs = specs
        self.calls = []

    def spec(self, runs):
        return next(
            (spec, turned)
            for spec in self.specs
            for turned in (False, True)
            if {k: list(v) for k, v in packing.plan(spec, turned).attributes.items()} == runs
        )

    def neo_cell(self, x, coef_a, coef_b, bias, *arguments):
        self.calls.append("neo_cell" if bias is None else "neo_cell with bias")
        return Tensor(self.forward(*(_array(v) for v in (x, coef_a, coef_b, bias)), *arguments))

    def forward(self, x, coef_a, coef_b, bias, *arguments):
        runs = {name: list(map(int, value)) for name, value in zip(packing.RUN_ATTRIBUTES, arguments, strict=False)}
        height, width = map(int, arguments[7])
        assert int(arguments[8]) == 1
        channels = sum(runs["channels"])
        maps = np.moveaxis(x, -1, 2).reshape(x.shape[0], -1, *x.shape[2:4])
        assert not maps[:, channels:].any(), "lanes beyond the last channel must be zero"
        a = packing.unpack(coef_a, runs, "a", maps.shape[2], height)
        b = packing.unpack(coef_b, runs, "b", maps.shape[3], width)
        y = np.zeros((*maps.shape[:2], height, width), x.dtype)
        y[:, :channels] = a @ maps[:, :channels] @ b.transpose(0, 2, 1)
        y += 0 if bias is None else bias[:, None, None]
        blocks = y.reshape(x.shape[0], x.shape[1], 16, height, width)
        return np.ascontiguousarray(np.moveaxis(blocks, 2, -1))

    def neo_cell_grad(self, x, dy, coef_a, coef_b, *arguments):
        self.calls.append("neo_cell_grad")
        gradients = self.gradients(*(_array(v) for v in (x, dy, coef_a, coef_b)), *arguments)
        return tuple(Tensor(value) for value in gradients)

    def gradients(self, x, dy, coef_a, coef_b, *arguments):
        runs = {name: list(map(int, value)) for name, value in zip(packing.RUN_ATTRIBUTES, arguments, strict=False)}
        spec, turned = self.spec(runs)
        assert not turned
        plan = packing.plan(spec)
        weights = packing.unpack_gradients(spec, coef_a, coef_b)
        maps = [np.moveaxis(v, -1, 2).reshape(v.shape[0], -1, *v.shape[2:4])[:, : spec.channels] for v in (x, dy)]
        sums = ([], [])
        for image in range(x.shape[0]):
            _, d_a, d_b, _ = reference.backward(maps[0][image, None], *weights, spec, maps[1][image, None])
            for parts, small, index in ((sums[0], d_a, plan.index_a), (sums[1], d_b, plan.index_b)):
                # The device leaves numbers where a coefficient is zero by construction; they must not count.
                parts.append(np.concatenate([*(w.ravel() for w in small), [1e6]])[index])
        return tuple(np.stack(parts).astype(np.float32) for parts in sums)


def _array(value):
    return value if value is None or isinstance(value, np.ndarray) else value.asnumpy()


class _InGraph(nn.Cell):
    """The emulation inside a compiled graph, for square matrices, whose attributes are the same in both directions."""

    def __init__(self, function, shape, dtype):
        super().__init__()
        self.custom = ops.Custom(function, shape, dtype, func_type="pyfunc")

    def construct(self, a, b, c, d, *attributes):
        return self.custom(a, b, c, d)


def _graph_emulation(emulation, spec):
    def forward(size):
        def compute(x, coef_a, coef_b, bias):
            return emulation.forward(x, coef_a, coef_b, bias, *ascend._call_attributes(spec, False, size))

        return _InGraph(compute, ascend.forward_shape(size), lambda x, *_: x)

    def gradient():
        def compute(x, dy, coef_a, coef_b):
            return emulation.gradients(x, dy, coef_a, coef_b, *ascend._call_attributes(spec, False, dy.shape[2:4]))

        return _InGraph(compute, ascend.gradient_shape, (ms.float32, ms.float32))

    return forward, gradient


@pytest.fixture
def emulated(monkeypatch):
    """Let `neo_cell` choose the operator, and put an emulation in its place."""

    def use(*specs):
        emulation = Emulation(*specs)
        monkeypatch.setattr(ascend, "operator_available", lambda spec, dtype: True)
        monkeypatch.setattr(ascend, "_eager", lambda: emulation)
        ascend._cached_operator.cache_clear()
        return emulation

    yield use
    ascend._cached_operator.cache_clear()


def _draw(spec, height, width, images=2):
    random = np.random.default_rng(0)

    def draw(*shape):
        return Tensor(random.standard_normal(shape).astype(np.float32))

    a, b = [draw(*s) for s in spec.shapes_a], [draw(*s) for s in spec.shapes_b]
    return draw(images, spec.channels, height, width), *a, *b, draw(spec.channels)


def _step(spec, with_bias):
    groups = len(spec.groups)

    def loss(x, *rest):
        bias = rest[-1] if with_bias else None
        y = neocell.neo_cell(x, rest[:groups], rest[groups : 2 * groups], spec, bias)
        return (y * ops.sin(y)).sum(), y

    return ms.value_and_grad(loss, tuple(range(2 * groups + 1 + with_bias)), has_aux=True)


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("name", SPECS)
def test_forward_and_gradients_equal_the_cpu_path(name, with_bias, emulated):
    groups, height, width = SPECS[name]
    spec = NeoCellSpec(groups)
    given = _draw(spec, height, width)
    (_, expected), expected_grads = _step(spec, with_bias)(*given)
    emulation = emulated(spec)
    (_, y), grads = _step(spec, with_bias)(*given)
    assert relative_max(y.asnumpy(), expected.asnumpy()) < 1e-5
    for grad, other in zip(grads, expected_grads, strict=True):
        assert relative_max(grad.asnumpy(), other.asnumpy()) < 2e-5
    # The gradient of x is the operator again, without the bias.
    assert emulation.calls == ["neo_cell with bias" if with_bias else "neo_cell", "neo_cell", "neo_cell_grad"]


def test_neither_gradient_nor_output_takes_what_is_beyond_the_last_channel(emulated):
    spec = NeoCellSpec([{"kernel": 4, "channels": 5, "shift": 1}])
    emulation = emulated(spec)
    x, a, b, bias = _draw(spec, 6, 6)
    y = neocell.neo_cell(x, (a,), (b,), spec, bias)
    assert y.shape == (2, 5, 6, 6)
    assert emulation.calls == ["neo_cell with bias"]


@pytest.mark.parametrize("compiled", [False, True], ids=["pynative", "graph"])
def test_the_calls_of_both_modes_have_the_arguments_of_the_operator(compiled, monkeypatch):
    spec = NeoCellSpec(SPECS["ragged"][0])
    monkeypatch.setattr(ascend, "_eager", lambda: SimpleNamespace(neo_cell=1, neo_cell_grad=2))
    monkeypatch.setattr(ascend, "_graph_forward", lambda size: ("forward", size))
    monkeypatch.setattr(ascend, "_graph_gradient", lambda: "gradient")
    operator = ascend.NeoCellOperator(spec, 7, 8, False, compiled)
    assert len(operator.forward_attributes) == len(ascend.OPERATOR_ATTRIBUTES)
    assert operator.forward_attributes[:7] == ((5,), (2,), (1,), (3,), (2,), (0,), (0,))
    assert operator.forward_attributes[7:] == ((3, 5), 1)
    # Sizes change places, and the ragged map gets its own size back.
    assert operator.back_attributes[1:5] == ((1,), (2,), (2,), (3,))
    assert operator.back_attributes[7] == (7, 8)
    assert operator.needs_bias is compiled
    if compiled:
        assert (operator.forward, operator.back) == (("forward", (3, 5)), ("forward", (7, 8)))


def test_a_compiled_graph_takes_the_compiled_operator(monkeypatch):
    """`_compiling` tells the two modes apart; on Ascend the compiled one is `ops.Custom`."""
    assert ascend._compiling() is False

    @ms.jit
    def compiled(x):
        return x * 2 if ascend._compiling() else x * 3

    assert compiled(Tensor(np.ones(1, np.float32))).asnumpy() == 2


def test_forward_and_gradients_inside_a_graph(emulated, monkeypatch):
    groups, height, width = SPECS["shifted"]
    spec = NeoCellSpec(groups)
    given = _draw(spec, height, width)
    (_, expected), expected_grads = _step(spec, True)(*given)
    emulation = emulated(spec)
    forward, gradient = _graph_emulation(emulation, spec)
    monkeypatch.setattr(ascend, "_graph_forward", forward)
    monkeypatch.setattr(ascend, "_graph_gradient", gradient)
    (_, y), grads = ms.jit(_step(spec, True))(*given)
    assert relative_max(y.asnumpy(), expected.asnumpy()) < 1e-5
    for grad, other in zip(grads, expected_grads, strict=True):
        assert relative_max(grad.asnumpy(), other.asnumpy()) < 2e-5
    assert emulation.calls == [], "a graph must not take PyNative's operator"


@pytest.mark.parametrize("channels", [1, 16, 17, 48])
def test_blocks_of_16_channels_round_trip(channels):
    x = np.random.default_rng(0).standard_normal((2, channels, 3, 5)).astype(np.float32)
    blocks = ascend.to_blocks(Tensor(x))
    assert blocks.shape == (2, -(-channels // 16), 3, 5, 16)
    flat = blocks.asnumpy().transpose(0, 1, 4, 2, 3).reshape(2, -1, 3, 5)
    np.testing.assert_array_equal(flat[:, :channels], x)
    assert not flat[:, channels:].any()
    np.testing.assert_array_equal(ascend.from_blocks(blocks, channels).asnumpy(), x)


def test_shapes_and_types_for_the_graph():
    shape = ascend.forward_shape((3, 5))
    assert shape((2, 4, 6, 10, 16), (99, 16), (98, 16), (64,), (), ()) == (2, 4, 3, 5, 16)
    shapes = ascend.gradient_shape((2, 4, 6, 10, 16), (2, 4, 3, 5, 16), (99, 16), (98, 16), ())
    assert shapes == ((2, 99, 16), (2, 98, 16))


@pytest.mark.parametrize(
    ("name", "tensors", "results"), [(ascend.FORWARD, 4, 1), (ascend.GRADIENT, 4, 2)], ids=["forward", "gradient"]
)
def test_registration_gives_the_signature_of_the_generated_function(name, tensors, results):
    """op_build generates these parameters of aclnnNeoCell(Grad)GetWorkspaceSize; MindSpore checks their number."""
    types = CustomCodeGenerator().get_api_types_by_reg_info(ascend.registration(name))
    expected = ["aclTensor*"] * tensors + ["aclIntArray*"] * 8 + ["int64_t"] + ["aclTensor*"] * results
    assert types[:-2] == expected
    assert [a["name"] for a in ascend.registration(name)["attr"]] == list(ascend.OPERATOR_ATTRIBUTES)


def _install(folder):
    header = folder / "op_api" / "include" / "aclnn_neo_cell.h"
    header.parent.mkdir(parents=True)
    header.write_text("")
    return folder


def test_installed_package_is_found_where_cann_looks(tmp_path):
    assert package.installed_package({}) is None
    environ = {"ASCEND_OPP_PATH": str(tmp_path / "opp"), "ASCEND_CUSTOM_OPP_PATH": f"{tmp_path / 'own'}:"}
    assert package.installed_package(environ) is None
    (tmp_path / "opp" / "vendors" / package.VENDOR).mkdir(parents=True)
    assert package.installed_package(environ) is None, "another package of our name"
    other = _install(tmp_path / "opp" / "vendors" / "customize")
    assert package.installed_package(environ) == other
    own = _install(tmp_path / "own")
    assert package.installed_package(environ) == own, "the customer's folder comes first"


@pytest.fixture
def on_ascend(monkeypatch):
    monkeypatch.setattr(ascend.ms, "get_context", lambda name: "Ascend")
    ascend._package_or_warning.cache_clear()
    yield monkeypatch
    ascend._package_or_warning.cache_clear()


def test_without_the_package_one_line_says_how_to_install_it(on_ascend, caplog):
    spec = NeoCellSpec([{"kernel": 7, "channels": 4}])
    on_ascend.setattr(ascend, "installed_package", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert not any(ascend.operator_available(spec, ms.float16) for _ in range(3))
    (record,) = caplog.records
    assert "neonext-ops build" in record.message and "neonext-ops install" in record.message


def test_the_package_is_chosen_for_what_its_kernels_are_made_for(on_ascend, tmp_path, caplog):
    on_ascend.setattr(ascend, "installed_package", lambda: tmp_path)
    spec = NeoCellSpec([{"kernel": 7, "channels": 4}])
    assert all(ascend.operator_available(spec, dtype) for dtype in (ms.float16, ms.float32, ms.bfloat16))
    assert not ascend.operator_available(spec, ms.float64)
    assert not ascend.operator_available(NeoCellSpec([{"kernel": 33, "channels": 4}]), ms.float16)
    many = NeoCellSpec([{"kernel": 4 + i % 2, "channels": 1} for i in range(65)])
    assert not ascend.operator_available(many, ms.float16)
    assert not caplog.records


def test_on_the_cpu_nothing_is_said(caplog):
    assert not ascend.operator_available(NeoCellSpec([{"kernel": 7, "channels": 4}]), ms.float32)
    assert not caplog.records


def test_wrong_arguments_are_rejected_as_on_the_cpu(emulated):
    spec = NeoCellSpec([{"kernel": 4, "channels": 3}])
    emulated(spec)
    x, a, b, _ = _draw(spec, 5, 5)
    with pytest.raises(InputError, match="the spec has 3 channels, the input has 2"):
        neocell.neo_cell(x[:, :2], (a,), (b,), spec)
    with pytest.raises(InputError, match="A of group 0"):
        neocell.neo_cell(x, (a[:, :2],), (b,), spec)


def test_comparison_for_the_device_sees_a_wrong_operator(emulated):
    spec = NeoCellSpec([{"kernel": 4, "channels": 6, "shift": 1}])
    emulation = emulated(spec)
    assert max(device_check.compare_with_reference(spec, 6, 7, ms.float32).values()) < 1e-5
    right = emulation.forward
    emulation.forward = lambda x, *rest: right(x, *rest) * np.float32(1.01)
    differences = device_check.compare_with_reference(spec, 6, 7, ms.float32)
    assert differences["y"] > 5e-3 and differences["x"] > 5e-3 and differences["a"] < 1e-5
