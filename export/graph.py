"""`DeployGraph`: a network as a short list of layers with plain named arrays, independent of every framework.

`original_graph` writes the official model node by node, in the order and the layout of the PyTorch code. The rules in
`fold` turn it into the deployment form. A value keeps its name through every rule, so each value of the folded graph
can be compared with the value of the same name in the original one.

Layer kinds, with their arrays and attributes (in brackets: optional). Maps are (N, C, H, W) unless a transpose says
otherwise.

    space_to_depth  block                        channels become (C, block, block)
    conv            weight, [bias]; groups,      square or oblong kernel. The default stride is the size of the kernel.
                    [stride], [padding], [pads]  `padding` adds zeros on every side, `pads` further rows of zeros below
                                                 the map and columns to its right
    neocell         weight_a.i, weight_b.i,      block-diagonal products with the small matrices of each group i; a bias
                    [bias or bias.i]; spec       for each channel, or for each value of an output patch of group i
    left, right     matrix                       A @ x, x @ B with full matrices, one per channel
    shift           bias                         adds one number per channel, or a map of them
    batch_norm      weight, bias, running_mean,  in evaluation
                    running_var; eps
    transpose       order
    linear          weight, [bias]               over the last axis
    conv_int8,      weight, bias, step,          8-bit forms of the two, made by `quantize.apply`: int8 weights, int32
    linear_int8     weight_step; quantizer       bias and accumulators, and one float32 step for each output channel
    to_rows         patch                        each patch of that size of a map, (N, C, H, W), becomes a row of
                                                 (N H/p W/q, C p q): an item of the batch from there on
    to_map          size                         rows, one for each pixel, become a map of that size again
    gelu            [approximate], [scaled]      exact form, "tanh", or "fast"; a scaled one reads and writes values
                                                 that are multiplied by `fast_gelu.SCALE`
    relu
    leakyrelu                                    negative numbers times `activations.LEAKY_SLOPE`
    hardswish                                    x clip(x / 6 + 1/2, 0, 1)
    max_pool        kernel, stride, padding      square windows; padded pixels never win
    scale           gamma; axis                  multiplies channels
    add                                          the sum of two inputs
    global_mean     [size]                       (N, C, H, W) -> (N, C), over the upper left part of that size
    crop            size                         the upper left part of a map
    layer_norm      [weight, bias]; eps, [axis]  over the last axis, or over the channels of a map (axis 1)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import (
    BATCH_NORM_EPS,
    LAYER_NORM_EPS,
    STAGE_OUTPUTS,
    STAGES,
    STEM_STRIDE,
    Architecture,
)
from neonext_ms.ops.spec import NeoCellSpec

INPUT = "input"
LOGITS = "logits"
NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a graph.

    Attributes:
        op: kind, one of the list above.
        name: official name of the module that the layer comes from.
        inputs: names of the values it reads.
        output: name of the value it computes.
        arrays: constants by name.
        attributes: other options by name.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DeployGraph:
    """A network as layers in an order in which they can run.

    Attributes:
        layers: layers in execution order.
        image_size: height and width of the input image; the input is `(N, 3, H, W)`.
        outputs: names of the output values.
        name: name of the network.
    """

    layers: tuple[Layer, ...]
    image_size: tuple[int, int]
    outputs: tuple[str, ...]
    name: str = "neonext"

    def count(self, op: str) -> int:
        """Return the number of layers of a kind."""
        return sum(layer.op == op for layer in self.layers)

    def consumers(self) -> dict[str, list[Layer]]:
        """Return the layers that read each value."""
        table: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                table.setdefault(name, []).append(layer)
        return table

    def chains(self, *ops: str) -> Iterator[list[Layer]]:
        """Yield every chain of layers of these kinds; `|` separates alternatives, as in "conv|linear".

        Each value inside a chain is read by the next layer only and is no output of the graph.
        """
        consumers = self.consumers()
        for first in self.layers:
            chain = [first]
            for op in ops[1:]:
                readers = consumers.get(chain[-1].output, [])
                if len(readers) != 1 or chain[-1].output in self.outputs or readers[0].op not in op.split("|"):
                    break
                chain.append(readers[0])
            if first.op in ops[0].split("|") and len(chain) == len(ops):
                yield chain

    def replaced(self, changes: Sequence[tuple[Sequence[Layer], Sequence[Layer]]]) -> DeployGraph:
        """Return the graph with groups of layers replaced.

        Args:
            changes: pairs of old layers and the new layers that take the place of the last old one.
        """
        removed = {id(layer) for old, _ in changes for layer in old}
        inserted = {id(old[-1]): new for old, new in changes}
        layers: list[Layer] = []
        for layer in self.layers:
            if id(layer) in inserted:
                layers.extend(inserted[id(layer)])
            elif id(layer) not in removed:
                layers.append(layer)
        return replace(self, layers=tuple(layers))

    def renamed(self, names: Mapping[str, str]) -> DeployGraph:
        """Return the graph with some values under other names; the layers keep theirs."""
        layers = tuple(
            replace(
                layer,
                inputs=tuple(names.get(name, name) for name in layer.inputs),
                output=names.get(layer.output, layer.output),
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, outputs=tuple(names.get(name, name) for name in self.outputs))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every value, without its batch axis."""
        shapes: dict[str, tuple[int, ...]] = {INPUT: (3, *self.image_size)}
        for layer in self.layers:
            shapes[layer.output] = output_shape(layer, shapes[layer.inputs[0]])
        return shapes


