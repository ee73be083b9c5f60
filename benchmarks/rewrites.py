"""Other forms of an exported network in onnxruntime, each timed against the emitted one.

python -m neonext_ms.benchmarks.rewrites [--model neonext_t.released_224,convnext_t] [--batch 1,8] [--threads 2]

Forms that compute something else are bounds: they show what a part costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neonext_ms.commands.predict import positive
from neonext_ms.common.cli import Parser, parse_size, print_json, progress, run
from neonext_ms.common.errors import UsageError
from neonext_ms.export.command import parse_batch
from neonext_ms.export.graph import DeployGraph, Layer
from neonext_ms.export.lower import lower
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import Format
from neonext_ms.export.onnx.int8 import channels_last
from neonext_ms.runtime.base import onnx_session

from . import networks
from .measure import interleave
from .report import table
from .statistics import ratio

MODELS = ("neonext_t.released_224", "convnext_t")
BATCHES = (1, 8)
_LAYER_SCALE = 0.3


@dataclass(frozen=True)
class Rewrite:
    """Another form of a network.

    Attributes:
        name: what is done.
        model: gives it from the folded graph.
        exact: whether it computes the same function.
    """

    name: str
    model: Callable[[DeployGraph], onnx.ModelProto]
    exact: bool = True


def emitted(graph: DeployGraph, format: Format | None = None) -> onnx.ModelProto:
    """The form that `neonext-export` writes."""
    format = format or Format()
    return emitter.emit(lower(graph, format), format=format)


def hidden_in_parts(graph: DeployGraph, parts: int, pixels: int) -> DeployGraph:
    """The hidden channels of an MLP in several parts whose results add up, on maps of at least so many pixels.

    What lies between the two convolutions becomes smaller and stays in a cache.
    """
    shapes, consumers = graph.shapes(), graph.consumers()
    changes = []
    for first, gelu, second in graph.chains("conv", "gelu", "conv"):
        if np.prod(shapes[second.output][1:]) < pixels or first.arrays["weight"].shape[0] % parts:
            continue
        (add,) = consumers[second.output]
        value = next(name for name in add.inputs if name != second.output)
        layers: list[Layer] = []
        for part in range(parts):
            size = first.arrays["weight"].shape[0] // parts
            own = slice(part * size, (part + 1) * size)
            end = f".{part}"
            arrays = {"weight": second.arrays["weight"][:, own]}
            if not part and "bias" in second.arrays:
                arrays["bias"] = second.arrays["bias"]
            output = add.output if part == parts - 1 else add.output + end
            layers += [
                _copy(first, end, first.inputs, {key: array[own] for key, array in first.arrays.items()}),
                _copy(gelu, end, (first.output + end,), {}),
                _copy(second, end, (gelu.output + end,), arrays),
                Layer("add", add.name + end, (second.output + end, value), output),
            ]
            value = output
        changes.append(([first, gelu, second, add], layers))
    return graph.replaced(changes)


def _copy(layer: Layer, end: str, inputs: tuple[str, ...], arrays) -> Layer:
    return replace(layer, name=layer.name + end, inputs=inputs, output=layer.output + end, arrays=arrays)


def right_first(graph: DeployGraph) -> DeployGraph:
    """A NeoCell's product from the right before the one from the left; `(A X) B = A (X B)`."""
    changes = []
    for left, right in graph.chains("left", "right"):
        first = replace(right, inputs=left.inputs, output=f"{right.name}.first")
        changes.append(([left, right], [first, replace(left, inputs=(first.output,), output=right.output)]))
    return graph.replaced(changes)


def without(graph: DeployGraph, *ops: str) -> DeployGraph:
    """The graph with layers left out that keep the shape of their input."""
    names: dict[str, str] = {}
    for layer in graph.layers:
        if layer.op in ops:
            names[layer.output] = names.get(layer.inputs[0], layer.inputs[0])
    return replace(graph, layers=tuple(layer for layer in graph.layers if layer.op not in ops)).renamed(names)


def with_relu(graph: DeployGraph) -> DeployGraph:
    """ReLU instead of GELU."""
    layers = (replace(layer, op="relu") if layer.op == "gelu" else layer for layer in graph.layers)
    return replace(graph, layers=tuple(layers))


