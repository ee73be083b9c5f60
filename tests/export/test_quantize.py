from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from conftest import DATA
from neonext_ms.common.errors import InputError, ParityError, UsageError
from neonext_ms.export import pipeline
from neonext_ms.export.command import main
from neonext_ms.export.compare import parity
from neonext_ms.export.compare.command import main as compare
from neonext_ms.export.compare.dump_side import mangled
from neonext_ms.export.evaluate import erf, evaluate
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import lower
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import CANN, Format
from neonext_ms.export.onnx.runnable import runnable_model
from neonext_ms.export.quantize import apply, cost, ranges
from neonext_ms.export.quantize.build import calibration_notes
from neonext_ms.export.quantize.calibrate import calibrate, skipped_layers
from neonext_ms.export.quantize.forms import Session, host_graph
from neonext_ms.export.quantize.histogram import BINS, Histogram
from neonext_ms.export.quantize.images import ArrayImages, open_images
from neonext_ms.export.quantize.integers import compare_integers, evaluator
from neonext_ms.export.quantize.options import METHODS, QuantizeOptions
from neonext_ms.export.quantize.prove import prove
from neonext_ms.export.quantize.search import search
from neonext_ms.export.request import Request
from neonext_ms.export.tolerances import INT8_LOSS
from neonext_ms.images.images import load_images
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.activations import HOMOGENEOUS
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.quantizer import HIGHEST, LOWEST, Quantizer, agrees
from neonext_ms.models.scales import LayerScale, Scales, read_scales
from neonext_ms.runtime.onnx import onnx_session
from networks import networks

DIGITS = str(DATA / "digits")
CHECKPOINT = ["--checkpoint", str(DATA / "digits_64.pt"), "--shifts", "1,1,0,0", "--image-size", "64"]


def noise_images(count: int, size: tuple[int, int], seed: int = 0, labels=None) -> ArrayImages:
    return ArrayImages("noise", parity.noise(count, size, seed), labels)


def small_graph(downsample="official", bias=True, layer_scale=0.5, size=(64, 64), activation="gelu", **options):
    """Return the folded graph of a small network with statistics far from neutral."""
    architecture = make_architecture(
        num_classes=5,
        per_stage_layers=(1, 1, 1, 1),
        dims=(8, 12, 16, 24),
        kernel_spec="4+7",
        shifts=(1, 1, 1, 0),
        layer_scale_init_value=layer_scale,
        linear_bias=bias,
        downsample=downsample,
        activation=activation,
    )
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    rng = np.random.RandomState(1)
    for name in arrays:
        if ".norm" in name or name.endswith("gamma"):
            arrays[name] = (np.abs(rng.standard_normal(arrays[name].shape)) + 0.2).astype(np.float32)
    return fold(original_graph(architecture, arrays, size, **options))[0]


# Quantizers


@given(st.floats(1e-12, 1e6), st.integers(-64, 63), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_both_forms_of_a_quantizer_agree_on_every_value(scale, half_offset, seed):
    quantizer = Quantizer.near(scale, 2 * half_offset)
    assert abs(quantizer.scale / scale - 1) < 1e-3
    assert agrees(quantizer.scale)
    rng = np.random.default_rng(seed)
    # Values next to the middle between two numbers, where the forms could differ.
    middles = (rng.integers(-300, 300, 2000) + 0.5) * quantizer.scale
    x = (middles.astype(np.float32).view(np.int32) + rng.integers(-2, 3, 2000)).astype(np.int32).view(np.float32)
    ascend = np.clip(np.rint(x.astype(np.float64) * quantizer.reciprocal + quantizer.offset), LOWEST, HIGHEST)
    assert np.array_equal(quantizer.codes(x), ascend.astype(np.int8))


def test_a_scale_stays_when_it_is_read_again():
    # The search around the second would find another one that is closer to an exact reciprocal.
    for wanted in (0.1, 0.06052515012688896):
        scale = Quantizer.near(wanted, 0).scale
        assert Quantizer.near(scale, 0).scale == scale != wanted


def test_arbitrary_scales_do_not_agree():
    scales = np.random.default_rng(0).uniform(0.01, 1, 100).astype(np.float32)
    assert not all(agrees(float(scale)) for scale in scales)


@pytest.mark.parametrize("low, high", [(-0.17, 9.0), (-1.0, 1.0), (0.0, 5.0), (-3.0, 0.0), (2.0, 3.0), (-1e-3, 1e3)])
def test_a_range_is_covered_and_zero_is_exact(low, high):
    quantizer = Quantizer.for_range(low, high)
    values = quantizer.values(quantizer.codes(np.array([low, 0.0, high])))
    assert values[1] == 0
    assert np.abs(values - [low, 0, high]).max() <= quantizer.scale * 0.51
    assert quantizer.scale <= (max(high, 0) - min(low, 0)) / 252


@pytest.mark.parametrize("scale, offset", [(0.0, 0), (1e30, 0), (1.0, 3), (1.0, 128), (1.0, -130)])
def test_a_quantizer_out_of_range_is_rejected(scale, offset):
    with pytest.raises(InputError, match="expected"):
        Quantizer.near(scale, offset)


# Statistics and methods


def test_a_histogram_grows_and_keeps_every_value():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(5000), 40 * rng.standard_normal(5000)]).astype(np.float32)
    histogram = Histogram()
    assert histogram.add(np.zeros((2, 3), np.float32))
    for start in range(0, len(values), 1000):
        assert histogram.add(values[start : start + 1000].reshape(10, -1))
    assert histogram.counts.sum() == len(values) + 6
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    for share in (0.01, 0.5, 0.999):
        expected = np.quantile(np.concatenate([values, np.zeros(6)]), share)
        assert abs(histogram.quantile(share) - expected) < 4 * histogram.edge / BINS + 0.02 * abs(expected)
    assert not histogram.add(np.array([1.0, np.nan], np.float32))
    assert histogram.counts.sum() == len(values) + 6


