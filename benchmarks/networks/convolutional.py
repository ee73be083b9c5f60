"""Networks of convolutions, ReLU and BatchNorm, module by module as torchvision names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size
from neonext_ms.export.graph import INPUT, LOGITS

from .builder import BRANCH_NORM, GraphBuilder


def resnet(
    g: GraphBuilder,
    depths: tuple[int, int, int, int],
    bottleneck: bool,
    groups: int = 1,
    base_width: int = 64,
    squeeze: bool = False,
) -> str:
    """Build ResNet (arXiv 1512.03385), with the stride in the 3x3 convolution.

    `groups` and `base_width` make it a ResNeXt (arXiv 1611.05431) or a wide one (arXiv 1605.07146), `squeeze` an
    SE-ResNet (arXiv 1709.01507).
    """
    x = g.relu(g.conv(INPUT, "conv1", 64, 7, stride=2, padding=3, norm="bn1"), "relu")
    x = g.pool(x, "maxpool", "MaxPool", 3, 2, 1)
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            inner = width * base_width // 64 * groups
            if bottleneck:
                steps = [(inner, 1, 1, 1), (inner, 3, stride, groups), (4 * width, 1, 1, 1)]
            else:
                steps = [(width, 3, stride, 1), (width, 3, 1, 1)]
            x = _residual(g, x, f"layer{stage + 1}.{block}", steps, stride, squeeze)
    return g.pooled_classifier(x, "fc")


def seresnet(g: GraphBuilder, depths: tuple[int, int, int, int]) -> str:
    """Build SE-ResNet of bottlenecks."""
    return resnet(g, depths, True, squeeze=True)


def _residual(g: GraphBuilder, x: str, name: str, steps: list[tuple], stride: int, squeeze: bool) -> str:
    outputs, y = steps[-1][0], x
    for i, (channels, kernel, step, groups) in enumerate(steps, 1):
        last = i == len(steps)
        y = g.conv(
            y, f"{name}.conv{i}", channels, kernel, stride=step, padding=kernel // 2, groups=groups,
            norm=f"{name}.bn{i}", norm_scale=BRANCH_NORM if last else 1.0,
        )  # fmt: skip
        if not last:
            y = g.relu(y, f"{name}.relu{i}")
    if squeeze:
        y = g.squeeze_excite(y, f"{name}.se", outputs // 16, g.relu, g.sigmoid)
    if stride > 1 or g.shapes[x][0] != outputs:
        x = g.conv(x, f"{name}.downsample.0", outputs, stride=stride, norm=f"{name}.downsample.1")
    return g.relu(g.add(y, x, f"{name}.add"), name)


def regnet_x(g: GraphBuilder, widths: tuple[int, ...], depths: tuple[int, ...], group_width: int) -> str:
    """Build RegNetX (arXiv 2003.13678) from its table of stages."""
    x = g.relu(g.conv(INPUT, "stem.0", 32, 3, stride=2, padding=1, norm="stem.1"), "stem.2")
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        for block in range(depth):
            name, stride = f"block{stage}.{block}", 1 if block else 2
            y = g.relu(g.conv(x, f"{name}.a", width, norm=f"{name}.a.norm"), f"{name}.a.relu")
            y = g.conv(
                y, f"{name}.b", width, 3, stride=stride, padding=1, groups=width // group_width,
                norm=f"{name}.b.norm",
            )  # fmt: skip
            y = g.conv(g.relu(y, f"{name}.b.relu"), f"{name}.c", width, norm=f"{name}.c.norm", norm_scale=BRANCH_NORM)
            if not block:
                x = g.conv(x, f"{name}.proj", width, stride=stride, norm=f"{name}.proj.norm")
            x = g.relu(g.add(x, y, f"{name}.add"), name)
    return g.pooled_classifier(x, "fc")


def densenet121(g: GraphBuilder) -> str:
    """Build DenseNet-121 (arXiv 1608.06993), growth 32; BatchNorm before a convolution's ReLU cannot be folded."""
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
    """Build SqueezeNet 1.1 (arXiv 1602.07360)."""
    x = g.relu(g.conv(INPUT, "features.0", 64, 3, stride=2), "features.1")
    for i, squeeze in ((3, 16), (4, 16), (6, 32), (7, 32), (9, 48), (10, 48), (11, 64), (12, 64)):
        if f"features.{i - 1}" not in g.shapes:
            x = g.pool(x, f"features.{i - 1}", "MaxPool", 3, 2, ceil=True)
        name = f"features.{i}"
        x = g.relu(g.conv(x, f"{name}.squeeze", squeeze), f"{name}.squeeze_relu")
        small = g.relu(g.conv(x, f"{name}.expand1x1", 4 * squeeze), f"{name}.expand1x1_relu")
        large = g.relu(g.conv(x, f"{name}.expand3x3", 4 * squeeze, 3, padding=1), f"{name}.expand3x3_relu")
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


