"""Factors of the channels between two convolutions, moved from the weights of one into those of the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .graph import Layer

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
