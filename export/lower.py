"""Lowering: bring the NeoCells and GELUs of a folded graph into the form that a file is written in.

A NeoCell has three forms: `matmul` (two full products, equation 2 of the paper), `padded` (the same on maps whose
sides are multiples of 16) and `custom` (left as it is, for the node of the AscendC operator).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neonext_ms.common.errors import InputError

from .fast_gelu import SCALE
from .graph import INPUT, DeployGraph, Layer, neocell_bias, neocell_weights
from .onnx.format import Format
from .scales import scaled_chain

Size = tuple[int, int]
# 16 float16 numbers are the 32 bytes that the cube unit's tiles and the vector unit's copies come in.
ALIGNMENT = 16
# CANN's AvgPool takes windows below 256 and strides up to 63.
_LARGEST_WINDOW, _LARGEST_STRIDE = 255, 63


def lower(graph: DeployGraph, format: Format) -> DeployGraph:
    """Return a graph as it is written in a format.

    Args:
        graph: a graph that `fold.fold` made.
        format: the format; only `neocell` and `gelu` matter here, the others are applied when the graph is emitted.

    Returns:
        a new graph; with `neocell="custom"` its NeoCells are still NeoCells.

    Raises:
        InputError: a NeoCell that the format cannot express.
    """
    if format.neocell == "matmul":
        graph = neocell_to_matmul(graph)
    elif format.neocell == "padded":
        graph = neocell_to_padded_matmul(graph)
    else:
        _check_square(graph)
        graph = _bias_behind(graph)
    if format.gelu == "fast":
        graph = _gelu_in_scale(graph)
    if format.gelu in ("tanh", "fast"):
        layers = (_approximated(layer, format.gelu) if layer.op == "gelu" else layer for layer in graph.layers)
        graph = replace(graph, layers=tuple(layers))
    return graph


def _approximated(gelu: Layer, form: str) -> Layer:
    return replace(gelu, attributes={**gelu.attributes, "approximate": form})


def _gelu_in_scale(graph: DeployGraph) -> DeployGraph:
    """Multiply the values before and after a GELU by `fast_gelu.SCALE` where convolutions can take it."""
    changes = []
    for chain in graph.chains("conv", "gelu", "conv"):
        if chain[2].attributes["groups"] == 1:
            scaled = replace(chain[1], attributes={**chain[1].attributes, "scaled": True})
            changes.append((chain, scaled_chain([chain[0], scaled, chain[2]], SCALE)))
    return graph.replaced(changes)


def _check_square(graph: DeployGraph) -> None:
    for layer in graph.layers:
        if layer.op == "neocell" and not all(
            group.axis_a.square and group.axis_b.square for group in layer.attributes["spec"].groups
        ):
            raise InputError(
                f"{layer.name}: a NeoCell that changes the size of its map has no custom node. Fold the graph first, "
                "or write NeoCells as matmul."
            )


def neocell_to_matmul(graph: DeployGraph) -> DeployGraph:
    """Write each NeoCell as two constant block-diagonal matrices per channel, for the size of its map (equation 2).

    `y = A x B` with `A = diag(L, ..., L)` and `B = diag(R, ..., R)`, shifted where the stage has a shift.
    """
    shapes = graph.shapes()
    changes = []
    for cell in graph.layers:
        if cell.op == "neocell":
            _, height, width = shapes[cell.inputs[0]]
            size = height, width
            changes.append(([cell], _products(cell, *_matrices(cell, size), size)))
    return graph.replaced(changes)


def neocell_to_padded_matmul(graph: DeployGraph, multiple: int = ALIGNMENT) -> DeployGraph:
    """Write each NeoCell as two products whose M, N and K are multiples, on maps padded below and to the right.

    The whole stream of a stage is padded, by the convolution that makes its map, which reads rows of zeros below its
    input and columns to the right. What lies outside the real map is finite and never read: the matrices are zero
    there, a downsampling convolution reads patches that lie inside or outside as a whole, and the head averages the
    real map alone. Outputs that are maps are cropped.

    Args:
        graph: a folded graph.
        multiple: number that divides rows and columns of every padded map.

    Raises:
        InputError: a graph with transposes, which has not been folded, or a multiple below 1.
    """
    if multiple < 1:
        raise InputError(f"padding: expected a multiple of at least 1, got {multiple}")
    real = {name: (shape[1], shape[2]) for name, shape in graph.shapes().items() if len(shape) == 3}
    padded = {INPUT: real[INPUT]}
    layers: list[Layer] = []
    for layer in graph.layers:
        source = layer.inputs[0]
        if layer.output not in real:
            # Behind the head there are vectors only.
            layers.extend(_mean(layer, real[source], padded[source]) if layer.op == "global_mean" else [layer])
            continue
        _check_paddable(layer, padded)
        if layer.op in ("conv", "conv_int8"):
            layer, padded[layer.output] = _padded_conv(layer, real[layer.output], padded[source], multiple)
            layers.append(layer)
        elif layer.op == "neocell":
            products, padded[layer.output] = _padded_products(layer, real, padded[source], multiple)
            layers.extend(products)
        else:
            padded[layer.output] = padded[source]
            layers.append(layer)
    return _cropped(replace(graph, layers=tuple(layers)), real, padded)


def _check_paddable(layer: Layer, padded: dict[str, Size]) -> None:
    if (
        layer.op in ("transpose", "linear", "space_to_depth", "max_pool")
        or {"stride", "padding"} & set(layer.attributes)
        or (layer.op == "add" and padded[layer.inputs[1]] != padded[layer.inputs[0]])
    ):
        raise InputError(f"{layer.name}: a {layer.op} layer does not fit padded maps. Fold the graph first.")


def _padded_conv(conv: Layer, real: Size, source: Size, multiple: int) -> tuple[Layer, Size]:
    """Return a convolution that reads a padded map and makes a padded map, and the size of that."""
    kernel = conv.arrays["weight"].shape[2:]
    # What the convolution makes of the padding anyway counts as padding too.
    height, width = (_aligned(max(r, s // k), multiple) for r, s, k in zip(real, source, kernel, strict=True))
    pads = tuple(max(size * k - s, 0) for size, s, k in zip((height, width), source, kernel, strict=True))
    if any(pads):
        conv = replace(conv, attributes={**conv.attributes, "pads": pads})
    return conv, (height, width)


def _padded_products(cell: Layer, real: dict[str, Size], source: Size, multiple: int) -> tuple[list[Layer], Size]:
    """Return a NeoCell as products that read and make padded maps, and the size of the map they make."""
    before, after = real[cell.inputs[0]], real[cell.output]
    size = source
    if after != before or any(n % multiple for n in source):
        size = _aligned(after[0], multiple), _aligned(after[1], multiple)
    a, b = _matrices(cell, before)
    # Zero columns of A and zero rows of B do not read the padding, whatever is in it.
    return _products(cell, _embedded(a, size[0], source[0]), _embedded(b, source[1], size[1]), before), size


def _mean(mean: Layer, real: Size, padded: Size) -> list[Layer]:
    """Return the mean over the real part of a map: one pooling where its window can be that large, else a crop."""
    if real == padded:
        return [mean]
    # With this stride, a second window does not fit.
    stride = max(p - r + 1 for p, r in zip(padded, real, strict=True))
    if real[0] * real[1] <= _LARGEST_WINDOW and stride <= _LARGEST_STRIDE:
        return [replace(mean, attributes={**mean.attributes, "size": real})]
    name = f"{mean.name}.crop"
    return [Layer("crop", name, mean.inputs, name, {}, {"size": real}), replace(mean, inputs=(name,))]


def _cropped(graph: DeployGraph, real: dict[str, Size], padded: dict[str, Size]) -> DeployGraph:
    """Return the graph with a crop behind each output that is a padded map; the crop takes the output's name."""
    names = {name: f"{name}.padded" for name in graph.outputs if padded.get(name) != real.get(name)}
    outputs = {value: name for name, value in names.items()}
    layers = []
    for layer in graph.renamed(names).layers:
        layers.append(layer)
        if layer.output in outputs:
            name = outputs[layer.output]
            layers.append(Layer("crop", f"{name}.crop", (layer.output,), name, {}, {"size": real[name]}))
    return replace(graph, layers=tuple(layers))


