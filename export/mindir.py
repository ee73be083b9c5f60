"""A folded `DeployGraph` as a MindSpore cell and as a MindIR file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from neonext_ms.common.errors import InputError
from neonext_ms.common.signals import signals_later
from neonext_ms.common.text import one_line
from neonext_ms.models.activations import LEAKY_SLOPE

from .fast_gelu import END, ROOT, SCALE
from .graph import INPUT, DeployGraph, Layer
from .onnx.format import Format


class _Conv(nn.Cell):
    def __init__(self, layer: Layer):
        super().__init__()
        weight = layer.arrays["weight"]
        kernel, groups = weight.shape[2:], layer.attributes["groups"]
        self.weight = _parameter(layer, "weight")
        self.bias = _parameter(layer, "bias") if "bias" in layer.arrays else None
        pads = layer.attributes.get("pads", (0, 0))
        padding = {"pad_mode": "pad", "pad": (0, pads[0], 0, pads[1])} if any(pads) else {"pad_mode": "valid"}
        self.conv = ops.Conv2D(weight.shape[0], kernel, stride=kernel, group=groups, **padding)
        self.add_bias = ops.BiasAdd()

    def construct(self, x):
        y = self.conv(x, self.weight)
        if self.bias is not None:
            y = self.add_bias(y, self.bias)
        return y


class _Product(nn.Cell):
    """`matrix @ x` or `x @ matrix` for every channel."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.matrix = _parameter(layer, "matrix")
        self.from_left = layer.op == "left"
        self.product = ops.BatchMatMul()

    def construct(self, x):
        # The CPU kernel does not broadcast over the batch.
        matrix = ops.tile(self.matrix.expand_dims(0), (x.shape[0], 1, 1, 1))
        if self.from_left:
            return self.product(matrix, x)
        return self.product(x, matrix)


class _Shift(nn.Cell):
    def __init__(self, layer: Layer):
        super().__init__()
        self.bias = _parameter(layer, "bias")
        self.by_channel = layer.arrays["bias"].ndim == 1
        self.add_bias = ops.BiasAdd()

    def construct(self, x):
        if self.by_channel:
            return self.add_bias(x, self.bias)
        return x + self.bias


class _Crop(nn.Cell):
    def __init__(self, layer: Layer):
        super().__init__()
        self.height: int = layer.attributes["size"][0]
        self.width: int = layer.attributes["size"][1]

    def construct(self, x):
        return x[:, :, : self.height, : self.width]


class _GlobalMean(nn.Cell):
    def __init__(self, layer: Layer):
        super().__init__()
        self.crop = _Crop(layer) if "size" in layer.attributes else None

    def construct(self, x):
        if self.crop is not None:
            x = self.crop(x)
        return x.mean((2, 3))


class _LayerNorm(nn.Cell):
    def __init__(self, layer: Layer):
        super().__init__()
        self.weight = _parameter(layer, "weight")
        self.bias = _parameter(layer, "bias")
        self.norm = ops.LayerNorm(-1, -1, layer.attributes["eps"])

    def construct(self, x):
        return self.norm(x, self.weight, self.bias)[0]


class _Linear(nn.Cell):
    def __init__(self, layer: Layer):
        super().__init__()
        self.weight = _parameter(layer, "weight")
        self.bias = _parameter(layer, "bias")
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x):
        return self.product(x, self.weight) + self.bias


class _Add(nn.Cell):
    def construct(self, x, y):
        return x + y


class _FastGelu(nn.Cell):
    """The form of `fast_gelu`."""

    def __init__(self, scaled: bool):
        super().__init__()
        self.scaled = scaled

    def construct(self, x):
        if not self.scaled:
            x = x * SCALE
        t = ops.relu(END - ops.abs(x))
        square = t * t
        y = ops.relu(x) - square * square * (ROOT - t)
        return y if self.scaled else y * (1 / SCALE)


def _gelu(layer: Layer) -> nn.Cell:
    form = layer.attributes.get("approximate")
    return _FastGelu("scaled" in layer.attributes) if form == "fast" else nn.GELU(approximate=form == "tanh")


_CELLS = {
    "conv": _Conv,
    "left": _Product,
    "right": _Product,
    "shift": _Shift,
    "gelu": _gelu,
    "relu": lambda layer: nn.ReLU(),
    "leakyrelu": lambda layer: nn.LeakyReLU(LEAKY_SLOPE),
    "hardswish": lambda layer: nn.HSwish(),
    "add": lambda layer: _Add(),
    "global_mean": _GlobalMean,
    "crop": _Crop,
    "layer_norm": _LayerNorm,
    "linear": _Linear,
}


def _parameter(layer: Layer, key: str) -> Parameter:
    return Parameter(Tensor(np.ascontiguousarray(layer.arrays[key])), name=f"{layer.name}.{key}", requires_grad=False)


