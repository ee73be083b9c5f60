"""The results of compiled graphs, of a training step above all, read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from mindspore import Tensor, ops

from neonext_ms.ops.cpu import operators


class StepResult:
    """Results of a step over all cards. The first access to one of them waits until the step has run.

    Args:
        batches: Tensors `[loss, hits]` of every batch; that of the last one goes on with `norm, applied, scale,
            next_scale`.
        finish: wait for the last graph of the step.

    Attributes:
        loss: mean loss of the images.
        hits: number of images whose largest logit is that of the largest target.
        norm: global norm of the gradients before clipping; not finite if they overflowed.
        applied: whether the weights were updated; false if the loss or a gradient was not finite, or if an earlier step
            has stopped the training (`stop_on_failure`).
        scale: loss scale of this step.
        next_scale: loss scale of the next step.
    """

    def __init__(self, batches: Sequence[Tensor], finish: operators.Finish):
        self._batches, self._finish = batches, finish

    @cached_property
    def _values(self) -> tuple[float, ...]:
        self._finish.wait()
        arrays = [batch.asnumpy() for batch in self._batches]
        # The images, and what else the graphs hold, are free from now on.
        del self._batches
        return float(np.mean([a[0] for a in arrays])), float(sum(a[1] for a in arrays)), *map(float, arrays[-1][2:])

    def wait(self) -> None:
        """Return when the step has run."""
        self._values  # noqa: B018

    loss = property(lambda self: self._values[0])
    hits = property(lambda self: round(self._values[1]))
    norm = property(lambda self: self._values[2])
    applied = property(lambda self: bool(self._values[3]))
    scale = property(lambda self: self._values[4])
    next_scale = property(lambda self: self._values[5])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepResult) and self._values == other._values


def last(result, done):
    """Return the result after `done` is computed; MindSpore removes operations that no result depends on."""
    result = ops.depend(result, done)
    if operators.usable(result.dtype):
        result = operators.finished(result)
    return result


def result_of(graph, *inputs) -> np.ndarray:
    """Run a graph that ends with `last` and return its result.

    `asnumpy` waits in a busy loop, which takes a core from the kernels. `Finish` sleeps until the graph is done.
    """
    finish = operators.Finish()
    try:
        result = graph(*inputs)
    except BaseException:
        finish.give_up()
        raise
    finish.wait()
    return result.asnumpy()
