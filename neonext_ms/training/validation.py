"""Accuracy and loss on the validation images, over all cards."""

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

from .distributed import Cards

TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """Figures of a validation.

    Attributes:
        images: that were counted.
        loss: mean cross-entropy.
        top1, top5: shares of the images.
        predicted: class of every image of the set, -1 for one that was not counted.
    """

    images: int
    loss: float
    top1: float
    top5: float
    predicted: np.ndarray

    def figures(self) -> dict[str, float]:
        """All but the single images, as plain values."""
        return {"images": self.images, "loss": self.loss, "top1": self.top1, "top5": self.top5}


class Evaluator:
    """A network of its own for validation, compiled once, whatever weights are put into it."""

    def __init__(self, architecture: Architecture, cards: Cards, jit: bool = True):
        self.cards = cards
        self.model = NeoNeXt.from_architecture(architecture)
        self.model.set_train(False)
        self._run = ms.jit(self.model.construct) if jit else self.model.construct

    def __call__(self, weights: Mapping[str, np.ndarray], batches: Iterable, count: int) -> Evaluation:
        """Figures of these weights (official names) on batches of `loader.validation_batches`; `count` is all images.

        Raises:
            InputError: no image counts.
        """
        for parameter in self.model.get_parameters():
            # In place: a compiled graph does not notice `set_data`.
            ops.assign(parameter, Tensor(weights[official_name(parameter.name)]))
        sums = np.zeros(4)
        # Each card fills in its own images, the sum is all of them.
        predicted = np.zeros(count)
        for images, labels, indices, _ in batches:
            counts = indices >= 0
            logits = self._run(Tensor(images)).asnumpy().astype(np.float64)
            order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
            hits = order == labels[:, None]
            shifted = logits - logits.max(axis=1, keepdims=True)
            losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
            predicted[indices[counts]] = order[counts, 0] + 1
            sums += [counts.sum(), losses[counts].sum(), hits[counts, :1].sum(), hits[counts].sum()]
        images, loss, top1, top5 = self.cards.total(sums).tolist()
        if not images:
            raise InputError("no validation image can be read; check the files named above")
        predicted = self.cards.total(predicted).astype(np.int64) - 1
        return Evaluation(int(images), loss / images, top1 / images, top5 / images, predicted)
