"""`DeployGraph`: a network as a short list of layers with plain named arrays, and no framework in it.

`unfolded` writes the official model down node by node, in the order and the layout of the PyTorch code; the rules in
`fold` turn that into the deployment form. Values keep their names through every rule, so the output of a layer of the
folded graph can be compared with the value of the same name in the unfolded one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import BATCH_NORM_EPS, LAYER_NORM_EPS, STAGES, STEM_STRIDE, Architecture

INPUT = "input"
LOGITS = "logits"

# Layer kinds, with their arrays and attributes. Maps are (N, C, H, W) unless a transpose says otherwise.
#   space_to_depth  block                              channels become (C, block, block)
#   conv            weight, [bias]; groups, [stride],  square or oblong kernel; the stride is the kernel's size unless
#                   [padding], [pads]                  given; padding is zeros on every side, pads are further rows of
#                                                      zeros below the map and columns to its right
#   neocell         weight_a.i, weight_b.i, [bias]; spec
#   left, right     matrix; whole A @ x, x @ whole B, one matrix per channel
#   shift           bias                               adds one number per channel
#   batch_norm      weight, bias, running_mean, running_var; eps
#   transpose       order
#   linear          weight, [bias]                     over the last axis
#   gelu            [approximate]                      exact form, or "tanh"
#   relu
#   max_pool        kernel, stride, padding            square windows; what is padded never wins
#   scale           gamma                              multiplies channels; attribute axis
#   add                                                two inputs
#   global_mean     [size]                             (N, C, H, W) -> (N, C), over the upper left part of that size
#   crop            size                               the upper left part of a map
#   layer_norm      [weight, bias]; eps, [axis]        over the last axis, or over the channels of a map (axis 1)
OPS = (
    "space_to_depth",
    "conv",
    "neocell",
    "left",
    "right",
    "shift",
    "batch_norm",
    "transpose",
    "linear",
    "gelu",
    "relu",
    "max_pool",
    "scale",
    "add",
    "global_mean",
    "crop",
    "layer_norm",
)
NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer.

    Attributes:
        op: one of `OPS`.
        name: the official name of the module it comes from.
        inputs: names of the values it reads.
        output: name of the value it makes.
        arrays: its constants.
        attributes: the rest.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DeployGraph:
    """Layers in an order in which they can run.

    Attributes:
        layers: the layers.
        image_size: height and width of the input image; the input is `(N, 3, H, W)`.
        outputs: names of the values that are the result.
        name: of the network.
    """

    layers: tuple[Layer, ...]
    image_size: tuple[int, int]
    outputs: tuple[str, ...]
    name: str = "neonext"

    def count(self, op: str) -> int:
        """Layers of a kind."""
        return sum(layer.op == op for layer in self.layers)

    def consumers(self) -> dict[str, list[Layer]]:
        """The layers that read each value."""
        table: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                table.setdefault(name, []).append(layer)
        return table

    def chains(self, *ops: str) -> Iterator[list[Layer]]:
        """Every run of layers of these kinds in which each value between them is read by the next layer only."""
        consumers = self.consumers()
        for first in self.layers:
            chain = [first]
            for op in ops[1:]:
                readers = consumers.get(chain[-1].output, [])
                if len(readers) != 1 or chain[-1].output in self.outputs or readers[0].op != op:
                    break
                chain.append(readers[0])
            if first.op == ops[0] and len(chain) == len(ops):
                yield chain

    def replaced(self, changes: Sequence[tuple[Sequence[Layer], Sequence[Layer]]]) -> DeployGraph:
        """The graph with groups of layers replaced; what is new takes the place of the last of what is old."""
        gone = {id(layer) for old, _ in changes for layer in old}
        at = {id(old[-1]): new for old, new in changes}
        layers: list[Layer] = []
        for layer in self.layers:
            if id(layer) in at:
                layers.extend(at[id(layer)])
            elif id(layer) not in gone:
                layers.append(layer)
        return replace(self, layers=tuple(layers))

    def renamed(self, names: Mapping[str, str]) -> DeployGraph:
        """The graph with values under other names; the layers keep theirs."""
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
        """Shape of every value without its batch axis."""
        shapes: dict[str, tuple[int, ...]] = {INPUT: (3, *self.image_size)}
        for layer in self.layers:
            shapes[layer.output] = output_shape(layer, shapes[layer.inputs[0]])
        return shapes


def output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a layer's output from that of its first input, both without the batch axis."""
    arrays, attributes = layer.arrays, layer.attributes
    if layer.op == "space_to_depth":
        (c, h, w), p = shape, attributes["block"]
        return c * p * p, h // p, w // p
    if layer.op == "conv":
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
    if layer.op == "linear":
        return (*shape[:-1], arrays["weight"].shape[0])
    if layer.op == "global_mean":
        return shape[:1]
    if layer.op == "crop":
        return (shape[0], *attributes["size"])
    return shape


