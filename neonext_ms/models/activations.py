"""The activations of a NeoNeXt by name, without a framework. Layers of the deployment graph have the same names."""

from __future__ import annotations

from typing import Any

GELU, RELU, LEAKYRELU, HARDSWISH = "gelu", "relu", "leakyrelu", "hardswish"
# The first is the official one, and that of a checkpoint that records none.
ACTIVATIONS = (GELU, RELU, LEAKYRELU, HARDSWISH)
# Positive factors of a channel pass through these: f(a x) = a f(x).
HOMOGENEOUS = (RELU, LEAKYRELU)
# What `leakyrelu` multiplies negative numbers by.
LEAKY_SLOPE = 0.1


def is_activation(name: Any) -> bool:
    """Return whether a value, such as one read from a file, is the name of an activation."""
    return isinstance(name, str) and name in ACTIVATIONS