def test_methods_cut_off_outliers():
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    values[:2] = 50, -1
    histogram = Histogram()
    histogram.add(values)
    assert tuple(ranges.RANGES) == METHODS
    found = {method: ranges.RANGES[method](histogram) for method in METHODS}
    assert found["minmax"] == (values.min(), 50)
    assert 3 < found["percentile"][1] < 8
    assert found["entropy"][1] < 50

    def error(low, high):
        quantizer = Quantizer.for_range(low, high)
        return float(((quantizer.values(quantizer.codes(values)) - values) ** 2).mean())

    errors = {method: error(*pair) for method, pair in found.items()}
    assert min(errors, key=errors.__getitem__) == "mse"
    # No range of a fine grid is much better.
    best = min(error(low, high) for low in np.linspace(-5, -3, 3) for high in np.linspace(20, 50, 21))
    assert errors["mse"] < 1.01 * best


@pytest.mark.parametrize("count, activation", [(4000, "relu"), (4000, "gelu"), (20, "identity")])
def test_the_least_divergence_is_no_accident_of_zeros_and_few_values(count, activation):
    x = np.random.default_rng(1).standard_normal(count) * 4
    x *= {"relu": x > 0, "gelu": (1 + erf(x / 2**0.5)) / 2, "identity": 1}[activation]
    x, histogram = x.astype(np.float32), Histogram()
    histogram.add(x)
    low, high = ranges.entropy(histogram)
    assert ((x < low) | (x > high)).mean() < 0.01


def test_a_histogram_of_the_smallest_numbers():
    histogram = Histogram()
    assert histogram.add(np.array([1e-44, -1e-44], np.float32))
    assert histogram.add(np.array([1.0], np.float32))
    assert histogram.counts.sum() == 3


def test_erf_is_exact():
    import math

    x = np.concatenate([np.linspace(-7, 7, 999), [0.0, 1e-300, -1e-9, 30.0]])
    assert np.abs(erf(x) - [math.erf(value) for value in x]).max() < 3e-16
    assert erf(x.reshape(17, -1)).shape == (17, 59)


# Graphs


@pytest.mark.parametrize("downsample", ["official", "paper"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "leakyrelu"])
def test_equalization_is_exact(downsample, activation):
    graph = small_graph(downsample, activation=activation)
    names = apply.equalizable(graph)
    rng = np.random.default_rng(0)
    layers = {layer.name: layer for layer in graph.layers}
    exponents = {name: rng.integers(-4, 5, layers[name].arrays["weight"].shape[1]).tolist() for name in names}
    kinds = {name.rsplit(".", 1)[-1] for name in names}
    through_relu = {"fc_2"} if activation in HOMOGENEOUS else set()
    if activation in HOMOGENEOUS and downsample == "paper":
        through_relu.add("conv")
    assert kinds == ({"fc_1", "conv", "fc"} if downsample == "official" else {"fc_1", "fc"}) | through_relu
    equal = apply.equalize(graph, exponents)
    images = parity.noise(2, (64, 64), 0)
    before, after = evaluate(graph, images), evaluate(equal, images)
    assert np.array_equal(before["logits"], after["logits"])
    fc_1 = next(name for name in names if name.endswith("fc_1"))
    value = layers[fc_1].inputs[0]
    powers = np.exp2(np.array(exponents[fc_1]))[:, None, None]
    assert np.array_equal(before[value], after[value] * powers)
    assert any(key not in before or not np.array_equal(before[key], after[key]) for key in after)


def test_the_stream_of_an_output_is_not_equalized():
    graph = small_graph(features_only=True)
    assert {name.rsplit(".", 1)[-1] for name in apply.equalizable(graph)} == {"fc_1"}


def test_a_bias_correction_does_not_depend_on_the_layers_that_are_skipped():
    graph = small_graph(activation="relu")
    scales = calibrate(graph, noise_images(3, (64, 64)), "minmax", "digest")
    scaled = apply.row_factors(graph, {name: layer.exponents for name, layer in scales.layers.items()})
    rows = {name for name, factor in scaled.items() if (factor != 1).any()}
    assert {name.rpartition(".")[2] for name in rows} == {"conv", "fc_1", "fc_2"}
    equalized = [name for name, layer in scales.layers.items() if any(layer.exponents)]

    def biases(used):
        layers = {layer.name: layer for layer in apply.quantize(graph, used).layers}
        own = apply.row_factors(graph, {name: layer.exponents for name, layer in used.layers.items()})
        values = {name: layers[name].arrays["bias"] * layers[name].arrays["step"].astype(float) for name in used.layers}
        return {name: value / own.get(name, 1.0) for name, value in values.items()}

    before = biases(scales)
    for name in equalized:
        for other, value in biases(scales.without([name])).items():
            assert np.abs(value - before[other]).max() < 2e-3 * np.abs(before[other]).max(), (name, other)


def test_scales_whose_channels_cannot_be_scaled_here():
    scales = calibrate(small_graph(), noise_images(3, (64, 64)), "minmax", "digest")
    features = small_graph(features_only=True)
    with pytest.raises(InputError, match=r"in front of downsample_\d.conv cannot be scaled in this one"):
        apply.quantize(features, scales.without(["head.fc"]))


