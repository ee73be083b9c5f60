"""The quantized graph: a folded graph whose convolutions and linear layers compute in 8 bit.

One rule says which layers can be quantized: every convolution of one group and every linear layer, which are the stem,
fc_1, fc_2, the downsampling and the classifier. NeoCells, GELUs, the LayerNorm of the head and the residual stream stay
in floating point. The weights of a layer have one scale for each output channel and no offset; its input has one
quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.models.activations import HOMOGENEOUS
from neonext_ms.models.quantizer import MAX_BIAS, Quantizer, largest_weight, least_step
from neonext_ms.models.scales import LayerScale, Scales

from ..graph import DeployGraph, Layer

_OPS = {"conv": "conv_int8", "linear": "linear_int8"}


def quantizable(graph: DeployGraph) -> list[Layer]:
    """Return the layers of a folded graph that can compute in 8 bit."""
    return [
        layer
        for layer in graph.layers
        if layer.op == "linear" or (layer.op == "conv" and layer.attributes["groups"] == 1)
    ]


def quantizable_shapes(graph: DeployGraph) -> dict[str, tuple[int, ...]]:
    """Return the shape of the weight of each layer of `quantizable`, by its name."""
    return {layer.name: layer.arrays["weight"].shape for layer in quantizable(graph)}


@dataclass(frozen=True)
class Equalizable:
    """The input of a layer whose channels can be scaled exactly.

    Attributes:
        layers: layers that absorb the scaling, besides the columns of the layer itself.
        values: values that are scaled.
    """

    layers: tuple[Layer, ...]
    values: tuple[str, ...]


def equalizable(graph: DeployGraph) -> dict[str, Equalizable]:
    """Return the layers whose input channels can be scaled exactly, by name.

    A NeoCell mixes no channels, nor does a depthwise convolution, and a LayerNorm ends in a scale for each channel, so
    a factor moves from any of them into the columns of the layer behind it. The stream of a stage can be scaled as a
    whole: the convolutions that write to it, the stem or a downsampling and every fc_2, absorb a factor in their rows,
    the NeoCells that read it undo it. Positive factors pass through ReLU and LeakyReLU, `relu(f x) = f relu(x)`, so
    fc_1 absorbs those of the input of fc_2.
    """
    consumers = graph.consumers()
    makers = {layer.output: layer for layer in graph.layers}
    found: dict[str, Equalizable] = {}
    for layer in quantizable(graph):
        maker = makers.get(layer.inputs[0])
        alone = consumers[layer.inputs[0]] == [layer] and layer.inputs[0] not in graph.outputs
        if maker is not None and (_by_channel(maker) or maker.op == "layer_norm") and maker.arrays and alone:
            # A NeoCell is written as two products and a bias, whose values have these names.
            parts = (f"{maker.name}.left", f"{maker.name}.right") if maker.op == "neocell" else ()
            found[layer.name] = Equalizable((maker,), (maker.output, *parts))
        elif maker is not None and maker.op in HOMOGENEOUS and alone:
            before = makers.get(maker.inputs[0])
            if before is None or before.op != "conv" or before.output in graph.outputs:
                continue
            if consumers[before.output] == [maker]:
                found[layer.name] = Equalizable((before,), (maker.output, before.output))
        elif maker is not None and maker.op in ("add", "conv"):
            stream = _stream(graph, layer, makers, consumers)
            if stream is not None:
                found[layer.name] = stream
    return found


def _by_channel(layer: Layer) -> bool:
    """Return whether a layer mixes no channels and has weights for each: a NeoCell or a depthwise convolution."""
    return layer.op == "neocell" or (
        layer.op == "conv" and 1 < layer.attributes["groups"] == len(layer.arrays["weight"])
    )


def _stream(
    graph: DeployGraph, reader: Layer, makers: Mapping[str, Layer], consumers: Mapping[str, list[Layer]]
) -> Equalizable | None:
    """Return the stream that a layer reads and the layers that write and read it; None if any of these cannot absorb.

    A stream is a value with all values that are added to it.
    """
    stream: set[str] = set()
    waiting, absorbing = [reader.inputs[0]], {}
    while waiting:
        value = waiting.pop()
        if value in stream:
            continue
        stream.add(value)
        if value not in makers or value in graph.outputs:
            return None
        for layer in (makers[value], *consumers[value]):
            if layer.op == "add":
                waiting += [*layer.inputs, layer.output]
            elif layer.op in ("conv", "neocell"):
                absorbing[layer.name] = layer
            else:
                return None
    absorbing.pop(reader.name)
    reading = [layer for layer in absorbing.values() if layer.inputs[0] in stream]
    # Only layers that mix no channels can undo a factor without a column of weights.
    if any(not _by_channel(layer) or layer.output in stream for layer in reading):
        return None
    if any(not _by_channel(layer) and layer.attributes["groups"] != 1 for layer in absorbing.values()):
        return None
    return Equalizable(tuple(absorbing.values()), tuple(sorted(stream)))


def equalize(graph: DeployGraph, exponents: Mapping[str, Sequence[int]]) -> DeployGraph:
    """Return an equal graph with the input channels of some layers divided by powers of two.

    `W x = (W diag(2^e)) (diag(2^-e) x)`; the division is folded into the layers that make x. Powers of two only change
    exponents, so that the graphs are equal in float32, not only in real arithmetic.

    Args:
        graph: folded graph.
        exponents: e for each input channel, by the name of the layer.

    Raises:
        InputError: a layer whose input cannot be scaled, because it is an output of this graph.
    """
    absorbing = equalizable(graph)
    layers = {layer.name: layer for layer in graph.layers}
    for name, powers in exponents.items():
        if not any(powers):
            continue
        if name not in absorbing:
            raise InputError(
                f"scales of another network: the channels in front of {name} cannot be scaled in this one, perhaps "
                "because its feature maps are outputs. Calibrate it with --calibrate."
            )
        factor = np.exp2(np.asarray(powers, np.float32))
        for layer in absorbing[name].layers:
            # What reads scaled values and writes others undoes the division, everything else divides.
            undo = layer.output not in absorbing[name].values
            layers[layer.name] = _scaled_rows(layers[layer.name], factor if undo else 1 / factor, undo)
        arrays = layers[name].arrays
        columns = factor.reshape(-1, *[1] * (arrays["weight"].ndim - 2))
        layers[name] = replace(layers[name], arrays={**arrays, "weight": arrays["weight"] * columns})
    return replace(graph, layers=tuple(layers[layer.name] for layer in graph.layers))


def row_factors(graph: DeployGraph, exponents: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Return what `equalize` multiplies the output channels of convolutions by, by the name of the layer."""
    absorbing = equalizable(graph)
    factors: dict[str, np.ndarray] = {}
    for name, powers in exponents.items():
        if any(powers):
            for layer in absorbing[name].layers:
                if layer.op in _OPS:
                    factors[layer.name] = factors.get(layer.name, 1.0) * np.exp2(-np.asarray(powers, np.float64))
    return factors


