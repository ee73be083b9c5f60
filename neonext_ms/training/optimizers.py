"""The one table of optimizers, which tensors decay, and how the learning rate follows the batch and the depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from neonext_ms.common.errors import InputError

from .config.schema import OptimizerConfig

# Name -> class in `updates`, which needs MindSpore.
OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}

LR_RULES: dict[str, Callable[[float], float]] = {
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
    "none": lambda ratio: 1.0,
}


def full_rate(config: OptimizerConfig, global_batch: int) -> float:
    """The learning rate for this many images an update, by the configured rule."""
    return config.lr * LR_RULES[config.lr_rule](global_batch / config.reference_batch)


def decays(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape has weight decay: matrices (NeoCell's too) and kernels, not vectors."""
    return len(shape) > 1


def layer_rates(names: Sequence[str], depths: Sequence[int], decay: float) -> list[float]:
    """Factor of the learning rate for each tensor by its depth in the network.

    The head has factor 1, the last block `decay`, and so on down to the stem; what lies between two stages goes with
    the block that follows.

    Args:
        names: official names.
        depths: blocks of each stage.
        decay: factor from one layer to the one before.
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


def make_optimizer(config: OptimizerConfig, weights, rates: Sequence[float]):
    """The configured optimizer (see `updates.Optimizer`) for these Parameters, each with its factor of the rate.

    Raises:
        InputError: there is nothing to train.
    """
    if not weights:
        raise InputError("model.freeze leaves no weights to train; freeze fewer parts")
    from . import updates

    return getattr(updates, OPTIMIZERS[config.name])(config, weights, rates)