def conv_strides(layer: Layer) -> tuple[int, int]:
    """Vertical and horizontal stride of a convolution."""
    stride = layer.attributes.get("stride")
    return tuple(layer.arrays["weight"].shape[2:]) if stride is None else (stride, stride)


def conv_margins(layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros that a convolution adds: (above, left) and (below, right)."""
    padding, (below, right) = layer.attributes.get("padding", 0), layer.attributes.get("pads", (0, 0))
    return (padding, padding), (padding + below, padding + right)


class LayerList:
    """Collects the layers of a graph, taking their arrays by official name.

    Args:
        arrays: weights and statistics; they are only read.

    Attributes:
        layers: so far.
        value: what the next layer reads.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.source = arrays
        self.layers: list[Layer] = []
        self.value = INPUT

    def add(self, op: str, name: str, arrays: Sequence[str] = (), output: str | None = None, **attributes) -> str:
        """Append a layer and give the name of its output; of its arrays those that exist are taken."""
        constants = {}
        for key in arrays:
            array = self.source.get(f"{name}.{key}")
            if array is not None:
                constants[key] = np.asarray(array, np.float32)
        self.layers.append(Layer(op, name, (self.value,), output or name, constants, attributes))
        self.value = output or name
        return self.value

    def sum(self, name: str, *values: str) -> str:
        """Append the sum of two values."""
        self.layers.append(Layer("add", name, values, name))
        self.value = name
        return name


class _Official(LayerList):
    """The blocks of the official NeoNeXt."""

    def conv(self, name: str) -> None:
        self.add("conv", name, ("weight",), groups=1)

    def batch_norm(self, name: str) -> None:
        self.add("batch_norm", name, ("weight", "bias", "running_mean", "running_var"), eps=BATCH_NORM_EPS)

    def neocell(self, name: str, spec) -> None:
        keys = [f"weight_{side}.{i}" for side in "ab" for i in range(len(spec.groups))]
        self.add("neocell", name, [*keys, "bias"], spec=spec)

    def block(self, prefix: str, spec, layer_scale: bool) -> None:
        entry, content = self.value, f"{prefix}.ops.content"
        self.neocell(f"{content}.neocell", spec)
        self.batch_norm(f"{content}.norm")
        self.add("transpose", f"{content}.chw2hwc", order=NHWC)
        self.add("linear", f"{content}.fc_1", ("weight", "bias"))
        self.add("gelu", f"{content}.act")
        self.add("linear", f"{content}.fc_2", ("weight", "bias"))
        if layer_scale:
            self.add("scale", f"{content}.layer_scale", ("gamma",), axis=-1)
        branch = self.add("transpose", f"{content}.hwc2chw", order=NCHW)
        self.sum(prefix, branch, entry)

    def downsample(self, prefix: str, spec, kind: str) -> None:
        if kind == "official":
            self.conv(f"{prefix}.conv")
            self.neocell(f"{prefix}.neocell", spec)
            self.batch_norm(f"{prefix}.norm_1")
        else:
            self.neocell(f"{prefix}.neocell", spec)
            self.batch_norm(f"{prefix}.norm_1")
            self.add("gelu", f"{prefix}.act_1")
            self.conv(f"{prefix}.conv")
            self.batch_norm(f"{prefix}.norm_2")
            self.add("gelu", f"{prefix}.act_2")


def unfolded(
    architecture: Architecture,
    arrays: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    features_only: bool = False,
) -> DeployGraph:
    """The official network, node by node.

    Args:
        architecture: its options, shifts included.
        arrays: weights and statistics under their official names; they are only read.
        image_size: height and width of the input in pixels.
        features_only: the outputs are those of the four stages, named `stage_1` to `stage_4`, and there is no head.

    Raises:
        InputError: unknown shifts, or an image size that the network cannot take.
    """
    if architecture.shifts is None:
        raise InputError("a deployment graph needs the shifts of the network, such as 1,1,1,0")
    architecture.maps(image_size)
    b = _Official(arrays)
    b.add("space_to_depth", "stem.patchify", block=STEM_STRIDE)
    b.conv("stem.conv")
    b.batch_norm("stem.norm")
    stages = []
    for stage in range(STAGES):
        for block in range(architecture.per_stage_layers[stage]):
            b.block(f"stage_{stage + 1}.{block}", architecture.stage_spec(stage), architecture.layer_scale)
        stages.append(b.value)
        if stage < STAGES - 1:
            b.downsample(f"downsample_{stage + 1}", architecture.downsample_spec(stage), architecture.downsample)
    if features_only:
        graph = DeployGraph(tuple(b.layers), tuple(image_size), tuple(stages))
        return graph.renamed({value: f"stage_{stage + 1}" for stage, value in enumerate(stages)})
    b.add("global_mean", "head.pool")
    b.add("layer_norm", "head.ln", ("weight", "bias"), eps=LAYER_NORM_EPS)
    b.add("linear", "head.fc", ("weight", "bias"), output=LOGITS)
    return DeployGraph(tuple(b.layers), tuple(image_size), (LOGITS,))