def test_weights_of_few_bits():
    graph, images = small_graph(), noise_images(3, (64, 64))
    eight, four = (calibrate(graph, images, "minmax", "digest", weight_bits=bits) for bits in (8, 4))
    layers = {layer.name: layer for layer in apply.quantize(graph, four).layers}
    assert max(np.abs(layers[name].arrays["weight"]).max() for name in four.layers) == 7
    assert json.loads(four.text())["layers"]["stem.conv"]["weight_bits"] == 4
    assert "weight_bits" not in eight.text()
    exact = evaluate(graph, images.images)["logits"]
    noise = [np.linalg.norm(evaluate(apply.quantize(graph, s), images.images)["logits"] - exact) for s in (eight, four)]
    assert noise[1] > 4 * noise[0]


def test_a_layer_in_8_bit_by_hand():
    graph = small_graph()
    layer = next(layer for layer in graph.layers if layer.name == "head.fc")
    quantizer = Quantizer.near(0.03, 10)
    quantized = apply.quantize_layer(layer, LayerScale(quantizer, (), tuple(np.full(5, 0.25))))
    x = np.random.default_rng(0).standard_normal((3, 24))
    steps = np.abs(layer.arrays["weight"]).max(1) / 127
    weight = np.rint(layer.arrays["weight"] / steps[:, None])
    sums = (np.rint(x.astype(np.float32) / quantizer.scale).clip(-138, 117)) @ weight.T
    sums += np.rint((layer.arrays["bias"] + 0.25) / (steps * quantizer.scale))
    expected = sums * steps * quantizer.scale
    values = evaluate(replace(graph, layers=(replace(quantized, inputs=("input",)),)), x)
    assert np.abs(values["logits"] - expected).max() < 1e-5 * np.abs(expected).max()
    assert quantized.arrays["weight"].dtype == np.int8
    assert quantized.arrays["bias"].dtype == np.int32


def test_the_sum_over_a_patch_is_rounded():
    patch = np.array([0.42, 1.3, -2.6, 0.45]).reshape(1, 1, 2, 2)
    # One for itself: 0, 1, -3, 0, which is 1.57 too little; the closest to a middle are turned.
    assert apply.whole_numbers(patch).reshape(-1).tolist() == [1, 1, -3, 1]
    weight = np.random.default_rng(0).uniform(-9, 9, (5, 7, 4, 4))
    numbers = apply.whole_numbers(weight)
    assert np.abs((numbers - weight).sum((2, 3))).max() <= 0.5
    assert np.abs(numbers - weight).max() < 1
    assert np.array_equal(apply.whole_numbers(-weight), -numbers)
    rows = weight[:, :, 0, 0]
    assert np.array_equal(apply.whole_numbers(rows), np.rint(rows))


def test_a_channel_without_weights_keeps_its_bias():
    graph = small_graph()
    layer = next(layer for layer in graph.layers if layer.name == "head.fc")
    weight = layer.arrays["weight"].copy()
    weight[2] = 0
    layer = replace(layer, arrays={"weight": weight, "bias": np.arange(5, dtype=np.float32)})
    quantized = apply.quantize_layer(layer, LayerScale(Quantizer.near(0.03, 0)))
    bias = quantized.arrays["bias"] * quantized.arrays["step"].astype(np.float64)
    assert np.abs(bias - np.arange(5)).max() < 1e-3


@pytest.mark.parametrize("weight, bias", [(1e-37, 0), (1e-40, 1e-40), (1e-45, 0), (0, 1e-45)])
def test_a_channel_that_has_all_but_vanished(weight, bias):
    # Weight decay leaves such channels behind; 1 / 127 of their weights is 0 in float32.
    arrays = {"weight": np.full((2, 3), weight, np.float32), "bias": np.full(2, bias, np.float32)}
    arrays["weight"][1], arrays["bias"][1] = 1, 1
    layer = next(layer for layer in small_graph().layers if layer.name == "head.fc")
    quantized = apply.quantize_layer(replace(layer, arrays=arrays), LayerScale(Quantizer.near(0.03, 0)))
    assert not quantized.arrays["weight"][0].any() and quantized.arrays["bias"][0] == 0
    assert quantized.arrays["weight"][1].tolist() == [127, 127, 127]
    for steps in (quantized.arrays["weight_step"], quantized.arrays["step"]):
        assert (steps >= np.finfo(np.float32).tiny).all()


