"""BatchNorm over the batches of all cards."""

from __future__ import annotations

from mindspore import nn, ops

from neonext_ms.models.architecture import BATCH_NORM_EPS
from neonext_ms.models.neonext import BATCH_NORM_KEEP, BatchNorm, NeoNeXt


class _SyncBatchNorm(nn.Cell):
    """The training computation of a `BatchNorm` over the batches of all cards, which have the same size."""

    def __init__(self, world: int):
        super().__init__()
        self.world = world
        self.all_reduce = ops.AllReduce()

    def construct(self, x, gamma, beta, moving_mean, moving_variance):
        count = x.shape[0] * x.shape[2] * x.shape[3] * self.world
        mean = self.all_reduce(x.sum((0, 2, 3))) / count
        # Two passes: E[x^2] - E[x]^2 would lose digits where the mean is large.
        centred = x - mean.reshape(1, -1, 1, 1)
        variance = self.all_reduce((centred * centred).sum((0, 2, 3))) / count
        # The statistics are not part of the gradient. As in PyTorch, they take the unbiased variance.
        share = 1 - BATCH_NORM_KEEP
        ops.assign(moving_mean, moving_mean * BATCH_NORM_KEEP + ops.stop_gradient(mean) * share)
        unbiased = ops.stop_gradient(variance) * (count / (count - 1))
        ops.assign(moving_variance, moving_variance * BATCH_NORM_KEEP + unbiased * share)
        scale = gamma * ops.rsqrt(variance + BATCH_NORM_EPS)
        return centred * scale.reshape(1, -1, 1, 1) + beta.reshape(1, -1, 1, 1)


def is_synchronised(cell: nn.Cell) -> bool:
    """Return whether a cell is a BatchNorm that normalises over the batches of all cards."""
    return isinstance(cell, BatchNorm) and isinstance(cell.exact, _SyncBatchNorm)


def synchronise_batch_norm(model: NeoNeXt, world: int) -> None:
    """Make every BatchNorm of the model normalise over the batches of all cards in training."""
    for _, cell in model.cells_and_names():
        if isinstance(cell, BatchNorm):
            cell.exact = _SyncBatchNorm(world)
