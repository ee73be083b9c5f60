"""NeoCells that enlarge and reduce maps, and the bias of section 3.1, against the two forms of the reference."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from neonext_ms import NeoCell, NeoCellSpec
from neonext_ms.common.errors import InputError
from neonext_ms.ops import neo_cell, reference

ms.set_device("CPU")

SPECS = {
    "double": NeoCellSpec.resampling(3, 1, 2),
    "halve": NeoCellSpec.resampling(3, 2, 1),
    "two thirds": NeoCellSpec.resampling(3, 3, 2),
    "one and a half": NeoCellSpec.resampling(3, 2, 3),
    "two sizes": NeoCellSpec([{"h_in": 2, "h_out": 3, "w_in": 1, "w_out": 2, "channels": 2},
                              {"h_in": 1, "h_out": 1, "w_in": 2, "w_out": 3, "channels": 3}]),
    "shifts": NeoCellSpec([{"kernel": 4, "channels": 5, "shift": 1}, {"kernel": 3, "channels": 4, "shift": 2}]),
}  # fmt: skip


def _case(spec, size=(7, 8)):
    rng = np.random.RandomState(0)
    x = rng.standard_normal((2, spec.channels, *size)).astype(np.float32)
    a, b, bias = (
        [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        for shapes in (spec.shapes_a, spec.shapes_b, [group.shape_bias for group in spec.groups])
    )
    return x, a, b, bias


@pytest.mark.usefixtures("cpu_operations")
@pytest.mark.parametrize("jit", [False, True], ids=["pynative", "jit"])
@pytest.mark.parametrize("name", SPECS)
def test_operator_and_gradient_of_the_bias(name, jit):
    spec = SPECS[name]
    x, a, b, bias = _case(spec)
    expected = reference.forward(x, a, b, spec, bias)
    np.testing.assert_allclose(reference.forward_patchwise(x, a, b, spec, bias), expected, atol=1e-12)
    dy = np.random.RandomState(1).standard_normal(expected.shape).astype(np.float32)

    def loss(*biases):
        y = neo_cell(Tensor(x), *(tuple(map(Tensor, arrays)) for arrays in (a, b)), spec, biases)
        return (y * Tensor(dy)).sum(), y

    step = ms.value_and_grad(loss, tuple(range(len(bias))), has_aux=True)
    (_, y), gradients = (ms.jit(step) if jit else step)(*map(Tensor, bias))
    np.testing.assert_allclose(y.asnumpy(), expected, rtol=1e-4, atol=1e-4)
    exact = reference.patch_bias_gradient(spec, dy, *x.shape[2:])
    zero = [np.zeros_like(own) for own in bias]
    for group, gradient in enumerate(gradients if len(bias) > 1 else [gradients]):
        np.testing.assert_allclose(gradient.asnumpy(), exact[group], rtol=1e-4, atol=1e-4)
        # The output is linear in the bias: its derivative is the output of a bias of one.
        place = tuple(size - 1 for size in bias[group].shape)
        one = [own.copy() for own in zero]
        one[group][place] = 1
        derivative = spec.bias_map(one, *x.shape[2:])
        assert exact[group][place] == pytest.approx(float((dy * derivative).sum()), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "expected"),
    [(1, 2, (3, 5), (6, 10)), (2, 1, (6, 10), (3, 5)), (3, 2, (6, 9), (4, 6)), (2, 3, (4, 6), (6, 9)),
     (3, 2, (7, 8), (4, 5)), (2, 3, (5, 7), (7, 10))],
)  # fmt: skip
def test_sizes(inputs, outputs, size, expected):
    assert NeoCellSpec.resampling(2, inputs, outputs).output_size(*size) == expected


def test_the_layer_starts_with_neoinit_and_without_a_bias():
    layer = NeoCell(SPECS["double"], bias="patch", rng=np.random.RandomState(0))
    assert [p.name for p in layer.get_parameters()] == ["weight_a.0", "weight_b.0", "bias.0"]
    assert layer.bias[0].shape == (3, 2, 2) and not layer.bias[0].asnumpy().any()
    x = np.random.RandomState(1).standard_normal((1, 3, 4, 4)).astype(np.float32)
    weights = [[p.asnumpy() for p in side] for side in (layer.weight_a, layer.weight_b)]
    assert 0.5 < weights[0][0].std() + weights[0][0].mean() < 3
    np.testing.assert_allclose(
        layer(Tensor(x)).asnumpy(), reference.forward(x, *weights, SPECS["double"]), rtol=1e-4, atol=1e-5
    )
    layer = NeoCell(SPECS["two sizes"], bias="channel", rng=np.random.RandomState(0))
    layer.bias.set_data(Tensor(np.arange(5, dtype=np.float32)))
    without = NeoCell(SPECS["two sizes"], rng=np.random.RandomState(0))
    x = Tensor(np.ones((1, 5, 4, 4), np.float32))
    np.testing.assert_allclose((layer(x) - without(x)).asnumpy()[0, :, 0, 0], np.arange(5), atol=1e-5)
    with pytest.raises(InputError, match="unknown bias"):
        NeoCell(SPECS["double"], bias="row")