@given(networks(), st.sampled_from(METHODS), st.sampled_from(["matmul", "padded", "custom"]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_both_forms_of_random_networks_compute_the_same_integers(network, method, neocell, tanh):
    architecture, arrays, size = network
    graph, _ = fold(original_graph(architecture, arrays, size))
    gelu = "tanh" if tanh else "auto"
    try:
        scales = calibrate(graph, noise_images(3, size), method, "digest", gelu=gelu)
    except InputError as error:
        # A layer of dead ReLUs has no scale.
        assert "everywhere in calibration" in str(error)
        assume(architecture.activation != "relu")
        raise
    quantized = apply.quantize(graph, scales)
    cann = CANN.with_(gelu=gelu if tanh else "erf", neocell=neocell)
    device = evaluator(emitter.emit(lower(quantized, cann), None, cann))
    format = Format(gelu=gelu)
    host = evaluator(emitter.emit(lower(host_graph(quantized), format), None, format))
    images = parity.noise(2, size, 1)
    outputs = [side.run(images)[0] for side in (host, device)]
    assert not any(compare_integers(host, device).values())
    assert len(host.integers) == len(apply.quantizable(graph))
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-9 * np.abs(outputs[0]).max()
    exact = evaluate(lower(quantized, format), images)["logits"]
    assert parity.compare(exact, outputs[0]).relative_l2 < 0.05


@pytest.mark.parametrize(
    "downsample, bias, layer_scale, activation",
    [("official", True, 0.5, "gelu"), ("paper", False, 0, "hardswish"), ("official", True, 0, "relu"),
     ("official", True, 0.5, "leakyrelu")],
)  # fmt: skip
def test_sixteen_inputs_give_equal_integers(downsample, bias, layer_scale, activation):
    graph = small_graph(downsample, bias, layer_scale, activation=activation)
    quantized = apply.quantize(graph, calibrate(graph, noise_images(4, (64, 64)), "percentile", "digest"))
    images = parity.noise(16, (64, 64), 2)
    models = [
        emitter.emit(lower(form, format), None, format)
        for form, format in ((host_graph(quantized), Format()), (quantized, CANN))
    ]
    host, device = map(evaluator, models)
    for image in images:
        host.run(image[None])
        device.run(image[None])
        assert not any(compare_integers(host, device).values())


@pytest.mark.parametrize("name", ["stem.conv", "stage_2.0.ops.content.fc_2", "downsample_3.conv", "head.fc"])
def test_a_single_layer_in_8_bit(name):
    graph, images = small_graph(), noise_images(2, (64, 64))
    others = tuple(layer.name for layer in apply.quantizable(graph) if layer.name != name)
    scales = calibrate(graph, images, "minmax", "digest", others)
    proof, _ = prove(apply.quantize(graph, scales), {}, images.images)
    assert (list(scales.layers), proof.layers) == ([name], 1)
    assert cost.measure(graph, scales, {"x": images}).noise[name] > 20


def test_a_wrong_integer_is_found(tmp_path):
    graph = small_graph()
    quantized = apply.quantize(graph, calibrate(graph, noise_images(3, (64, 64)), "minmax", "digest"))
    model = emitter.emit(lower(quantized, CANN), None, CANN)
    tensor = next(t for t in model.graph.initializer if t.name == "downsample_2.conv.weight")
    weight = numpy_helper.to_array(tensor).copy()
    weight[0, 0, 0, 0] += 1 if weight[0, 0, 0, 0] < 127 else -1
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    path = tmp_path / "wrong.onnx"
    onnx.save(model, path)
    with pytest.raises(ParityError, match=r"different integers: \d+ in downsample_2.conv"):
        prove(quantized, {"ascend": (path, CANN)}, parity.noise(1, (64, 64), 0))


def test_nodes_for_cann():
    graph = small_graph()
    quantized = apply.quantize(graph, calibrate(graph, noise_images(3, (64, 64)), "minmax", "digest"))
    for dtype, code in (("float32", 0), ("float16", 1)):
        format = CANN.with_(dtype=dtype)
        model = emitter.emit(lower(quantized, format), 1, format)
        nodes = {node.name: node for node in model.graph.node}
        tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes["stem.conv.quant"].attribute}
        stem = next(layer for layer in quantized.layers if layer.name == "stem.conv")
        quantizer = stem.attributes["quantizer"]
        assert attributes == {
            "scale": pytest.approx(1 / quantizer.scale),
            "offset": quantizer.offset,
            "dst_type": b"INT8",
        }
        assert [a.i for a in nodes["stem.conv.dequant"].attribute if a.name == "dtype"] == [code]
        assert tensors["stem.conv.weight"].dtype == np.int8
        assert tensors["stem.conv.bias"].dtype == np.int32
        steps = tensors["stem.conv.steps"]
        assert steps.dtype == np.uint64
        assert np.array_equal((steps & 0xFFFFFFFF).astype(np.uint32).view(np.float32), stem.arrays["step"])
        assert not (steps >> np.uint64(32)).any()
        assert sum(node.op_type == "AscendDequant" for node in nodes.values()) == len(apply.quantizable(graph))


@pytest.mark.parametrize(
    "operator, attribute, value",
    [("AscendQuant", "dst_type", "INT4"), ("AscendQuant", "offset", 300.0), ("AscendDequant", "relu_flag", 1)],
)
def test_what_other_programs_ask_of_ascend_nodes_is_not_misread(operator, attribute, value):
    graph = small_graph()
    quantized = apply.quantize(graph, Scales("", {"stem.conv": LayerScale(Quantizer.near(0.03, 0))}))
    model = emitter.emit(lower(quantized, CANN), 1, CANN)
    runnable_model(model)
    node = next(node for node in model.graph.node if node.op_type == operator)
    kept = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])
    with pytest.raises(InputError, match=attribute):
        runnable_model(model)


def test_a_shift_in_the_steps_of_ascend_nodes_is_not_misread():
    quantized = apply.quantize(small_graph(), Scales("", {"stem.conv": LayerScale(Quantizer.near(0.03, 0))}))
    model = emitter.emit(lower(quantized, CANN), 1, CANN)
    steps = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.conv.steps")
    steps.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(steps) | np.uint64(1 << 33), steps.name))
    with pytest.raises(InputError, match="a shift or an offset of weights"):
        runnable_model(model)


# Calibration


def test_calibration_needs_images_that_say_something():
    graph = small_graph()
    with pytest.raises(InputError, match="calibration on 1 image, expected at least 2"):
        calibrate(graph, noise_images(1, (64, 64)), "minmax", "digest")
    constant = noise_images(3, (64, 64))
    constant.images[:] = 1
    with pytest.raises(InputError, match=r"stem.conv: its input is 1 everywhere.*--quantize-skip stem.conv"):
        calibrate(graph, constant, "minmax", "digest")
    dead = [
        ([layer], [replace(layer, arrays={key: 0 * array for key, array in layer.arrays.items()})])
        for layer in graph.layers
        if layer.name.endswith(("fc_1", "downsample_3.conv"))
    ]
    skip = "stage_1.0.ops.content.fc_2,.*,stage_4.0.ops.content.fc_1,stage_4.0.ops.content.fc_2"
    with pytest.raises(InputError, match=f"those of 4 more.*--quantize-skip {skip}"):
        calibrate(graph.replaced(dead), noise_images(3, (64, 64)), "minmax", "digest")
    broken = noise_images(3, (64, 64))
    broken.images[1, 0, 5, 5] = np.nan
    with pytest.raises(InputError, match="not finite numbers"):
        calibrate(graph, broken, "minmax", "digest")


