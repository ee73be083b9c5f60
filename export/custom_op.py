"""The NeoCell node: the interface between an exported graph, the AscendC operator package, and the proof of both.

    y = NeoCell(x, coef_a, coef_b[, bias]) {kernel_a, kernel_b, channels}

in the default domain. The tables below are the whole interface; `ops/packing.py` says what the coefficients are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..ops.packing import unpack
from ..ops.spec import NeoCellSpec

if TYPE_CHECKING:
    import onnx

OP_TYPE = "NeoCell"
DOMAIN = ""
# For which the package's ONNX plugin has to register the operator: what we write and CANN's parsers take.
OPSETS = range(11, 19)
# Name -> shape; C channels, K the largest matrix size of the side. All in the type of x.
INPUTS: Mapping[str, str] = {
    "x": "(N, C, H, W)",
    "coef_a": "(K_a, 2 K_a - 1, C)",
    "coef_b": "(K_b, 2 K_b - 1, C)",
    "bias": "(C), optional: added to every value of a channel",
}
OUTPUTS: Mapping[str, str] = {"y": "(N, C, H, W)"}
# Name -> ONNX attribute type; one number for each group of channels, groups in the order of the channels.
ATTRIBUTES: Mapping[str, str] = {
    "kernel_a": "INTS",  # size of the matrices A
    "kernel_b": "INTS",  # size of the matrices B
    "channels": "INTS",  # channels; their sum is C
}


def attributes(spec: NeoCellSpec) -> dict[str, list[int]]:
    """The node's attributes for a NeoCell of square matrices."""
    return {
        "kernel_a": [group.h_in for group in spec.groups],
        "kernel_b": [group.w_in for group in spec.groups],
        "channels": [group.channels for group in spec.groups],
    }


def matrices(coefficients: np.ndarray, kernels: Sequence[int], channels: Sequence[int], size: int) -> np.ndarray:
    """Whole matrices `(C, outputs, inputs)` of a node's coefficients for a map side of `size`, in their dtype.

    Raises:
        InputError: the coefficients and the attributes contradict each other.
    """
    return unpack(coefficients, list(kernels), list(channels), size)


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

        def _run(self, x, coef_a, coef_b, bias=None, kernel_a=None, kernel_b=None, channels=None):
            a = matrices(coef_a, kernel_a, channels, x.shape[2])
            b = matrices(coef_b, kernel_b, channels, x.shape[3])
            y = a @ x @ b.transpose(0, 2, 1)
            return (y if bias is None else y + bias[:, None, None],)

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
        given = {a.name: list(a.ints) for a in node.attribute}
        x, coef_a, coef_b, *bias = node.input
        if set(given) != set(ATTRIBUTES):
            raise InputError(
                f"{node.name}: a NeoCell node needs the attributes {', '.join(ATTRIBUTES)}, found "
                f"{', '.join(given) or 'none'}"
            )
        names = []
        for key, coef, size in (("kernel_a", coef_a, sizes[x][0]), ("kernel_b", coef_b, sizes[x][1])):
            try:
                whole = matrices(numpy_helper.to_array(tensors[coef]), given[key], given["channels"], size)
            except InputError as error:
                raise InputError(f"{node.name}: {error}") from error
            whole = whole if key == "kernel_a" else whole.transpose(0, 2, 1)
            names.append(f"{coef}.matrix")
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(whole), names[-1]))
            gone.add(coef)
        (output,) = node.output
        last = f"{node.name}.product" if bias else output
        nodes.append(helper.make_node("MatMul", [names[0], x], [f"{node.name}.left"], name=f"{node.name}.left"))
        nodes.append(helper.make_node("MatMul", [f"{node.name}.left", names[1]], [last], name=f"{node.name}.right"))
        if bias:
            column = np.asarray(numpy_helper.to_array(tensors[bias[0]]))[:, None, None]
            graph.initializer.append(numpy_helper.from_array(column, f"{bias[0]}.column"))
            nodes.append(helper.make_node("Add", [last, f"{bias[0]}.column"], [output], name=f"{node.name}.bias"))
            gone.add(bias[0])
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result


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
