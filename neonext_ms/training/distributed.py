"""Several cards: MindSpore's own launcher starts the processes, this module makes them one run."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from neonext_ms.common.errors import InputError


def launched() -> bool:
    """Whether MindSpore's launcher (`msrun`) started this process; it does so with a scheduler, too."""
    return os.environ.get("MS_ROLE") in ("MS_WORKER", "MS_SCHED") or "RANK_TABLE_FILE" in os.environ


class Cards:
    """The cards of a run; collective operations do nothing where there is only one.

    Attributes:
        rank: which card this process has.
        world: how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> np.ndarray:
        """Sums over all cards, float64; whole numbers are exact below 2^24 on each card."""
        if self.world == 1:
            return np.asarray(values, np.float64)
        return self._sum(values)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any card."""
        return flag if self.world == 1 else bool(self._sum([float(flag)])[0])

    def check_same(self, arrays: Mapping[str, np.ndarray], what: str) -> None:
        """Make sure that all cards hold the same bits.

        Raises:
            InputError: they do not.
        """
        if self.world == 1:
            return
        digest = hashlib.sha256()
        for array in arrays.values():
            digest.update(np.ascontiguousarray(array))
        digits = np.array([int(digit, 16) for digit in digest.hexdigest()], np.float64)
        # A CPU can only sum. All cards have the same digit where world * sum(d * d) = sum(d) * sum(d).
        sums, squares = np.split(self._sum([*digits, *(digits * digits)]), 2)
        if not np.array_equal(self.world * squares, sums * sums):
            raise InputError(f"{what} differ between the cards; resume from the last checkpoint with --resume auto")

    def broadcast(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Float32 arrays as the first card has them."""
        if self.world == 1:
            return dict(arrays)
        send = ops.Broadcast(0)
        return {
            name: send((Tensor(np.atleast_1d(array).astype(np.float32)),))[0].asnumpy().reshape(np.shape(array))
            for name, array in arrays.items()
        }

    def wait(self) -> None:
        """Let every card come to this point."""
        self.any(False)

    def exchange_seconds(self, sizes: Sequence[int], times: int = 5) -> float:
        """Seconds that sums over all cards of this many float32 take, one after the other: the median of `times`."""
        if self.world == 1:
            return 0.0
        send = ops.AllReduce()
        messages = [Tensor(np.zeros(size, np.float32)) for size in sizes]
        taken = []
        # The first one connects and compiles.
        for _ in range(times + 1):
            self.wait()
            start = time.monotonic()
            for message in messages:
                send(message).asnumpy()
            taken.append(time.monotonic() - start)
        return statistics.median(taken[1:])

    def _sum(self, values: Sequence[float]) -> np.ndarray:
        return ops.AllReduce()(Tensor(np.asarray(values, np.float32))).asnumpy().astype(np.float64)


def start(device: str) -> Cards:
    """Choose the device and, where a launcher started several processes, join them.

    Args:
        device: "CPU", "Ascend", or "auto" for what this MindSpore was built for.

    Raises:
        InputError: MindSpore cannot use that device here.
    """
    target = ms.get_context("device_target") if device == "auto" else device
    try:
        ms.set_device(target)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"run.device {target}: MindSpore cannot use it here ({text}); try run.device=CPU") from error
    if not launched():
        return Cards()
    from mindspore import communication

    # A scheduler stays in here until the workers are done, and ends.
    communication.init()
    cards = Cards(communication.get_rank(), communication.get_group_size())
    ms.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=True, device_num=cards.world)
    return cards
