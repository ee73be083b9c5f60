"""The quantized graph: a folded graph whose convolutions and linear layers compute in 8 bit.

One rule says which layers can be quantized: every convolution of one group and every linear layer, which are the stem,
fc_1, fc_2, the downsampling and the classifier. NeoCells, GELUs, the LayerNorm of the head and the residual stream stay
in floating point. The weights of a layer have one scale for each output channel and no offset; its input has one
quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from neonext_ms.common.errors import InputError

from ..graph import DeployGraph, Layer
from .quantizer import HIGHEST, Quantizer
from .scales import LayerScale, Scales

_OPS = {"conv": "conv_int8", "linear": "linear_int8"}
# A bias is an int32 in steps of the accumulator; the sum of the products needs the rest of its range.
_MAX_BIAS = 2.0**30


def quantizable(graph: DeployGraph) -> list[Layer]:
    """Return the layers of a folded graph that can compute in 8 bit."""
    return [
        layer
        for layer in graph.layers
        if layer.op == "linear" or (layer.op == "conv" and layer.attributes["groups"] == 1)
    ]


def equalizable(graph: DeployGraph) -> dict[str, Layer]:
    """Return the layers whose input channels can be scaled exactly, by name, with the layer that makes the input.

    A NeoCell mixes no channels, and a LayerNorm ends in a scale for each channel: a factor moves from either into the
    columns of the layer behind it.
    """
    names = {layer.name for layer in quantizable(graph)}
    chains = graph.chains("neocell|layer_norm", "conv|linear")
    return {layer.name: before for before, layer in chains if layer.name in names and before.arrays}


def equalize(graph: DeployGraph, exponents: Mapping[str, Sequence[int]]) -> DeployGraph:
    """Return an equal graph with the input channels of some layers divided by powers of two.

    `W x = (W diag(2^e)) (diag(2^-e) x)`; the division is folded into the NeoCell or LayerNorm that makes x. Powers of
    two only change exponents, so that the graphs are equal in float32, not only in real arithmetic.

    Args:
        graph: folded graph.
        exponents: e for each input channel, by the name of the layer.
    """
    makers, changes = equalizable(graph), []
    for layer in graph.layers:
        powers = exponents.get(layer.name)
        if powers is None or layer.name not in makers or not any(powers):
            continue
        factor = np.exp2(np.asarray(powers, np.float32))
        weight = layer.arrays["weight"]
        columns = factor.reshape(-1, *[1] * (weight.ndim - 2))
        maker = _scaled_maker(makers[layer.name], 1 / factor)
        scaled = replace(layer, arrays={**layer.arrays, "weight": weight * columns})
        changes.append(([makers[layer.name], layer], [maker, scaled]))
    return graph.replaced(changes)


def _scaled_maker(layer: Layer, factor: np.ndarray) -> Layer:
    """Return a NeoCell or LayerNorm whose output channels are multiplied by powers of two."""
    arrays = dict(layer.arrays)
    if layer.op == "layer_norm":
        return replace(layer, arrays={key: array * factor for key, array in arrays.items()})
    for i, (_, channels) in enumerate(layer.attributes["spec"].slices()):
        arrays[f"weight_a.{i}"] = arrays[f"weight_a.{i}"] * factor[channels, None, None]
    if "bias" in arrays:
        arrays["bias"] = arrays["bias"] * factor
    return replace(layer, arrays=arrays)


def quantize(graph: DeployGraph, scales: Scales) -> DeployGraph:
    """Return the quantized graph of a folded graph.

    Args:
        graph: folded graph with its NeoCells as NeoCells.
        scales: quantizers of the layers; a layer without one stays in floating point.

    Raises:
        InputError: scales of another network.
    """
    scales.check_network(quantizable(graph))
    graph = equalize(graph, {name: layer.exponents for name, layer in scales.layers.items()})
    changes = [
        ([layer], [quantize_layer(layer, scales.layers[layer.name])])
        for layer in quantizable(graph)
        if layer.name in scales.layers
    ]
    return graph.replaced(changes)


def quantize_layer(layer: Layer, scale: LayerScale) -> Layer:
    """Return a convolution or linear layer in 8 bit.

    Its arrays are `weight` int8, `bias` int32 in steps of the accumulator, and `step` float32, the size of these steps
    for each output channel; its attributes have the `quantizer` of its input.
    """
    weight = layer.arrays["weight"].astype(np.float64)
    bias = np.asarray(layer.arrays.get("bias", np.zeros(len(weight))), np.float64)
    steps = weight_steps(weight, bias, scale.quantizer)
    codes = np.clip(np.rint(weight / steps.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))), -HIGHEST, HIGHEST)
    step = accumulator_steps(scale.quantizer, steps)
    accumulated = np.rint(bias / step.astype(np.float64))
    if scale.correction:
        accumulated += np.asarray(scale.correction, np.float64)
    if np.abs(accumulated).max(initial=0) > 2**31 - 1:
        raise InputError(f"{layer.name}: its bias does not fit into 32 bits. Leave it out with --quantize-skip.")
    arrays = {
        "weight": codes.astype(np.int8),
        "bias": accumulated.astype(np.int32),
        "step": step,
        "weight_step": steps,
    }
    attributes = {**layer.attributes, "quantizer": scale.quantizer}
    return replace(layer, op=_OPS[layer.op], arrays=arrays, attributes=attributes)


def weight_steps(weight: np.ndarray, bias: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """Return the step of the weights of each output channel, float32 `(C_out,)`.

    The largest weight of a channel becomes 127 or -127, unless the channel's bias would then be over 2^30 steps of the
    accumulator, as for a channel without weights.
    """
    largest = np.abs(weight).max(tuple(range(1, weight.ndim))) / HIGHEST
    steps = np.maximum(largest, np.abs(bias) / (quantizer.scale * _MAX_BIAS))
    return np.where(steps > 0, steps, 1.0).astype(np.float32)


def accumulator_steps(quantizer: Quantizer, weight_step: np.ndarray) -> np.ndarray:
    """Return the size of a step of the int32 accumulator for each output channel, float32."""
    return np.float32(quantizer.scale) * weight_step
