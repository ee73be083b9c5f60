"""Search for the layers to leave in floating point: as few as possible, so that 8 bit costs no more than allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from neonext_ms.common.errors import ParityError
from neonext_ms.common.text import plural
from neonext_ms.models.scales import Scales

from ..graph import DeployGraph
from .apply import quantize
from .cost import EXACT_GELU, Accuracy, compare_outputs, outputs_of
from .forms import host_graph
from .images import Images

Progress = Callable[[str], None]


def search(
    graph: DeployGraph,
    scales: Scales,
    noise: Mapping[str, float],
    images: Images,
    max_drop: float,
    gelu: str = "auto",
    progress: Progress = lambda step: None,
) -> tuple[Scales, list[str]]:
    """Return scales without some layers, so that the loss of top-1 is at most `max_drop`, and the steps in words.

    Layers are left out one by one, the noisiest first, until the loss holds. Then each of them is taken back, the last
    one first, where it holds without.

    Args:
        graph: folded graph.
        scales: scales of all layers that may be quantized.
        noise: signal-to-noise ratio of each layer in dB.
        images: labelled images.
        max_drop: largest loss in percentage points.
        gelu: form of GELU in the 8-bit network.
        progress: function that is called with the state of the work.

    Raises:
        ParityError: the loss holds with no layer in 8 bit but the last one, or not even then.
    """
    expected = outputs_of(graph, images, EXACT_GELU, progress, "float32")
    steps: list[str] = []

    def drop(skipped: list[str], what: str) -> float:
        result = _accuracy(graph, scales.without(skipped), images, expected, gelu, progress)
        steps.append(f"{what}: top-1 {result.correct}/{result.images}, {result.drop:.2f} points lost")
        progress(steps[-1])
        return result.drop

    skipped: list[str] = []
    lost = drop(skipped, f"{plural(len(scales.layers), 'layer')} in 8 bit")
    for name in sorted(scales.layers, key=lambda name: noise[name]):
        if lost <= max_drop:
            break
        if len(skipped) == len(scales.layers) - 1:
            raise ParityError(
                f"8 bit loses more than {max_drop:g} percentage points of top-1 on {images.source} even with a single "
                f"layer in 8 bit ({steps[-1]}). Nothing was written. Allow more with --max-drop, or calibrate on "
                "images that are typical of the use."
            )
        skipped.append(name)
        lost = drop(skipped, f"without {name}")
    for name in reversed(skipped[:-1]):
        rest = [other for other in skipped if other != name]
        if drop(rest, f"with {name} again") <= max_drop:
            skipped = rest
    return scales.without(skipped), steps


def _accuracy(
    graph: DeployGraph, scales: Scales, images: Images, expected: np.ndarray, gelu: str, progress: Progress
) -> Accuracy:
    host = host_graph(quantize(graph, scales))
    return compare_outputs(images, expected, outputs_of(host, images, gelu, progress, "8 bit"))