def equalized(graph: DeployGraph, scales: Scales) -> tuple[DeployGraph, Scales]:
    """Return an equal graph by the exponents of scales (`equalize`), and the scales with corrections in its units.

    Raises:
        InputError: scales of another network.
    """
    exponents = {name: layer.exponents for name, layer in scales.layers.items()}
    equal, factors = equalize(graph, exponents), row_factors(graph, exponents)
    layers = {
        name: replace(layer, correction=tuple((np.asarray(layer.correction) * factors[name]).tolist()))
        if layer.correction and name in factors
        else layer
        for name, layer in scales.layers.items()
    }
    return equal, replace(scales, layers=layers)


def equalized_values(graph: DeployGraph, scales: Scales) -> dict[str, str]:
    """Return the values that the quantized graph has divided by the exponents of a layer, with that layer's name."""
    found = equalizable(graph)
    named = [name for name, layer in scales.layers.items() if any(layer.exponents) and name in found]
    return {value: name for name in named for value in found[name].values}


def _scaled_rows(layer: Layer, factor: np.ndarray, input_only: bool) -> Layer:
    """Return a layer whose output channels are multiplied by powers of two; its bias is not if only its input is."""
    arrays = dict(layer.arrays)
    if layer.op == "neocell":
        for i, (_, channels) in enumerate(layer.attributes["spec"].slices()):
            own = factor[channels, None, None]
            arrays[f"weight_a.{i}"] = arrays[f"weight_a.{i}"] * own
            if f"bias.{i}" in arrays and not input_only:
                arrays[f"bias.{i}"] = arrays[f"bias.{i}"] * own
        if "bias" in arrays and not input_only:
            arrays["bias"] = arrays["bias"] * factor
    else:
        scaled = ("weight",) if input_only else arrays
        arrays |= {key: arrays[key] * factor.reshape(-1, *[1] * (arrays[key].ndim - 1)) for key in scaled}
    return replace(layer, arrays=arrays)


