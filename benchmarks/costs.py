"""Multiply-adds and bytes of every layer of a `DeployGraph`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from neonext_ms.common.errors import InputError
from neonext_ms.export.graph import INPUT, DeployGraph, Layer, output_shape


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs for a whole batch.

    Attributes:
        name: of the layer.
        op: its kind, as in `export.graph.OPS`; "total" for a sum.
        multiply_adds: of convolutions, linear layers and NeoCells, as published figures count. Products with
            block-diagonal matrices (`left`, `right`) count their zeros too, a NeoCell that is still one does not.
        weight_bytes: its constants.
        read_bytes: the activations it reads.
        written_bytes: the activations it writes.
    """

    name: str
    op: str
    multiply_adds: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def bytes(self) -> int:
        """Everything that moves if nothing stays in a cache."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


def of_graph(graph: DeployGraph, batch: int = 1, itemsize: int = 4) -> list[LayerCost]:
    """The cost of each layer, in the order of the graph.

    Args:
        graph: folded or not.
        batch: images.
        itemsize: bytes of a number: 4 in float32, 2 in float16.

    Raises:
        InputError: a batch or an itemsize below 1.
    """
    for name, value in (("batch", batch), ("itemsize", itemsize)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
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
    """Their sum."""
    costs = list(costs)
    fields = ("multiply_adds", "weight_bytes", "read_bytes", "written_bytes")
    return LayerCost(name, "total", *(sum(getattr(cost, field) for cost in costs) for field in fields))


def _multiply_adds(layer: Layer, shape: tuple[int, ...], out: tuple[int, ...]) -> int:
    if layer.op in ("conv", "linear"):
        return math.prod(out) * math.prod(layer.arrays["weight"].shape[1:])
    if layer.op == "neocell":
        return layer.attributes["spec"].multiply_adds(*shape[1:])
    if layer.op == "left":
        return math.prod(out) * shape[1]
    if layer.op == "right":
        return math.prod(out) * shape[2]
    return 0
