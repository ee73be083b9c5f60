"""Chains of elementary nodes that CANN's graph fusion makes one operator of.

LayerNorm: `LayerNormONNXFusionPass` (ops-nn: ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, with or without Mul and
Add, over the last axis). GELU: the recipes of ModelZoo-PyTorch for ViT, Swin and ConvMixer on a 310P3 choose an
implementation for the operator Gelu in graphs whose GELU is an Erf chain, so the chain does become one; of the passes'
documentation only the tanh form is known. Swish: `TbeConvSigmoidMulQuantFusionPass`. No pass is known for
hard swish.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .reader import Graph, Node

_STEPS = 12  # nodes of the longest chain


@dataclass(frozen=True)
class Chain:
    """Nodes that become one operator.

    Attributes:
        op: the operator.
        members: positions of its nodes.
        inputs: what it reads.
        output: what it writes.
    """

    op: str
    members: frozenset[int]
    inputs: tuple[str, ...]
    output: str


class Links:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.maker = {value: i for i, node in enumerate(graph.nodes) for value in node.outputs if value}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(graph.nodes):
            for value in node.inputs:
                if value and value not in graph.constants:
                    self.readers.setdefault(value, []).append(i)

    def made_by(self, value: str, *ops: str) -> int | None:
        """Position of the node that makes a value, if it is one of these operators."""
        position = self.maker.get(value)
        return position if position is not None and self.graph.nodes[position].op in ops else None

    def only_reader(self, value: str, *ops: str) -> int | None:
        """Position of the only node that reads a value, if it is one of these operators."""
        readers = self.readers.get(value, [])
        if len(readers) != 1 or value in self.graph.outputs or self.graph.nodes[readers[0]].op not in ops:
            return None
        return readers[0]

    def variable(self, node: Node) -> list[str]:
        """Inputs that depend on the network's input."""
        return [value for value in node.inputs if value and value not in self.graph.constants]


def axes(graph: Graph, node: Node) -> tuple[int, ...]:
    """Axes of a reduction or normalisation, not negative."""
    given = node.attributes.get("axes")
    if given is None and len(node.inputs) > 1 and node.inputs[1] in graph.numbers:
        given = graph.numbers[node.inputs[1]].reshape(-1).tolist()
    if given is None and "axis" in node.attributes:
        given = [node.attributes["axis"]]
    rank = len(graph.shape(node.inputs[0]))
    return tuple(sorted(int(axis) % rank for axis in given)) if given is not None else tuple(range(rank))


def chains(graph: Graph) -> list[Chain]:
    """Chains that do not share a node, in no order."""
    links, taken, found = Links(graph), set(), []
    for matcher in (_layer_norms, _gelus, _swishes):
        for chain in matcher(links):
            if not taken & chain.members:
                taken |= chain.members
                found.append(chain)
    return found


def _layer_norms(links: Links) -> Iterator[Chain]:
    graph = links.graph
    for i, node in enumerate(graph.nodes):
        if node.op != "Sqrt":
            continue
        stable = links.made_by(node.inputs[0], "Add")
        variance = stable is not None and _first(links, stable, "ReduceMean")
        square = variance is not None and variance is not False and _first(links, variance, "Pow", "Mul")
        centred = square is not None and square is not False and _first(links, square, "Sub")
        if centred is None or centred is False:
            continue
        x, mean = graph.nodes[centred].inputs
        mean = links.made_by(mean, "ReduceMean")
        divided = links.only_reader(node.outputs[0], "Div")
        if mean is None or divided is None or axes(graph, graph.nodes[mean]) != (len(graph.shape(x)) - 1,):
            continue
        members = {i, stable, variance, square, centred, mean, divided}
        again = links.made_by(graph.nodes[divided].inputs[0], "Sub")
        members |= {again} if again is not None else set()
        output = graph.nodes[divided].outputs[0]
        for op in ("Mul", "Add"):
            after = links.only_reader(output, op)
            if after is None or len(links.variable(graph.nodes[after])) != 1:
                break
            members.add(after)
            output = graph.nodes[after].outputs[0]
        yield Chain("LayerNormalization", frozenset(members), (x,), output)


def _first(links: Links, position: int, *ops: str) -> int | None:
    variable = links.variable(links.graph.nodes[position])
    return links.made_by(variable[0], *ops) if variable and len(set(variable)) == 1 else None


def _gelus(links: Links) -> Iterator[Chain]:
    graph = links.graph
    for i, node in enumerate(graph.nodes):
        if node.op not in ("Erf", "Tanh"):
            continue
        shifted = links.only_reader(node.outputs[0], "Add")
        if shifted is None or len(links.variable(graph.nodes[shifted])) != 1:
            continue
        before, roots = _argument(links, node.inputs[0])
        if len(roots) != 1:
            continue
        (x,) = roots
        members, output = {i, shifted, *before}, graph.nodes[shifted].outputs[0]
        reached = False
        for _ in range(2):
            after = links.only_reader(output, "Mul")
            if after is None:
                break
            others = [v for v in links.variable(graph.nodes[after]) if v != output]
            if others and others != [x]:
                half = links.made_by(others[0], "Mul", "Div")
                if half is None or links.variable(graph.nodes[half]) != [x]:
                    break
                members.add(half)
            reached |= bool(others)
            members.add(after)
            output = graph.nodes[after].outputs[0]
        if reached:
            yield Chain("Gelu", frozenset(members), (x,), output)


def _argument(links: Links, value: str) -> tuple[set[int], set[str]]:
    """Nodes behind the argument of Erf or Tanh, back to where one value is read by several or made otherwise."""
    graph, members, roots, open_ = links.graph, set(), set(), [value]
    while open_ and len(members) < _STEPS:
        value = open_.pop()
        position = links.made_by(value, "Mul", "Add", "Pow", "Div")
        inside = position is not None and all(r in members or len(links.readers[value]) == 1 for r in
                                              links.readers.get(value, []))  # fmt: skip
        if not inside or len(links.readers.get(value, [])) > 1:
            roots.add(value)
            continue
        members.add(position)
        open_ += links.variable(graph.nodes[position])
    return members, roots


def _swishes(links: Links) -> Iterator[Chain]:
    graph = links.graph
    for i, node in enumerate(graph.nodes):
        if node.op != "Sigmoid":
            continue
        product = links.only_reader(node.outputs[0], "Mul")
        x = node.inputs[0]
        if product is not None and set(graph.nodes[product].inputs) == {x, node.outputs[0]}:
            yield Chain("Swish", frozenset({i, product}), (x,), graph.nodes[product].outputs[0])


def positions(found: Sequence[Chain]) -> tuple[dict[int, Chain], set[int]]:
    """Chains by the position of their last node, and the positions of their other nodes."""
    last = {max(chain.members): chain for chain in found}
    return last, {i for chain in found for i in chain.members} - last.keys()
