"""Networks of convolutions, ReLU and BatchNorm, module by module as torchvision names them."""

from __future__ import annotations

from ...export.graph import INPUT, LOGITS
from .builder import GraphBuilder

# What the last BatchNorm of a residual branch is scaled by, so that random weights do not grow with depth.
_BRANCH = 0.4


def resnet(g: GraphBuilder, depths: tuple[int, int, int, int], bottleneck: bool) -> str:
    """ResNet (arXiv 1512.03385), with the stride in the 3x3 convolution."""
    x = g.relu(g.conv(INPUT, "conv1", 64, 7, stride=2, padding=3, norm="bn1"), "relu")
    x = g.pool(x, "maxpool", "MaxPool", 3, 2, 1)
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            x = _residual(g, x, f"layer{stage + 1}.{block}", width, stride, bottleneck)
    return g.pooled_classifier(x, "fc")


def _residual(g: GraphBuilder, x: str, name: str, width: int, stride: int, bottleneck: bool) -> str:
    outputs = 4 * width if bottleneck else width
    steps = [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)] if bottleneck else [(width, 3, stride), (width, 3, 1)]
    y = x
    for i, (channels, kernel, step) in enumerate(steps, 1):
        last = i == len(steps)
        conv = f"{name}.conv{i}"
        y = g.conv(
            y, conv, channels, kernel, stride=step, padding=kernel // 2, norm=f"{name}.bn{i}",
            norm_scale=_BRANCH if last else 1.0,
        )  # fmt: skip
        if not last:
            y = g.relu(y, f"{name}.relu{i}")
    if stride > 1 or g.shapes[x][0] != outputs:
        x = g.conv(x, f"{name}.downsample.0", outputs, stride=stride, norm=f"{name}.downsample.1")
    return g.relu(g.add(y, x, f"{name}.add"), name)


def regnet_x(g: GraphBuilder, widths: tuple[int, ...], depths: tuple[int, ...], group_width: int) -> str:
    """RegNetX (arXiv 2003.13678) from its table of stages."""
    x = g.relu(g.conv(INPUT, "stem.0", 32, 3, stride=2, padding=1, norm="stem.1"), "stem.2")
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        for block in range(depth):
            name, stride = f"block{stage}.{block}", 1 if block else 2
            y = g.relu(g.conv(x, f"{name}.a", width, norm=f"{name}.a.norm"), f"{name}.a.relu")
            y = g.conv(
                y, f"{name}.b", width, 3, stride=stride, padding=1, groups=width // group_width,
                norm=f"{name}.b.norm",
            )  # fmt: skip
            y = g.conv(g.relu(y, f"{name}.b.relu"), f"{name}.c", width, norm=f"{name}.c.norm", norm_scale=_BRANCH)
            if not block:
                x = g.conv(x, f"{name}.proj", width, stride=stride, norm=f"{name}.proj.norm")
            x = g.relu(g.add(x, y, f"{name}.add"), name)
    return g.pooled_classifier(x, "fc")


def mobilenet_v1(g: GraphBuilder) -> str:
    """MobileNet v1 (arXiv 1704.04861), width 1."""

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


