from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from neonext_ms.benchmarks import networks
from neonext_ms.common.errors import InputError, UsageError

# One of each kind runs; its siblings are only counted.
RUN = {
    **dict.fromkeys(
        ("convnext_t", "convnextv2_t", "resnet18", "resnext50_32x4d", "seresnet50", "mobilenet_v1"), (32, 64)
    ),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0"), (32, 64)),
    **dict.fromkeys(("shufflenet_v2_x1_0", "vit_s_16", "convmixer_1536_20", "regnetx_1_6gf"), (32, 64)),
    **dict.fromkeys(("densenet121", "squeezenet1_1"), (32, 64)),
    **{"swin_t": (224, 448), "alexnet": (224, 224), "inception_v3": (75, 107), "googlenet": (64, 96)},
}
# timm's counter sees no convolution with padding="same", so no depthwise one of ConvMixer, and counts BatchNorm.
UNSEEN = {"convmixer_1536_20": 20 * 81 * 1536 * 32**2 - 2 * 41 * 1536 * 32**2}


def sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes by ONNX's own inference."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        shapes[value.name] = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    return shapes


def multiply_adds(model: onnx.ModelProto) -> int:
    shapes, total = sizes(model), 0
    for node in model.graph.node:
        out = math.prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            total += out * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            total += out * shapes[node.input[0]][-1]
    return total


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", networks.names())
def test_counts_are_the_published_ones(name):
    published = networks.NETWORKS[name]
    graph = networks.assemble(name, image_size=published.image_size, seed=None)
    own, parameters, model = dict(graph.shapes), graph.parameters, graph.model()
    assert parameters == published.parameters
    counted = multiply_adds(model) - UNSEEN.get(name, 0)
    assert counted / 1e9 == pytest.approx(published.multiply_adds, rel=0.005)
    shapes = sizes(model)
    assert shapes["logits"] == [1, 1000]
    # The attention's first transpose moves the batch axis, which the builder does not follow.
    moved = [key for key in own if key.endswith((".parts", "tokens.shape"))]
    assert {key: list(own[key]) for key in own if key not in moved} == {
        key: shapes[key][1:] for key in own if key not in moved
    }


@pytest.mark.parametrize(("name", "size"), RUN.items())
def test_runs_at_a_small_size(name, size):
    model = networks.build(name, batch=None, image_size=size)
    onnx.checker.check_model(model)
    runtime = session(model)
    images = np.random.RandomState(0).standard_normal((3, 3, *size)).astype(np.float32)
    (logits,) = runtime.run(None, {"input": images})
    assert logits.shape == (3, 1000)
    # Also in half precision.
    assert np.isfinite(logits).all() and np.abs(logits).max() < 5000
    # Each image has its own logits, and they depend on the image.
    (alone,) = runtime.run(None, {"input": images[1:2]})
    np.testing.assert_allclose(alone[0], logits[1], rtol=1e-3, atol=1e-3 * np.abs(logits).max())
    assert np.linalg.norm(logits[0] - logits[1]) > 1e-3 * np.linalg.norm(logits[0])


def test_the_seed_decides_the_weights():
    def first(seed):
        return networks.build("squeezenet1_1", seed=seed).graph.initializer[0].raw_data

    assert first(1) == first(1) != first(2)


def test_a_fixed_batch():
    model = networks.build("vit_b_16", batch=2, image_size=(32, 32), seed=None)
    assert sizes(model)["logits"] == [2, 1000]


def test_rejections():
    with pytest.raises(UsageError, match="did you mean resnet"):
        networks.build("resnet500")
    with pytest.raises(InputError, match="vanishes"):
        networks.build("squeezenet1_1", image_size=(8, 8))
    with pytest.raises(InputError, match="expected at least 1 image"):
        networks.build("resnet18", batch=0)
    with pytest.raises(InputError, match="the last map is 4x4 and has to be a square of a multiple of 7"):
        networks.build("vgg16", image_size=(128, 128), seed=None)
    with pytest.raises(InputError, match="-4x224"):
        networks.build("resnet18", image_size=(-4, 224))
    with pytest.raises(UsageError, match="form 'naive' of a network: unknown"):
        networks.build("resnet18", form="naive")
