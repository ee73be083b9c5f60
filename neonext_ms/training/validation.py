"""Loss and accuracy on the validation images over all cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import Architecture
from neonext_ms.models.names import official_name
from neonext_ms.models.neonext import NeoNeXt
from neonext_ms.models.scales import Scales

from .distributed import Cards
from .fake_quantize import FakeQuantized

_TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """Results of a validation.

    Attributes:
        images: number of images that could be read.
        loss: mean cross-entropy.
        top1, top5: accuracies as fractions of the images.
        predicted: predicted class of every image of the set, -1 for one that could not be read.
    """

    images: int
    loss: float
    top1: float
    top5: float
    predicted: np.ndarray

    def figures(self) -> dict[str, float]:
        """Return the results without those of single images, as plain values."""
        return {"images": self.images, "loss": self.loss, "top1": self.top1, "top5": self.top5}


class Evaluator:
    """A second network for validation, compiled once for all weights.

    Args:
        architecture: architecture of the network.
        cards: cards that share the validation images.
        jit: whether to compile the network.
        scales: scales of the layers in 8 bit; None for a network in floating point.
    """

    def __init__(self, architecture: Architecture, cards: Cards, jit: bool = True, scales: Scales | None = None):
        self.cards = cards
        self.model = NeoNeXt.from_architecture(architecture)
        self.model.set_train(False)
        network = self.model if scales is None else FakeQuantized(self.model, scales)
        self._run = ms.jit(network.construct) if jit else network.construct

    def __call__(self, weights: Mapping[str, np.ndarray], batches: Iterable, count: int) -> Evaluation:
        """Validate weights.

        Args:
            weights: arrays by official name.
            batches: batches of `loader.validation_batches`.
            count: number of images in the set.

        Raises:
            InputError: no image can be read.
        """
        for parameter in self.model.get_parameters():
            # In place, because a compiled graph keeps the old tensor after `set_data`.
            ops.assign(parameter, Tensor(weights[official_name(parameter.name)]))
        sums = np.zeros(4)
        # Class + 1, so that the sum over the cards is right: each card leaves 0 for the images of the others.
        classes = np.zeros(count)
        for images, labels, indices, _ in batches:
            # Padding and broken images have index -1.
            counts = indices >= 0
            logits = self._run(Tensor(images)).asnumpy().astype(np.float64)
            order = np.argsort(-logits, axis=1, kind="stable")[:, :_TOP]
            hits = order == labels[:, None]
            # Log-softmax in float64, stable by the shift.
            shifted = logits - logits.max(axis=1, keepdims=True)
            losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
            classes[indices[counts]] = order[counts, 0] + 1
            sums += [counts.sum(), losses[counts].sum(), hits[counts, :1].sum(), hits[counts].sum()]
        images, loss, top1, top5 = self.cards.total(sums).tolist()
        if not images:
            raise InputError("no validation image can be read. Check the files named above.")
        predicted = self.cards.total(classes).astype(np.int64) - 1
        return Evaluation(int(images), loss / images, top1 / images, top5 / images, predicted)
