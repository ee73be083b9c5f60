"""Networks with LayerNorm or GELU: ConvNeXt, ConvNeXt V2, ConvMixer, the vision transformer and Swin."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.export.graph import INPUT, NCHW, NHWC

from .builder import GraphBuilder

# Mean of random layer scales; those of a trained network lie between 0.01 and 1.
_LAYER_SCALE = 0.3
# Scale of ConvMixer's BatchNorms: below, all images come to the same values; above, values grow with depth.
_MIXER_NORM = 0.8


def convnext(g: GraphBuilder, depths: tuple[int, ...], dims: tuple[int, ...]) -> str:
    """Build ConvNeXt (arXiv 2201.03545) as its authors' code exports.

    The linear layers of a block lie channels last between two transposes; the LayerNorms of stem and downsampling
    normalise over axis 1.
    """
    return _convnext(g, depths, dims, 1)


def convnext_v2(g: GraphBuilder, depths: tuple[int, ...], dims: tuple[int, ...]) -> str:
    """Build ConvNeXt V2 (arXiv 2301.00808): no layer scale, global response normalisation between the linear layers."""
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
    """Add `gamma * (x * N) + beta + x`, where N is the channels' norms over the map relative to their mean."""
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
    """Build ConvMixer (arXiv 2201.09792), whose BatchNorm follows GELU and cannot be folded."""
    x = g.batch_norm(g.gelu(g.conv(INPUT, "0", dim, patch, stride=patch), "1"), "2")
    for i in range(3, 3 + depth):
        y = g.conv(x, f"{i}.0.fn.0", dim, kernel, padding=kernel // 2, groups=dim)
        y = g.batch_norm(g.gelu(y, f"{i}.0.fn.1"), f"{i}.0.fn.2", _MIXER_NORM)
        x = g.add(y, x, f"{i}.0")
        x = g.batch_norm(g.gelu(g.conv(x, f"{i}.1", dim), f"{i}.2"), f"{i}.3", _MIXER_NORM)
    return g.pooled_classifier(x, "fc")


def vit(g: GraphBuilder, dim: int, depth: int, heads: int, patch: int) -> str:
    """Build a vision transformer (arXiv 2010.11929) with timm's attention: one product for q, k, v, split by Gather."""
    x = g.conv(INPUT, "patch_embed.proj", dim, patch, stride=patch)
    count = math.prod(g.shapes[x][1:])
    x = g.transpose(g.reshape(x, "patch_embed.flatten", (dim, count)), "patch_embed", (0, 2, 1))
    x = g.concat([_class_token(g, x, dim), x], "tokens")
    x = g.node("Add", [x, g.parameter("pos_embed", (1, count + 1, dim))], "embedded", (count + 1, dim))
    for i in range(depth):
        name = f"blocks.{i}"
        x = g.add(x, _attention(g, g.layer_norm(x, f"{name}.norm1"), f"{name}.attn", heads), f"{name}.add")
        x = _mlp(g, x, name)
    x = g.node("Gather", [g.layer_norm(x, "norm"), g.constant("first", 0, np.int64)], "class", (dim,), axis=1)
    return g.classifier(x, "head")


def _mlp(g: GraphBuilder, x: str, name: str) -> str:
    dim = g.shapes[x][-1]
    y = g.gelu(g.linear(g.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1", 4 * dim), f"{name}.mlp.act")
    return g.add(x, g.linear(y, f"{name}.mlp.fc2", dim, gain=0.5), name)


def _class_token(g: GraphBuilder, x: str, dim: int) -> str:
    if g.batch is not None:
        g.parameters += dim
        g.shapes["cls_token"] = (1, dim)
        return g.tensor("cls_token", (g.batch, 1, dim), lambda: g.weights.vector("cls_token", dim))
    token = g.parameter("cls_token", (1, 1, dim))
    shape = g.node("Shape", [x], "tokens.shape", ())
    batch = g.node("Gather", [shape, g.constant("first_of_one", [0], np.int64)], "tokens.batch", (), axis=0)
    target = g.node("Concat", [batch, g.constant("token_shape", [1, dim], np.int64)], "tokens.target", (), axis=0)
    return g.node("Expand", [token, target], "cls_token.expanded", (1, dim))


def _attention(
    g: GraphBuilder, x: str, name: str, heads: int, adjust: Callable[[str], str] = lambda scores: scores
) -> str:
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
    score = g.node("Mul", [score, g.constant(f"scale_{size}", size**-0.5)], f"{name}.scaled", (heads, count, count))
    score = g.node("Softmax", [adjust(score)], f"{name}.softmax", (heads, count, count), axis=3)
    y = g.node("MatMul", [score, v], f"{name}.mixed", (heads, count, size))
    y = g.reshape(g.transpose(y, f"{name}.heads", (0, 2, 1, 3)), f"{name}.merged", (count, dim))
    return g.linear(y, f"{name}.proj", dim, gain=0.5)


def swin(g: GraphBuilder, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int) -> str:
    """Build a Swin transformer (arXiv 2103.14030) as its authors' code exports, for maps that the windows divide."""
    x = g.conv(INPUT, "patch_embed.proj", dim, 4, stride=4)
    _, height, width = g.shapes[x]
    x = g.transpose(g.reshape(x, "patch_embed.flatten", (dim, height * width)), "patch_embed", (0, 2, 1))
    x = g.layer_norm(x, "patch_embed.norm")
    for stage, depth in enumerate(depths):
        if min(height, width) < window or height % window or width % window:
            raise InputError(
                f"{g.name}: the map of stage {stage + 1} is {height}x{width}; its sides have to be multiples of "
                f"{window}, as with 224x224"
            )
        for block in range(depth):
            # A window as large as the map cannot be shifted.
            shift = window // 2 if block % 2 and min(height, width) > window else 0
            x = _swin_block(g, x, f"layers.{stage}.{block}", (height, width), heads[stage], window, shift)
        if stage < len(depths) - 1:
            if height % 2 or width % 2:
                raise InputError(f"{g.name}: the map of stage {stage + 1} is {height}x{width} and cannot be halved")
            x = _patch_merging(g, x, f"layers.{stage}.downsample", (height, width))
            height, width = height // 2, width // 2
    x = g.transpose(g.layer_norm(x, "norm"), "channels_first", (0, 2, 1))
    x = g.node("GlobalAveragePool", [x], "avgpool", (g.shapes[x][0], 1))
    return g.classifier(g.flatten(x), "head")


def _patch_merging(g: GraphBuilder, x: str, name: str, size: tuple[int, int]) -> str:
    (height, width), channels = size, g.shapes[x][-1]
    x = g.reshape(x, f"{name}.map", (height, width, channels))
    parts = []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        part = g.slice(x, f"{name}.rows{row}{column}", 1, row, height, 2)
        parts.append(g.slice(part, f"{name}.part{row}{column}", 2, column, width, 2))
    x = g.reshape(g.concat(parts, f"{name}.concat", 3), f"{name}.flat", (height * width // 4, 4 * channels))
    return g.linear(g.layer_norm(x, f"{name}.norm"), f"{name}.reduction", 2 * channels, gain=1.0, bias=False)


def _rolled(g: GraphBuilder, x: str, name: str, shift: int) -> str:
    """Move rows and columns up and left by `shift`, around the edge."""
    for axis, side in ((1, "rows"), (2, "columns")):
        size = g.shapes[x][axis - 1]
        cut = shift % size
        tail = g.slice(x, f"{name}.{side}.tail", axis, cut, size)
        head = g.slice(x, f"{name}.{side}.head", axis, 0, cut)
        x = g.concat([tail, head], f"{name}.{side}", axis)
    return x


def _swin_block(g: GraphBuilder, x: str, name: str, size: tuple[int, int], heads: int, window: int, shift: int) -> str:
    (height, width), channels, area = size, g.shapes[x][-1], window * window
    rows, columns = height // window, width // window
    y = g.reshape(g.layer_norm(x, f"{name}.norm1"), f"{name}.map", (height, width, channels))
    if shift:
        y = _rolled(g, y, f"{name}.roll", shift)
    y = g.reshape(y, f"{name}.split", (rows, window, columns, window, channels))
    y = g.transpose(y, f"{name}.swapped", (0, 1, 3, 2, 4, 5))
    y = g.reshape(y, f"{name}.windows", (area, channels), batch=-1)

    def adjust(scores: str) -> str:
        # The table of (2 w - 1)^2 offsets is gathered into this array when the network is exported.
        g.parameters += (2 * window - 1) ** 2 * heads
        key, shape = f"{name}.attn.bias", (1, heads, area, area)
        bias = g.tensor(key, shape, lambda: g.weights.vector(key, heads * area * area).reshape(shape))
        scores = g.node("Add", [scores, bias], f"{name}.attn.biased", (heads, area, area))
        if not shift:
            return scores
        split = (rows * columns, heads, area, area)
        scores = g.reshape(scores, f"{name}.attn.by_window", split, batch=-1)
        values = _swin_mask((height, width), window, shift)
        mask = g.tensor(f"{name}.attn.mask", values.shape, lambda: values)
        scores = g.node("Add", [scores, mask], f"{name}.attn.masked", split)
        return g.reshape(scores, f"{name}.attn.again", (heads, area, area), batch=-1)

    y = _attention(g, y, f"{name}.attn", heads, adjust)
    y = g.reshape(y, f"{name}.joined", (rows, columns, window, window, channels), batch=-1)
    y = g.transpose(y, f"{name}.swapped_back", (0, 1, 3, 2, 4, 5))
    y = g.reshape(y, f"{name}.whole", (height, width, channels))
    if shift:
        y = _rolled(g, y, f"{name}.roll_back", -shift)
    x = g.add(x, g.reshape(y, f"{name}.tokens", (height * width, channels)), f"{name}.add")
    return _mlp(g, x, name)


def _swin_mask(size: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Return -100 between pixels of a shifted window that are no neighbours in the image: (1, windows, 1, w^2, w^2)."""
    # Along each side: complete windows, the rest of the last one, what came around the edge.
    sides = [np.digitize(np.arange(n), (n - window, n - shift)) for n in size]
    regions = 3 * sides[0][:, None] + sides[1][None]
    regions = regions.reshape(size[0] // window, window, size[1] // window, window).transpose(0, 2, 1, 3)
    regions = regions.reshape(-1, window * window)
    return np.where(regions[:, :, None] == regions[:, None], 0.0, -100.0).astype(np.float32)[None, :, None]
