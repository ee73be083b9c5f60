"""Calibration: a folded network runs on images, and the distribution of each quantized input gives its quantizer.

Images are streamed twice. The first pass finds the largest value of each channel where channels can be equalized, the
second one the distribution of every input in the equalized network. Nothing is kept but statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from neonext_ms.common.cli import WEIGHT_BITS
from neonext_ms.common.errors import InputError
from neonext_ms.common.text import plural
from neonext_ms.models.quantizer import Quantizer
from neonext_ms.models.scales import LayerScale, Scales

from ..graph import INPUT, DeployGraph, Layer
from .apply import equalizable, equalize, quantizable, quantize_layer, row_factors
from .forms import Session
from .histogram import Histogram, PatchMean
from .images import Images
from .options import MIN_COUNT
from .ranges import RANGES

Progress = Callable[[str], None]
# Images of the first pass: enough for the largest values of channels, which are rounded to powers of two.
_EQUALIZED_ON = 32
# Powers of two that a channel may be divided by, on either side.
_MAX_POWER = 8


def calibrate(
    graph: DeployGraph,
    images: Images,
    method: str,
    network: str,
    skip: tuple[str, ...] = (),
    gelu: str = "auto",
    progress: Progress = lambda step: None,
    weight_bits: int = WEIGHT_BITS,
) -> Scales:
    """Return the scales of a network.

    Args:
        graph: folded graph with its NeoCells as NeoCells.
        images: calibration images.
        method: key of `ranges.RANGES`.
        network: digest of the network's weights.
        skip: names of layers that stay in floating point.
        gelu: form of GELU in the network.
        progress: function that is called with the state of the work.
        weight_bits: bits of the weights.

    Raises:
        InputError: too few images, values that are not finite, or an input that is the same everywhere.
    """
    if len(images) < MIN_COUNT:
        raise InputError(
            f"{images.source}: calibration on {plural(len(images), 'image')}, expected at least {MIN_COUNT}. About a "
            "hundred that are typical of the use give good scales."
        )
    layers = [layer for layer in quantizable(graph) if layer.name not in skip]
    exponents = _exponents(graph, [layer.name for layer in layers], images, gelu, progress)
    equal = equalize(graph, exponents)
    observed = _observe(equal, [layer.name for layer in layers], images, gelu, progress)
    _check_varied({name: histogram for name, (histogram, _) in observed.items()})
    progress("ranges")
    scales, factors = {}, row_factors(graph, exponents)
    for layer in quantizable(equal):
        if layer.name in observed:
            histogram, patches = observed[layer.name]
            quantizer, powers = _quantizer(layer, histogram, method), tuple(exponents.get(layer.name, ()))
            scale = LayerScale(quantizer, powers, weight_bits=weight_bits)
            correction = _correction(layer, scale, patches.mean) / factors.get(layer.name, 1.0)
            scales[layer.name] = replace(scale, correction=tuple(float(f"{x:.2e}") for x in correction))
    record: dict[str, Any] = {"method": method, "images": len(images), "source": images.source}
    record["image_size"] = list(graph.image_size)
    return Scales(network, scales, record)


def _batches(session: Session, images: Images, count: int, what: str, progress: Progress):
    done = 0
    for batch in images.batches(session.batch, count):
        progress(f"{what} {done}/{count}")
        yield batch, {INPUT: batch, **session.run(batch)}
        done += len(batch)


def _exponents(
    graph: DeployGraph, names: list[str], images: Images, gelu: str, progress: Progress
) -> dict[str, list[int]]:
    """Return powers of two that even out the channels of the inputs that can be scaled exactly.

    The factor of a channel is `sqrt(a / w)` with its largest activation a and largest weight w, each relative to the
    median channel: half of the spread moves from the activations, which have one scale, into the weights.
    """
    layers = {layer.name: layer for layer in graph.layers}
    values = {name: layers[name].inputs[0] for name in equalizable(graph) if name in names}
    if not values:
        return {}
    session = Session(graph, list(dict.fromkeys(values.values())), gelu)
    largest: dict[str, np.ndarray] = {}
    for _, outputs in _batches(session, images, min(len(images), _EQUALIZED_ON), "equalize", progress):
        for name, value in values.items():
            array = np.abs(outputs[value])
            peak = array.max(tuple(i for i in range(array.ndim) if i != 1)).astype(np.float64)
            largest[name] = np.maximum(largest.get(name, 0.0), peak)
    exponents = {}
    for name, peak in largest.items():
        weight = layers[name].arrays["weight"]
        column = np.abs(weight).max(tuple(i for i in range(weight.ndim) if i != 1))
        if not np.isfinite(peak).all():
            raise InputError(_not_finite(name))
        used = (peak > 0) & (column > 0)
        if not used.any():
            continue
        ratio = np.ones(len(peak))
        ratio[used] = (peak[used] / np.median(peak[used])) / (column[used] / np.median(column[used]))
        powers = np.clip(np.rint(np.log2(ratio) / 2), -_MAX_POWER, _MAX_POWER).astype(int)
        exponents[name] = powers.tolist()
    return exponents


def _observe(
    graph: DeployGraph, names: list[str], images: Images, gelu: str, progress: Progress
) -> dict[str, tuple[Histogram, PatchMean]]:
    """Return the distribution of the input of each layer and the mean of its patches."""
    layers = {layer.name: layer for layer in quantizable(graph) if layer.name in names}
    observed = {name: (Histogram(), PatchMean(_kernel(layer))) for name, layer in layers.items()}
    session = Session(graph, list(dict.fromkeys(layer.inputs[0] for layer in layers.values())), gelu)
    for _, values in _batches(session, images, len(images), "calibrate", progress):
        for name, layer in layers.items():
            histogram, patches = observed[name]
            value = values[layer.inputs[0]]
            if not histogram.add(value):
                raise InputError(_not_finite(name))
            patches.add(value)
    return observed


def _not_finite(name: str) -> str:
    return (
        f"{name}: its input has values that are not finite numbers in calibration. Check the images and the weights of "
        "the network."
    )


def _kernel(layer: Layer) -> tuple[int, int] | None:
    shape = layer.arrays["weight"].shape
    return (shape[2], shape[3]) if len(shape) == 4 else None


def _check_varied(histograms: Mapping[str, Histogram]) -> None:
    """Raise an `InputError` for layers whose input is the same everywhere, all at once."""
    constant = {name: h.low + 0.0 for name, h in histograms.items() if h.low == h.high}
    if constant:
        (name, value), *others = constant.items()
        more = f", and so are those of {len(others)} more" if others else ""
        raise InputError(
            f"{name}: its input is {value:g} everywhere in calibration, which gives no scale{more}. Calibrate on other "
            f"images, or add --quantize-skip {','.join(constant)}."
        )


def _quantizer(layer: Layer, histogram: Histogram, method: str) -> Quantizer:
    try:
        return Quantizer.for_range(*RANGES[method](histogram))
    except InputError as error:
        raise InputError(f"{layer.name}: {error}. Leave it out with --quantize-skip {layer.name}.") from error


def _correction(layer: Layer, scale: LayerScale, mean: np.ndarray) -> np.ndarray:
    """Return what removes the mean error of the rounded weights from the output, float64 `(C_out,)`.

    `-E[(W_q - W) x]` with the mean of x over the calibration images (M. Nagel et al., "Data-Free Quantization through
    Weight Equalization and Bias Correction", arXiv 1906.04721, section 3.3).
    """
    quantized = quantize_layer(layer, scale)
    weight, steps = quantized.arrays["weight"].astype(np.float64), quantized.arrays["weight_step"].astype(np.float64)
    error = weight * steps.reshape(-1, *[1] * (weight.ndim - 1)) - layer.arrays["weight"]
    return -error.reshape(len(error), -1) @ mean.reshape(-1)


def skipped_layers(graph: DeployGraph, patterns: tuple[str, ...], option: str = "--quantize-skip") -> tuple[str, ...]:
    """Return the layers of a folded graph that patterns name, such as `head.fc` or `stage_4.*`.

    Args:
        graph: folded graph.
        patterns: names or patterns.
        option: name of the option that has them, for messages.

    Raises:
        InputError: a pattern that no layer matches, or all layers match.
    """
    import fnmatch

    from neonext_ms.common.text import list_names, nearest

    names = [layer.name for layer in quantizable(graph)]
    chosen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise InputError(
                f"{option} {pattern!r}: no 8-bit layer has this name{nearest(pattern, names)}. The layers are:\n"
                f"{list_names(names, 200)}"
            )
        chosen.update(matches)
    if len(chosen) == len(names):
        raise InputError(f"{option}: no layer is left to quantize. Shorten the list, or do not quantize.")
    return tuple(name for name in names if name in chosen)
