"""Data-parallel training: MindSpore's launcher starts one process per card, this module connects them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import one_line

# The value of PyTorch's DistributedDataParallel and of MindSpore's.
DEFAULT_BUCKET_MB = 25.0
# MindSpore reserves the first fusion numbers for itself.
_FIRST_FUSION = 2


def buckets(sizes: Sequence[int], megabytes: float) -> list[int]:
    """Return the number of the message, from 0, in which each tensor travels.

    The last tensors come first, because backward computes their gradients first. A message takes tensors until the next
    one would exceed its size; a larger tensor travels alone.

    Args:
        sizes: number of float32 values of each tensor.
        megabytes: size of a message in MB (2^20 bytes).
    """
    limit, bucket, filled = megabytes * 2**20 / 4, 0, 0
    numbers = []
    for size in reversed(sizes):
        if filled and filled + size > limit:
            bucket, filled = bucket + 1, 0
        numbers.append(bucket)
        filled += size
    return numbers[::-1]


def bucket_sums(numbers: Sequence[int]) -> tuple[ops.AllReduce, ...]:
    """Return, for each tensor, its sum over the cards.

    MindSpore's graph compiler fuses the operations of the same fusion number to one message, on Ascend and on CPU, and
    starts it when its last tensor is computed. Without compilation, each tensor is a message.

    Args:
        numbers: result of `buckets`.
    """
    sums = []
    for position, number in enumerate(reversed(numbers)):
        reduce_sum = ops.AllReduce()
        reduce_sum.add_prim_attr("fusion", _FIRST_FUSION + number)
        # Order of the tensors inside their message.
        reduce_sum.add_prim_attr("index", position + 1)
        sums.append(reduce_sum)
    return tuple(reversed(sums))


class Cards:
    """The cards of a run. Collective operations do nothing if there is only one.

    Args:
        rank: rank of this process.
        world: number of cards.
    """

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes files."""
        return self.rank == 0

    def total(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return sums over all cards in float64; they travel in float32, so whole numbers are exact below 2^24."""
        if self.world == 1:
            return np.asarray(values, np.float64)
        return self._sum(values)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any card."""
        return flag if self.world == 1 else bool(self._sum([float(flag)])[0])

    def check_same(self, arrays: Mapping[str, np.ndarray], what: str) -> None:
        """Check that all cards have bit-identical arrays.

        Raises:
            InputError: they differ.
        """
        if self.world == 1:
            return
        digest = hashlib.sha256()
        for array in arrays.values():
            digest.update(np.ascontiguousarray(array).data)
        digits = np.array([int(digit, 16) for digit in digest.hexdigest()], np.float64)
        # The CPU's collective library can only add, so maximum and minimum are not available. By Cauchy-Schwarz,
        # world * sum(d * d) = sum(d) * sum(d) holds exactly if all cards have the same digit d.
        sums, squares = np.split(self._sum([*digits, *(digits * digits)]), 2)
        if not np.array_equal(self.world * squares, sums * sums):
            raise InputError(f"{what} differ between the cards. Resume from the last checkpoint with --resume auto.")

    def broadcast(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the float32 arrays of the first card."""
        if self.world == 1:
            return dict(arrays)
        send = ops.Broadcast(0)
        with _connected():
            return {
                name: send((Tensor(np.atleast_1d(array).astype(np.float32)),))[0].asnumpy().reshape(np.shape(array))
                for name, array in arrays.items()
            }

    def broadcast_text(self, text: str) -> str:
        """Return the text of the first card."""
        codes = np.frombuffer(text.encode(), np.uint8)
        size = int(self.broadcast({"size": np.array([len(codes)])})["size"][0])
        return bytes(self.broadcast({"text": np.resize(codes, size)})["text"].astype(np.uint8)).decode()

    def wait(self) -> None:
        """Wait until every card has reached this point."""
        self.any(False)

    def exchange_seconds(self, sizes: Sequence[int], times: int = 5) -> float:
        """Return the seconds for sums of `sizes` float32 values over all cards, one by one: the median of `times`."""
        if self.world == 1:
            return 0.0
        send = ops.AllReduce()
        messages = [Tensor(np.zeros(size, np.float32)) for size in sizes]
        seconds = []
        # The first round connects and compiles, and is dropped.
        for _ in range(times + 1):
            self.wait()
            start = time.monotonic()
            for message in messages:
                send(message).asnumpy()
            seconds.append(time.monotonic() - start)
        return statistics.median(seconds[1:])

    def _sum(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        with _connected():
            return ops.AllReduce()(Tensor(np.asarray(values, np.float32))).asnumpy().astype(np.float64)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Convert MindSpore's error inside the block, when another process of the run has gone, to one of our own."""
    try:
        yield
    except RuntimeError as error:
        text = one_line(str(error).partition("\n---")[0])
        raise InputError(
            f"another worker of this run ended or was killed (MindSpore: {text}). See the logs of the workers, in "
            "msrun's --log_dir. Resume with --resume auto."
        ) from error


def start(device: str) -> Cards:
    """Select the device and, if `msrun` started several processes, connect them.

    Args:
        device: "CPU", "Ascend", or "auto" for the device that this MindSpore was built for.

    Raises:
        InputError: MindSpore cannot use that device here.
    """
    target = ms.get_context("device_target") if device == "auto" else device
    try:
        ms.set_device(target)
    except (RuntimeError, ValueError) as error:
        # A process that has computed before, such as a notebook, has its device and cannot choose even the same one.
        if "has been initialized" not in str(error) or ms.get_context("device_target") != target:
            advice = "Start a new process" if target == "CPU" else "Try run.device=CPU"
            raise InputError(
                f"run.device {target}: MindSpore cannot use it here ({one_line(error)}). {advice}."
            ) from error
    if os.environ.get("MS_ROLE") not in ("MS_WORKER", "MS_SCHED") and "RANK_TABLE_FILE" not in os.environ:
        return Cards()
    from mindspore import communication

    # msrun starts the same script as its scheduler; that process stays in this call until the workers are done.
    with _connected():
        communication.init()
    cards = Cards(communication.get_rank(), communication.get_group_size())
    ms.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=True, device_num=cards.world)
    return cards
