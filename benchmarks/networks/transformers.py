"""Networks with LayerNorm or GELU: ConvNeXt, ConvNeXt V2, ConvMixer and the vision transformer."""

from __future__ import annotations

import math

import numpy as np

from ...export.graph import INPUT, NCHW, NHWC
from .builder import GraphBuilder

# The mean of random layer scales; a trained network's lie between 0.01 and 1.
_LAYER_SCALE = 0.3
# What ConvMixer's BatchNorms are scaled by: below, all images come to the same values; above, values grow with depth.
_MIXER_NORM = 0.8


def convnext(g: GraphBuilder, depths: tuple[int, ...], dims: tuple[int, ...]) -> str:
    """ConvNeXt (arXiv 2201.03545) as its authors' code exports.

    The linear layers of a block lie channels last between two transposes; the LayerNorms of stem and downsampling
    normalise over axis 1.
    """
    return _convnext(g, depths, dims, 1)


def convnext_v2(g: GraphBuilder, depths: tuple[int, ...], dims: tuple[int, ...]) -> str:
    """ConvNeXt V2 (arXiv 2301.00808): no layer scale, and a global response normalisation between the linear layers."""
    return _convnext(g, depths, dims, 2)


def _convnext(g: GraphBuilder, depths: tuple[int, ...], dims: tuple[int, ...], version: int) -> str:
    x = INPUT
    for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        name = f"downsample_layers.{stage}"
        if stage == 0:
            x = g.layer_norm(g.conv(x, f"{name}.0", dim, 4, stride=4), f"{name}.1", axis=1)
        else:
            x = g.conv(g.layer_norm(x, f"{name}.0", axis=1), f"{name}.1", dim, 2, stride=2)
        for block in range(depth):
            x = _convnext_block(g, x, f"stages.{stage}.{block}", version)
    x = g.node("ReduceMean", [x], "mean", g.shapes[x][:1], axes=[2, 3], keepdims=0)
    return g.classifier(g.layer_norm(x, "norm"), "head")


def _convnext_block(g: GraphBuilder, x: str, name: str, version: int) -> str:
    channels = g.shapes[x][0]
    y = g.conv(x, f"{name}.dwconv", channels, 7, padding=3, groups=channels)
    y = g.layer_norm(g.transpose(y, f"{name}.permute", NHWC), f"{name}.norm")
    y = g.gelu(g.linear(y, f"{name}.pwconv1", 4 * channels), f"{name}.act")
    if version == 2:
        y = _response_norm(g, y, f"{name}.grn")
    y = g.linear(y, f"{name}.pwconv2", channels, gain=1.0)
    if version == 1:
        gamma = g.parameter(f"{name}.gamma", channels, _LAYER_SCALE)
        y = g.node("Mul", [gamma, y], f"{name}.scaled", g.shapes[y])
    return g.add(x, g.transpose(y, f"{name}.permute_back", NCHW), name)


def _response_norm(g: GraphBuilder, x: str, name: str) -> str:
    """`gamma * (x * N) + beta + x`, N the channels' norms over the map relative to their mean."""
    channels = g.shapes[x][-1]
    norm = g.node("ReduceL2", [x], f"{name}.norm", (1, 1, channels), axes=[1, 2], keepdims=1)
    mean = g.node("ReduceMean", [norm], f"{name}.mean", (1, 1, 1), axes=[-1], keepdims=1)
    mean = g.node("Add", [mean, g.constant("eps_1e-06", 1e-6)], f"{name}.stable", (1, 1, 1))
    ratio = g.node("Div", [norm, mean], f"{name}.ratio", (1, 1, channels))
    y = g.node("Mul", [x, ratio], f"{name}.weighted", g.shapes[x])
    y = g.node("Mul", [g.parameter(f"{name}.gamma", (1, 1, 1, channels)), y], f"{name}.scaled", g.shapes[x])
    y = g.node("Add", [y, g.parameter(f"{name}.beta", (1, 1, 1, channels))], f"{name}.shifted", g.shapes[x])
    return g.add(y, x, name)


