"""Fold rules: each takes a `DeployGraph` and returns an equal one with fewer or cheaper layers.

A rule is one rewrite: a function from a chain of layers to the layers that replace it, or None where it does not
apply. Every rule is exact in real arithmetic, computes in float64 and stores float32. No rule changes its argument or
the arrays in it. `fold` applies `RULES` in order; docs/export.md lists them.

In the equations, BatchNorm in evaluation is `s x + t` for each channel, with `s = weight / sqrt(running_var + eps)`
and `t = bias - running_mean s`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from neonext_ms.models.activations import ACTIVATIONS

from .graph import NCHW, NHWC, DeployGraph, Layer, neocell_bias, neocell_weights

Rule = Callable[[DeployGraph], DeployGraph]
_ZERO = np.float32(0)
# Layers that `channels_first` moves from NHWC to NCHW, and the transpose that ends a run of them.
_ANY_LAYOUT = ("layer_norm", "linear", *ACTIVATIONS, "scale", "transpose")


@dataclass(frozen=True)
class FoldSummary:
    """The layers by kind before and after folding."""

    before: Mapping[str, int]
    after: Mapping[str, int]

    def removed(self, op: str) -> int:
        """Return how many layers of a kind were folded away."""
        return self.before.get(op, 0) - self.after.get(op, 0)

    def to_dict(self) -> dict[str, int]:
        """Return plain values for JSON."""
        return {
            "batch_norms": self.removed("batch_norm"),
            "layer_scales": self.removed("scale"),
            "neocells": self.removed("neocell"),
            "transposes": self.removed("transpose"),
            "layers_before": sum(self.before.values()),
            "layers_after": sum(self.after.values()),
        }


def rewrite(*ops: str) -> Callable[[Callable[..., list[Layer] | None]], Rule]:
    """Return a decorator that makes a rule of a rewrite, which is called with each chain of these kinds of layers."""

    def decorate(function: Callable[..., list[Layer] | None]) -> Rule:
        @functools.wraps(function)
        def rule(graph: DeployGraph) -> DeployGraph:
            changes = [(chain, function(*chain)) for chain in graph.chains(*ops)]
            return graph.replaced([(chain, layers) for chain, layers in changes if layers is not None])

        return rule

    return decorate


def channels_first(graph: DeployGraph) -> DeployGraph:
    """Turn linear layers between a transpose to NHWC and one back into 1x1 convolutions in NCHW.

    A linear layer over channels is a 1x1 convolution; an activation works on single numbers, a scale on whole channels.
    """
    consumers = graph.consumers()
    changes = []
    for start in graph.layers:
        run = _run_in_nhwc(graph, start, consumers)
        # At least one layer between two transposes; a run that ends otherwise needs its layout.
        if len(run) > 2 and run[-1].op == "transpose" and run[-1].attributes["order"] == NCHW:
            # Values inside keep their names in another layout; `neonext-compare` transposes them.
            inside = [_in_nchw(layer) for layer in run[1:-1]]
            inside[0] = replace(inside[0], inputs=start.inputs)
            inside[-1] = replace(inside[-1], output=run[-1].output)
            changes.append((run, inside))
    return graph.replaced(changes)


def _run_in_nhwc(graph: DeployGraph, start: Layer, consumers: Mapping[str, list[Layer]]) -> list[Layer]:
    """Return the layers from a transpose to NHWC up to the next transpose, as far as each has one reader."""
    if start.op != "transpose" or start.attributes["order"] != NHWC:
        return []
    run = [start]
    while run[-1].output not in graph.outputs:
        readers = consumers.get(run[-1].output, [])
        if len(readers) != 1 or readers[0].op not in _ANY_LAYOUT:
            break
        run.append(readers[0])
        if run[-1].op == "transpose":
            break
    return run


def _in_nchw(layer: Layer) -> Layer:
    if layer.op == "linear":
        arrays = {**layer.arrays, "weight": layer.arrays["weight"][:, :, None, None]}
        return replace(layer, op="conv", arrays=arrays, attributes={"groups": 1})
    if layer.op in ("scale", "layer_norm"):
        return replace(layer, attributes={**layer.attributes, "axis": 1})
    return layer


def is_pointwise(conv: Layer) -> bool:
    """Return whether a convolution is a linear layer on every pixel."""
    plain = not {"stride", "padding", "pads"} & set(conv.attributes)
    return plain and conv.attributes["groups"] == 1 and conv.arrays["weight"].shape[2:] == (1, 1)


@rewrite("space_to_depth", "conv")
def merge_stem(depth: Layer, conv: Layer) -> list[Layer] | None:
    """Merge space to depth (block p) and a 1x1 convolution into one p x p convolution with stride p."""
    p, weight = depth.attributes["block"], conv.arrays["weight"]
    if not is_pointwise(conv):
        return None
    # Space to depth orders its channels as (C, y, x), which is the order of a kernel already.
    patches = weight.reshape(weight.shape[0], -1, p, p)
    return [replace(conv, inputs=depth.inputs, arrays={**conv.arrays, "weight": patches})]


@rewrite("conv", "neocell")
def merge_downsample(conv: Layer, cell: Layer) -> list[Layer] | None:
    """Merge a 1x1 convolution without bias and a NeoCell (k -> 1) into one k x k convolution with stride k.

    `W[o, i, y, x] = L_o[y] R_o[x] w[o, i]`: as many multiply-adds as the 1x1 convolution alone.
    """
    kernel = _reduction_kernel(cell)
    # A bias of the convolution would be scaled by the sum of the kernel; the official model has none.
    if kernel is None or "bias" in conv.arrays or not is_pointwise(conv):
        return None
    return [replace(conv, output=cell.output, arrays=_arrays(_times(conv.arrays["weight"], kernel[:, None]), cell))]


@rewrite("neocell")
def reduction_to_depthwise(cell: Layer) -> list[Layer] | None:
    """Turn a NeoCell (k -> 1) into a depthwise k x k convolution with stride k: one node for two products and a bias.

    `L P R = sum over y, x of L[y] R[x] P[y, x]` for each patch P.
    """
    kernel = _reduction_kernel(cell)
    if kernel is None:
        return None
    arrays = _arrays(_float32(kernel[:, None]), cell)
    return [replace(cell, op="conv", arrays=arrays, attributes={"groups": len(kernel)})]


def _reduction_kernel(cell: Layer) -> np.ndarray | None:
    """Return `L[y] R[x]`, float64 `(channels, h_in, w_in)`, of a NeoCell (k -> 1), or None for any other."""
    sizes = {(group.h_in, group.h_out, group.w_in, group.w_out) for group in cell.attributes["spec"].groups}
    # One convolution has one kernel size, so all groups must agree.
    if len(sizes) != 1 or next(iter(sizes))[1::2] != (1, 1):
        return None
    left, right = (np.concatenate(side).astype(np.float64) for side in neocell_weights(cell))
    return left[:, 0, :, None] * right[:, None, :, 0]


def _arrays(weight: np.ndarray, cell: Layer) -> dict[str, np.ndarray]:
    """Return the arrays of the convolution that a NeoCell (k -> 1) becomes: its output patches are single values."""
    bias = neocell_bias(cell)
    if isinstance(bias, list):
        bias = np.concatenate(bias)[:, 0, 0]
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


@rewrite("conv", "batch_norm")
def batch_norm_into_conv(conv: Layer, norm: Layer) -> list[Layer]:
    """Fold BatchNorm into the convolution before it: `s (W x + b) + t = (s W) x + (s b + t)`."""
    scale, shift = _affine(norm)
    arrays = {
        "weight": _times(conv.arrays["weight"], scale[:, None, None, None]),
        "bias": _float32(conv.arrays.get("bias", _ZERO) * scale + shift),
    }
    return [replace(conv, output=norm.output, arrays=arrays)]


@rewrite("neocell", "batch_norm", "conv")
def batch_norm_into_next(cell: Layer, norm: Layer, conv: Layer) -> list[Layer] | None:
    """Fold BatchNorm into the 1x1 convolution after it: `W (s x + t) + b = (W diag(s)) x + (b + W t)`.

    Forward, not into the NeoCell before it: a NeoCell with a bias would need one more node.
    """
    # Padding would let zeros, which have no shift, into the sum.
    if not is_pointwise(conv):
        return None
    weight = conv.arrays["weight"]
    scale, shift = _affine(norm)
    arrays = {
        "weight": _times(weight, scale[:, None, None]),
        "bias": _float32(conv.arrays.get("bias", _ZERO) + weight[:, :, 0, 0] @ shift),
    }
    # The value behind BatchNorm no longer exists; the one before it keeps its name.
    return [cell, replace(conv, inputs=(cell.output,), arrays=arrays)]


@rewrite("neocell", "batch_norm")
def batch_norm_into_neocell(cell: Layer, norm: Layer) -> list[Layer]:
    """Fold BatchNorm into the NeoCell before it: `s (L X R + b) + t = (s L) X R + (s b + t)`."""
    scale, shift = _affine(norm)
    arrays, by_patch = dict(cell.arrays), isinstance(neocell_bias(cell), list)
    for i, (_, channels) in enumerate(cell.attributes["spec"].slices()):
        own_scale, own_shift = (values[channels, None, None] for values in (scale, shift))
        arrays[f"weight_a.{i}"] = _times(arrays[f"weight_a.{i}"], own_scale)
        if by_patch:
            arrays[f"bias.{i}"] = _float32(arrays[f"bias.{i}"] * own_scale + own_shift)
    if not by_patch:
        arrays["bias"] = _float32(arrays.get("bias", _ZERO) * scale + shift)
    return [replace(cell, output=norm.output, arrays=arrays)]


@rewrite("conv", "scale")
def layer_scale_into_conv(conv: Layer, scale: Layer) -> list[Layer]:
    """Fold a layer scale into the convolution before it: `g (W x + b) = (g W) x + g b`."""
    gamma = scale.arrays["gamma"].astype(np.float64)
    arrays = {key: _times(array, _on_axis_0(gamma, array)) for key, array in conv.arrays.items()}
    return [replace(conv, output=scale.output, arrays=arrays)]


@rewrite("layer_norm", "conv|linear")
def layer_norm_into_next(norm: Layer, layer: Layer) -> list[Layer] | None:
    """Fold the scale g and shift c of a LayerNorm into the linear layer or unpadded convolution after it.

    `W (g n + c) + b = (W diag(g)) n + (b + W c)`, with the kernel summed in `W c`.
    """
    attributes = layer.attributes
    # As in `batch_norm_into_next`, the shift must not be missing at the border of the map.
    if "weight" not in norm.arrays or attributes.get("groups", 1) != 1 or {"padding", "pads"} & set(attributes):
        return None
    weight = layer.arrays["weight"]
    scale, shift = (norm.arrays[key].astype(np.float64) for key in ("weight", "bias"))
    summed = weight.reshape(*weight.shape[:2], -1).sum(2, np.float64)
    arrays = {
        "weight": _times(weight, _on_axis_0(scale, weight[0])),
        "bias": _float32(layer.arrays.get("bias", _ZERO) + summed @ shift),
    }
    return [replace(norm, arrays={}), replace(layer, arrays=arrays)]


@rewrite("batch_norm", "conv")
def batch_norm_into_conv_after(norm: Layer, conv: Layer) -> list[Layer] | None:
    """Fold BatchNorm into the unpadded convolution after it: `W (s x + t) + b = (W diag(s)) x + (b + W t)`.

    The kernel is summed in `W t`. It is for a BatchNorm behind a sum; those behind a NeoCell have rules of their own.
    """
    if conv.attributes["groups"] != 1 or {"padding", "pads"} & set(conv.attributes):
        return None
    weight = conv.arrays["weight"]
    scale, shift = _affine(norm)
    arrays = {
        "weight": _times(weight, scale[:, None, None]),
        "bias": _float32(conv.arrays.get("bias", _ZERO) + weight.sum((2, 3), np.float64) @ shift),
    }
    return [replace(conv, inputs=norm.inputs, arrays=arrays)]


@rewrite("layer_norm")
def layer_norm_to_depthwise(norm: Layer) -> list[Layer] | None:
    """Write the scale and shift of a LayerNorm over channels as a depthwise 1x1 convolution after it.

    Several layers may read the result; onnxruntime then keeps it in the blocked layout of its convolutions.
    """
    if norm.attributes.get("axis", -1) != 1 or "weight" not in norm.arrays:
        return None
    plain = replace(norm, arrays={}, output=f"{norm.name}.plain")
    arrays = {"weight": norm.arrays["weight"][:, None, None, None], "bias": norm.arrays["bias"]}
    groups = {"groups": len(arrays["bias"])}
    return [plain, Layer("conv", f"{norm.name}.affine", (plain.output,), norm.output, arrays, groups)]


def _affine(norm: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return BatchNorm in evaluation as float64 scale s and shift t of `s x + t`."""
    arrays = {key: array.astype(np.float64) for key, array in norm.arrays.items()}
    scale = arrays["weight"] / np.sqrt(arrays["running_var"] + norm.attributes["eps"])
    return scale, arrays["bias"] - arrays["running_mean"] * scale