def quantize(graph: DeployGraph, scales: Scales) -> DeployGraph:
    """Return the quantized graph of a folded graph.

    Args:
        graph: folded graph with its NeoCells as NeoCells.
        scales: quantizers of the layers; a layer without one stays in floating point.

    Raises:
        InputError: scales of another network.
    """
    scales.check_network(quantizable_shapes(graph))
    graph, scales = equalized(graph, scales)
    changes = [
        ([layer], [quantize_layer(layer, scales.layers[layer.name])])
        for layer in quantizable(graph)
        if layer.name in scales.layers
    ]
    return graph.replaced(changes)


def quantize_layer(layer: Layer, scale: LayerScale) -> Layer:
    """Return a convolution or linear layer of an equalized graph in 8 bit.

    Its arrays are `weight` int8, `bias` int32 in steps of the accumulator, and `step` float32, the size of these steps
    for each output channel; its attributes have the `quantizer` of its input.
    """
    weight = layer.arrays["weight"].astype(np.float64)
    bias = np.asarray(layer.arrays.get("bias", np.zeros(len(weight))), np.float64)
    if scale.correction:
        bias = bias + np.asarray(scale.correction)
    steps, largest = weight_steps(weight, bias, scale), largest_weight(scale.weight_bits)
    codes = whole_numbers(weight / steps.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1)))
    codes = np.clip(codes, -largest, largest)
    step = accumulator_steps(scale.quantizer, steps)
    accumulated = np.rint(bias / step.astype(np.float64))
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


def whole_numbers(weight: np.ndarray) -> np.ndarray:
    """Return weights in steps as whole numbers whose sum over the pixels of a patch is rounded, too.

    The pixels of a patch are alike, so the error of a layer follows the sum of the errors between an input and an
    output channel. Where rounding each weight for itself moves this sum by a step or more, those closest to a middle go
    to its other side (the first stage of SQuant, C. Guo et al., arXiv 2202.07471). Without a patch, this is rounding.

    Args:
        weight: weights divided by their steps, `(C_out, C_in, ...)`.
    """
    pixels = weight.reshape(*weight.shape[:2], -1)
    numbers = np.rint(pixels)
    missing = np.rint((pixels - numbers).sum(2))
    # Few patches are concerned, and none of a single pixel.
    concerned = missing != 0
    rest, missing = (pixels - numbers)[concerned], missing[concerned, None]
    place = np.argsort(np.argsort(-rest * np.sign(missing), 1, kind="stable"), 1)
    numbers[concerned] += np.sign(missing) * (place < np.abs(missing))
    return numbers.reshape(weight.shape)


def weight_steps(weight: np.ndarray, bias: np.ndarray, scale: LayerScale) -> np.ndarray:
    """Return the step of the weights of each output channel, float32 `(C_out,)`.

    The largest weight of a channel becomes 127 or -127 (less with fewer bits), unless the channel's bias would then be
    over 2^30 steps of the accumulator, as for a channel without weights, or the steps too small for float32.
    """
    largest = np.abs(weight).max(tuple(range(1, weight.ndim))) / largest_weight(scale.weight_bits)
    steps = np.maximum(largest, np.abs(bias) / (scale.quantizer.scale * MAX_BIAS))
    return np.where(steps > 0, np.maximum(steps, least_step(scale.quantizer)), 1.0).astype(np.float32)


def accumulator_steps(quantizer: Quantizer, weight_step: np.ndarray) -> np.ndarray:
    """Return the size of a step of the int32 accumulator for each output channel, float32."""
    return np.float32(quantizer.scale) * weight_step
