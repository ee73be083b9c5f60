"""The NeoCell node: the interface between an exported graph, the AscendC operator package, and the proof of both.

    y = NeoCell(x, coef_a, coef_b[, bias]) {channels, h_in, h_out, w_in, w_out, shift_a, shift_b, ...}

in the default domain. The tables below are the whole interface; `ops/packing.py` says what the coefficients are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neonext_ms.common.errors import InputError, nearest
from neonext_ms.ops.packing import RUN_ATTRIBUTES, plan, unpack
from neonext_ms.ops.spec import NeoCellSpec

if TYPE_CHECKING:
    import onnx

OP_TYPE = "NeoCell"
DOMAIN = ""
# For which the package's ONNX plugin has to register the operator: what we write and CANN's parsers take.
OPSETS = range(11, 19)
# Name -> shape; C channels, V rows of 16 coefficients, as `ops/packing.py` packs them. All in the type of x.
INPUTS: Mapping[str, str] = {
    "x": "(N, C, H, W)",
    "coef_a": "(V_a, 16)",
    "coef_b": "(V_b, 16)",
    "bias": "(C filled up to a multiple of 16), optional: added to every value of a channel",
}
OUTPUTS: Mapping[str, str] = {"y": "(N, C, H_out, W_out)"}
# Name -> ONNX attribute type. The first seven have one number for each run of channels that share matrix sizes and
# shifts, runs in the order of the channels.
ATTRIBUTES: Mapping[str, str] = {
    **dict.fromkeys(RUN_ATTRIBUTES, "INTS"),
    "output_size": "INTS",  # [H_out, W_out]; left out where the output has the size of the input
    "accumulate_fp32": "INT",  # 1: arithmetic in float32; left out for 0: in the type of x
}


def attributes(spec: NeoCellSpec) -> dict[str, list[int]]:
    """The node's attributes for a NeoCell that keeps the size of its map."""
    return {name: list(values) for name, values in plan(spec).attributes.items()}


def run_reference(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """The first output of a model with NeoCell nodes, node by node in `onnx.reference`; for small networks.

    A large network is faster through `expand_custom` and onnxruntime.

    Args:
        model: any model; its other operators are those of onnx.
        images: of the type and shape of its input.

    Raises:
        InputError: a NeoCell node whose coefficients and attributes contradict each other.
    """
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class NeoCell(OpRun):
        """Both products, in the type of x."""

        op_domain = DOMAIN

        def _run(self, x, coef_a, coef_b, bias=None, **given):
            runs = _runs(given)
            a = unpack(coef_a, runs, "a", x.shape[2], x.shape[2])
            b = unpack(coef_b, runs, "b", x.shape[3], x.shape[3])
            y = a @ x @ b.transpose(0, 2, 1)
            return (y if bias is None else y + bias[: x.shape[1], None, None],)

    evaluator = ReferenceEvaluator(model, new_ops=[NeoCell])
    return evaluator.run(None, {model.graph.input[0].name: images})[0]


def expand_custom(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with its NeoCell nodes written as two MatMuls each, from their coefficients and attributes alone.

    Every runtime can run the result, and `onnx.checker` can check it, which refuses an operator that is not its own.

    Args:
        model: with a fixed image size; it is not changed.

    Raises:
        InputError: a NeoCell node whose coefficients and attributes contradict each other.
    """
    import onnx
    from onnx import helper, numpy_helper

    sizes = _map_sizes(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    gone, nodes = set(), []
    for node in model.graph.node:
        if node.op_type != OP_TYPE or node.domain != DOMAIN:
            nodes.append(node)
            continue
        x, coef_a, coef_b, *bias = node.input
        names = []
        for side, coef, size in (("a", coef_a, sizes[x][0]), ("b", coef_b, sizes[x][1])):
            try:
                runs = _runs({a.name: helper.get_attribute_value(a) for a in node.attribute})
                whole = unpack(numpy_helper.to_array(tensors[coef]), runs, side, size, size)
            except InputError as error:
                raise InputError(f"{node.name}: {error}") from error
            whole = whole if side == "a" else whole.transpose(0, 2, 1)
            names.append(f"{coef}.matrix")
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(whole), names[-1]))
            gone.add(coef)
        (output,) = node.output
        last = f"{node.name}.product" if bias else output
        nodes.append(helper.make_node("MatMul", [names[0], x], [f"{node.name}.left"], name=f"{node.name}.left"))
        nodes.append(helper.make_node("MatMul", [f"{node.name}.left", names[1]], [last], name=f"{node.name}.right"))
        if bias:
            column = np.asarray(numpy_helper.to_array(tensors[bias[0]]))[: len(whole), None, None]
            graph.initializer.append(numpy_helper.from_array(column, f"{bias[0]}.column"))
            nodes.append(helper.make_node("Add", [last, f"{bias[0]}.column"], [output], name=f"{node.name}.bias"))
            gone.add(bias[0])
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result


def _runs(given: Mapping[str, Any]) -> dict[str, list[int]]:
    """The runs of a node's attributes.

    Raises:
        InputError: an attribute is unknown, or the node changes the size of its map, which no graph of ours does.
    """
    unknown = [name for name in given if name not in ATTRIBUTES]
    if unknown:
        raise InputError(
            f"unknown attribute {unknown[0]!r}{nearest(unknown[0], ATTRIBUTES)}; a NeoCell node has the attributes "
            f"{', '.join(ATTRIBUTES)}"
        )
    runs = {name: list(given[name]) for name in RUN_ATTRIBUTES if given.get(name) is not None}
    if given.get("output_size") or runs.get("h_in") != runs.get("h_out") or runs.get("w_in") != runs.get("w_out"):
        raise InputError("a NeoCell node that changes the size of its map cannot be run here; fold it into a Conv")
    return runs


def _map_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Height and width of every map, from onnx's own shape inference: a NeoCell keeps the shape of its input."""
    import onnx
    from onnx import shape_inference

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if node.op_type == OP_TYPE and node.domain == DOMAIN:
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
    inferred = shape_inference.infer_shapes(plain).graph
    sizes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            sizes[value.name] = dims[2].dim_value, dims[3].dim_value
    return sizes
