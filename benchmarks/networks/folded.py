"""ConvNeXt and ResNet as deployment graphs, folded and emitted by the code that folds and emits NeoNeXt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neonext_ms.export.fold import (
    Rule,
    batch_norm_into_conv,
    batch_norm_into_conv_after,
    channels_first,
    layer_norm_into_next,
    layer_norm_to_depthwise,
    layer_scale_into_conv,
)
from neonext_ms.export.graph import LOGITS, NCHW, NHWC, DeployGraph, LayerList

from .builder import BATCH_NORM_EPS, LAYER_NORM_EPS

RULES = (channels_first, batch_norm_into_conv, layer_norm_into_next, layer_norm_to_depthwise, layer_scale_into_conv)
# For 8 bit, the scales of LayerNorm stay, since they take the factors that even out the channels behind them.
INT8_RULES = (channels_first, batch_norm_into_conv, batch_norm_into_conv_after, layer_scale_into_conv)
_NORMS = {
    "layer_norm": (("weight", "bias"), LAYER_NORM_EPS),
    "batch_norm": (("weight", "bias", "running_mean", "running_var"), BATCH_NORM_EPS),
}


def fold(graph: DeployGraph, rules: Sequence[Rule] = RULES) -> DeployGraph:
    """Return the deployment form of a graph.

    BatchNorms are folded into the convolutions, the scales of LayerNorm and of the layer into the linear layers, and
    those become 1x1 convolutions.
    """
    for rule in rules:
        graph = rule(graph)
    return graph


def convnext(
    network: str,
    arrays: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    depths: tuple[int, ...],
    dims: tuple[int, ...],
    norm: str = "layer_norm",
) -> DeployGraph:
    """Return ConvNeXt (arXiv 2201.03545) node by node, from the arrays of its authors' code.

    `norm="batch_norm"` has BatchNorm in the place of every LayerNorm but that of the head.
    """
    b = LayerList(arrays)
    weights = ("weight", "bias")
    norm_arrays, norm_eps = _NORMS[norm]

    def add_norm(name: str) -> None:
        b.add(norm, name, norm_arrays, eps=norm_eps, axis=1)

    for stage, depth in enumerate(depths):
        name = f"downsample_layers.{stage}"
        if stage == 0:
            b.add("conv", f"{name}.0", weights, groups=1)
            add_norm(f"{name}.1")
        else:
            add_norm(f"{name}.0")
            b.add("conv", f"{name}.1", weights, groups=1)
        for block in range(depth):
            name, entry = f"stages.{stage}.{block}", b.value
            b.add("conv", f"{name}.dwconv", weights, groups=dims[stage], stride=1, padding=3)
            if norm == "batch_norm":
                add_norm(f"{name}.norm")
            b.add("transpose", f"{name}.permute", order=NHWC)
            if norm == "layer_norm":
                b.add("layer_norm", f"{name}.norm", weights, eps=LAYER_NORM_EPS)
            b.add("linear", f"{name}.pwconv1", weights)
            b.add("gelu", f"{name}.act")
            b.add("linear", f"{name}.pwconv2", weights)
            if f"{name}.gamma" in arrays:
                b.add("scale", name, ("gamma",), output=f"{name}.scaled", axis=-1)
            b.sum(f"{name}.add", b.add("transpose", f"{name}.permute_back", order=NCHW), entry)
    b.add("global_mean", "mean")
    b.add("layer_norm", "norm", weights, eps=LAYER_NORM_EPS)
    b.add("linear", "head", weights, output=LOGITS)
    return DeployGraph(tuple(b.layers), image_size, (LOGITS,), network)


def resnet(
    network: str,
    arrays: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    depths: tuple[int, ...],
    bottleneck: bool,
    groups: int = 1,
    base_width: int = 64,
) -> DeployGraph:
    """Return ResNet (arXiv 1512.03385) or ResNeXt (arXiv 1611.05431) node by node, from the arrays of torchvision.

    `base_width` is implied by the arrays.
    """
    b = LayerList(arrays)

    def conv(name: str, norm: str, stride: int, padding: int, groups: int = 1) -> str:
        b.add("conv", name, ("weight",), groups=groups, stride=stride, padding=padding)
        return b.add("batch_norm", norm, ("weight", "bias", "running_mean", "running_var"), eps=BATCH_NORM_EPS)

    conv("conv1", "bn1", 2, 3)
    b.add("relu", "relu")
    b.add("max_pool", "maxpool", kernel=3, stride=2, padding=1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name, entry = f"layer{stage + 1}.{block}", b.value
            stride = 2 if stage and not block else 1
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            for i, kernel in enumerate(kernels, 1):
                # The first 3x3 convolution is the one with the stride.
                step = stride if i == kernels.index(3) + 1 else 1
                branch = conv(f"{name}.conv{i}", f"{name}.bn{i}", step, kernel // 2, groups if kernel == 3 else 1)
                if i < len(kernels):
                    b.add("relu", f"{name}.relu{i}")
            if f"{name}.downsample.0.weight" in arrays:
                b.value = entry
                entry = conv(f"{name}.downsample.0", f"{name}.downsample.1", stride, 0)
            b.sum(f"{name}.add", branch, entry)
            b.add("relu", name)
    b.add("global_mean", "avgpool")
    b.add("linear", "fc", ("weight", "bias"), output=LOGITS)
    return DeployGraph(tuple(b.layers), image_size, (LOGITS,), network)
