"""ONNX classifiers of other exporters: what comes out of them, and what they do to their images themselves."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from neonext_ms.commands.predict import main as predict
from neonext_ms.common.errors import InputError
from neonext_ms.runtime.open import open_runtime


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def model(path, *after, before=(), classes=3, dtype=TensorProto.FLOAT, **constants):
    """A classifier whose logits are the mean channels; `before` makes `x` of `image`, `after` makes `y` of `logits`."""
    before = before or [node("Identity", "image", "x")]
    nodes = [*before, node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "logits"), *after]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", dtype, ["n", classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


@pytest.mark.parametrize(
    "after, options, message",
    [
        ([node("ArgMax", "logits", "y", axis=1)], {"classes": 1, "dtype": TensorProto.INT64}, "ArgMax"),
        ([helper.make_node("TopK", ["logits", "k"], ["y", "i"])], {"classes": 2, "k": [2]}, "TopK"),
        (
            [helper.make_node("TopK", ["logits", "k"], ["v", "i"]), node("Cast", "i", "y", to=TensorProto.FLOAT)],
            {"classes": 2, "k": [2]},
            "TopK",
        ),
        ([node("Greater", "logits zero", "y")], {"dtype": TensorProto.BOOL, "zero": np.float32(0)}, "got bool"),
        (
            [node("QuantizeLinear", "logits step zero", "y")],
            {"dtype": TensorProto.UINT8, "step": np.float32(0.1), "zero": np.uint8(9)},
            "got uint8",
        ),
        ([node("ReduceMean", "logits", "y", axes=[1])], {"classes": 1}, "two or more classes"),
        (
            [helper.make_node("Tile", ["logits", "k"], ["y"])],
            {"classes": 3_000_000, "k": [1, 1_000_000]},
            "3,000,000 classes, more than the 1,000,000",
        ),
    ],
)
def test_outputs_that_are_no_logits(tmp_path, after, options, message):
    with (
        pytest.raises(InputError, match=message),
        open_runtime(model(tmp_path / "m.onnx", *after, **options)) as opened,
    ):
        opened.run(np.zeros((1, 3, 4, 4), np.float32))


@pytest.mark.parametrize(
    "after, constants, message",
    [
        ([node("Softmax", "logits", "y", axis=0)], {}, "not over the classes"),
        ([node("Softmax", "logits", "p1"), node("Mul", "p1 hundred", "y")], {"hundred": np.float32(100)}, "sum to 100"),
    ],
)
def test_outputs_that_are_no_probabilities(tmp_path, after, constants, message):
    images = np.random.default_rng(0).random((4, 3, 4, 4), np.float32)
    path = model(tmp_path / "m.onnx", *after, **constants)
    with open_runtime(path) as opened, pytest.raises(InputError, match=message):
        opened.classify(images)


def test_sigmoid_is_used_as_it_is(tmp_path):
    images = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    with open_runtime(model(tmp_path / "m.onnx", node("Sigmoid", "logits", "y"))) as opened:
        _, probabilities = opened.classify(images)
        assert opened.conventions.ending == "Sigmoid" and opened.probabilities
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-images.mean((2, 3)))), rtol=1e-6)


ONE = np.float32(1)


@pytest.mark.parametrize(
    "after, constants",
    [
        ([node("Sigmoid", "logits", "p1"), node("Clip", "p1", "y")], {}),
        (
            [node("Neg", "logits", "n1"), node("Exp", "n1", "e"), node("Add", "e one", "f"), node("Div", "one f", "y")],
            {"one": ONE},
        ),
    ],
)
def test_outputs_from_0_to_1_are_used_as_they_are(tmp_path, capsys, after, constants):
    path = model(tmp_path / "m.onnx", *after, **constants)
    # Without the official normalization, the logits are the colours.
    Image.new("RGB", (4, 4), (255, 0, 51)).save(tmp_path / "a.png")
    (tmp_path / "p.yaml").write_text("mean: [0, 0, 0]\nstd: [1, 1, 1]\n")
    assert predict(["--model", path, str(tmp_path / "a.png"), "--preprocess", str(tmp_path / "p.yaml")]) == 0
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines()[1:]] == [
        ["0", "73.11", "%"], ["2", "54.98", "%"], ["1", "50.00", "%"],
    ]  # fmt: skip
    assert "outputs from 0 to 1 only; its outputs are used as probabilities, each of its own" in printed.err


def test_logits_of_a_head_of_zeros_are_no_probabilities(tmp_path):
    with open_runtime(model(tmp_path / "m.onnx", node("Mul", "logits zero", "y"), zero=np.float32(0))) as opened:
        _, probabilities = opened.classify(np.ones((1, 3, 4, 4), np.float32))
    np.testing.assert_allclose(probabilities, 1 / 3)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_channels_last(tmp_path, runtime):
    pytest.importorskip(runtime)
    path = model(
        tmp_path / "m.onnx",
        node("Identity", "logits", "y"),
        before=[node("Transpose", "image", "x", perm=[0, 3, 1, 2])],
    )
    file = onnx.load(path)
    for sizes in (["n", 4, 4, 3], ["n", "h", "w", 3]):
        file.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes))
        onnx.save(file, path)
        images = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
        with open_runtime(path, image_size=(4, 4), runtime=runtime) as opened:
            np.testing.assert_allclose(opened.run(images), images.mean((2, 3)), rtol=1e-6)


COLOURS = np.array([0.4, 0.5, 0.6], np.float32).reshape(3, 1, 1)
NORMALIZATIONS = {
    "subtract": ([node("Sub", "image mean", "x")], {"mean": COLOURS}),
    "scale": ([node("Cast", "image", "f", to=TensorProto.FLOAT), node("Mul", "f two", "x")], {"two": np.float32(2)}),
    "computed": ([node("Unsqueeze", "mean axes", "m"), node("Div", "image m", "x")], {"mean": COLOURS, "axes": [0]}),
    "clipped": (
        [node("Clip", "image zero one", "c"), node("Sub", "c mean", "x")],
        {"zero": np.float32(0), "one": np.float32(1), "mean": COLOURS},
    ),
    "channels turned": (
        [node("Gather", "image turned", "c", axis=1), node("Sub", "c mean", "x")],
        {"turned": np.array([2, 1, 0]), "mean": COLOURS},
    ),
    "channel by channel": (
        [
            helper.make_node("Split", ["image"], ["r", "g", "b"], axis=1),
            node("Sub", "r mean", "s"),
            node("Concat", "s g b", "x", axis=1),
        ],
        {"mean": np.float32(0.4)},
    ),
    "convolution": (
        [node("Conv", "image weights shift", "x", group=3)],
        {"weights": COLOURS[..., None], "shift": np.zeros(3, np.float32)},
    ),
    "convolution of all channels": (
        [node("Conv", "image weights", "c"), node("Conv", "c stem", "x")],
        {"weights": np.diag(COLOURS.ravel())[..., None, None], "stem": np.ones((3, 3, 3, 3), np.float32)},
    ),
    "mean image": ([node("Sub", "image mean", "x")], {"mean": np.full((3, 4, 4), 0.5, np.float32)}),
    "expanded": (
        [node("Shape", "image", "s"), node("Expand", "mean s", "m"), node("Sub", "image m", "x")],
        {"mean": COLOURS},
    ),
    "batchnorm": (
        [node("BatchNormalization", "image one zero zero one", "x")],
        {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)},
    ),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_images_are_not_normalized_twice(tmp_path, capsys, name):
    before, constants = NORMALIZATIONS[name]
    path = model(tmp_path / "m.onnx", node("Identity", "logits", "y"), before=before, **constants)
    Image.new("RGB", (4, 4), (255, 0, 51)).save(tmp_path / "a.png")
    argv = ["--model", path, str(tmp_path / "a.png")]
    assert predict(argv) == 2
    assert "it normalizes images itself (node" in capsys.readouterr().err
    (tmp_path / "p.yaml").write_text("mean: [0, 0, 0]\nstd: [1, 1, 1]\n")
    assert predict([*argv, "--preprocess", str(tmp_path / "p.yaml")]) == 0


def test_onnxruntime_prints_nothing_itself(tmp_path, capfd):
    before = [helper.make_node("Reshape", ["image", "sizes"], ["x"], name="\x1b[2J")]
    after = node("Identity", "logits", "y")
    path = model(tmp_path / "m.onnx", after, before=before, sizes=np.array([-1, 3, 5, 7], np.int64))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert predict(["--model", path, str(tmp_path / "a.png")]) == 1
    error = capfd.readouterr().err
    assert "\x1b" not in error and r"\x1b[2J" in error and len(error.splitlines()) == 2


def test_a_map_that_is_added_is_no_normalization(tmp_path, capsys):
    before = [node("Add", "image places", "x")]
    path = model(
        tmp_path / "m.onnx", node("Identity", "logits", "y"), before=before, places=np.zeros((3, 4, 4), np.float32)
    )
    Image.new("RGB", (4, 4), (255, 0, 51)).save(tmp_path / "a.png")
    assert predict(["--model", path, str(tmp_path / "a.png")]) == 0
    assert "no metadata in it, so it has no labels" in capsys.readouterr().err