def _transformed_input(g: GraphBuilder) -> str:
    """Normalise the image again, from ImageNet's statistics to a range of -1 to 1, as `transform_input` does."""
    parts = []
    _, height, width = g.shapes[INPUT]
    for i, (mean, deviation) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        name = f"transform.{i}"
        x = g.node(
            "Gather", [INPUT, g.constant(f"channel_{i}", i, np.int64)], f"{name}.channel", (height, width), axis=1
        )
        x = g.node("Unsqueeze", [x], f"{name}.map", (1, height, width), axes=[1])
        x = g.node("Mul", [x, g.constant(f"{name}.factor", deviation / 0.5)], f"{name}.scaled", g.shapes[x])
        parts.append(g.node("Add", [x, g.constant(f"{name}.shift", (mean - 0.5) / 0.5)], name, g.shapes[x]))
    return g.concat(parts, "transform")


def googlenet(g: GraphBuilder) -> str:
    """Build GoogLeNet (arXiv 1409.4842) as in torchvision: BatchNorm, and 3x3 where the paper has 5x5."""

    def conv(x: str, name: str, channels: int, kernel: int = 1, stride: int = 1) -> str:
        y = g.conv(x, name, channels, kernel, stride=stride, padding=kernel // 2, norm=f"{name}.bn", norm_eps=1e-3)
        return g.relu(y, f"{name}.relu")

    x = g.pool(conv(_transformed_input(g), "conv1", 64, 7, 2), "maxpool1", "MaxPool", 3, 2, ceil=True)
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


def _inception_branch(g: GraphBuilder, x: str, name: str, steps: Sequence[tuple[Any, ...]]) -> str:
    """Add convolutions with ReLU, each `(channels, kernel, stride, padding)` as far as it differs from 1x1."""
    for i, step in enumerate(steps):
        options = dict(zip(("channels", "kernel", "stride", "padding"), step, strict=False))
        key = f"{name}.{i}"
        y = g.conv(x, key, **options, norm=f"{key}.bn", norm_eps=1e-3)
        x = g.relu(y, f"{key}.relu")
    return x


_ROW, _COLUMN = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))


def _inception_a(behind: int) -> tuple:
    return ((64,),), ((48,), (64, 5, 1, 2)), ((64,), (96, 3, 1, 1), (96, 3, 1, 1)), ("AveragePool", (behind,))


def _inception_c(inner: int) -> tuple:
    long = ((inner,), (inner, *_COLUMN), (inner, *_ROW), (inner, *_COLUMN), (192, *_ROW))
    return ((192,),), ((inner,), (inner, *_ROW), (192, *_COLUMN)), long, ("AveragePool", (192,))


_INCEPTION_V3 = {
    "Mixed_5b": _inception_a(32),
    "Mixed_5c": _inception_a(64),
    "Mixed_5d": _inception_a(64),
    "Mixed_6a": (((384, 3, 2),), ((64,), (96, 3, 1, 1), (96, 3, 2)), ("MaxPool",)),
    "Mixed_6b": _inception_c(128),
    "Mixed_6c": _inception_c(160),
    "Mixed_6d": _inception_c(160),
    "Mixed_6e": _inception_c(192),
    "Mixed_7a": (((192,), (320, 3, 2)), ((192,), (192, *_ROW), (192, *_COLUMN), (192, 3, 2)), ("MaxPool",)),
    "Mixed_7b": None,
    "Mixed_7c": None,
}


