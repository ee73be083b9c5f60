"""Optimizers as MindSpore operations on flat lists of Parameters.

An update is told by a scalar whether it counts: with `keep` 0 every tensor stays as it is, bit for bit, which is how a
step that overflowed is skipped without a branch in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import ops

from .config.schema import OptimizerConfig
from .optimizers import decays

# A loop over hundreds of tensors would be unrolled in steps, each nested in the one before: minutes of compilation.
each = ops.HyperMap()
partial = ops.Partial()


class Optimizer:
    """Slots (state as large as the weights) and the update.

    Attributes:
        slots: name -> list of Parameters, one for each weight.
    """

    slot_names: tuple[str, ...] = ()

    def __init__(self, config: OptimizerConfig, weights, rates: Sequence[float]):
        self.config = config
        self.weights = ms.ParameterTuple(weights)
        self.rates = tuple(float(rate) for rate in rates)
        self.decay = tuple(config.weight_decay if decays(weight.shape) else 0.0 for weight in weights)
        self.slots = {
            slot: ms.ParameterTuple(
                [ms.Parameter(ms.Tensor(np.zeros(w.shape, np.float32)), name=f"{slot}.{w.name}") for w in weights]
            )
            for slot in self.slot_names
        }


class AdamW(Optimizer):
    """AdamW with PyTorch's arithmetic, by the fused kernel that MindSpore has on every device.

    That kernel has no bias correction; it is put into the rate, epsilon and decay it is given.
    """

    slot_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, config, weights, rates):
        super().__init__(config, weights, rates)
        # The kernel computes 1 - beta in float32; the correction has to belong to that very beta.
        self.betas = tuple(float(np.float32(beta)) for beta in config.betas)
        self.logs = tuple(math.log(beta) if beta else -1e4 for beta in self.betas)
        self.fused = ops.AdamWeightDecay()

    def update(self, gradients, rate, count, keep):
        """Change the weights; what it returns only says that it was done.

        Args:
            gradients: one Tensor for each weight, finite.
            rate: scalar Tensor, the learning rate.
            count: scalar Tensor, how many updates this makes, itself included.
            keep: scalar Tensor, 1 for an update, 0 to leave everything as it is.
        """
        first, second = self.slots["exp_avg"], self.slots["exp_avg_sq"]
        correction_1 = -ops.expm1(count * self.logs[0])
        correction_2 = ops.sqrt(-ops.expm1(count * self.logs[1]))
        step = rate * keep * correction_2 / correction_1
        beta_1 = 1 - keep * (1 - self.betas[0])
        beta_2 = 1 - keep * (1 - self.betas[1])
        eps = self.config.eps * correction_2
        # The kernel decays by its own rate, which has the correction in it.
        correction = correction_1 / correction_2
        change = partial(_adamw, self.fused, step, beta_1, beta_2, eps, correction)
        return each(change, self.weights, first, second, self.rates, self.decay, gradients)


class SGD(Optimizer):
    """SGD with momentum (or Nesterov's) and PyTorch's arithmetic: decay is added to the gradient."""

    slot_names = ("momentum_buffer",)

    def __init__(self, config, weights, rates):
        super().__init__(config, weights, rates)
        self.momentum = config.momentum
        self.nesterov = config.nesterov
        self.fused = ops.ApplyMomentum()

    def update(self, gradients, rate, count, keep):
        """Change the weights; see `AdamW.update`."""
        buffers = self.slots["momentum_buffer"]
        momentum = 1 - keep * (1 - self.momentum)
        gradients = each(partial(_with_decay, keep), self.weights, self.decay, gradients)
        if self.nesterov:
            # MindSpore's kernel has use_nesterov, but on the CPU computes something else than PyTorch with it.
            moved = each(partial(_push, momentum), buffers, gradients)
            return each(partial(_nesterov, self.momentum, rate * keep), self.weights, moved, self.rates, gradients)
        return each(partial(_momentum, self.fused, rate * keep, momentum), self.weights, buffers, self.rates, gradients)


def _adamw(fused, step, beta_1, beta_2, eps, correction, weight, first, second, rate, decay, gradient):
    return fused(weight, first, second, step * rate, beta_1, beta_2, eps, decay * correction, gradient)


def _with_decay(keep, weight, decay, gradient):
    return gradient + weight * (decay * keep)


def _momentum(fused, step, momentum, weight, buffer, rate, gradient):
    return fused(weight, buffer, step * rate, gradient, momentum)


def _push(momentum, buffer, gradient):
    return ops.assign(buffer, buffer * momentum + gradient)


def _nesterov(momentum, step, weight, moved, rate, gradient):
    return ops.assign_sub(weight, (gradient + moved * momentum) * (step * rate))