def test_patterns_of_skipped_layers():
    graph = small_graph()
    assert skipped_layers(graph, ("head.fc", "stage_4.*")) == (
        "stage_4.0.ops.content.fc_1",
        "stage_4.0.ops.content.fc_2",
        "head.fc",
    )
    with pytest.raises(InputError, match=r"'head.fd': no 8-bit layer has this name \(did you mean head.fc"):
        skipped_layers(graph, ("head.fd",))
    with pytest.raises(InputError, match="no layer is left"):
        skipped_layers(graph, ("*",))


def test_noise_is_what_its_formula_says():
    graph = small_graph()
    images = noise_images(4, (64, 64))
    scales = calibrate(graph, images, "minmax", "digest")
    noise = cost.layer_noise(graph, scales, images)
    equal, scales = apply.equalized(graph, scales)
    values = evaluate(equal, images.images)
    layer = next(layer for layer in equal.layers if layer.name == "downsample_1.conv")
    twin = apply.quantize_layer(layer, scales.layers[layer.name])
    noisy = evaluate(replace(equal, layers=(replace(twin, inputs=("input",)),)), values[layer.inputs[0]])[twin.output]
    exact = values[layer.output]
    expected = 10 * np.log10((exact**2).sum() / ((noisy - exact) ** 2).sum())
    assert noise[layer.name] == pytest.approx(expected, abs=0.05)


def test_the_cost_of_an_approximate_gelu_is_counted():
    graph, images = small_graph(downsample="paper"), noise_images(4, (64, 64))
    scales = calibrate(graph, images, "minmax", "digest", gelu="fast")
    expected = Session(graph).run(images.images)["logits"]
    (measured,) = cost.measure(graph, scales, {"calibrate": images}, "fast").accuracy.values()
    host = Session(host_graph(apply.quantize(graph, scales)), None, "fast").run(images.images)["logits"]
    assert measured == cost.compare_outputs(images, expected, host)
    images.labels = expected.argmax(1).tolist()
    _, steps = search(graph, scales, cost.layer_noise(graph, scales, images, "fast"), images, 100, "fast")
    assert f"top-1 {4 - measured.changed}/4" in steps[0]


def test_search_leaves_out_what_is_needed_and_no_more():
    graph = small_graph()
    images = noise_images(16, (64, 64))
    expected = Session(graph).run(images.images)["logits"].argmax(1)
    images.labels = expected.tolist()
    scales = calibrate(graph, images, "minmax", "digest")
    bad = {
        name: LayerScale(Quantizer.near(60 * layer.quantizer.scale, 0)) if name == "downsample_1.conv" else layer
        for name, layer in scales.layers.items()
    }
    scales = Scales("digest", bad)
    noise = cost.layer_noise(graph, scales, images)
    assert min(noise, key=noise.__getitem__) == "downsample_1.conv"
    found, steps = search(graph, scales, noise, images, 0)
    assert "downsample_1.conv" not in found.layers
    assert len(found.layers) >= 10
    assert "points lost" in steps[0]
    images.labels = ((expected + 1) % 5).tolist()
    found, _ = search(graph, scales, noise, images, 100)
    assert len(found.layers) == len(scales.layers)


def test_search_that_cannot_succeed(monkeypatch):
    graph = small_graph()
    images = noise_images(4, (64, 64))
    images.labels = Session(graph).run(images.images)["logits"].argmax(1).tolist()
    quantizer = Quantizer.near(1e9, 0)
    scales = Scales("digest", {name: LayerScale(quantizer) for name in ("stem.conv", "head.fc")})
    with pytest.raises(ParityError, match="even with a single layer in 8 bit") as error:
        search(graph, scales, {"stem.conv": 0.0, "head.fc": 1.0}, images, 0)
    assert error.value.exit_code == 4


def test_scales_that_were_calibrated_on_other_images():
    prepared = Preprocessing().to_dict()
    scales = Scales("", {}, {"image_size": [64, 64], "preprocessing": prepared})
    assert calibration_notes(scales, [(64, 64)], prepared) == []
    assert calibration_notes(Scales("", {}), [(64, 64)], prepared) == []
    other, unmeasured = calibration_notes(scales, [(64, 64), (96, 64)], prepared)
    assert "calibrated at 64x64 pixels; at 96x64" in other
    assert "measured at 64x64 pixels only" in unmeasured
    (note,) = calibration_notes(scales, [(64, 64)], Preprocessing(std=(1, 1, 1)).to_dict())
    assert "prepared in another way" in note


