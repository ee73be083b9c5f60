"""Scales to start fine-tuning for 8 bit with: calibrated on training images, or those of an earlier export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from neonext_ms.images.images import prepare
from neonext_ms.models.scales import Scales, network_digest
from neonext_ms.training.config.schema import QuantizeConfig
from neonext_ms.training.data.image_sets import ImageSet
from neonext_ms.training.plan import TrainingPlan

from ..fold import fold
from ..graph import original_graph
from .build import read_network_scales
from .calibrate import calibrate, skipped_layers
from .images import Images, spread

_SOURCE = "the training images"


class TrainingImages(Images):
    """Training images, prepared as for validation.

    Args:
        images: training images.
        plan: network and preprocessing.
        count: number of images to use, spread evenly over all of them.
    """

    source = _SOURCE

    def __init__(self, images: ImageSet, plan: TrainingPlan, count: int):
        self._images, self._plan = images, plan
        self._used = spread(len(images), count)

    def __len__(self) -> int:
        return len(self._used)

    def _chosen(self, indices: Sequence[int], size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), size):
            yield np.stack([self._prepared(self._used[i]) for i in indices[start : start + size]])

    def _prepared(self, index: int) -> np.ndarray:
        plan, name = self._plan, self._images.name(index)
        return prepare(self._images.read(index), plan.preprocessing, plan.size, name)


def training_scales(config: QuantizeConfig, plan: TrainingPlan, images: ImageSet) -> Scales:
    """Return the scales to train a network with.

    Args:
        config: file of scales, or how to calibrate; layers that stay in floating point.
        plan: network with the weights to start from.
        images: training images.

    Raises:
        InputError: scales of another network, unknown layers to skip, or images that give no scales.
    """
    graph, _ = fold(original_graph(plan.architecture, plan.weights, plan.size))
    digest = network_digest(plan.weights, plan.architecture)
    skip = skipped_layers(graph, config.skip, "quantize.skip")
    if config.scales is not None:
        scales = read_network_scales(config.scales, graph, digest).without(skip)
    else:
        chosen = TrainingImages(images, plan, config.calibrate)
        scales = calibrate(graph, chosen, config.method, digest, skip, weight_bits=config.weight_bits)
        record = {**scales.calibration, "preprocessing": plan.preprocessing.to_dict()}
        scales = replace(scales, calibration=record)
    # From here on the weights change, and the scales are those of the checkpoint that records them.
    return replace(scales.without_correction(), network="", calibration={**scales.calibration, "fine_tuned": True})
