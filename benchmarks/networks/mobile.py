"""Networks for small devices: depthwise convolutions, squeeze and excitation, channel shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from neonext_ms.export.graph import INPUT

from .builder import BRANCH_NORM, GraphBuilder

Activation = Callable[[str, str], str]


def mobilenet_v1(g: GraphBuilder) -> str:
    """Build MobileNet v1 (arXiv 1704.04861), width 1."""

    def step(x: str, name: str, channels: int, kernel: int, stride: int, groups: int = 1) -> str:
        y = g.conv(x, name, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, norm=f"{name}.norm")
        return g.relu(y, f"{name}.relu")

    x = step(INPUT, "model.0", 32, 3, 2)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for i, (channels, stride) in enumerate(plan, 1):
        inputs = g.shapes[x][0]
        x = step(x, f"model.{i}.depthwise", inputs, 3, stride, inputs)
        x = step(x, f"model.{i}.pointwise", channels, 1, 1)
    channels, height, width = g.shapes[x]
    x = g.node(
        "AveragePool", [x], "model.14", (channels, 1, 1), kernel_shape=[height, width], strides=[height, width],
        pads=[0, 0, 0, 0],
    )  # fmt: skip
    return g.classifier(g.reshape(x, "view", (channels,)), "fc")


def _bottleneck(
    g: GraphBuilder,
    x: str,
    name: str,
    channels: int,
    kernel: int,
    stride: int,
    expanded: int,
    act: Activation,
    squeeze: tuple[int, Activation, Activation] | None = None,
) -> str:
    """Add an inverted residual (arXiv 1801.04381): 1x1 to `expanded`, depthwise, squeeze and excitation, 1x1."""
    inputs, y = g.shapes[x][0], x
    if expanded != inputs:
        y = act(g.conv(y, f"{name}.expand", expanded, norm=f"{name}.expand.norm"), f"{name}.expand.act")
    y = g.conv(
        y, f"{name}.depthwise", expanded, kernel, stride=stride, padding=kernel // 2, groups=expanded,
        norm=f"{name}.depthwise.norm",
    )  # fmt: skip
    y = act(y, f"{name}.depthwise.act")
    if squeeze:
        y = g.squeeze_excite(y, f"{name}.se", *squeeze)
    same = stride == 1 and inputs == channels
    y = g.conv(y, f"{name}.project", channels, norm=f"{name}.project.norm", norm_scale=BRANCH_NORM if same else 1.0)
    return g.add(x, y, name) if same else y


def _conv(g: GraphBuilder, x: str, name: str, channels: int, kernel: int, stride: int, act: Activation) -> str:
    y = g.conv(x, name, channels, kernel, stride=stride, padding=kernel // 2, norm=f"{name}.norm")
    return act(y, f"{name}.act")


def _stages(
    g: GraphBuilder, x: str, name: Callable[[int, int], str], stages: Sequence[tuple], act: Activation, squeeze=False
) -> str:
    """Add inverted residuals by stages of (expansion, channels, kernel, depth, first stride).

    `name` gives the name of a block from the numbers of its stage and block.
    """
    for stage, (factor, channels, kernel, depth, first) in enumerate(stages):
        for block in range(depth):
            inputs, stride = g.shapes[x][0], 1 if block else first
            gate = (inputs // 4, act, g.sigmoid) if squeeze else None
            x = _bottleneck(g, x, name(stage, block), channels, kernel, stride, factor * inputs, act, gate)
    return x


def mobilenet_v2(g: GraphBuilder) -> str:
    """Build MobileNet v2 (arXiv 1801.04381), width 1."""
    x = _conv(g, INPUT, "features.0", 32, 3, 2, g.relu6)
    stages = ((1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 32, 3, 3, 2), (6, 64, 3, 4, 2), (6, 96, 3, 3, 1),
              (6, 160, 3, 3, 2), (6, 320, 3, 1, 1))  # fmt: skip
    number = count(1)
    x = _stages(g, x, lambda stage, block: f"features.{next(number)}", stages, g.relu6)
    return g.pooled_classifier(_conv(g, x, "features.18", 1280, 1, 1, g.relu6), "classifier")


def mobilenet_v3_large(g: GraphBuilder) -> str:
    """Build MobileNet v3 large (arXiv 1905.02244)."""
    x = _conv(g, INPUT, "features.0", 16, 3, 2, g.hard_swish)
    # Kernel, expanded, channels, squeeze and excitation, hard swish, stride.
    plan = [
        *((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1)),
        *((5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1)),
        *((3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1)),
        *((3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1)),
        *((5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
    ]
    for i, (kernel, expanded, channels, squeezed, hard, stride) in enumerate(plan, 1):
        # A quarter, rounded to a multiple of 8, but never down by more than a tenth.
        inner = max(8, (expanded // 4 + 4) // 8 * 8)
        inner += 8 if inner < 0.9 * (expanded // 4) else 0
        squeeze = (inner, g.relu, g.hard_sigmoid) if squeezed else None
        act = g.hard_swish if hard else g.relu
        x = _bottleneck(g, x, f"features.{i}", channels, kernel, stride, expanded, act, squeeze)
    x = g.pooled(_conv(g, x, "features.16", 960, 1, 1, g.hard_swish))
    return g.classifier(g.hard_swish(g.gemm(x, "classifier.0", 1280), "classifier.1"), "classifier.3")


def mnasnet1_0(g: GraphBuilder) -> str:
    """Build MnasNet (arXiv 1807.11626), depth multiplier 1."""
    x = _conv(g, INPUT, "layers.0", 32, 3, 2, g.relu)
    x = _bottleneck(g, x, "layers.3", 16, 3, 1, 32, g.relu)
    stages = ((3, 24, 3, 3, 2), (3, 40, 5, 3, 2), (6, 80, 5, 3, 2), (6, 96, 3, 2, 1), (6, 192, 5, 4, 2),
              (6, 320, 3, 1, 1))  # fmt: skip
    x = _stages(g, x, lambda stage, block: f"layers.{8 + stage}.{block}", stages, g.relu)
    return g.pooled_classifier(_conv(g, x, "layers.14", 1280, 1, 1, g.relu), "classifier")


def efficientnet_b0(g: GraphBuilder) -> str:
    """Build EfficientNet-B0 (arXiv 1905.11946)."""
    x = _conv(g, INPUT, "features.0", 32, 3, 2, g.swish)
    stages = ((1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 3, 2), (6, 112, 5, 3, 1),
              (6, 192, 5, 4, 2), (6, 320, 3, 1, 1))  # fmt: skip
    x = _stages(g, x, lambda stage, block: f"features.{1 + stage}.{block}", stages, g.swish, squeeze=True)
    return g.pooled_classifier(_conv(g, x, "features.8", 1280, 1, 1, g.swish), "classifier")


def shufflenet_v2(g: GraphBuilder, channels: tuple[int, ...]) -> str:
    """Build ShuffleNet v2 (arXiv 1807.11164): `channels` of the first convolution, three stages and the last one."""
    x = g.pool(_conv(g, INPUT, "conv1", channels[0], 3, 2, g.relu), "maxpool", "MaxPool", 3, 2, 1)
    for stage, depth in enumerate((4, 8, 4), 1):
        for block in range(depth):
            name, half = f"stage{stage + 1}.{block}", channels[stage] // 2
            if block:
                kept, y = (g.slice(x, f"{name}.half{i}", 1, i * half, (i + 1) * half) for i in range(2))
            else:
                kept, y = _shuffle_branch(g, x, f"{name}.branch1", half, 2, False), x
            y = _shuffle_branch(g, y, f"{name}.branch2", half, 1 if block else 2, True)
            x = _shuffled(g, g.concat([kept, y], f"{name}.concat"), name)
    x = _conv(g, x, "conv5", channels[-1], 1, 1, g.relu)
    x = g.node("ReduceMean", [x], "mean", g.shapes[x][:1], axes=[2, 3], keepdims=0)
    return g.classifier(x, "fc")


def _shuffle_branch(g: GraphBuilder, x: str, name: str, channels: int, stride: int, first: bool) -> str:
    if first:
        x = _conv(g, x, f"{name}.0", channels, 1, 1, g.relu)
    inputs, key = g.shapes[x][0], f"{name}.3"
    x = g.conv(x, key, inputs, 3, stride=stride, padding=1, groups=inputs, norm=f"{key}.norm")
    return _conv(g, x, f"{name}.5", channels, 1, 1, g.relu)


def _shuffled(g: GraphBuilder, x: str, name: str) -> str:
    channels, height, width = g.shapes[x]
    x = g.reshape(x, f"{name}.split", (2, channels // 2, height, width))
    return g.reshape(g.transpose(x, f"{name}.shuffled", (0, 2, 1, 3, 4)), name, (channels, height, width))
