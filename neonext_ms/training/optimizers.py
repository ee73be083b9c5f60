"""The optimizers as MindSpore operations, and the learning rate by batch size and depth.

An update takes a scalar `keep`: with 0 every tensor keeps its value, bit for bit. That is how a step that overflowed is
skipped without a branch in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import ops

from neonext_ms.common.errors import InputError
from neonext_ms.ops.cpu import operators

from .config.schema import OptimizerConfig

# HyperMap applies a function to every tensor of a list. A Python loop over hundreds of tensors would be unrolled into
# nested graphs, which take minutes to compile.
each = ops.HyperMap()
partial = ops.Partial()

LR_RULES: dict[str, Callable[[float], float]] = {
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
    "none": lambda ratio: 1.0,
}


def full_rate(config: OptimizerConfig, global_batch: int) -> float:
    """Return the learning rate for a global batch size by the configured rule."""
    return config.lr * LR_RULES[config.lr_rule](global_batch / config.reference_batch)


def layer_rates(names: Sequence[str], depths: Sequence[int], decay: float) -> list[float]:
    """Return the factor of the learning rate of each tensor by its depth in the network.

    The head has factor 1, the last block `decay`, and so on down to the stem. Layers between two stages belong to the
    block that follows.

    Args:
        names: official names of the tensors.
        depths: number of blocks of each stage.
        decay: factor from one layer to the one before it.
    """
    first = [1 + sum(depths[:stage]) for stage in range(len(depths))]
    top = 1 + sum(depths)
    rates = []
    for name in names:
        part, _, rest = name.partition(".")
        if part == "stem":
            depth = 0
        elif part.startswith("stage_"):
            depth = first[int(part[-1]) - 1] + int(rest.partition(".")[0])
        elif part.startswith("downsample_"):
            depth = first[int(part[-1])]
        else:
            depth = top
        rates.append(decay ** (top - depth))
    return rates


class Optimizer:
    """An optimizer: the weights, its state and its update.

    Args:
        config: options of the optimizer.
        weights: Parameters to train.
        rates: factor of the learning rate of each weight.

    Attributes:
        slots: state by name, each a list of Parameters of the shapes of the weights.
        decay: weight decay of each weight; matrices (also NeoCell's) and kernels have it, vectors do not.
    """

    slot_names: tuple[str, ...] = ()

    def __init__(self, config: OptimizerConfig, weights, rates: Sequence[float]):
        self.config = config
        self.weights = ms.ParameterTuple(weights)
        self.rates = tuple(float(rate) for rate in rates)
        self.decay = tuple(config.weight_decay if len(weight.shape) > 1 else 0.0 for weight in weights)
        self.slots = {slot: zeros_like_weights(slot, weights) for slot in self.slot_names}

    def update(self, gradients, factor, rate, count, keep):
        """Update the weights.

        Args:
            gradients: one Tensor for each weight.
            factor: factor of the gradients, a scalar Tensor; 0 stands for zeros, even where they are not finite.
            rate: learning rate, a scalar Tensor.
            count: number of updates including this one, a scalar Tensor.
            keep: 1 to update, 0 to keep every value, a scalar Tensor.

        Returns:
            Tensors without meaning; depend on them to wait for the update.
        """
        raise NotImplementedError


def zeros_like_weights(prefix: str, weights):
    """Return a float32 Parameter of zeros for each weight, named `<prefix>.<name of the weight>`."""
    return ms.ParameterTuple(
        [ms.Parameter(ms.Tensor(np.zeros(w.shape, np.float32)), name=f"{prefix}.{w.name}") for w in weights]
    )


class AdamW(Optimizer):
    """AdamW with PyTorch's arithmetic, by MindSpore's fused kernel, which every device has.

    The kernel has no bias correction; it is applied to the learning rate, epsilon and weight decay instead.
    """

    slot_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, config: OptimizerConfig, weights, rates: Sequence[float]):
        super().__init__(config, weights, rates)
        # The kernel computes 1 - beta in float32, and the correction must use the same beta.
        self.betas = tuple(float(np.float32(beta)) for beta in config.betas)
        # For beta = 0 the correction is 1; exp(-1e4) is 0 as log(0) would give, without an infinity in the graph.
        self.logs = tuple(math.log(beta) if beta else -1e4 for beta in self.betas)
        self.fused = ops.AdamWeightDecay()
        self.table = ms.Tensor(np.array([self.rates, self.decay], np.float32).T.copy())

    def update(self, gradients, factor, rate, count, keep):
        first, second = self.slots["exp_avg"], self.slots["exp_avg_sq"]
        # 1 - beta^count. expm1 keeps its digits while beta^count is close to 1.
        correction_1 = -ops.expm1(count * self.logs[0])
        correction_2 = ops.sqrt(-ops.expm1(count * self.logs[1]))
        # keep = 0 makes the rate 0 and both betas 1, so weights and moments keep their values exactly.
        step = rate * keep * correction_2 / correction_1
        beta_1 = 1 - keep * (1 - self.betas[0])
        beta_2 = 1 - keep * (1 - self.betas[1])
        # The kernel divides by sqrt(v) + eps with the uncorrected v, so eps carries the correction of v.
        eps = self.config.eps * correction_2
        # The kernel multiplies the decay by its rate, which contains the correction; PyTorch decays by the plain rate.
        correction = correction_1 / correction_2
        if operators.usable(ms.float32):
            settings = ops.stack([factor, step, beta_1, beta_2, eps, correction])
            return operators.adamw(settings, self.table, gradients, self.weights, first, second)
        gradients = each(partial(_usable, factor), gradients)
        change = partial(_adamw, self.fused, step, beta_1, beta_2, eps, correction)
        return each(change, self.weights, first, second, self.rates, self.decay, gradients)


class SGD(Optimizer):
    """SGD with momentum (or Nesterov's) and PyTorch's arithmetic: weight decay is added to the gradient."""

    slot_names = ("momentum_buffer",)

    def __init__(self, config: OptimizerConfig, weights, rates: Sequence[float]):
        super().__init__(config, weights, rates)
        self.momentum = config.momentum
        self.nesterov = config.nesterov
        self.fused = ops.ApplyMomentum()

    def update(self, gradients, factor, rate, count, keep):
        buffers = self.slots["momentum_buffer"]
        gradients = each(partial(_usable, factor), gradients)
        # keep = 0 makes the momentum 1 and the decay 0; gradients are zeros then, so the buffers keep their values.
        momentum = 1 - keep * (1 - self.momentum)
        gradients = each(partial(_with_decay, keep), self.weights, self.decay, gradients)
        if self.nesterov:
            # MindSpore's kernel has use_nesterov, but on the CPU it differs from PyTorch.
            moved = each(partial(_push, momentum), buffers, gradients)
            return each(partial(_nesterov, self.momentum, rate * keep), self.weights, moved, self.rates, gradients)
        return each(partial(_momentum, self.fused, rate * keep, momentum), self.weights, buffers, self.rates, gradients)


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "sgd": SGD}


def make_optimizer(config: OptimizerConfig, weights, rates: Sequence[float]) -> Optimizer:
    """Return the configured optimizer for these Parameters, each with its factor of the learning rate.

    Raises:
        InputError: there is nothing to train.
    """
    if not weights:
        raise InputError("model.freeze leaves no weights to train. Freeze fewer parts.")
    return OPTIMIZERS[config.name](config, weights, rates)


# Functions for `each`.


def _usable(factor, tensor):
    """Return the tensor times the factor; zeros for the factor 0, even where the tensor is not finite."""
    if operators.usable(tensor.dtype):
        return operators.scaled(tensor, factor.reshape(1))
    return ops.select(factor > 0, tensor * factor, ops.zeros_like(tensor))


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
