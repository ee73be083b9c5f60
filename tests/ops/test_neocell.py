from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from conftest import goldens, relative_max
from neonext_ms.common.errors import InputError
from neonext_ms.ops import NeoCellSpec, neo_cell, reference

ms.set_device("CPU")


def _tensors(arrays):
    return tuple(Tensor(np.float32(a)) for a in arrays)


@pytest.mark.usefixtures("cpu_operations")
@pytest.mark.parametrize("jit", [False, True], ids=["pynative", "jit"])
@pytest.mark.parametrize("case", goldens("neocell"))
def test_golden(case, jit):
    z, spec = case.load(".npz"), NeoCellSpec(case.entry["spec"])
    n = len(spec.groups)
    dy = Tensor(z["dy"])

    def loss(x, *weights):
        y = neo_cell(x, weights[:n], weights[n:], spec)
        return (y * dy).sum(), y

    names = [f"weight_{side}.{i}" for side in "ab" for i in range(n)]
    step = ms.value_and_grad(loss, tuple(range(2 * n + 1)), has_aux=True)
    (_, y), (dx, *gradients) = (ms.jit(step) if jit else step)(Tensor(z["x"]), *_tensors(z[name] for name in names))
    assert relative_max(y.asnumpy(), z["y"]) < 1e-5
    assert relative_max(dx.asnumpy(), z["dx"]) < 1e-5
    for name, gradient in zip(names, gradients, strict=True):
        assert relative_max(gradient.asnumpy(), z[f"grad/{name}"]) < 1e-5


class _Cell(nn.Cell):
    def __init__(self, spec, weights_a, weights_b, bias):
        super().__init__()
        self.spec, self.weights_a, self.weights_b, self.bias = spec, weights_a, weights_b, bias

    def construct(self, x):
        return neo_cell(x, self.weights_a, self.weights_b, self.spec, self.bias)


@pytest.mark.usefixtures("cpu_operations")
@pytest.mark.parametrize(
    "groups",
    [
        [{"kernel": 7, "channels": 14, "shift": 1}],
        [{"kernel": 4, "channels": 3, "shift": 2}, {"h_in": 2, "h_out": 1, "w_in": 1, "w_out": 2, "channels": 2}],
    ],
)
def test_dynamic_batch_bias_and_small_maps(groups):
    spec = NeoCellSpec(groups)
    rng = np.random.RandomState(0)
    a = [rng.standard_normal(s).astype(np.float32) for s in spec.shapes_a]
    b = [rng.standard_normal(s).astype(np.float32) for s in spec.shapes_b]
    bias = rng.standard_normal(spec.channels).astype(np.float32)
    cell = _Cell(spec, _tensors(a), _tensors(b), Tensor(bias))
    compiled = ms.jit(cell.construct)
    cell.set_inputs(Tensor(shape=[None, spec.channels, 4, 3], dtype=ms.float32))
    for batch in (1, 3, 2):
        x = rng.standard_normal((batch, spec.channels, 4, 3)).astype(np.float32)
        expected = reference.forward(x, a, b, spec, bias)
        assert relative_max(cell(Tensor(x)).asnumpy(), expected) < 1e-6
        assert relative_max(compiled(Tensor(x)).asnumpy(), expected) < 1e-6


def test_wrong_shapes_are_named():
    spec = NeoCellSpec({"kernel": 4, "channels": 8, "shift": 1})
    x, good, bad = Tensor(np.ones((1, 8, 8, 8), np.float32)), np.ones((8, 4, 4)), np.ones((8, 4, 5))
    with pytest.raises(InputError, match=r"A of group 0 must be \(8, 4, 4\), got \(8, 4, 5\)"):
        neo_cell(x, _tensors([bad]), _tensors([good]), spec)
    with pytest.raises(InputError, match="8 channels, the input has 9"):
        neo_cell(Tensor(np.ones((1, 9, 8, 8), np.float32)), _tensors([good]), _tensors([good]), spec)