def inception_v3(g: GraphBuilder) -> str:
    """Build Inception v3 (arXiv 1512.00567), made for 299x299."""
    x = _inception_branch(g, _transformed_input(g), "Conv2d_1a", ((32, 3, 2), (32, 3), (64, 3, 1, 1)))
    x = g.pool(x, "maxpool1", "MaxPool", 3, 2)
    x = g.pool(_inception_branch(g, x, "Conv2d_3b", ((80,), (192, 3))), "maxpool2", "MaxPool", 3, 2)
    for name, branches in _INCEPTION_V3.items():
        parts = []
        for i, steps in enumerate(branches or ()):
            key = f"{name}.branch{i}"
            if isinstance(steps[0], tuple):
                parts.append(_inception_branch(g, x, key, steps))
                continue
            stride = 2 if steps[0] == "MaxPool" else 1
            y = g.pool(x, f"{key}.pool", steps[0], 3, stride, 0 if stride == 2 else 1)
            parts.append(_inception_branch(g, y, key, steps[1:]))
        x = g.concat(parts or _inception_e(g, x, name), name)
    return g.pooled_classifier(x, "fc")


def _inception_e(g: GraphBuilder, x: str, name: str) -> list[str]:
    parts = [_inception_branch(g, x, f"{name}.branch1x1", ((320,),))]
    for key, steps in (("branch3x3", ((384,),)), ("branch3x3dbl", ((448,), (384, 3, 1, 1)))):
        y = _inception_branch(g, x, f"{name}.{key}", steps)
        halves = [
            _inception_branch(g, y, f"{name}.{key}.{end}", ((384, kernel, 1, padding),))
            for end, kernel, padding in (("a", (1, 3), (0, 1)), ("b", (3, 1), (1, 0)))
        ]
        parts.append(g.concat(halves, f"{name}.{key}"))
    y = g.pool(x, f"{name}.branch_pool.pool", "AveragePool", 3, 1, 1)
    return [*parts, _inception_branch(g, y, f"{name}.branch_pool", ((192,),))]


def vgg(g: GraphBuilder, depths: tuple[int, ...]) -> str:
    """Build VGG (arXiv 1409.1556)."""
    x = INPUT
    for stage, depth in enumerate(depths):
        for layer in range(depth):
            name = f"features.{stage}.{layer}"
            x = g.relu(g.conv(x, name, min(64 * 2**stage, 512), 3, padding=1), f"{name}.relu")
        x = g.pool(x, f"features.{stage}", "MaxPool", 2, 2)
    return _three_linear(g, x, 7)


def alexnet(g: GraphBuilder) -> str:
    """Build AlexNet (arXiv 1404.5997)."""
    x = g.relu(g.conv(INPUT, "features.0", 64, 11, stride=4, padding=2), "features.1")
    x = g.relu(g.conv(g.pool(x, "features.2", "MaxPool", 3, 2), "features.3", 192, 5, padding=2), "features.4")
    x = g.pool(x, "features.5", "MaxPool", 3, 2)
    for i, channels in ((6, 384), (8, 256), (10, 256)):
        x = g.relu(g.conv(x, f"features.{i}", channels, 3, padding=1), f"features.{i + 1}")
    return _three_linear(g, g.pool(x, "features.12", "MaxPool", 3, 2), 6)


def _three_linear(g: GraphBuilder, x: str, size: int) -> str:
    """Average the map to `size` x `size` and add three linear layers."""
    height, width = g.shapes[x][1:]
    if height != width or height % size or not height:
        raise InputError(
            f"{g.name}: image size {format_size(g.shapes[INPUT][1:])}: the last map is {height}x{width} and has to be "
            f"a square of a multiple of {size}, as with 224x224"
        )
    x = g.flatten(g.pool(x, "avgpool", "AveragePool", height // size, height // size))
    for i in (1, 4):
        x = g.relu(g.gemm(x, f"classifier.{i}", 4096), f"classifier.{i + 1}")
    return g.classifier(x, "classifier.6")