def densenet121(g: GraphBuilder) -> str:
    """DenseNet-121 (arXiv 1608.06993): growth 32; BatchNorm before a convolution's ReLU cannot be folded."""
    x = g.relu(g.conv(INPUT, "conv0", 64, 7, stride=2, padding=3, norm="norm0"), "relu0")
    x = g.pool(x, "pool0", "MaxPool", 3, 2, 1)
    for stage, depth in enumerate((6, 12, 24, 16), 1):
        features = [x]
        for layer in range(1, depth + 1):
            name = f"denseblock{stage}.denselayer{layer}"
            y = g.concat(features, f"{name}.concat") if layer > 1 else x
            y = g.relu(g.batch_norm(y, f"{name}.norm1"), f"{name}.relu1")
            y = g.relu(g.conv(y, f"{name}.conv1", 128, norm=f"{name}.norm2"), f"{name}.relu2")
            features.append(g.conv(y, f"{name}.conv2", 32, 3, padding=1, bias=False))
        x = g.concat(features, f"denseblock{stage}")
        if stage < 4:
            name = f"transition{stage}"
            x = g.relu(g.batch_norm(x, f"{name}.norm"), f"{name}.relu")
            x = g.conv(x, f"{name}.conv", g.shapes[x][0] // 2, bias=False)
            x = g.pool(x, f"{name}.pool", "AveragePool", 2, 2)
    return g.pooled_classifier(g.relu(g.batch_norm(x, "norm5"), "relu5"), "classifier")


def squeezenet1_1(g: GraphBuilder) -> str:
    """SqueezeNet 1.1 (arXiv 1602.07360)."""
    x = g.relu(g.conv(INPUT, "features.0", 64, 3, stride=2), "features.1")
    pools = {2: "features.2", 5: "features.5", 8: "features.8"}
    fires = {3: (16, 64), 4: (16, 64), 6: (32, 128), 7: (32, 128), 9: (48, 192), 10: (48, 192), 11: (64, 256)}
    fires[12] = (64, 256)
    for i in sorted([*pools, *fires]):
        if i in pools:
            x = g.pool(x, pools[i], "MaxPool", 3, 2, ceil=True)
            continue
        squeeze, expand = fires[i]
        name = f"features.{i}"
        x = g.relu(g.conv(x, f"{name}.squeeze", squeeze), f"{name}.squeeze_relu")
        small = g.relu(g.conv(x, f"{name}.expand1x1", expand), f"{name}.expand1x1_relu")
        large = g.relu(g.conv(x, f"{name}.expand3x3", expand, 3, padding=1), f"{name}.expand3x3_relu")
        x = g.concat([small, large], name)
    x = g.relu(g.conv(x, "classifier.1", 1000), "classifier.2")
    x = g.node("GlobalAveragePool", [x], "classifier.3", (1000, 1, 1))
    return g.node("Flatten", [x], LOGITS, (1000,), axis=1)


# 1x1; 1x1 and 3x3; 1x1 and 3x3 (the paper's 5x5); 1x1 behind the pooling: channels of GoogLeNet's table.
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(g: GraphBuilder) -> str:
    """GoogLeNet (arXiv 1409.4842) as torchvision has it: BatchNorm, and 3x3 where the paper says 5x5."""

    def conv(x: str, name: str, channels: int, kernel: int = 1, stride: int = 1) -> str:
        y = g.conv(x, name, channels, kernel, stride=stride, padding=kernel // 2, norm=f"{name}.bn", norm_eps=1e-3)
        return g.relu(y, f"{name}.relu")

    x = g.pool(conv(INPUT, "conv1", 64, 7, 2), "maxpool1", "MaxPool", 3, 2, ceil=True)
    x = g.pool(conv(conv(x, "conv2", 64), "conv3", 192, 3), "maxpool2", "MaxPool", 3, 2, ceil=True)
    for key, (one, three_in, three, five_in, five, behind) in _INCEPTIONS.items():
        if key in ("4a", "5a"):
            x = g.pool(x, f"maxpool{3 if key == '4a' else 4}", "MaxPool", 3 if key == "4a" else 2, 2, ceil=True)
        name = f"inception{key}"
        branches = [
            conv(x, f"{name}.branch1", one),
            conv(conv(x, f"{name}.branch2.0", three_in), f"{name}.branch2.1", three, 3),
            conv(conv(x, f"{name}.branch3.0", five_in), f"{name}.branch3.1", five, 3),
            conv(g.pool(x, f"{name}.branch4.0", "MaxPool", 3, 1, 1, ceil=True), f"{name}.branch4.1", behind),
        ]
        x = g.concat(branches, name)
    return g.pooled_classifier(x, "fc")
