"""The fast form of GELU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from conftest import relative_l2
from neonext_ms import export_checkpoint, open_runtime
from neonext_ms.export.evaluate import erf, evaluate
from neonext_ms.export.fast_gelu import SCALE, fast_gelu
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import LOGITS, original_graph
from neonext_ms.export.lower import lower
from neonext_ms.export.om import parser_support
from neonext_ms.export.onnx.emitter import emit
from neonext_ms.export.onnx.format import CANN, Format
from neonext_ms.export.scales import SUFFIX
from neonext_ms.export.tolerances import APPROXIMATE_GELUS, tolerance
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.runtime.onnx import onnx_session

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
SIZE = (32, 32)


def _gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def test_every_float16_input():
    finite = HALVES[np.isfinite(HALVES)].astype(np.float64)
    error = np.abs(fast_gelu(finite * SCALE) / SCALE - _gelu(finite))
    assert 3.0e-3 < error.max() < 3.1e-3
    # In float16 arithmetic, with the scale in the weights before and after.
    scaled = (finite * SCALE).astype(np.float16)
    error = np.abs(fast_gelu(scaled).astype(np.float64) / SCALE - _gelu(scaled.astype(np.float64) / SCALE))
    assert error.max() < 4.2e-3
    # Beyond the bump it is ReLU, exactly.
    far = scaled[np.abs(scaled) > 0.8655]
    assert np.array_equal(fast_gelu(far), np.maximum(far, np.float16(0)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinities(dtype):
    values = fast_gelu(np.array([np.nan, np.inf, -np.inf, np.finfo(dtype).max, -np.finfo(dtype).max], dtype))
    assert np.isnan(values[0]) and values[1] == np.inf and values[3] == np.finfo(dtype).max
    assert values[2] == values[4] == 0


def _network(downsample):
    architecture = make_architecture(
        3, (1, 0, 1, 0), (6, 8, 8, 8), kernel_spec="2+3", shifts=(1, 1, 0, 0), linear_bias=True,
        layer_scale_init_value=0.5, downsample=downsample,
    )  # fmt: skip
    arrays = initial_arrays(architecture, rng=np.random.RandomState(1))
    return fold(original_graph(architecture, arrays, SIZE))[0]


def _images(count=2):
    return np.random.RandomState(2).standard_normal((count, 3, *SIZE)).astype(np.float32)


# In the paper's order, GELUs stand where no convolution can take the scale.
@pytest.mark.parametrize("downsample", ["official", "paper"])
@pytest.mark.parametrize("format", [Format(gelu="fast"), CANN.with_(gelu="fast")])
def test_the_file_computes_the_form(format, downsample):
    folded = _network(downsample=downsample)
    lowered = lower(folded, format)
    values = evaluate(lowered, _images())
    exact = evaluate(folded, _images())
    model = emit(lowered, None, format)
    ops = [node.op_type for node in model.graph.node]
    assert not {"Erf", "Gelu", "Tanh", "Exp"} & set(ops)
    assert not any(finding.refused for finding in parser_support.check(model)) or format.opset > 18
    (logits,) = onnx_session(model.SerializeToString()).run(None, {"input": _images()})
    assert relative_l2(logits, values[LOGITS]) < 1e-5
    # GELUs in a row without residual connections add up their errors; an export would reject such a file.
    limit = {"official": APPROXIMATE_GELUS["fast"], "paper": 0.2}[downsample]
    assert 1e-6 < relative_l2(values[LOGITS], exact[LOGITS]) < limit
    # Every value that keeps its name keeps its meaning, and every GELU is within the form's error of the exact one.
    scaled = sum("scaled" in layer.attributes for layer in lowered.layers if layer.op == "gelu")
    assert sum(name.endswith(SUFFIX) for name in values) == 2 * scaled >= 4
    for name in (n for n in exact if n in values):
        assert downsample == "paper" or relative_l2(values[name], exact[name]) < 2e-2, name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_is_verified_and_never_the_default(digits, tmp_path, dtype):
    report = export_checkpoint(digits, "onnx,mindir", (1, 1, 0, 0), 64, tmp_path, gelu="fast", dtype=dtype)
    limit = tolerance(dtype, "fast")
    assert limit == tolerance(dtype) + APPROXIMATE_GELUS["fast"]
    for parity in report.parity.values():
        assert 1e-5 < parity.relative_l2 < limit / 3 and parity.top1_agree == parity.samples
    assert report.to_dict()["files"][0]["gelu"] == "fast"
    assert (Format().gelu, CANN.gelu) == ("auto", "erf")
    with open_runtime(report.files["onnx"]) as one, open_runtime(report.files["mindir"]) as other:
        images = np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
        assert relative_l2(one.run(images), other.run(images)) < (1e-5 if dtype == "float32" else 5e-3)
    assert "Erf" not in {node.op_type for node in onnx.load(report.files["onnx"]).graph.node}
