"""One test for each fold rule, on a graph of the layers that it touches, in float64."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from conftest import goldens, relative_max
from neonext_ms import load_checkpoint
from neonext_ms.common.errors import InputError
from neonext_ms.export import fold
from neonext_ms.export.evaluate import evaluate
from neonext_ms.export.graph import NCHW, NHWC, DeployGraph, Layer, original_graph
from neonext_ms.export.lower import lower, neocell_to_matmul, neocell_to_padded_matmul
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import CANN, Format
from neonext_ms.export.tolerances import TOLERANCES, tolerance
from neonext_ms.export.verify import file_outputs
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.ops import NeoCellSpec

RNG = np.random.RandomState(0)
PAIR = NeoCellSpec([{"kernel": 2, "channels": 2, "shift": 1}, {"kernel": 3, "channels": 2, "shift": 1}])
HALVE = NeoCellSpec({"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": 4})


def _array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def _norm(channels):
    return "batch_norm", {
        "weight": _array(channels),
        "bias": _array(channels),
        "running_mean": _array(channels),
        "running_var": np.abs(_array(channels)) + 0.1,
    }, {"eps": 1e-3}  # fmt: skip


def _cell(spec):
    arrays = {f"weight_a.{i}": _array(*s) for i, s in enumerate(spec.shapes_a)}
    arrays |= {f"weight_b.{i}": _array(*s) for i, s in enumerate(spec.shapes_b)}
    return "neocell", arrays, {"spec": spec}


def _conv(inputs, outputs, kernel=1, bias=False):
    arrays = {"weight": _array(outputs, inputs, kernel, kernel)} | ({"bias": _array(outputs)} if bias else {})
    return "conv", arrays, {"groups": 1}


def _layer_norm(channels, axis):
    return "layer_norm", {"weight": _array(channels), "bias": _array(channels)}, {"eps": 1e-3, "axis": axis}


def _strided(conv, **attributes):
    op, arrays, own = conv
    return op, arrays, {**own, **attributes}


def _graph(*layers, size=(8, 12)):
    made, value = [], "input"
    for i, (op, arrays, attributes) in enumerate(layers):
        made.append(Layer(op, f"v{i}", (value,), f"v{i}", arrays, attributes))
        value = f"v{i}"
    return DeployGraph(tuple(made), size, (value,))


def _check(rule, graph, ops):
    copies = [{key: a.copy() for key, a in layer.arrays.items()} for layer in graph.layers]
    folded = rule(graph)
    assert [layer.op for layer in folded.layers] == ops
    x = RNG.standard_normal((2, 3, *graph.image_size))
    out = graph.outputs[0]
    before, after = evaluate(graph, x)[out], evaluate(folded, x)[out]
    assert relative_max(after, before) < 5e-7
    assert folded.shapes()[out] == graph.shapes()[out] == before.shape[1:]
    for layer, copy in zip(graph.layers, copies, strict=True):
        for key, array in layer.arrays.items():
            np.testing.assert_array_equal(array, copy[key])
    return folded


@pytest.mark.parametrize("bias", [False, True])
def test_channels_first(bias):
    linear = {"weight": _array(5, 3)} | ({"bias": _array(5)} if bias else {})
    graph = _graph(
        ("transpose", {}, {"order": NHWC}),
        ("linear", linear, {}),
        ("gelu", {}, {}),
        ("scale", {"gamma": _array(5)}, {"axis": -1}),
        ("transpose", {}, {"order": NCHW}),
    )
    _check(fold.channels_first, graph, ["conv", "gelu", "scale"])


def test_channels_first_leaves_other_transposes_alone():
    graph = _graph(("transpose", {}, {"order": NHWC}), ("linear", {"weight": _array(5, 3)}, {}))
    _check(fold.channels_first, graph, ["transpose", "linear"])


def test_channels_first_takes_a_layer_norm_along():
    graph = _graph(
        ("transpose", {}, {"order": NHWC}),
        _layer_norm(3, -1),
        ("linear", {"weight": _array(5, 3)}, {}),
        ("transpose", {}, {"order": NCHW}),
    )
    folded = _check(fold.channels_first, graph, ["layer_norm", "conv"])
    assert folded.layers[0].attributes["axis"] == 1


def test_merge_stem():
    graph = _graph(("space_to_depth", {}, {"block": 4}), _conv(48, 5))
    folded = _check(fold.merge_stem, graph, ["conv"])
    assert folded.layers[0].arrays["weight"].shape == (5, 3, 4, 4)


@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_merge_downsample(size):
    graph = _graph(_conv(3, 4), _cell(HALVE), size=size)
    assert _check(fold.merge_downsample, graph, ["conv"]).layers[0].arrays["weight"].shape == (4, 3, 2, 2)


def test_merge_downsample_needs_a_convolution_without_bias():
    _check(fold.merge_downsample, _graph(_conv(3, 4, bias=True), _cell(HALVE)), ["conv", "neocell"])


def test_merge_downsample_needs_a_reduction():
    _check(fold.merge_downsample, _graph(_conv(3, 4), _cell(PAIR)), ["conv", "neocell"])


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_into_conv(bias):
    _check(fold.batch_norm_into_conv, _graph(_conv(3, 5, 2, bias), _norm(5)), ["conv"])


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_into_next(bias):
    graph = _graph(_conv(3, 4), _cell(PAIR), _norm(4), _conv(4, 6, bias=bias))
    _check(fold.batch_norm_into_next, graph, ["conv", "neocell", "conv"])


@pytest.mark.parametrize("attributes", [{"padding": 1}, {"stride": 2}])
def test_only_a_linear_layer_on_every_pixel_counts_as_one(attributes):
    conv = _strided(_conv(4, 5), **attributes)
    _check(fold.batch_norm_into_next, _graph(_conv(3, 4), _cell(PAIR), _norm(4), conv), [
        "conv", "neocell", "batch_norm", "conv",
    ])  # fmt: skip
    _check(fold.merge_downsample, _graph(_strided(_conv(3, 4), **attributes), _cell(HALVE)), ["conv", "neocell"])
    _check(fold.batch_norm_into_conv, _graph(_strided(_conv(3, 4, 3), **attributes), _norm(4)), ["conv"])


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_into_next(bias):
    for conv in (_conv(3, 5, 1, bias), _conv(3, 5, 2, bias), _strided(_conv(3, 5, 3, bias), stride=1)):
        folded = _check(fold.layer_norm_into_next, _graph(_layer_norm(3, 1), conv), ["layer_norm", "conv"])
        assert not folded.layers[0].arrays
    linear = "linear", {"weight": _array(5, 3)} | ({"bias": _array(5)} if bias else {}), {}
    graph = _graph(("global_mean", {}, {}), _layer_norm(3, -1), linear)
    assert not _check(fold.layer_norm_into_next, graph, ["global_mean", "layer_norm", "linear"]).layers[1].arrays
    # The shift would not reach the zeros around the map.
    padded = _graph(_layer_norm(3, 1), _strided(_conv(3, 5, 3, bias), stride=1, padding=1))
    assert _check(fold.layer_norm_into_next, padded, ["layer_norm", "conv"]).layers[0].arrays


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_into_conv_after(bias):
    for conv in (_conv(3, 5, 1, bias), _conv(3, 5, 2, bias)):
        _check(fold.batch_norm_into_conv_after, _graph(_norm(3), conv), ["conv"])
    padded = _graph(_norm(3), _strided(_conv(3, 5, 3, bias), stride=1, padding=1))
    _check(fold.batch_norm_into_conv_after, padded, ["batch_norm", "conv"])


def test_layer_norm_to_depthwise():
    _check(fold.layer_norm_to_depthwise, _graph(_layer_norm(3, 1)), ["layer_norm", "conv"])
    mean = "global_mean", {}, {}
    _check(fold.layer_norm_to_depthwise, _graph(mean, _layer_norm(3, -1)), ["global_mean", "layer_norm"])


def test_batch_norm_into_neocell():
    graph = _graph(_conv(3, 4), _cell(PAIR), _norm(4), _norm(4), ("gelu", {}, {}))
    folded = _check(fold.batch_norm_into_neocell, graph, ["conv", "neocell", "batch_norm", "gelu"])
    _check(fold.batch_norm_into_neocell, folded, ["conv", "neocell", "gelu"])


def _with_patch_bias(cell):
    op, arrays, attributes = cell
    shapes = [group.shape_bias for group in attributes["spec"].groups]
    return op, arrays | {f"bias.{i}": _array(*shape) for i, shape in enumerate(shapes)}, attributes


@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_a_bias_for_each_value_of_an_output_patch(size):
    ops = ["conv", "left", "right", "shift"]
    for spec in (PAIR, NeoCellSpec.resampling(4, 1, 2), NeoCellSpec.resampling(4, 3, 2)):
        graph = _graph(_conv(3, 4), _with_patch_bias(_cell(spec)), _norm(4), ("gelu", {}, {}), size=size)
        folded = _check(fold.batch_norm_into_neocell, graph, ["conv", "neocell", "gelu"])
        assert "bias" not in folded.layers[1].arrays
        _check(neocell_to_matmul, folded, [*ops, "gelu"])
        _check(neocell_to_padded_matmul, folded, [*ops, "gelu", "crop"])
    # The custom node has no such bias; an Add behind it has.
    custom = _graph(_conv(3, 4), _with_patch_bias(_cell(PAIR)), size=size)
    custom = _check(lambda graph: lower(graph, Format(neocell="custom")), custom, ["conv", "neocell", "shift"])
    assert not any(key.startswith("bias") for key in custom.layers[1].arrays)
    # A patch of one value has the bias of its channel.
    for before in ([], [_conv(3, 4)]):
        cell = _with_patch_bias(_cell(HALVE if before else NeoCellSpec.resampling(3, 2, 1)))
        rule = fold.merge_downsample if before else fold.reduction_to_depthwise
        assert _check(rule, _graph(*before, cell, size=size), ["conv"]).layers[0].arrays["bias"].ndim == 1


def test_files_have_a_bias_for_each_value_of_an_output_patch(tmp_path):
    graph = _graph(_conv(3, 4), _with_patch_bias(_cell(PAIR)), _with_patch_bias(_cell(NeoCellSpec.resampling(4, 1, 2))))
    x = RNG.standard_normal((2, 3, 8, 12)).astype(np.float32)
    expected = evaluate(graph, x)[graph.outputs[0]].reshape(2, -1)
    for format in (Format(), CANN, CANN.with_(neocell="padded")):
        path = tmp_path / "model.onnx"
        emitter.save(lower(graph, format), path, format=format)
        assert relative_max(file_outputs(path, format, x), expected) < 1e-6
    nodes = emitter.skeleton(lower(graph, Format())).graph.node
    assert emitter.count_nodes(graph) == len(nodes)
    from mindspore import Tensor

    from neonext_ms.export.mindir import DeployCell

    outputs = DeployCell(lower(graph, Format()))(Tensor(x)).asnumpy()
    assert relative_max(outputs.reshape(2, -1), expected) < 1e-6


@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_reduction_to_depthwise(size):
    graph = fold.batch_norm_into_neocell(_graph(_conv(3, 4), _cell(HALVE), _norm(4), size=size))
    _check(fold.reduction_to_depthwise, graph, ["conv", "conv"])


@pytest.mark.parametrize("bias", [False, True])
def test_layer_scale_into_conv(bias):
    graph = _graph(_conv(3, 5, bias=bias), ("scale", {"gamma": _array(5)}, {"axis": 1}))
    _check(fold.layer_scale_into_conv, graph, ["conv"])


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 2)])
def test_neocell_to_matmul(size):
    graph = fold.batch_norm_into_neocell(_graph(_conv(3, 4), _cell(PAIR), _norm(4), size=size))
    _check(neocell_to_matmul, graph, ["conv", "left", "right", "shift"])
    _check(neocell_to_matmul, _graph(_conv(3, 4), _cell(PAIR), size=size), ["conv", "left", "right"])


def _padded(graph, padded):
    shapes = padded.shapes()
    return [name for name in graph.outputs if shapes.get(f"{name}.padded", shapes[name]) != shapes[name]]


@pytest.mark.parametrize("multiple", [1, 4, 16])
@pytest.mark.parametrize("size", [(32, 48), (68, 44), (132, 36)])
@pytest.mark.parametrize("downsample", ["official", "paper"])
def test_neocell_to_padded_matmul(downsample, size, multiple):
    architecture = make_architecture(
        dims=(4, 6, 8, 10), kernel_spec="2+3", shifts=(1, 1, 0, 1), downsample=downsample, num_classes=3
    )
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    for name, array in arrays.items():
        if ".norm" in name:
            arrays[name] = (RNG.standard_normal(array.shape) ** 2 + 0.2).astype(np.float32)
    x = RNG.standard_normal((1, 3, *size))
    for features_only in (False, True):
        folded, _ = fold.fold(original_graph(architecture, arrays, size, features_only))
        padded = neocell_to_padded_matmul(folded, multiple)
        shapes = padded.shapes()
        for layer in padded.layers:
            if layer.op in ("left", "right"):
                sides = *layer.arrays["matrix"].shape[1:], *shapes[layer.inputs[0]][1:], *shapes[layer.output][1:]
                assert all(side % multiple == 0 for side in sides)
        before, after = evaluate(folded, x), evaluate(padded, x)
        for name in folded.outputs:
            assert shapes[name] == before[name].shape[1:] == after[name].shape[1:]
            assert relative_max(after[name], before[name]) < 1e-12
        assert padded.count("crop") == len(_padded(folded, padded)) <= 4
        if multiple == 1 or not features_only:
            assert not padded.count("crop")


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 2)])
def test_padded_products_of_a_neocell_with_bias(size):
    graph = fold.batch_norm_into_neocell(_graph(_conv(3, 4), _cell(PAIR), _norm(4), size=size))
    ops = ["conv", "left", "right", "shift", "crop"]
    folded = _check(neocell_to_padded_matmul, graph, ops)
    assert folded.shapes()["v2.padded"] == (4, 16, 16)


def test_the_input_itself_is_padded_by_rectangular_matrices():
    spec = NeoCellSpec([{"kernel": 2, "channels": 1}, {"h_in": 2, "h_out": 2, "w_in": 2, "w_out": 2, "channels": 2}])
    folded = _check(neocell_to_padded_matmul, _graph(_cell(spec), size=(5, 20)), ["left", "right", "crop"])
    assert [layer.arrays["matrix"].shape for layer in folded.layers[:2]] == [(3, 16, 5), (3, 20, 32)]


def test_a_mean_over_a_part_too_large_for_one_pooling_is_cropped():
    graph = _graph(_conv(3, 4), ("global_mean", {}, {}), size=(20, 40))
    _check(neocell_to_padded_matmul, graph, ["conv", "crop", "global_mean"])
    graph = _graph(_conv(3, 4), ("global_mean", {}, {}), size=(7, 20))
    assert _check(neocell_to_padded_matmul, graph, ["conv", "global_mean"]).layers[1].attributes["size"] == (
        7,
        20,
    )


def test_padding_needs_a_folded_graph():
    with pytest.raises(InputError, match="Fold the graph first"):
        neocell_to_padded_matmul(original_graph(make_architecture(), initial_arrays(make_architecture()), (32, 32)))
    with pytest.raises(InputError, match="multiple of at least 1"):
        neocell_to_padded_matmul(_graph(_conv(3, 4)), 0)


def test_features_are_named_after_their_stages():
    architecture = make_architecture(dims=(4, 6, 8, 10), kernel_spec="2", per_stage_layers=(1, 0, 2, 0))
    graph = original_graph(architecture, initial_arrays(architecture, rng=np.random.RandomState(0)), (32, 64), True)
    assert graph.outputs == ("stage_1", "stage_2", "stage_3", "stage_4")
    folded, _ = fold.fold(graph)
    assert [folded.shapes()[name] for name in folded.outputs] == [(4, 8, 16), (6, 4, 8), (8, 2, 4), (10, 1, 2)]


def test_values_with_two_readers_are_not_folded_away():
    graph = _graph(_conv(3, 4), _norm(4))
    graph = DeployGraph(graph.layers, graph.image_size, ("v0", "v1"))
    assert [layer.op for layer in fold.batch_norm_into_conv(graph).layers] == ["conv", "batch_norm"]
    both = Layer("add", "v2", ("v0", "v1"), "v2")
    graph = DeployGraph((*graph.layers, both), graph.image_size, ("v2",))
    assert [layer.op for layer in fold.batch_norm_into_conv(graph).layers] == ["conv", "batch_norm", "add"]


@pytest.mark.parametrize("case", goldens("NeoNeXt"))
def test_the_original_graph_is_the_official_network(case):
    arrays = load_checkpoint(case.checkpoint).float32()
    graph = original_graph(make_architecture(**case.options), arrays, case.image_size)
    if case.image_size[0] > 96:
        pytest.skip("float64 in NumPy is too slow for this size; onnxruntime checks it")
    values = evaluate(graph, case.load("_input.npy"))
    assert relative_max(values["logits"], case.load("_logits64.npy")) < 1e-12
    folded, what = fold.fold(graph)
    assert relative_max(evaluate(folded, case.load("_input.npy"))["logits"], case.load("_logits64.npy")) < 1e-6
    assert what.removed("batch_norm") == 9 and "batch_norm" not in what.after
    assert what.removed("scale") == (5 if case.options.get("layer_scale_init_value") else 0)


def test_the_papers_order_folds_to_two_convolutions_between_gelus():
    architecture = make_architecture(dims=(4, 6, 8, 10), kernel_spec="2", downsample="paper", num_classes=3)
    arrays = initial_arrays(architecture, rng=np.random.RandomState(0))
    for name, array in arrays.items():
        if ".norm" in name:
            arrays[name] = (np.abs(_array(*array.shape)) + 0.2).astype(np.float32)
    graph = original_graph(architecture, arrays, (36, 32))
    folded, what = fold.fold(graph)
    assert set(what.after) == {"conv", "neocell", "gelu", "add", "global_mean", "layer_norm", "linear"}
    between = [layer for layer in folded.layers if layer.name.startswith("downsample_1")]
    assert [layer.op for layer in between] == ["conv", "gelu", "conv", "gelu"]
    assert [layer.arrays["weight"].shape for layer in between[::2]] == [(4, 1, 2, 2), (6, 4, 1, 1)]
    x = RNG.standard_normal((2, 3, 36, 32))
    assert relative_max(evaluate(folded, x)["logits"], evaluate(graph, x)["logits"]) < 1e-6


def test_shifts_and_sizes_are_checked():
    architecture = make_architecture(shifts=None)
    with pytest.raises(InputError, match="needs the shifts"):
        original_graph(architecture, {}, (64, 64))
    with pytest.raises(InputError, match="multiples of 4"):
        original_graph(make_architecture(), {}, (65, 64))


def test_the_page_lists_every_rule_and_tolerance():
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)` \|", page)
    # The last ones are for networks of the benchmarks.
    assert [row for row in rows if hasattr(fold, row)] == [
        *(rule.__name__ for rule in fold.RULES), "layer_norm_into_next", "layer_norm_to_depthwise",
        "batch_norm_into_conv_after",
    ]  # fmt: skip
    for dtype in TOLERANCES:
        assert f"| {dtype} | {tolerance(dtype):.1e} | {tolerance(dtype, 'tanh'):.1e} |" in page