# The command


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Both forms of the digits model, calibrated on the digits by default options."""
    folder = tmp_path_factory.mktemp("int8")
    arguments = ["--target", "onnx,om", "--soc", "Ascend310P3", "--quantize", "int8", "--calibrate", "digits"]
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert main([*CHECKPOINT, *arguments, "--validate", "digits", "--output", str(folder)]) == 3
    assert "on x86 processors without VNNI" in err.getvalue()
    return folder


def test_digits_keep_their_accuracy(exported):
    manifest = json.loads((exported / "digits_64.json").read_text())
    accuracy = manifest["int8"]["accuracy"]["validate"]
    assert accuracy["images"] == 360
    assert accuracy["correct"] >= 354
    assert accuracy["changed"] <= 2
    assert manifest["int8"]["layers"] == manifest["int8"]["of"] == 15
    assert len(manifest["int8"]["worst"]) == 5
    assert manifest["int8"]["integers"]["layers"] == 15
    assert [file["file"] for file in manifest["files"]][:3] == [
        "digits_64.onnx",
        "digits_64_cann.onnx",
        "digits_64.scales.json",
    ]
    assert "--model=digits_64.onnx" in (exported / "build_om.sh").read_text()


def test_sixteen_inputs_of_the_digits_give_equal_integers(exported):
    host, device = (evaluator(onnx.load(exported / name)) for name in ("digits_64.onnx", "digits_64_cann.onnx"))
    files = [str(path) for path in sorted((DATA / "digits").glob("*/*.png"))[::3][:6]]
    images = np.concatenate([parity.noise(10, (64, 64), 3), load_images(files, Preprocessing(), (64, 64))])
    for image in images:
        host.run(image[None])
        device.run(image[None])
        assert not any(compare_integers(host, device).values())
    assert len(images) == 16
    assert len(host.integers) == 15


def test_a_runtime_may_be_as_far_from_exact_integers_as_8_bit_costs(exported, tmp_path, monkeypatch):
    arguments = [*CHECKPOINT, "--target", "onnx", "--quantize", "int8", "--output", str(tmp_path)]
    arguments += ["--quantize-scales", str(exported / "digits_64.scales.json")]

    def prove_and_shift(*values):
        proof, outputs = prove(*values)
        return proof, outputs * np.float32(1.01)

    monkeypatch.setattr(pipeline, "prove", prove_and_shift)
    monkeypatch.setattr(pipeline, "INT8", 0.0)
    assert main(arguments) == 0
    monkeypatch.setattr(pipeline, "INT8_LOSS", 0.0)
    assert main(arguments) == 4


def test_the_network_that_is_quantized_is_the_original_one(exported, tmp_path, capsys):
    arguments = [*CHECKPOINT, "--target", "onnx", "--quantize", "int8", "--output", str(tmp_path / "out")]
    arguments += ["--quantize-scales", str(exported / "digits_64.scales.json"), "--tolerance", "1e-9"]
    assert main(arguments) == 4
    assert "digits_64 before quantization: outputs differ from the original network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scales_are_shared_by_later_exports(exported, tmp_path):
    scales = str(shutil.copy(exported / "digits_64.scales.json", tmp_path))
    arguments = ["--target", "onnx", "--quantize", "int8", "--quantize-scales", scales, "--output", str(tmp_path)]
    assert main([*CHECKPOINT, *arguments, "--quantize-skip", "head.fc"]) == 2
    assert not (tmp_path / "digits_64.onnx").exists()
    assert main([*CHECKPOINT, *arguments]) == 0
    first, second = (onnx.load(folder / "digits_64.onnx") for folder in (exported, tmp_path))
    assert [t.SerializeToString() for t in first.graph.initializer] == [
        t.SerializeToString() for t in second.graph.initializer
    ]
    assert (tmp_path / "digits_64.scales.json").read_text() == (exported / "digits_64.scales.json").read_text()
    recorded = json.loads(next(entry.value for entry in first.metadata_props))["int8"]
    assert recorded.pop("equalized")
    assert recorded == json.loads((exported / "digits_64.scales.json").read_text())


def test_edited_scales_are_checked(exported, tmp_path):
    text = (exported / "digits_64.scales.json").read_text()
    scales = json.loads(text)
    scales["layers"]["stem.conv"]["scale"] *= 2
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(scales))
    ratio = read_scales(path).layers["stem.conv"].quantizer.scale / json.loads(text)["layers"]["stem.conv"]["scale"]
    assert ratio == pytest.approx(2, rel=1e-3)
    for key, value, problem in (
        ("scale", 0, "scale 0, expected"),
        ("scale", "1", "scale '1', expected"),
        ("offset", 3, "offset 3, expected an even number"),
        ("exponents", [0.5], "exponents: expected a list of whole numbers"),
        ("weight_bits", 9, "weight_bits 9, expected 2 to 8"),
        ("bias_correction", ["a"], "bias_correction: expected a list of numbers"),
        ("ofset", 2, r"unknown key 'ofset' \(did you mean offset"),
    ):
        wrong = json.loads(text)
        wrong["layers"]["stem.conv"][key] = value
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=problem):
            read_scales(path)


def test_scales_of_another_network(exported, tmp_path, capsys):
    scales = json.loads((exported / "digits_64.scales.json").read_text())
    scales["network"] = "0" * 64
    path = tmp_path / "other.json"
    path.write_text(json.dumps(scales))
    arguments = ["--target", "onnx", "--quantize", "int8", "--quantize-scales", str(path)]
    assert main([*CHECKPOINT, *arguments, "--output", str(tmp_path / "out")]) == 1
    assert "its weights, shifts or activation differ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # The weights are the same with other shifts; the activations are not.
    arguments[-1] = str(exported / "digits_64.scales.json")
    shifted = [*CHECKPOINT[:3], "0,1,1,1", *CHECKPOINT[4:]]
    assert main([*shifted, *arguments, "--output", str(tmp_path / "out")]) == 1
    assert "its weights, shifts or activation differ" in capsys.readouterr().err


def test_scales_without_images_say_what_they_cost(exported, tmp_path, capsys):
    scales = json.loads((exported / "digits_64.scales.json").read_text())
    scales["layers"]["downsample_1.conv"]["scale"] = 50
    scales["calibration"] = {"source": "\x1b[31m"}
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(scales))
    arguments = ["--target", "onnx", "--quantize", "int8", "--quantize-scales", str(path), "--output", str(tmp_path)]
    assert main([*CHECKPOINT, *arguments]) == 0
    out, err = capsys.readouterr()
    assert r"calibrated: ?, ? images of \x1b[31m" in out
    assert "measured on noise alone" in err
    # All inputs of this layer become the number of 0.
    assert "noise becomes at most 4 different 8-bit numbers in front of downsample_1.conv, so" in err
    cost = json.loads((tmp_path / "digits_64.json").read_text())["int8"]["accuracy"]["noise"]
    assert cost["images"] == 4
    assert cost["relative_l2"] > 0.1


def test_the_layers_that_a_search_leaves_out_can_be_given_again(tmp_path, capsys):
    arguments = [*CHECKPOINT, "--target", "onnx", "--quantize", "int8", "--weight-bits", "3", "--calibrate", "digits"]
    arguments += ["--validate", "digits"]
    # All layers with weights in 3 bits lose two images or more of 360, which is more than 0.5 points.
    assert main([*arguments, "--max-drop", "0.5", "--output", str(tmp_path / "a")]) == 0
    out, err = capsys.readouterr()
    # Products with such weights fit into 16 bits on any processor.
    assert "VNNI" not in err
    assert out.count("\nsearch    ") >= 2
    (skipped,) = re.findall(r"^skipped   --quantize-skip (\S+)$", out, re.MULTILINE)
    found = json.loads((tmp_path / "a" / "digits_64.json").read_text())["int8"]
    assert found["skipped"] == skipped.split(",")
    assert found["accuracy"]["validate"]["correct"] >= 354
    assert main([*arguments, "--quantize-skip", skipped, "--output", str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b" / "digits_64.json").read_text())["int8"]
    assert again["skipped"] == found["skipped"]
    assert again["accuracy"]["validate"] == found["accuracy"]["validate"]


def test_layers_of_8_bit_files_are_compared_in_the_units_of_float32(exported, tmp_path, capsys):
    assert main([*CHECKPOINT, "--target", "onnx", "--output", str(tmp_path)]) == 0
    images = [str(path) for path in sorted((DATA / "digits").glob("*/*.png"))[::2]]
    for name in ("digits_64.onnx", "digits_64_cann.onnx"):
        capsys.readouterr()
        arguments = [str(tmp_path / "digits_64.onnx"), str(exported / name), "--layers", "--json", "--images", *images]
        assert compare(arguments) == 0
        result = json.loads(capsys.readouterr().out)
        deviations = {layer["name"]: layer["relative_l2"] for layer in result["layers"]}
        assert {"stage_3.0.ops.content.neocell", "stage_4.0.ops.content.fc_1", "downsample_3.norm_1"} <= set(deviations)
        assert 1e-3 < max(deviations.values()) < 0.1
        assert 0 < result["outputs"][0]["relative_l2"] < 0.06


def _board_dump(file, folder, images):
    """Write what a board dumps of an 8-bit file: codes and sums of its layers as integers, the rest in half."""
    model = onnx.load(file)
    runnable = runnable_model(model)
    values = [node.output[0] for node in model.graph.node]
    runnable.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name != "logits")
    session = onnx_session(runnable.SerializeToString())
    folder.mkdir()
    runs = [session.run(values, {"input": image[None]}) for image in images]
    for node, value in zip(model.graph.node, map(np.concatenate, zip(*runs, strict=True)), strict=True):
        kind = np.int32 if value.dtype == np.int32 else np.int8 if value.dtype == np.uint8 else np.float16
        name = f"{node.op_type}.{mangled(node.name)}.3.1.1700000000000000.output.0.npy"
        np.save(folder / name, (value - 128.0 if kind is np.int8 else value).astype(kind))
    np.save(folder / "pure_infer_data_0.npy", value)
    return folder


def test_values_that_a_board_dumped_in_8_bit(exported, tmp_path, capsys):
    file, images = exported / "digits_64_cann.onnx", sorted((DATA / "digits").glob("*/*.png"))[::10]
    preprocessing = json.loads((exported / "digits_64.json").read_text())["preprocessing"]
    prepared = load_images([str(path) for path in images], Preprocessing.from_dict(preprocessing), (64, 64))
    dump = _board_dump(file, tmp_path / "dump", prepared)
    arguments = ["--layers", "--json", "--images", *map(str, images)]
    assert compare([str(file), str(dump), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    deviations = {layer["name"]: layer["relative_l2"] for layer in result["layers"]}
    assert {"stem.norm", "stage_3.1.ops.content.fc_1", "downsample_3.norm_1"} <= set(deviations)
    assert 0 < max(deviations.values()) < 1e-3 and result["tolerance"] < 0.04
    assert any("30 files of integers" in note for note in result["notes"])
    # Against float32, the loss of 8 bit is allowed, and the names of a fold say nothing of equalization.
    assert main([*CHECKPOINT, "--target", "onnx", "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    assert compare([str(tmp_path / "digits_64.onnx"), str(dump), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tolerance"] == INT8_LOSS and any("equalization" in note for note in result["notes"])


@pytest.mark.parametrize(
    "arguments, problem, code",
    [
        (["--calibrate", DIGITS, "--target", "mindir"], "the target mindir has no 8-bit form", 2),
        (["--calibrate", DIGITS, "--target", "onnx,onnx-naive"], "the target onnx-naive has no 8-bit form", 2),
        (["--calibrate", DIGITS, "--target", "onnx", "--opset", "12"], "opset 12 has no scales for channels", 2),
        (["--calibrate", DIGITS, "--target", "onnx", "--neocell", "padded"], "neocell padded is for CANN", 2),
        (["--calibrate", DIGITS, "--target", "onnx", "--dtype", "float16"], "got float16", 2),
        (["--calibrate", DIGITS, "--target", "onnx", "--dtype", "bfloat16"], "bfloat16 between 8-bit layers", 2),
        (["--calibrate", DIGITS, "--target", "om", "--soc", "Ascend310P3", "--via", "lite"], "AscendQuant", 2),
        (["--target", "onnx"], "got neither", 2),
        (
            [
                "--calibrate",
                DIGITS,
                "--target",
                "onnx",
                "--image-size",
                "64,96",
                "--validate",
                DIGITS,
                "--max-drop",
                "1",
            ],
            "Export each image size by itself",
            2,
        ),
        (["--calibrate", DIGITS, "--target", "onnx", "--max-drop", "1"], "Pass --validate FOLDER", 2),
        (["--calibrate", DIGITS, "--target", "onnx", "--calibrate-method", "ms"], "did you mean mse", 2),
        (["--calibrate", "nowhere", "--target", "onnx"], "no such file", 1),
        (["--calibrate", DIGITS, "--target", "onnx", "--quantize-skip", "head"], "no 8-bit layer", 1),
    ],
)
def test_bad_requests(arguments, problem, code, tmp_path, capsys):
    assert main([*CHECKPOINT, "--quantize", "int8", *arguments, "--output", str(tmp_path / "out")]) == code
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_drop_that_nothing_exceeds_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*CHECKPOINT, "--quantize", "int8", "--max-drop", "100"])
    assert "percentage points from 0 to 50" in capsys.readouterr().err


def test_options_without_quantize(tmp_path, capsys):
    assert main([*CHECKPOINT, "--target", "onnx", "--calibrate", DIGITS, "--output", str(tmp_path)]) == 2
    assert "only valid with --quantize int8" in capsys.readouterr().err


def test_images_to_calibrate_on(tmp_path, monkeypatch):
    def opened(source, **options):
        return open_images(str(source), (64, 64), Preprocessing(), 10, **options)

    folder = opened(DIGITS)
    assert len(folder) == 20
    assert folder.labels == [i // 2 for i in range(20)]
    assert folder.note.endswith("digits: classes of the folders taken by number")
    assert next(folder.batches(3)).shape == (3, 3, 64, 64)
    # A few of a folder are not those of its first class.
    every = np.concatenate(list(folder.batches(20)))
    assert np.array_equal(np.concatenate(list(folder.batches(3, count=5))), every[[0, 4, 8, 12, 16]])
    assert len(opened(DIGITS, count=5)) == 5
    flat = opened(DATA / "digits" / "3")
    assert len(flat) == 2
    assert flat.labels is None
    (tmp_path / "mixed" / "3").mkdir(parents=True)
    for place in ("mixed", "mixed/3"):
        shutil.copy(next((DATA / "digits" / "3").iterdir()), tmp_path / place)
    with pytest.raises(InputError, match="1 image directly in it and 1 in its folders"):
        opened(tmp_path / "mixed")
    array = tmp_path / "x.npy"
    np.save(array, np.clip(parity.noise(6, (64, 64), 0), -2, 2) * 50 + 100)
    assert "values from 0 to 200, but the network's preprocessing makes -2.12 to 2.64" in opened(array).note
    np.save(array, np.full((2, 3, 64, 64), 1e300))
    with pytest.raises(InputError, match="2 images with values that are not finite numbers"):
        opened(array)
    np.save(array, np.clip(parity.noise(6, (64, 64), 0), -2, 2))
    assert not opened(array).note
    np.save(array, parity.noise(6, (64, 64), 0))
    assert np.array_equal(np.concatenate(list(opened(array, count=3).batches(2))), parity.noise(6, (64, 64), 0)[::2])
    np.save(array, np.zeros((2, 3, 32, 32), np.float32))
    with pytest.raises(InputError, match="expected prepared images in floating point, Nx3x64x64"):
        opened(array)
    np.save(array, np.full((2, 3, 64, 64), np.nan, np.float32))
    with pytest.raises(InputError, match="2 images with values that are not finite numbers"):
        opened(array)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in it"):
        opened(tmp_path / "empty")
    values = parity.noise(6, (64, 64), 0)
    values[4, 0, 0, 0] = np.nan
    np.save(array, values)
    with pytest.raises(InputError, match="the first is image 4"):
        opened(array, count=3)
    digits = {"size": (64, 64), "preprocessing": Preprocessing(), "classes": 5, "count": 3}
    assert open_images("digits", **digits).labels is None
    with pytest.raises(InputError, match="10 class folders for 5 classes"):
        open_images("digits", **digits, validation=True)
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "Write ./digits for the folder here" in open_images("digits", **digits).note
    with pytest.raises(InputError, match=r"\.npy file has no labels"):
        opened(array, validation=True)


@pytest.mark.parametrize(
    "options",
    [{"weight_bits": 1}, {"calibrate": "a", "scales": "b"}, {"calibrate": "a", "count": 1}, {"skip": "head.fc"}],
)
def test_options_that_do_not_go_together(options):
    with pytest.raises(UsageError):
        QuantizeOptions(**options)


def test_options_in_python(tmp_path):
    assert QuantizeOptions(calibrate=tmp_path).calibrate == str(tmp_path)
    with pytest.raises(UsageError, match=r"quantize: got 'int8', expected QuantizeOptions\("):
        Request(["onnx"], quantize="int8")
