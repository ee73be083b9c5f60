"""Multiply-adds and bytes of every layer of a `DeployGraph`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neonext_ms.common.errors import InputError
from neonext_ms.export.graph import INPUT, DeployGraph, Layer, output_shape


@dataclass(frozen=True)
class LayerCost:
    """Cost of a layer for a whole batch.

    Attributes:
        name: name of the layer.
        op: kind of the layer, as in `export.graph.OPS`; "total" for a sum.
        multiply_adds: multiply-adds of convolutions, linear layers and NeoCells, as published figures count them.
            Products with block-diagonal matrices (`left`, `right`) count their zeros; a `neocell` layer does not.
        weight_bytes: bytes of its constants.
        read_bytes: bytes of the activations that it reads.
        written_bytes: bytes of the activations that it writes.
    """

    name: str
    op: str
    multiply_adds: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def bytes(self) -> int:
        """Return all bytes that move if nothing stays in a cache."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


def of_graph(graph: DeployGraph, batch: int = 1, itemsize: int = 4) -> list[LayerCost]:
    """Return the cost of each layer, in the order of the graph.

    Args:
        graph: graph, folded or not.
        batch: number of images.
        itemsize: bytes per value: 4 for float32, 2 for float16.

    Raises:
        InputError: `batch` or `itemsize` is below 1.
    """
    for name, value in (("batch", batch), ("itemsize", itemsize)):
        if value < 1:
            raise InputError(f"{name} must be at least 1 (got {value})")
    shapes: dict[str, tuple[int, ...]] = {INPUT: (3, *graph.image_size)}
    costs = []
    for layer in graph.layers:
        shape = shapes[layer.inputs[0]]
        shapes[layer.output] = output_shape(layer, shape)
        read = sum(math.prod(shapes[name]) for name in layer.inputs)
        costs.append(
            LayerCost(
                layer.name,
                layer.op,
                batch * _multiply_adds(layer, shape, shapes[layer.output]),
                itemsize * sum(array.size for array in layer.arrays.values()),
                itemsize * batch * read,
                itemsize * batch * math.prod(shapes[layer.output]),
            )
        )
    return costs


def total(costs: Iterable[LayerCost], name: str = "total") -> LayerCost:
    """Return the sum of costs."""
    costs = list(costs)
    fields = ("multiply_adds", "weight_bytes", "read_bytes", "written_bytes")
    return LayerCost(name, "total", *(sum(getattr(cost, field) for cost in costs) for field in fields))


def _multiply_adds(layer: Layer, shape: tuple[int, ...], out: tuple[int, ...]) -> int:
    if layer.op in ("conv", "linear"):
        return math.prod(out) * math.prod(layer.arrays["weight"].shape[1:])
    if layer.op == "neocell":
        spec: Any = layer.attributes["spec"]
        return spec.multiply_adds(*shape[1:])
    if layer.op == "left":
        return math.prod(out) * shape[1]
    if layer.op == "right":
        return math.prod(out) * shape[2]
    return 0