class DeployCell(nn.Cell):
    """The layers of a folded graph as cells that run in order.

    Args:
        graph: a graph that `fold.fold` and `lower.lower` made.
        dtype: dtype of weights and arithmetic, `mindspore.float32` or `mindspore.float16`.
        float32_io: keep input and outputs in float32.

    Inputs:
        images: `(N, 3, H, W)`, float32, or `dtype` without `float32_io`.

    Outputs:
        the graph's outputs in the dtype of the input; a single one is not wrapped in a tuple.

    Raises:
        InputError: a layer that MindIR cannot express, such as a NeoCell that was left for a custom node.
    """

    def __init__(self, graph: DeployGraph, dtype: Any = ms.float32, float32_io: bool = True):
        super().__init__(auto_prefix=False)
        for layer in graph.layers:
            _check(layer)
        self.dtype = dtype
        self.outside = ms.float32 if float32_io else dtype
        self.cells_in_order = nn.CellList([_CELLS[layer.op](layer) for layer in graph.layers], auto_prefix=False)
        # MindSpore compiles tuples of numbers, not names: values are numbered, the input first.
        numbers = {name: i for i, name in enumerate([INPUT, *(layer.output for layer in graph.layers)])}
        self.sources = tuple(tuple(numbers[name] for name in layer.inputs) for layer in graph.layers)
        self.results = tuple(numbers[name] for name in graph.outputs)
        self.count = len(graph.layers)
        for parameter in self.get_parameters() if dtype != ms.float32 else ():
            parameter.set_dtype(dtype)

    def construct(self, images):
        values: Any = (ops.cast(images, self.dtype),)
        for i in range(self.count):
            source = self.sources[i]
            if len(source) == 2:
                value = self.cells_in_order[i](values[source[0]], values[source[1]])
            else:
                value = self.cells_in_order[i](values[source[0]])
            values = (*values, value)
        if len(self.results) == 1:
            return ops.cast(values[self.results[0]], self.outside)
        outputs: Any = ()
        for result in self.results:
            outputs = (*outputs, ops.cast(values[result], self.outside))
        return outputs


def _check(layer: Layer) -> None:
    if layer.op not in _CELLS:
        instead = "Write NeoCells as matmul or padded." if layer.op == "neocell" else "Write ONNX."
        raise InputError(f"{layer.name}: MindIR has no form of a {layer.op} layer. {instead}")
    if {"stride", "padding", "axis"} & set(layer.attributes):
        raise InputError(f"{layer.name}: MindIR has no form of a {layer.op} layer of this kind. Write ONNX.")


def write(graph: DeployGraph, path: Path, batch: int | None = None, format: Format | None = None) -> list[Path]:
    """Write a folded graph as MindIR.

    Above 1 GiB MindSpore writes `<name>_graph.mindir`, and the weights into the folder `<name>_variables` beside it;
    they have to stay together.

    Args:
        graph: deployment graph, see `DeployCell`.
        path: path of the file, ending in `.mindir`.
        batch: fixed batch size, or None for a dynamic one.
        format: `dtype` and `float32_io` of the file; `lower.lower` has applied the rest.

    Returns:
        the files that were written, the graph first.

    Raises:
        OSError: the file cannot be written.
        InputError: MindSpore could not write it, or a dtype that cannot be verified here.
    """
    format = format or Format()
    if format.dtype == "bfloat16":
        raise InputError(
            f"{path.name}: MindSpore's CPU backend has no bfloat16 convolution, so such a MindIR could not be "
            "verified. Write float32 and let converter_lite lower the precision, or write float16 or ONNX."
        )
    if format.dtype == "float16":
        _check_range(graph)
    cell = DeployCell(graph, getattr(ms, format.dtype), format.float32_io)
    cell.set_train(False)
    images = Tensor(shape=[batch, 3, *graph.image_size], dtype=cell.outside)
    size = np.dtype(format.dtype).itemsize * sum(a.size for layer in graph.layers for a in layer.arrays.values())
    _reserve(path, size)
    try:
        with signals_later():
            ms.export(cell, images, file_name=str(path), file_format="MINDIR", custom_func=_canonical)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path.name}: MindSpore could not write MindIR ({one_line(error)})") from error
    files = [path]
    if not path.is_file():
        data = path.with_name(f"{path.stem}_variables")
        files = [path.with_name(f"{path.stem}_graph.mindir"), *(sorted(data.iterdir()) if data.is_dir() else ())]
    if sum(file.stat().st_size for file in files if file.is_file()) < size:
        raise InputError(f"{path.name}: MindSpore wrote only a part of the file. Check that the disk is not full.")
    return files


def _reserve(path: Path, size: int) -> None:
    """Check that a file of this size fits: MindSpore reports a full disk in its log only.

    Raises:
        OSError: it does not.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    finally:
        os.close(descriptor)
        os.unlink(path)


def _canonical(model) -> None:
    """Make two exports of one network the same bytes: no time, no address, primitives in a fixed order."""
    for attribute in model.graph.attribute:
        if attribute.name == "compile_phase":
            attribute.s = b"export.mindir"
    # Nodes refer to primitives by name, so their order, which is that of memory, can be changed.
    ordered = sorted(model.primitives, key=lambda primitive: primitive.name)
    del model.primitives[:]
    model.primitives.extend(ordered)


def _check_range(graph: DeployGraph) -> None:
    limit = float(np.finfo(np.float16).max)
    for layer in graph.layers:
        for key, array in layer.arrays.items():
            largest = float(np.abs(array).max(initial=0.0))
            if largest > limit:
                raise InputError(
                    f"{layer.name}.{key} has values up to {largest:.3g}, which float16 cannot hold. Write float32."
                )
