"""Batches of training and validation images through `mindspore.dataset`.

A batch depends on (seed, epoch, position) alone: every image, every batch and every drop path has its own random
generator. Neither the number of workers nor a resumed run changes a batch.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import mindspore.dataset as ds
import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.processors import processors
from neonext_ms.common.text import plural
from neonext_ms.images.images import BrokenImageError, prepare
from neonext_ms.images.preprocessing import Preprocessing

from ..config.schema import Config, DataConfig
from .augment import augment, drop_path_factors, mix, soft_targets
from .image_sets import ImageSet

# Last word of a seed, so that each purpose has its own stream of random numbers.
_ORDER, _IMAGE, _BATCH, _DROP_PATH = range(4)
# Attempts to replace a broken image by the next one.
_REPLACEMENTS = 100
_POLL_SECONDS = 0.1


class ReadingStoppedError(Exception):
    """The run is to end while it waits for images."""


@dataclass(frozen=True)
class TrainBatch:
    """A training batch of one card.

    Attributes:
        images: float32 (N, 3, H, W).
        targets: float32 (N, classes), smoothed and mixed.
        keep: drop-path factors, float32 (blocks with drop path, N), or None.
        indices: index of every image in the training set.
        broken: one message for each image that could not be read and was replaced.
    """

    images: np.ndarray
    targets: np.ndarray
    keep: np.ndarray | None
    indices: np.ndarray
    broken: list[str]

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """Return the arrays that `TrainStep` takes."""
        return (self.images, self.targets) if self.keep is None else (self.images, self.targets, self.keep)


class TrainLoader:
    """A source of training batches for one card.

    Args:
        images: whole training set.
        config: configuration of the run.
        size: height and width of the model's input.
        drop_path: drop-path rate of each block that has one.
        shard: rank of this card, and the number of cards.
        stopped: function that tells whether the run is to end; it is called while a batch is awaited, which ends with
            `ReadingStoppedError` then.

    Raises:
        InputError: there are fewer images than one update needs.
    """

    def __init__(
        self,
        images: ImageSet,
        config: Config,
        size: tuple[int, int],
        drop_path: Sequence[float] = (),
        shard: tuple[int, int] = (0, 1),
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.stopped = stopped
        self.images, self.config, self.size, self.drop_path = images, config, size, tuple(drop_path)
        self.rank, self.world = shard
        self.batch = config.data.batch_size
        self.accumulate = config.optimizer.accumulate
        needed = self.batch * self.world * self.accumulate
        self.updates_per_epoch = len(images) // needed
        if self.updates_per_epoch == 0:
            raise InputError(
                f"data.batch_size: too large. {self.batch} images on {plural(self.world, 'card')} with "
                f"optimizer.accumulate {self.accumulate} are {needed} images per update, but there are only "
                f"{len(images)} for training. Lower data.batch_size."
            )

    def epoch(self, epoch: int, done: int = 0) -> Iterator[list[TrainBatch]]:
        """Yield the batches of an epoch, `accumulate` of them for each update.

        Args:
            epoch: index of the epoch.
            done: number of updates of this epoch that were made before.
        """
        seed = self.config.run.seed
        order = np.random.default_rng([seed, epoch, _ORDER]).permutation(len(self.images))
        first, last = done * self.accumulate, self.updates_per_epoch * self.accumulate
        # Card r takes every world-th batch, so that all cards together see the order of a single card.
        positions = [
            (batch * self.world + self.rank) * self.batch + i for batch in range(first, last) for i in range(self.batch)
        ]
        samples = _TrainSamples(self.images, positions, self.config, self.size, epoch, order)
        group: list[TrainBatch] = []
        for number, values in enumerate(_batches(samples, self.batch, self.config.data, self.stopped), first):
            group.append(self._finish(epoch, number * self.world + self.rank, *values))
            if len(group) == self.accumulate:
                yield group
                group = []

    def _finish(self, epoch: int, number: int, images, indices, messages) -> TrainBatch:
        seed, augmentation = self.config.run.seed, self.config.augmentation
        broken = _lines(messages)
        if (indices < 0).any():
            raise InputError(f"{_REPLACEMENTS} images in a row cannot be read. The first of them: {broken[0]}")
        labels = np.array([self.images.labels[i] for i in indices])
        targets = soft_targets(labels, len(self.images.classes), self.config.loss.smoothing)
        images, targets = mix(images, targets, np.random.default_rng([seed, epoch, number, _BATCH]), augmentation)
        keep = None
        if self.drop_path:
            rng = np.random.default_rng([seed, epoch, number, _DROP_PATH])
            keep = drop_path_factors(self.drop_path, len(images), rng)
        return TrainBatch(images, targets, keep, indices, broken)


class _Samples:
    """A source for `mindspore.dataset`: image, index, and a message if the image could not be read.

    Args:
        images: image set.
        size: height and width of the model's input.
        positions: positions of the samples in the epoch.
    """

    def __init__(self, images: ImageSet, size: tuple[int, int], positions: Sequence[int]):
        self.images, self.size, self.positions = images, size, positions
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.int64, np.str_]:
        if os.getpid() != self._process:
            # A worker inherits the handler of the run, which waits for the end of a step. It has to end at once.
            self._process = os.getpid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        image, index, message = self.sample(self.positions[int(place)])
        return image, np.int64(index), np.str_(message)

    def sample(self, position: int) -> tuple[np.ndarray, int, str]:
        """Return the sample at a position; an error becomes an index of -1, since MindSpore would hide its type."""
        raise NotImplementedError

    def _blank(self, message: str) -> tuple[np.ndarray, int, str]:
        return np.zeros((3, *self.size), np.float32), -1, message


class _TrainSamples(_Samples):
    def __init__(self, images: ImageSet, positions, config: Config, size: tuple[int, int], epoch: int, order):
        super().__init__(images, size, positions)
        self.config, self.epoch, self.order = config, epoch, order
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
        return self._blank("\n".join(messages))


class _ValSamples(_Samples):
    def __init__(self, images: ImageSet, positions, preprocessing: Preprocessing, size: tuple[int, int]):
        super().__init__(images, size, positions)
        self.preprocessing = preprocessing

    def sample(self, position: int) -> tuple[np.ndarray, int, str]:
        if position >= len(self.images):
            # Padding of the last batch.
            return self._blank("")
        try:
            image = self.images.read(position)
            return prepare(image, self.preprocessing, self.size, self.images.name(position)), position, ""
        except InputError as error:
            return self._blank(str(error))


def _batches(
    samples: _Samples, batch: int, data: DataConfig, stopped: Callable[[], bool]
) -> Iterator[tuple[np.ndarray, ...]]:
    if not len(samples):
        return
    # MindSpore rejects more workers than CPU cores.
    workers = min(data.workers, processors())
    dataset = ds.GeneratorDataset(
        samples,
        ["image", "index", "message"],
        shuffle=False,
        num_parallel_workers=workers,
        python_multiprocessing=data.processes and workers > 1,
    ).batch(batch, drop_remainder=True)
    yield from _ahead(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=True), stopped)


def _ahead(items: Iterable, stopped: Callable[[], bool]) -> Iterator:
    """Yield items that a thread reads one ahead.

    MindSpore waits for a batch outside of Python, where no signal handler of Python can run. The main thread must not
    wait there: a read from a dead network drive would make the run deaf to signals.

    Raises:
        ReadingStoppedError: `stopped` returned true while an item was awaited.
    """
    results: queue.Queue = queue.Queue(1)
    ended = threading.Event()

    def put(item: object, error: BaseException | None, more: bool) -> None:
        while not ended.is_set() and threading.main_thread().is_alive():
            try:
                results.put((item, error, more), timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
        raise ReadingStoppedError

    def read() -> None:
        try:
            for item in items:
                put(item, None, True)
            put(None, None, False)
        except ReadingStoppedError:
            pass
        except BaseException as error:
            with contextlib.suppress(ReadingStoppedError):
                put(None, error, False)

    threading.Thread(target=read, name="images").start()
    try:
        while True:
            try:
                item, error, more = results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if stopped():
                    raise ReadingStoppedError from None
                continue
            if error is not None:
                raise error
            if not more:
                return
            yield item
    finally:
        ended.set()


def validation_batches(
    images: ImageSet,
    config: Config,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    shard: tuple[int, int] = (0, 1),
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]]:
    """Yield the validation images of one card; no image is on two cards.

    All cards have the same number of batches and all batches the same size, because the cards sum their results and a
    compiled network has fixed shapes. Missing images are zeros. `stopped` is that of `TrainLoader`.

    Yields:
        images float32 (N, 3, H, W), labels (N,), indices in the set (N,) with -1 for padding and broken images, and
        messages about broken images.
    """
    rank, world = shard
    batch = config.data.val_batch_size
    rounds = -(-len(images) // (batch * world))
    positions = [(b * world + rank) * batch + i for b in range(rounds) for i in range(batch)]
    samples = _ValSamples(images, positions, preprocessing, size)
    for pixels, indices, messages in _batches(samples, batch, config.data, stopped):
        labels = np.array([images.labels[i] if i >= 0 else 0 for i in indices])
        yield pixels, labels, indices, _lines(messages)


def _lines(messages: np.ndarray) -> list[str]:
    return [line for text in messages for line in str(text).splitlines()]