def output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a layer's output from that of its first input, both without the batch axis."""
    arrays, attributes = layer.arrays, layer.attributes
    if layer.op == "space_to_depth":
        (c, h, w), p = shape, attributes["block"]
        return c * p * p, h // p, w // p
    if layer.op in ("conv", "conv_int8"):
        kernel, strides, (before, after) = arrays["weight"].shape[2:], conv_strides(layer), conv_margins(layer)
        size = (
            (n + b + a - k) // s + 1 for n, b, a, k, s in zip(shape[1:], before, after, kernel, strides, strict=True)
        )
        return arrays["weight"].shape[0], *size
    if layer.op == "max_pool":
        kernel, stride, padding = (attributes[key] for key in ("kernel", "stride", "padding"))
        return shape[0], *((n + 2 * padding - kernel) // stride + 1 for n in shape[1:])
    if layer.op == "neocell":
        return (shape[0], *attributes["spec"].output_size(*shape[1:]))
    if layer.op == "left":
        return shape[0], arrays["matrix"].shape[1], shape[2]
    if layer.op == "right":
        return shape[0], shape[1], arrays["matrix"].shape[2]
    if layer.op == "transpose":
        return tuple(shape[i - 1] for i in attributes["order"][1:])
    if layer.op == "to_rows":
        return (shape[0] * math.prod(attributes["patch"]),)
    if layer.op == "to_map":
        return shape[0], *attributes["size"]
    if layer.op in ("linear", "linear_int8"):
        return (*shape[:-1], arrays["weight"].shape[0])
    if layer.op == "global_mean":
        return shape[:1]
    if layer.op == "crop":
        return (shape[0], *attributes["size"])
    return shape


def conv_strides(layer: Layer) -> tuple[int, int]:
    """Return the vertical and the horizontal stride of a convolution."""
    stride = layer.attributes.get("stride")
    height, width = layer.arrays["weight"].shape[2:]
    return (height, width) if stride is None else (stride, stride)


def conv_margins(layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the zeros that a convolution adds: (above, left) and (below, right)."""
    padding, (below, right) = layer.attributes.get("padding", 0), layer.attributes.get("pads", (0, 0))
    return (padding, padding), (padding + below, padding + right)


def neocell_weights(layer: Layer) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the small matrices A and B of each group of a NeoCell."""
    groups = range(len(layer.attributes["spec"].groups))
    return [layer.arrays[f"weight_a.{i}"] for i in groups], [layer.arrays[f"weight_b.{i}"] for i in groups]


def neocell_bias(layer: Layer) -> np.ndarray | list[np.ndarray] | None:
    """Return the bias of a NeoCell as `ops.reference.forward` takes it: by channel, by patch of each group, or None."""
    if "bias.0" in layer.arrays:
        return [layer.arrays[f"bias.{i}"] for i in range(len(layer.attributes["spec"].groups))]
    return layer.arrays.get("bias")


def as_map(bias: np.ndarray) -> np.ndarray:
    """Return the bias of a `shift` as it is added to maps `(N, C, H, W)`."""
    return bias[:, None, None] if bias.ndim == 1 else bias


class LayerList:
    """A graph under construction: layers that take their arrays by official name.

    Args:
        arrays: weights and statistics by official name; they are only read.

    Attributes:
        layers: layers so far.
        value: name of the value that the next layer reads.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.source = arrays
        self.layers: list[Layer] = []
        self.value = INPUT

    def add(self, op: str, name: str, arrays: Sequence[str] = (), output: str | None = None, **attributes: Any) -> str:
        """Append a layer and return the name of its output; arrays that do not exist are left out."""
        constants = {}
        for key in arrays:
            array = self.source.get(f"{name}.{key}")
            if array is not None:
                constants[key] = np.asarray(array, np.float32)
        self.layers.append(Layer(op, name, (self.value,), output or name, constants, attributes))
        self.value = output or name
        return self.value

    def sum(self, name: str, *values: str) -> str:
        """Append the sum of two values and return its name."""
        self.layers.append(Layer("add", name, values, name))
        self.value = name
        return name


class _OfficialLayers(LayerList):
    """The blocks of the official NeoNeXt."""

    def conv(self, name: str) -> None:
        self.add("conv", name, ("weight",), groups=1)

    def batch_norm(self, name: str) -> None:
        self.add("batch_norm", name, ("weight", "bias", "running_mean", "running_var"), eps=BATCH_NORM_EPS)

    def neocell(self, name: str, spec: NeoCellSpec) -> None:
        groups = range(len(spec.groups))
        keys = [f"weight_{side}.{i}" for side in "ab" for i in groups]
        self.add("neocell", name, [*keys, "bias", *(f"bias.{i}" for i in groups)], spec=spec)

    def block(self, prefix: str, spec: NeoCellSpec, layer_scale: bool, activation: str) -> None:
        entry, content = self.value, f"{prefix}.ops.content"
        self.neocell(f"{content}.neocell", spec)
        self.batch_norm(f"{content}.norm")
        self.add("transpose", f"{content}.chw2hwc", order=NHWC)
        self.add("linear", f"{content}.fc_1", ("weight", "bias"))
        self.add(activation, f"{content}.act")
        self.add("linear", f"{content}.fc_2", ("weight", "bias"))
        if layer_scale:
            self.add("scale", f"{content}.layer_scale", ("gamma",), axis=-1)
        branch = self.add("transpose", f"{content}.hwc2chw", order=NCHW)
        self.sum(prefix, branch, entry)

    def downsample(self, prefix: str, spec: NeoCellSpec, kind: str, activation: str) -> None:
        if kind == "official":
            self.conv(f"{prefix}.conv")
            self.neocell(f"{prefix}.neocell", spec)
            self.batch_norm(f"{prefix}.norm_1")
        else:
            self.neocell(f"{prefix}.neocell", spec)
            self.batch_norm(f"{prefix}.norm_1")
            self.add(activation, f"{prefix}.act_1")
            self.conv(f"{prefix}.conv")
            self.batch_norm(f"{prefix}.norm_2")
            self.add(activation, f"{prefix}.act_2")


def original_graph(
    architecture: Architecture,
    arrays: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    features_only: bool = False,
) -> DeployGraph:
    """Return the official network, node by node.

    Args:
        architecture: options of the network, shifts included.
        arrays: weights and statistics under their official names; they are only read.
        image_size: height and width of the input in pixels.
        features_only: end at the stages; the outputs are the maps `stage_1` to `stage_4`, and there is no head.

    Raises:
        InputError: unknown shifts, or an image size that the network cannot take.
    """
    if architecture.shifts is None:
        raise InputError("a deployment graph needs the shifts of the network. Pass them, such as 1,1,1,0.")
    architecture.maps(image_size)
    a = architecture
    b = _OfficialLayers(arrays)
    b.add("space_to_depth", "stem.patchify", block=STEM_STRIDE)
    b.conv("stem.conv")
    b.batch_norm("stem.norm")
    stages = []
    for stage in range(STAGES):
        for block in range(a.per_stage_layers[stage]):
            b.block(f"stage_{stage + 1}.{block}", a.stage_spec(stage), a.layer_scale, a.activation)
        stages.append(b.value)
        if stage < STAGES - 1:
            b.downsample(f"downsample_{stage + 1}", a.downsample_spec(stage), a.downsample, a.activation)
    if features_only:
        graph = DeployGraph(tuple(b.layers), image_size, tuple(stages))
        return graph.renamed(dict(zip(stages, STAGE_OUTPUTS, strict=True)))
    b.add("global_mean", "head.pool")
    b.add("layer_norm", "head.ln", ("weight", "bias"), eps=LAYER_NORM_EPS)
    b.add("linear", "head.fc", ("weight", "bias"), output=LOGITS)
    return DeployGraph(tuple(b.layers), image_size, (LOGITS,))