def _on_axis_0(values: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Return one value for each row of an array, in a shape that multiplies the array."""
    return values.reshape(-1, *[1] * (array.ndim - 1))


def _times(array: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return `array * factor`, computed in float64 and rounded once to float32."""
    out = np.empty(np.broadcast_shapes(array.shape, factor.shape), np.float32)
    # With `out`, NumPy casts block by block; a float64 copy of all weights would double the memory of an export.
    return np.multiply(array, factor, out=out, dtype=np.float64, casting="same_kind")


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


RULES: tuple[Rule, ...] = (
    # Layouts first, so that every other rule sees convolutions only,
    channels_first,
    # then convolutions that absorb their neighbours,
    merge_stem,
    merge_downsample,
    # then BatchNorm: backward into a convolution, forward where a convolution follows, into the NeoCell otherwise.
    batch_norm_into_conv,
    batch_norm_into_next,
    batch_norm_into_neocell,
    # After BatchNorm, so that the convolution has its bias.
    reduction_to_depthwise,
    layer_scale_into_conv,
)


def fold(graph: DeployGraph) -> tuple[DeployGraph, FoldSummary]:
    """Return the deployment graph of a network and what was folded; NeoCells that remain are still NeoCells."""
    before = Counter(layer.op for layer in graph.layers)
    for rule in RULES:
        graph = rule(graph)
    return graph, FoldSummary(before, Counter(layer.op for layer in graph.layers))
