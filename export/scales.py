"""Factors of the channels between two convolutions, moved from the weights of one into those of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from neonext_ms.common.errors import InputError

from .graph import DeployGraph, Layer

# Value whose channels were multiplied by factors: it no longer compares with the value of the original network.
SUFFIX = ".scaled"


def scaled_pair(first: Layer, second: Layer, factors: np.ndarray | float) -> tuple[Layer, Layer]:
    """Return two convolutions with the value between them multiplied by factors, and the same result.

    `V (W x + b) = (V diag(1/f)) (diag(f) W x + f b)`; the factors are rounded into float32 weights once.

    Args:
        first, second: convolutions, the second one without groups; an activation between them is not looked at.
        factors: one number for each output channel of the first, `(C,)`, or one for all.
    """
    factors = np.broadcast_to(np.asarray(factors, np.float64), first.arrays["weight"].shape[:1])
    before = {
        key: (array * factors.reshape(-1, *[1] * (array.ndim - 1))).astype(np.float32)
        for key, array in first.arrays.items()
    }
    weight = (second.arrays["weight"] / factors[:, None, None]).astype(np.float32)
    return replace(first, arrays=before), replace(second, arrays={**second.arrays, "weight": weight})


def scaled_chain(chain: list[Layer], factors: np.ndarray | float) -> list[Layer]:
    """Return convolution, activation and convolution with the two values between them multiplied, under new names.

    The activation keeps its attributes, and has to be such that factors pass through it.
    """
    first, activation, second = chain
    first, second = scaled_pair(first, second, factors)
    inside, outside = first.output + SUFFIX, activation.output + SUFFIX
    return [
        replace(first, output=inside),
        replace(activation, inputs=(inside,), output=outside),
        replace(second, inputs=(outside,)),
    ]


def move_through_relu(graph: DeployGraph, factors: Mapping[str, np.ndarray]) -> DeployGraph:
    """Return a folded graph with factors moved through ReLU, exactly: `relu(f x) = f relu(x)` for positive f.

    What stands before a second linear layer can so be equalised over its channels, which 8 bit asks for.

    Args:
        graph: a folded graph.
        factors: name of the first convolution of a pair with ReLU between them -> what the channels of the value
            between them are multiplied by, `(C,)`.

    Raises:
        InputError: a name of no such pair, or factors that are not positive, finite, or one for each channel.
    """
    changes = []
    chains = {chain[0].name: chain for chain in graph.chains("conv", "relu", "conv")}
    for name, values in factors.items():
        chain = chains.get(name)
        if chain is None or chain[2].attributes["groups"] != 1:
            raise InputError(f"{name}: not a convolution that only ReLU separates from a second one without groups")
        channels = len(chain[0].arrays["weight"])
        if np.shape(values) != (channels,) or not np.isfinite(values).all() or np.min(values) <= 0:
            raise InputError(f"{name}: factors have to be {channels} positive numbers, one for each channel")
        changes.append((chain, scaled_chain(chain, values)))
    return graph.replaced(changes)
