"""Matrix products of a model as a graph of plain MatMuls, whose time is the GEMM rate that a runtime reaches with them.

A 1x1 convolution with M output positions, K input channels and N output channels is the product (M, K) x (K, N). A
larger kernel is the product of its unrolled patches, with K = channels * height * width of the kernel. Grouped and
depthwise convolutions, products of two activations, and products with one matrix for each channel (NeoCell) count among
the multiply-adds of a model, but are not part of this graph.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import atomic
from neonext_ms.common.text import one_line
from neonext_ms.runtime.onnx_file import read_onnx, sound

if TYPE_CHECKING:
    import onnx

_DTYPES = {1: "float32", 10: "float16"}


@dataclass(frozen=True)
class Product:
    """A matrix product (m, k) x (k, n) with a constant right side, of dtype `dtype`."""

    m: int
    k: int
    n: int
    dtype: str = "float32"

    @property
    def multiply_adds(self) -> int:
        """Return m * k * n."""
        return self.m * self.k * self.n


@dataclass(frozen=True)
class Work:
    """Work of a model in one call.

    Attributes:
        products: matrix products with weights, in the order of the nodes.
        multiply_adds: multiply-adds of all convolutions and products as the graph has them; zeros inside the matrices
            of a NeoCell count.
    """

    products: tuple[Product, ...]
    multiply_adds: int

    @property
    def gemm_multiply_adds(self) -> int:
        """Return the multiply-adds of `products`."""
        return sum(product.multiply_adds for product in self.products)


def work_of(path: str | os.PathLike, shape: tuple[int, ...]) -> Work:
    """Count the work of an ONNX model on an input of the given shape.

    Raises:
        InputError: not an ONNX model, or its shapes cannot be inferred for that input.
    """
    import onnx

    model = read_onnx(path)
    weights = {t.name: t for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
                dimension.Clear()
                dimension.dim_value = size
    # Shapes that were inferred for an open batch would contradict those of this batch.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise InputError(
            f"{os.fspath(path)}: the shapes of its tensors cannot be inferred ({one_line(error, 400)})"
        ) from error
    with sound(os.fspath(path)):
        return _work(model, weights)


def _work(model: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> Work:
    """Count the work of a model whose shapes were inferred."""
    shapes = {name: tuple(tensor.dims) for name, tensor in weights.items()}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    products, total = [], 0
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or any(i and 0 in shapes.get(i, (0,)) for i in node.input[:2]):
            continue
        out = shapes.get(node.output[0]) if node.output else None
        if not out or 0 in out:
            continue
        if node.op_type == "Conv":
            kernel, groups = shapes[node.input[1]], _attribute(node, "group", 1)
            total += prod(out) * prod(kernel[1:])
            if groups == 1:
                products.append((out[0] * prod(out[2:]), prod(kernel[1:]), out[1], node.input[1]))
        elif node.op_type == "Gemm":
            left = shapes[node.input[0]]
            inner = left[0] if _attribute(node, "transA", 0) else left[1]
            total += prod(out) * inner
            products.append((out[0], inner, out[1], node.input[1]))
        elif node.op_type == "MatMul":
            left, right = shapes[node.input[0]], shapes[node.input[1]]
            total += prod(out) * left[-1]
            if node.input[1] in weights and len(right) == 2 and len(left) > 1:
                products.append((prod(left[:-1]), left[-1], right[1], node.input[1]))
    dtypes = {name: _DTYPES.get(tensor.data_type, "float32") for name, tensor in weights.items()}
    return Work(tuple(Product(m, k, n, dtypes.get(w, "float32")) for m, k, n, w in products), total)


def _attribute(node, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def write_graph(products: tuple[Product, ...], path: str | os.PathLike, seed: int = 0) -> None:
    """Write an ONNX model of these products, each with weights of its own.

    Products with the same left side share an input; `inputs_of` returns the inputs in order. One element of every
    product is an output, so that no runtime can skip a product and no memory is spent on keeping them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(seed)
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    corner = [("zero", [0, 0]), ("one", [1, 1])]
    tensors = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in corner]
    nodes, ends = [], []
    for index, product in enumerate(products):
        weight = generator.standard_normal((product.k, product.n), np.float32) / np.sqrt(product.k)
        tensors.append(numpy_helper.from_array(weight.astype(product.dtype), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [_left(product), f"w{index}"], [f"y{index}"]))
        nodes.append(helper.make_node("Slice", [f"y{index}", "zero", "one"], [f"c{index}"]))
        end = f"c{index}"
        if product.dtype != "float32":
            nodes.append(helper.make_node("Cast", [end], [f"f{index}"], to=TensorProto.FLOAT))
            end = f"f{index}"
        ends.append(end)
    nodes.append(helper.make_node("Concat", ends, ["corners"], axis=1))
    lefts = _lefts(products)
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info(_left(p), kinds[p.dtype], [p.m, p.k]) for p in lefts],
        [helper.make_tensor_value_info("corners", TensorProto.FLOAT, [1, len(products)])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with atomic(path) as staged:
        onnx.save(model, staged)


def inputs_of(products: tuple[Product, ...], seed: int = 0) -> list[np.ndarray]:
    """Return arrays for the model of `write_graph`, in the order of its inputs."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((p.m, p.k), np.float32).astype(p.dtype) for p in _lefts(products)]


def _left(product: Product) -> str:
    return f"x_{product.m}_{product.k}_{product.dtype}"


def _lefts(products: tuple[Product, ...]) -> list[Product]:
    """Return one product for each distinct left side."""
    return list({_left(product): product for product in products}.values())