def channels_merged(model: onnx.ModelProto, count: int, pixels: int) -> onnx.ModelProto:
    """Products from the left for `count` channels at once, block-diagonal, on maps of at most so many rows."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}

    def rewrite(node):
        matrix = arrays.get(node.input[0])
        if node.op_type != "MatMul" or matrix is None or matrix.dims[1] > pixels or matrix.dims[0] % count:
            return None
        array = numpy_helper.to_array(matrix)
        channels, rows, columns = array.shape
        blocks = np.zeros((channels // count, count, rows, count, columns), np.float32)
        for i in range(count):
            blocks[:, i, :, i] = array.reshape(channels // count, count, rows, columns)[:, i]
        name, (x, y) = node.name, (node.input[1], node.output[0])
        tensors = {
            f"{name}.blocks": blocks.reshape(channels // count, count * rows, count * columns),
            f"{name}.merged_shape": np.array([0, channels // count, count * columns, -1], np.int64),
            f"{name}.own_shape": np.array([0, channels, rows, -1], np.int64),
        }
        nodes = [
            helper.make_node("Reshape", [x, f"{name}.merged_shape"], [f"{name}.merged"], f"{name}.merge"),
            helper.make_node("MatMul", [f"{name}.blocks", f"{name}.merged"], [f"{name}.product"], name),
            helper.make_node("Reshape", [f"{name}.product", f"{name}.own_shape"], [y], f"{name}.part"),
        ]
        return nodes, tensors

    return _rewritten(model, rewrite)


def layer_norm_in_steps(model: onnx.ModelProto, axis: int) -> onnx.ModelProto:
    """LayerNormalization between transposes as means, differences and a root, over `axis` -1 or (without them) 1."""

    def rewrite(node):
        if node.op_type == "Transpose" and axis == 1 and node.output[0].endswith(".nhwc"):
            return [helper.make_node("Identity", node.input, node.output, node.name)], {}
        if node.op_type == "Transpose" and axis == 1 and node.name.endswith(".nchw"):
            return [helper.make_node("Identity", node.input, node.output, node.name)], {}
        if node.op_type != "LayerNormalization" or not node.output[0].endswith(".normalised"):
            return None
        name, x, y = node.name, node.input[0], node.output[0]
        eps = next(a.f for a in node.attribute if a.name == "epsilon")
        tensors = {f"{name}.axes": np.array([axis], np.int64), f"{name}.eps": np.array(eps, np.float32)}
        steps = [
            ("ReduceMean", [x, f"{name}.axes"], "mean", {"keepdims": 1}),
            ("Sub", [x, f"{name}.mean"], "centred", {}),
            ("Mul", [f"{name}.centred"] * 2, "square", {}),
            ("ReduceMean", [f"{name}.square", f"{name}.axes"], "variance", {"keepdims": 1}),
            ("Add", [f"{name}.variance", f"{name}.eps"], "stable", {}),
            ("Sqrt", [f"{name}.stable"], "deviation", {}),
        ]
        nodes = [helper.make_node(op, i, [f"{name}.{o}"], f"{name}.{o}", **kw) for op, i, o, kw in steps]
        return [*nodes, helper.make_node("Div", [f"{name}.centred", f"{name}.deviation"], [y], f"{name}.out")], tensors

    return _rewritten(model, rewrite)


def _rewritten(model: onnx.ModelProto, rewrite: Callable) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        found = rewrite(node)
        nodes, tensors = ([node], {}) if found is None else found
        result.graph.node.extend(nodes)
        result.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return result


_COMMON = (
    Rewrite("MLP channels last: transposes and MatMul", lambda g: emitted(channels_last(g))),
    Rewrite("GELU as the Erf chain", lambda g: emitted(g, Format(gelu="erf"))),
    Rewrite("hidden channels in 2 parts, maps from 56x56", lambda g: emitted(hidden_in_parts(g, 2, 56 * 56))),
    Rewrite("hidden channels in 4 parts, maps from 56x56", lambda g: emitted(hidden_in_parts(g, 4, 56 * 56))),
    Rewrite("hidden channels in 2 parts, all maps", lambda g: emitted(hidden_in_parts(g, 2, 1))),
    Rewrite("tanh form of GELU", lambda g: emitted(g, Format(gelu="tanh")), exact=False),
    Rewrite("bound: ReLU", lambda g: emitted(with_relu(g)), exact=False),
)
_NEONEXT = (
    Rewrite("NeoCell from the right first", lambda g: emitted(right_first(lower(g, Format())))),
    Rewrite("NeoCell on maps padded to 16", lambda g: emitted(g, Format(neocell="padded"))),
    Rewrite("2 channels in a product, maps to 14x14", lambda g: channels_merged(emitted(g), 2, 14)),
    Rewrite("4 channels in a product, maps to 7x7", lambda g: channels_merged(emitted(g), 4, 7)),
    Rewrite("bound: no NeoCell", lambda g: emitted(without(g, "neocell")), exact=False),
)
_CONVNEXT = (
    Rewrite("LayerNorm in steps, channels last", lambda g: layer_norm_in_steps(emitted(g), -1)),
    Rewrite("LayerNorm in steps, channels first", lambda g: layer_norm_in_steps(emitted(g), 1)),
    Rewrite("bound: no LayerNorm", lambda g: emitted(without(g, "layer_norm")), exact=False),
)


def rewrites(graph: DeployGraph) -> tuple[Rewrite, ...]:
    """What applies to a folded graph."""
    own = _NEONEXT if graph.count("neocell") else _CONVNEXT if graph.count("layer_norm") > 1 else ()
    return (*_COMMON, *own) if graph.count("gelu") else own


def folded(name: str, image_size: tuple[int, int]) -> DeployGraph:
    """A named network with random weights as a folded graph, NeoCells still NeoCells.

    Raises:
        InputError: an unknown name, or an image that it cannot take.
    """
    if not name.startswith("neonext_"):
        return networks.deploy_graph(name, image_size=image_size)
    from neonext_ms.export import fold, graph
    from neonext_ms.export.source import Source

    source = Source.from_name(name)
    # A layer scale as it is initialised would hide from the logits what the blocks compute.
    arrays = {
        key: np.full_like(array, _LAYER_SCALE) if key.endswith(".gamma") else array
        for key, array in source.arrays.items()
    }
    return fold.fold(graph.original_graph(source.architecture, arrays, image_size))[0]


def measure(
    graph: DeployGraph,
    chosen: Sequence[Rewrite],
    batches: Sequence[int],
    rounds: int,
    threads: int,
    quiet: bool = False,
) -> list[dict]:
    """Rewrites of a graph against its emitted form.

    Args:
        graph: folded.
        chosen: of `rewrites(graph)`.
        batches: sizes.
        rounds: of each at batch 1; fewer at larger ones.
        threads: of onnxruntime.
        quiet: show no progress.

    Returns:
        for each: name, exact, relative L2 of the outputs, and by batch the ratio of its time to that of the emitted
        form (below 1: faster) with a 95 % interval.
    """
    random = np.random.default_rng(0)
    images = {n: random.standard_normal((n, 3, *graph.image_size), np.float32) for n in batches}
    base = onnx_session(emitted(graph).SerializeToString(), threads)
    (expected,) = base.run(None, {"input": images[batches[0]]})
    rows = []
    for rewrite in progress(chosen, what=graph.name, quiet=quiet):
        session = onnx_session(rewrite.model(graph).SerializeToString(), threads)
        (found,) = session.run(None, {"input": images[batches[0]]})
        row = {
            "name": rewrite.name,
            "exact": rewrite.exact,
            "relative_l2": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
            "batches": {},
        }
        for batch, x in images.items():
            calls = {
                "emitted": lambda x=x: base.run(None, {"input": x}),
                "rewritten": lambda x=x, session=session: session.run(None, {"input": x}),
            }
            samples = interleave(calls, rounds=max(3, round(rounds / batch**0.5))).samples
            row["batches"][batch] = ratio(samples["rewritten"], samples["emitted"]).to_dict()
        rows.append(row)
    return rows


def _print(name: str, rows: Sequence[dict]) -> None:
    if not rows:
        print(f"{name}: nothing to rewrite\n")
        return
    batches = list(rows[0]["batches"])
    head = ["form", "relative L2", *(f"batch {batch}" for batch in batches)]
    body = [
        [
            row["name"],
            f"{row['relative_l2']:.0e}" if row["exact"] or row["relative_l2"] < 0.01 else "another function",
            *(
                f"{found['median_ratio']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
                for found in row["batches"].values()
            ),
        ]
        for row in rows
    ]
    print(f"{name}: time over that of the emitted form, with a 95 % interval\n\n{table(head, body)}\n")


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.rewrites", description=__doc__)
    parser.add_argument("--model", default=",".join(MODELS), help="named networks, separated by commas")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the forms whose name contains this")
    parser.add_argument("--image-size", type=parse_size, default=(224, 224))
    parser.add_argument("--batch", type=parse_batch, default=BATCHES, help="sizes (default 1,8)")
    parser.add_argument("--rounds", type=positive, default=25, help="timed runs of each at batch 1 (default 25)")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args(argv)
    if not args.batch:
        raise UsageError("--batch: expected sizes from 1 on, such as 1,8")
    result = {}
    for name in filter(None, args.model.split(",")):
        graph = folded(name, tuple(args.image_size))
        chosen = [rewrite for rewrite in rewrites(graph) if args.only in rewrite.name]
        result[name] = measure(graph, chosen, args.batch, args.rounds, args.threads, args.json)
        if not args.json:
            _print(name, result[name])
    if args.json:
        print_json(result)


if __name__ == "__main__":
    sys.exit(run(_main))
