"""The cost of 8 bit: predicted classes and probabilities against float32, and the noise that each layer adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from neonext_ms.common.text import plural
from neonext_ms.models.scales import Scales

from ..graph import LOGITS, DeployGraph
from .apply import equalized, quantizable, quantize, quantize_layer
from .forms import NoiseSession, Session, host_graph
from .images import Images

Progress = Callable[[str], None]
# Images on which the noise of the layers is measured.
_NOISE_IMAGES = 32
WORST = 5
# That of the float32 network, from which an approximate one of the 8-bit network departs, too.
EXACT_GELU = "auto"


@dataclass(frozen=True)
class Accuracy:
    """An 8-bit network against the float32 network on the same images.

    Attributes:
        source: folder, file or name of the images.
        images: number of images.
        relative_l2: norm of the difference of all outputs over the norm of the float32 outputs.
        changed: images whose predicted class differs; None for feature maps.
        distance: mean over the images of half the sum of the differences of all class probabilities, 0 to 1.
        correct_float32, correct: images whose predicted class is their label; None without labels.
    """

    source: str
    images: int
    relative_l2: float
    changed: int | None = None
    distance: float | None = None
    correct_float32: int | None = None
    correct: int | None = None

    @property
    def drop(self) -> float:
        """Loss of top-1 in percentage points; 0 without labels."""
        return 100.0 * ((self.correct_float32 or 0) - (self.correct or 0)) / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def line(self) -> str:
        """Return the line that the command prints."""
        if self.changed is None:
            return f"relative L2 of the feature maps {self.relative_l2:.1e}, on {self.source}"
        text = f"top-1 agrees on {self.images - self.changed}/{self.images}"
        if self.correct is not None:
            changed = plural(self.changed, "class", "classes")
            text = f"top-1 {self.correct}/{self.images} (float32 {self.correct_float32}), {changed} changed"
        return f"{text}, mean distance of the probabilities {self.distance:.4f}, on {self.source}"


@dataclass(frozen=True)
class Cost:
    """The cost of 8 bit.

    Attributes:
        accuracy: comparison with float32 on the calibration images and on validation images, by what they are for.
        noise: signal-to-noise ratio in dB of each quantized layer alone, from the float32 network's own input.
    """

    accuracy: Mapping[str, Accuracy]
    noise: Mapping[str, float]

    def worst(self, count: int = WORST) -> list[tuple[str, float]]:
        """Return the layers with the most noise, the worst first."""
        return sorted(self.noise.items(), key=lambda item: item[1])[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "accuracy": {purpose: accuracy.to_dict() for purpose, accuracy in self.accuracy.items()},
            "snr_db": {name: round(value, 2) for name, value in self.noise.items()},
            "worst": [name for name, _ in self.worst()],
        }


def compare_outputs(images: Images, expected: np.ndarray, outputs: np.ndarray, classes: bool = True) -> Accuracy:
    """Compare the outputs of an 8-bit network, `(N, numbers)`, with those of the float32 network.

    Args:
        images: the images, with their labels if these are known.
        expected: outputs of the float32 network.
        outputs: outputs of the 8-bit network.
        classes: whether they are logits; else they are feature maps.
    """
    difference = np.linalg.norm(outputs.astype(np.float64) - expected) / (np.linalg.norm(expected) or 1.0)
    result = Accuracy(images.source, len(outputs), float(difference))
    if not classes:
        return result
    p, q = _softmax(expected), _softmax(outputs)
    best, before = outputs.argmax(1), expected.argmax(1)
    distance, changed = float(np.abs(p - q).sum(1).mean() / 2), int((best != before).sum())
    result = replace(result, changed=changed, distance=distance)
    if images.labels is None:
        return result
    labels = np.asarray(images.labels)
    return replace(result, correct_float32=int((before == labels).sum()), correct=int((best == labels).sum()))


def _softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def outputs_of(graph: DeployGraph, images: Images, gelu: str, progress: Progress, what: str) -> np.ndarray:
    """Return the outputs of a graph on images, several joined, `(N, numbers)`."""
    session, rows, done = Session(graph, None, gelu), [], 0
    for batch in images.batches(session.batch):
        progress(f"{what} {done}/{len(images)}")
        rows.append(np.concatenate([value.reshape(len(batch), -1) for value in session.run(batch).values()], axis=1))
        done += len(batch)
    return np.concatenate(rows)


def layer_noise(
    graph: DeployGraph,
    scales: Scales,
    images: Images,
    gelu: str = "auto",
    progress: Progress = lambda step: None,
) -> dict[str, float]:
    """Return the signal-to-noise ratio in dB of each layer: its float32 output against its 8-bit one on the same input.

    Args:
        graph: folded graph.
        scales: scales of the layers to measure.
        images: images; some of them are used, spread evenly.
        gelu: form of GELU in the network.
        progress: function that is called with the state of the work.
    """
    graph, scales = equalized(graph, scales)
    changes, pairs = [], []
    for layer in quantizable(graph):
        if layer.name in scales.layers:
            twin = quantize_layer(layer, scales.layers[layer.name])
            twin = replace(twin, name=f"{layer.name}.int8", output=f"{layer.output}.int8")
            changes.append(([layer], [layer, twin]))
            pairs.append((layer.output, twin.output))
    session = NoiseSession(graph.replaced(changes), pairs, gelu)
    signal, noise, done = np.zeros(len(pairs)), np.zeros(len(pairs)), 0
    for batch in images.batches(session.batch, _NOISE_IMAGES):
        progress(f"noise {done}")
        sums = session.run(batch)
        signal += [float(sums[f"{noisy}.signal"]) for _, noisy in pairs]
        noise += [float(sums[f"{noisy}.noise"]) for _, noisy in pairs]
        done += len(batch)
    names = [layer.name for layer in quantizable(graph) if layer.name in scales.layers]
    return {name: _decibels(s, n) for name, s, n in zip(names, signal, noise, strict=True)}


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else 0.0 if noise > 0 else 200.0


def measure(
    graph: DeployGraph,
    scales: Scales,
    images: Mapping[str, Images],
    gelu: str = "auto",
    progress: Progress = lambda step: None,
) -> Cost:
    """Return what 8 bit costs.

    Args:
        graph: folded graph.
        scales: scales of the quantized layers.
        images: images by what they are for; the noise of the layers is measured on the first of them.
        gelu: form of GELU in the 8-bit network.
        progress: function that is called with the state of the work.
    """
    host = host_graph(quantize(graph, scales))
    accuracy = {}
    for purpose, part in images.items():
        expected = outputs_of(graph, part, EXACT_GELU, progress, "float32")
        outputs = outputs_of(host, part, gelu, progress, "8 bit")
        accuracy[purpose] = compare_outputs(part, expected, outputs, graph.outputs == (LOGITS,))
    noise = layer_noise(graph, scales, next(iter(images.values())), gelu, progress) if images else {}
    return Cost(accuracy, noise)