def convmixer(g: GraphBuilder, dim: int, depth: int, kernel: int, patch: int) -> str:
    """ConvMixer (arXiv 2201.09792): BatchNorm behind GELU, which no convolution can take in."""
    x = g.batch_norm(g.gelu(g.conv(INPUT, "0", dim, patch, stride=patch), "1"), "2")
    for i in range(3, 3 + depth):
        y = g.conv(x, f"{i}.0.fn.0", dim, kernel, padding=kernel // 2, groups=dim)
        y = g.batch_norm(g.gelu(y, f"{i}.0.fn.1"), f"{i}.0.fn.2", _MIXER_NORM)
        x = g.add(y, x, f"{i}.0")
        x = g.batch_norm(g.gelu(g.conv(x, f"{i}.1", dim), f"{i}.2"), f"{i}.3", _MIXER_NORM)
    return g.pooled_classifier(x, "fc")


def vit(g: GraphBuilder, dim: int, depth: int, heads: int, patch: int) -> str:
    """Vision transformer (arXiv 2010.11929) with timm's attention: one product for q, k and v, split by Gather."""
    x = g.conv(INPUT, "patch_embed.proj", dim, patch, stride=patch)
    count = math.prod(g.shapes[x][1:])
    x = g.transpose(g.reshape(x, "patch_embed.flatten", (dim, count)), "patch_embed", (0, 2, 1))
    x = g.node("Concat", [_class_token(g, x, dim), x], "tokens", (count + 1, dim), axis=1)
    x = g.node("Add", [x, g.parameter("pos_embed", (1, count + 1, dim))], "embedded", (count + 1, dim))
    for i in range(depth):
        name = f"blocks.{i}"
        x = g.add(x, _attention(g, g.layer_norm(x, f"{name}.norm1"), f"{name}.attn", heads), f"{name}.add")
        y = g.gelu(g.linear(g.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1", 4 * dim), f"{name}.mlp.act")
        x = g.add(x, g.linear(y, f"{name}.mlp.fc2", dim, gain=0.5), name)
    x = g.node("Gather", [g.layer_norm(x, "norm"), g.constant("first", 0, np.int64)], "class", (dim,), axis=1)
    return g.classifier(x, "head")


def _class_token(g: GraphBuilder, x: str, dim: int) -> str:
    if g.batch is not None:
        g.parameters += dim
        return g.tensor("cls_token", (g.batch, 1, dim), lambda: g.weights.vector("cls_token", dim))
    token = g.parameter("cls_token", (1, 1, dim))
    shape = g.node("Shape", [x], "tokens.shape", ())
    batch = g.node("Gather", [shape, g.constant("first_of_one", [0], np.int64)], "tokens.batch", (), axis=0)
    target = g.node("Concat", [batch, g.constant("token_shape", [1, dim], np.int64)], "tokens.target", (), axis=0)
    return g.node("Expand", [token, target], "cls_token.expanded", (1, dim))


def _attention(g: GraphBuilder, x: str, name: str, heads: int) -> str:
    count, dim = g.shapes[x]
    size = dim // heads
    qkv = g.linear(x, f"{name}.qkv", 3 * dim, gain=1.0)
    qkv = g.reshape(qkv, f"{name}.split", (count, 3, heads, size))
    # The batch axis is the second one here, so shapes are written without following it.
    qkv = g.node("Transpose", [qkv], f"{name}.parts", (heads, count, size), perm=[2, 0, 3, 1, 4])
    q, k, v = (
        g.node("Gather", [qkv, g.constant(f"part_{i}", i, np.int64)], f"{name}.{part}", (heads, count, size), axis=0)
        for i, part in enumerate("qkv")
    )
    k = g.node("Transpose", [k], f"{name}.k_t", (heads, size, count), perm=[0, 1, 3, 2])
    score = g.node("MatMul", [q, k], f"{name}.scores", (heads, count, count))
    score = g.node("Mul", [score, g.constant("scale", size**-0.5)], f"{name}.scaled", (heads, count, count))
    score = g.node("Softmax", [score], f"{name}.softmax", (heads, count, count), axis=3)
    y = g.node("MatMul", [score, v], f"{name}.mixed", (heads, count, size))
    y = g.reshape(g.transpose(y, f"{name}.heads", (0, 2, 1, 3)), f"{name}.merged", (count, dim))
    return g.linear(y, f"{name}.proj", dim, gain=0.5)
