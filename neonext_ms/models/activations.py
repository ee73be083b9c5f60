"""The activations of a NeoNeXt by name, without a framework. Layers of the deployment graph have the same names."""

from __future__ import annotations

from typing import Any

GELU, RELU, HARDSWISH = "gelu", "relu", "hardswish"
# The first is the official one, and that of a checkpoint that records none.
ACTIVATIONS = (GELU, RELU, HARDSWISH)


def is_activation(name: Any) -> bool:
    """Return whether a value, such as one read from a file, is the name of an activation."""
    return isinstance(name, str) and name in ACTIVATIONS
