"""Faults in how the values of an ONNX graph hang together: read and never made, made twice, or made of themselves.

An exporter writes none of this. A file that was cut, merged or renamed by hand has it, and ATC's parser is silent about
most of it: it takes an input that nothing makes for an optional one that is left out (`SetOperatorInputs` in hicann/ge,
parser/parser/onnx/onnx_parser.cc).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx

_AGAIN = "export the model again"


class Problem(NamedTuple):
    """A value that does not fit: the node where that shows, or None for the graph, what is wrong, and what to do."""

    node: onnx.NodeProto | None
    problem: str
    remedy: str


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node."""
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs


def problems(graph: onnx.GraphProto, outside: Sequence[set[str]] = ()) -> Iterator[Problem]:
    """Yield what is wrong with the values of a graph and of those inside its nodes.

    Args:
        graph: the graph.
        outside: values of the graphs around it, which its nodes may read.
    """
    inputs = Counter(value.name for value in graph.input)
    constants = Counter([*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer)])
    for kind, names in (("input", inputs), ("constant", constants)):
        for name in (name for name, count in names.items() if count > 1):
            yield Problem(None, f"two {kind}s are called {name!r}", f"give every {kind} a name of its own")
    given = {*inputs, *constants}
    made = set(given)
    for node in graph.node:
        for name in filter(None, node.output):
            if name in made:
                maker = "a constant" if name in constants else "an input" if name in given else "another node"
                problem = f"it makes {name!r}, which {maker} of the model makes, too"
                yield Problem(node, problem, "give every value a name of its own")
            made.add(name)
    scopes = (made, *outside)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name and not any(name in scope for scope in scopes):
                yield Problem(node, f"nothing makes its input {i} ({name}), and the parser would leave it out", _AGAIN)
        for inner in inner_graphs(node):
            yield from problems(inner, scopes)
    for value in graph.output:
        if not any(value.name in scope for scope in scopes):
            yield Problem(None, f"nothing makes the output {value.name!r}", _AGAIN)
    if cycle := _cycle(graph.node):
        others = [repr(node.name or next(filter(None, node.output))) for node in cycle[1:]]
        through = f", through {', '.join(others[:3])}{' ...' if others[3:] else ''}" if others else ""
        yield Problem(cycle[0], f"it reads its own result{through}", _AGAIN)


def _cycle(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return nodes of which each reads the one before it, and the first the last; empty if there are none."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    sources = [{maker[name] for name in _reads(node) if name in maker} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, found in enumerate(sources):
        for source in found:
            readers[source].append(i)
    waits = [len(found) for found in sources]
    ready = [i for i, count in enumerate(waits) if not count]
    for i in ready:
        for reader in readers[i]:
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    left = set(range(len(nodes))) - set(ready)
    path: dict[int, int] = {}
    place = min(left, default=None)
    while place is not None and place not in path:
        path[place] = len(path)
        place = min(sources[place] & left)
    if place is None:
        return []
    first, *rest = list(path)[path[place] :]
    return [nodes[i] for i in (first, *reversed(rest))]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node and the graphs inside it read from around them."""
    yield from filter(None, node.input)
    for graph in inner_graphs(node):
        own = {name for inner in graph.node for name in inner.output}
        own.update(value.name for value in (*graph.input, *graph.initializer))
        read = (name for inner in graph.node for name in _reads(inner))
        yield from (name for name in (*read, *(value.name for value in graph.output)) if name not in own)