def _matrices(cell: Layer, size: Size) -> tuple[np.ndarray, np.ndarray]:
    return cell.attributes["spec"].matrices(*neocell_weights(cell), *size)


def _products(cell: Layer, a: np.ndarray, b: np.ndarray, size: Size) -> list[Layer]:
    """Return a NeoCell as two products, and a shift if it has a bias.

    Args:
        cell: the NeoCell.
        a, b: full matrices.
        size: height and width of the real map that it reads.
    """
    left, right = f"{cell.name}.left", f"{cell.name}.right"
    layers = [
        Layer("left", left, cell.inputs, left, {"matrix": a}),
        Layer("right", right, (left,), cell.output, {"matrix": b}),
    ]
    bias = neocell_bias(cell)
    if bias is None:
        return layers
    if isinstance(bias, list):
        bias = _embedded(cell.attributes["spec"].bias_map(bias, *size), a.shape[1], b.shape[2])
    layers[-1] = replace(layers[-1], output=right)
    return [*layers, Layer("shift", f"{cell.name}.bias", (right,), cell.output, {"bias": bias})]


def _bias_behind(graph: DeployGraph) -> DeployGraph:
    """Move the bias of output patches, which the custom node has not, into a layer behind the NeoCell."""
    shapes = graph.shapes()
    changes = []
    for cell in graph.layers:
        bias = neocell_bias(cell) if cell.op == "neocell" else None
        if isinstance(bias, list):
            _, height, width = shapes[cell.inputs[0]]
            plain = f"{cell.name}.plain"
            arrays = {key: array for key, array in cell.arrays.items() if not key.startswith("bias")}
            shift = {"bias": cell.attributes["spec"].bias_map(bias, height, width)}
            layers = [replace(cell, output=plain, arrays=arrays)]
            changes.append(([cell], [*layers, Layer("shift", f"{cell.name}.bias", (plain,), cell.output, shift)]))
    return graph.replaced(changes)


def _aligned(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _embedded(matrices: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return matrices with rows and columns of zeros behind their own."""
    _, own_rows, own_columns = matrices.shape
    return np.pad(matrices, ((0, 0), (0, rows - own_rows), (0, columns - own_columns)))
