"""Chains of elementary nodes that CANN's graph fusion turns into one operator.

LayerNorm: `LayerNormONNXFusionPass` (ops-nn: ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, with or without Mul and
Add, over the last axis). GELU: the recipes of ModelZoo-PyTorch for ViT, Swin and ConvMixer on a 310P3 choose an
implementation for the operator Gelu in graphs whose GELU is an Erf chain, so the chain does become one operator; the
documentation of the passes describes the tanh form only. Swish: `TbeConvSigmoidMulQuantFusionPass`. HardSwish as
Add, Clip, Mul and Div, behind a convolution: `TbeConv2dAddClipMulDivFusionPass` (310P, 310B, 910); no pass is known for
the node HardSwish. AscendDequant, with or without ReLU, and AscendQuant: `V200RequantFusionPass` (310P) makes them one
AscendRequant, which is ReLU as well; its source passes over every other activation, LeakyRelu with a slope included.

`AutomaticUbFusion` (CANN's page of that name) joins up to 29 connected elementwise operators that no other pass has
taken. Here it joins the nine nodes of the fast form of GELU, and those of HardSwish where no convolution takes them,
which would otherwise each move the hidden activations through memory. The published figures were fitted with all other
elementwise operators on their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .reader import Graph, OnnxNode

_LONGEST = 12  # nodes behind the argument of a GELU
FAST_GELU, SCALED_FAST_GELU = "FastGelu", "ScaledFastGelu"
HARD_SWISH_CHAIN = "AddClipMulDiv"  # as CANN's pass calls it; it takes this chain and not the node HardSwish


@dataclass(frozen=True)
class Chain:
    """Nodes, by position, that become one operator of type `op`, and the values that it reads and writes."""

    op: str
    members: frozenset[int]
    inputs: tuple[str, ...]
    output: str


class _Links:
    """Producers and consumers of the values of a graph."""

    def __init__(self, graph: Graph):
        self.graph, self.nodes = graph, graph.nodes
        self.producers = {value: i for i, node in enumerate(graph.nodes) for value in node.outputs if value}
        self.consumers: dict[str, list[int]] = {}
        for i, node in enumerate(graph.nodes):
            for value in graph.variable(node):
                self.consumers.setdefault(value, []).append(i)

    def producer(self, value: str, *ops: str) -> int | None:
        """Return the position of the node that produces a value, if it is one of these operators."""
        position = self.producers.get(value)
        return position if position is not None and self.nodes[position].op in ops else None

    def only_consumer(self, value: str, *ops: str) -> int | None:
        """Return the position of the only node that reads a value, if it is one of these operators."""
        consumers = self.consumers.get(value, [])
        if len(consumers) != 1 or value in self.graph.outputs or self.nodes[consumers[0]].op not in ops:
            return None
        return consumers[0]

    def before(self, position: int | None, *ops: str) -> int | None:
        """Return the position of the node that produces the only variable input, if it is one of these operators."""
        variable = set(self.graph.variable(self.nodes[position])) if position is not None else set()
        return self.producer(variable.pop(), *ops) if len(variable) == 1 else None


def axes(graph: Graph, node: OnnxNode) -> tuple[int, ...]:
    """Return the axes of a reduction or normalisation, not negative."""
    values = node.attributes.get("axes")
    if values is None and len(node.inputs) > 1 and node.inputs[1] in graph.numbers:
        values = graph.numbers[node.inputs[1]].reshape(-1).tolist()
    if values is None and "axis" in node.attributes:
        values = [node.attributes["axis"]]
    rank = len(graph.shape(node.inputs[0]))
    return tuple(sorted(int(axis) % rank for axis in values)) if values is not None else tuple(range(rank))


def chains(graph: Graph, requant: bool = False) -> tuple[dict[int, Chain], set[int]]:
    """Return chains that do not share a node, by the position of their last node, and the positions of the others.

    Args:
        graph: the network.
        requant: the device has AscendRequant.
    """
    links = _Links(graph)
    taken: set[int] = set()
    last: dict[int, Chain] = {}
    finders = (_layer_norms, _gelus, _fast_gelus, _hard_swishes, _swishes, *((_requants,) if requant else ()))
    for find in finders:
        for chain in find(links):
            if not taken & chain.members:
                taken |= chain.members
                last[max(chain.members)] = chain
    return last, taken - last.keys()


def _layer_norms(links: _Links) -> Iterator[Chain]:
    graph, nodes = links.graph, links.nodes
    for i, node in enumerate(nodes):
        if node.op != "Sqrt":
            continue
        stable = links.producer(node.inputs[0], "Add")
        variance = links.before(stable, "ReduceMean")
        square = links.before(variance, "Pow", "Mul")
        centred = links.before(square, "Sub")
        if stable is None or variance is None or square is None or centred is None:
            continue
        x, mean_value = nodes[centred].inputs
        mean = links.producer(mean_value, "ReduceMean")
        divided = links.only_consumer(node.outputs[0], "Div")
        if mean is None or divided is None or axes(graph, nodes[mean]) != (len(graph.shape(x)) - 1,):
            continue
        members = {i, stable, variance, square, centred, mean, divided}
        # ConvNeXt's own code subtracts the mean twice.
        again = links.producer(nodes[divided].inputs[0], "Sub")
        members |= {again} if again is not None else set()
        output = nodes[divided].outputs[0]
        for op in ("Mul", "Add"):
            after = links.only_consumer(output, op)
            if after is None or len(graph.variable(nodes[after])) != 1:
                break
            members.add(after)
            output = nodes[after].outputs[0]
        yield Chain("LayerNormalization", frozenset(members), (x,), output)


def _gelus(links: _Links) -> Iterator[Chain]:
    graph, nodes = links.graph, links.nodes
    for i, node in enumerate(nodes):
        if node.op not in ("Erf", "Tanh"):
            continue
        shifted = links.only_consumer(node.outputs[0], "Add")
        if shifted is None or len(graph.variable(nodes[shifted])) != 1:
            continue
        argument, roots = _argument(links, node.inputs[0])
        if len(roots) != 1:
            continue
        (x,) = roots
        members, output = {i, shifted, *argument}, nodes[shifted].outputs[0]
        multiplied = False
        # x and 1/2 may be multiplied in either order, or x/2 at once.
        for _ in range(2):
            after = links.only_consumer(output, "Mul")
            if after is None:
                break
            others = [value for value in graph.variable(nodes[after]) if value != output]
            if others and others != [x]:
                half = links.producer(others[0], "Mul", "Div")
                if half is None or graph.variable(nodes[half]) != [x]:
                    break
                members.add(half)
            multiplied |= bool(others)
            members.add(after)
            output = nodes[after].outputs[0]
        if multiplied:
            yield Chain("Gelu", frozenset(members), (x,), output)


def _fast_gelus(links: _Links) -> Iterator[Chain]:
    nodes = links.nodes
    for i, node in enumerate(nodes):
        if node.op != "Abs":
            continue
        x, rest = node.inputs[0], links.only_consumer(node.outputs[0], "Sub")
        inside = links.only_consumer(nodes[rest].outputs[0], "Relu") if rest is not None else None
        if rest is None or inside is None:
            continue
        members, positive = {i, rest, inside}, None
        # t^4 (ROOT - t), from t to the Sub that takes it from relu(x).
        pending = [nodes[inside].outputs[0]]
        while pending:
            readers = {p for p in links.consumers.get(pending.pop(), []) if nodes[p].op in ("Mul", "Sub")} - members
            members |= readers
            for reader in readers:
                found = links.producer(nodes[reader].inputs[0], "Relu")
                if nodes[reader].op == "Sub" and found is not None and nodes[found].inputs[0] == x:
                    positive, output = found, nodes[reader].outputs[0]
                elif len(members) < _LONGEST:
                    pending.append(nodes[reader].outputs[0])
        if positive is None:
            continue
        # Where no convolution takes the scale, it is multiplied before and after.
        before, after = links.producer(x, "Mul"), links.only_consumer(output, "Mul")
        if before is None or after is None or any(len(links.graph.variable(nodes[p])) != 1 for p in (before, after)):
            yield Chain(FAST_GELU, frozenset({*members, positive}), (x,), output)
        else:
            outer = tuple(links.graph.variable(nodes[before]))
            yield Chain(
                SCALED_FAST_GELU, frozenset({*members, positive, before, after}), outer, nodes[after].outputs[0]
            )


def _hard_swishes(links: _Links) -> Iterator[Chain]:
    nodes = links.nodes
    for i, node in enumerate(nodes):
        shifted = links.producer(node.inputs[0], "Add") if node.op == "Clip" else None
        root = links.graph.variable(nodes[shifted]) if shifted is not None else []
        product = links.only_consumer(node.outputs[0], "Mul")
        if shifted is None or product is None or set(nodes[product].inputs) != {*root, node.outputs[0]}:
            continue
        divided = links.only_consumer(nodes[product].outputs[0], "Mul", "Div")
        if divided is not None and len(links.graph.variable(nodes[divided])) == 1:
            members = frozenset({shifted, i, product, divided})
            yield Chain(HARD_SWISH_CHAIN, members, (root[0],), nodes[divided].outputs[0])


def _requants(links: _Links) -> Iterator[Chain]:
    nodes = links.nodes
    for i, node in enumerate(nodes):
        if node.op != "AscendDequant":
            continue
        relu = links.only_consumer(node.outputs[0], "Relu")
        quant = links.only_consumer((nodes[relu] if relu is not None else node).outputs[0], "AscendQuant")
        if quant is not None:
            members = frozenset({i, quant, *(() if relu is None else (relu,))})
            yield Chain("AscendRequant", members, node.inputs[:1], nodes[quant].outputs[0])


def _argument(links: _Links, value: str) -> tuple[set[int], set[str]]:
    """Return the nodes behind the argument of Erf or Tanh, and the values that they start from.

    A start is a value that several nodes read, or that another kind of operator produces.
    """
    members: set[int] = set()
    roots: set[str] = set()
    pending = [value]
    while pending and len(members) < _LONGEST:
        value = pending.pop()
        position = links.producer(value, "Mul", "Add", "Pow", "Div")
        if position is None or len(links.consumers.get(value, [])) > 1:
            roots.add(value)
        else:
            members.add(position)
            pending += links.graph.variable(links.nodes[position])
    return members, roots


def _swishes(links: _Links) -> Iterator[Chain]:
    for i, node in enumerate(links.nodes):
        if node.op != "Sigmoid":
            continue
        product, x = links.only_consumer(node.outputs[0], "Mul"), node.inputs[0]
        if product is not None and set(links.nodes[product].inputs) == {x, node.outputs[0]}:
            yield Chain("Swish", frozenset({i, product}), (x,), links.nodes[product].outputs[0])
