"""Batches of training and validation images through `mindspore.dataset`.

What a batch holds follows from (seed, epoch, position) alone: every image, every batch and every drop path has a
generator of its own, so neither the number of workers nor a resumption changes anything.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mindspore.dataset as ds
import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.images.images import BrokenImageError, prepare
from neonext_ms.images.preprocessing import Preprocessing

from ..config.schema import Config, DataConfig
from .augment import augment, drop_path_factors, mix, soft_targets
from .datasets import ImageSet

# Which random numbers these are: the last word of a seed.
_ORDER, _IMAGE, _BATCH, _DROP_PATH = range(4)
# A broken image is replaced by the next one that can be read.
_REPLACEMENTS = 100


@dataclass(frozen=True)
class TrainBatch:
    """A batch of one card.

    Attributes:
        images: float32 (N, 3, H, W).
        targets: float32 (N, classes), smoothed and mixed.
        keep: factors of drop path, float32 (blocks with drop path, N), or None.
        indices: place of every image in the training set.
        broken: one message for each image that could not be read and was replaced.
    """

    images: np.ndarray
    targets: np.ndarray
    keep: np.ndarray | None
    indices: np.ndarray
    broken: list[str]

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """What `TrainStep` takes."""
        return (self.images, self.targets) if self.keep is None else (self.images, self.targets, self.keep)


class TrainLoader:
    """The training batches of one card.

    Args:
        images: the whole training set.
        config: the run's.
        size: height and width of the model's input.
        drop_path: rate of each block that has one.
        shard: which card this is, and how many there are.

    Raises:
        InputError: there are fewer images than one update takes.
    """

    def __init__(
        self,
        images: ImageSet,
        config: Config,
        size: tuple[int, int],
        drop_path: Sequence[float] = (),
        shard: tuple[int, int] = (0, 1),
    ):
        self.images, self.config, self.size, self.drop_path = images, config, size, tuple(drop_path)
        self.rank, self.world = shard
        self.batch = config.data.batch_size
        self.accumulate = config.optimizer.accumulate
        needed = self.batch * self.world * self.accumulate
        self.updates_per_epoch = len(images) // needed
        if self.updates_per_epoch == 0:
            raise InputError(
                f"data.batch_size {self.batch} on {self.world} cards with optimizer.accumulate {self.accumulate} takes "
                f"{needed} images an update, but there are only {len(images)} for training; lower data.batch_size"
            )

    def epoch(self, epoch: int, done: int = 0) -> Iterator[list[TrainBatch]]:
        """The batches of an epoch, `accumulate` for each update.

        Args:
            epoch: from 0.
            done: updates of this epoch that were made before.
        """
        seed = self.config.run.seed
        order = np.random.default_rng([seed, epoch, _ORDER]).permutation(len(self.images))
        first, last = done * self.accumulate, self.updates_per_epoch * self.accumulate
        positions = [
            (batch * self.world + self.rank) * self.batch + i for batch in range(first, last) for i in range(self.batch)
        ]
        samples = _TrainSamples(self.images, positions, self.config, self.size, epoch, order)
        group: list[TrainBatch] = []
        for number, values in enumerate(_batches(samples, self.batch, self.config.data), first):
            group.append(self._finish(epoch, number * self.world + self.rank, *values))
            if len(group) == self.accumulate:
                yield group
                group = []

    def _finish(self, epoch: int, number: int, images, indices, messages) -> TrainBatch:
        seed, augmentation = self.config.run.seed, self.config.augmentation
        broken = _lines(messages)
        if (indices < 0).any():
            raise InputError(f"{_REPLACEMENTS} images in a row cannot be read, the first of them: {broken[0]}")
        labels = np.array([self.images.labels[i] for i in indices])
        targets = soft_targets(labels, len(self.images.classes), self.config.loss.smoothing)
        images, targets = mix(images, targets, np.random.default_rng([seed, epoch, number, _BATCH]), augmentation)
        keep = None
        if self.drop_path:
            rng = np.random.default_rng([seed, epoch, number, _DROP_PATH])
            keep = drop_path_factors(self.drop_path, len(images), rng)
        return TrainBatch(images, targets, keep, indices, broken)


class _Samples:
    """What `mindspore.dataset` asks for one sample: image, index, and a message if it could not be read."""

    def __init__(self, images: ImageSet, positions: Sequence[int]):
        self.images, self.positions = images, positions
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if os.getpid() != self._process:
            # A worker has to die when it is told to; only the run itself finishes its step first.
            self._process = os.getpid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        image, index, message = self.sample(self.positions[int(place)])
        return image, np.int64(index), np.str_(message)

    def sample(self, position: int) -> tuple[np.ndarray, int, str]:
        raise NotImplementedError


class _TrainSamples(_Samples):
    def __init__(self, images: ImageSet, positions, config: Config, size: tuple[int, int], epoch: int, order):
        super().__init__(images, positions)
        self.config, self.size, self.epoch, self.order = config, size, epoch, order
        self.mean, self.std = (
            (255 * np.array(values, np.float32))[:, None, None] for values in (config.data.mean, config.data.std)
        )

    def sample(self, position: int) -> tuple[np.ndarray, int, str]:
        rng = np.random.default_rng([self.config.run.seed, self.epoch, position, _IMAGE])
        first = int(self.order[position])
        messages: list[str] = []
        for further in range(_REPLACEMENTS):
            index = (first + further) % len(self.images)
            try:
                image = self.images.read(index)
            except BrokenImageError as error:
                messages.append(str(error))
                continue
            pixels = augment(image, rng, self.config.augmentation, self.size, self.mean, self.std)
            return pixels, index, "\n".join(messages)
        # Not raised: an error in a worker would come out as MindSpore's.
        return np.zeros((3, *self.size), np.float32), -1, "\n".join(messages)


class _ValSamples(_Samples):
    def __init__(self, images: ImageSet, positions, preprocessing: Preprocessing, size: tuple[int, int]):
        super().__init__(images, positions)
        self.preprocessing, self.size = preprocessing, size

    def sample(self, position: int) -> tuple[np.ndarray, int, str]:
        # What fills up the last batch.
        if position >= len(self.images):
            return np.zeros((3, *self.size), np.float32), -1, ""
        try:
            image = self.images.read(position)
            return prepare(image, self.preprocessing, self.size, self.images.name(position)), position, ""
        except InputError as error:
            return np.zeros((3, *self.size), np.float32), -1, str(error)


def _batches(samples: _Samples, batch: int, data: DataConfig) -> Iterator[tuple[np.ndarray, ...]]:
    if not len(samples):
        return
    # MindSpore refuses more than there are processors.
    workers = min(data.workers, os.cpu_count() or 1)
    dataset = ds.GeneratorDataset(
        samples,
        ["image", "index", "message"],
        shuffle=False,
        num_parallel_workers=workers,
        python_multiprocessing=data.processes and workers > 1,
    ).batch(batch, drop_remainder=True)
    yield from dataset.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=True)


def validation_batches(
    images: ImageSet,
    config: Config,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]]:
    """The validation images of one card, each image on one card only.

    All cards have the same number of batches, all batches the same size; what is left over is filled with zeros.

    Yields:
        images float32 (N, 3, H, W), labels (N,), their places in the set (N,), -1 for what does not count, and messages
        of those that are broken.
    """
    rank, world = shard
    batch = config.data.val_batch_size
    rounds = -(-len(images) // (batch * world))
    positions = [(b * world + rank) * batch + i for b in range(rounds) for i in range(batch)]
    samples = _ValSamples(images, positions, preprocessing, size)
    for pixels, indices, messages in _batches(samples, batch, config.data):
        labels = np.array([images.labels[i] if i >= 0 else 0 for i in indices])
        yield pixels, labels, indices, _lines(messages)


def _lines(messages: np.ndarray) -> list[str]:
    return [line for text in messages for line in str(text).splitlines()]
