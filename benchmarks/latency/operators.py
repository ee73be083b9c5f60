"""What each operator of a network asks of a device: products, vector instructions, weights, and the layout it wants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from neonext_ms.export.onnx.neocell_node import OP_TYPE

from .patterns import axes, chains, positions
from .reader import QUANT_OPS, Graph, Node

TILE = 16
BLOCKED, FRACTAL, PLAIN = "NC1HWC0", "FRACTAL_NZ", "ND"

_QUICK = ("Relu", "Add", "Sub", "Mul", "Sum", "Max", "Min", "Neg", "Abs", "Cast", "And", "Or", "Not")
_TWO = ("Clip", "LeakyRelu", "PRelu", "Where", "Equal", "Greater", "Less", "Floor", "Ceil", "Round")
_SUMS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool")
# Vector instructions for 128 numbers: ordinary ones, and slow ones (Exp, Ln, Sqrt, Div). Of a reduction: per input.
INSTRUCTIONS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_QUICK, (1, 0)),
    **dict.fromkeys(_TWO, (2, 0)),
    **dict.fromkeys(("Div", "Sqrt", "Exp", "Log", "Reciprocal"), (0, 1)),
    "BatchNormalization": (2, 0),
    "Pow": (1, 0),
    "HardSigmoid": (3, 0),
    "HardSwish": (4, 0),
    "Sigmoid": (2, 2),
    "Swish": (3, 2),
    "Mish": (4, 4),
    "Softplus": (1, 2),
    "Elu": (3, 1),
    "Selu": (4, 1),
    "Tanh": (4, 2),
    "Erf": (14, 2),
    "Gelu": (10, 3),
    "Softmax": (4, 2),
    "LogSoftmax": (4, 2),
    "LayerNormalization": (8, 1),
    "InstanceNormalization": (6, 1),
    "GroupNormalization": (6, 1),
    "LpNormalization": (3, 1),
    "LRN": (9, 3),
    **dict.fromkeys(_SUMS, (1, 0)),
    "ReduceL2": (2, 0),
    "ArgMax": (3, 0),
    "Resize": (4, 0),
    "Upsample": (4, 0),
}  # fmt: skip
REDUCTIONS = (*_SUMS, "ReduceL2", "ArgMax")

ACTIVATIONS = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Swish", "HardSwish", "HardSigmoid", "Tanh", "Elu", "Selu", "Mish",
    "Softplus", "Gelu",
)  # fmt: skip
ELEMENTWISE = (*ACTIVATIONS, "Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Neg", "Abs", "Exp", "Log", "Sqrt", "Pow",
               "Reciprocal", "Erf", "Cast", "Floor", "Ceil", "Round", "Where", "Equal", "Greater", "Less", "And", "Or",
               "Not", *QUANT_OPS)  # fmt: skip
# No task: another shape of the same bytes.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
COPIES = ("Slice", "Split", "Gather", "Pad", "Expand", "Tile", "GatherND", "ScatterND", "GatherElements", "Concat")
LAYOUTS = ("Transpose", "DepthToSpace", "SpaceToDepth")
KEEPING = ("Softmax", "LogSoftmax", "LayerNormalization")  # work in ND and in FRACTAL_NZ
_BLOCKED = ("BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "GlobalMaxPool", "LRN", "Resize",
            "Upsample")  # fmt: skip


@dataclass(frozen=True)
class Product:
    """Matrix products on the cube, in tiles of 16.

    Attributes:
        number: products, each with an operand of its own on both sides.
        rows, columns, depth: tiles of one product.
    """

    number: int
    rows: int
    columns: int
    depth: int

    @property
    def tiles(self) -> int:
        """16 x 16 x 16 products."""
        return self.number * self.rows * self.columns * self.depth


@dataclass
class Operator:
    """One operator, or several that run as one.

    Attributes:
        name: of its first node.
        op: its operator type.
        kind: "conv", "depthwise", "matmul", "batched matmul", "neocell", "vector", "copy", "layout" or "view".
        inputs: what it reads at run time.
        output: what it writes.
        fused: names of the operator types that run inside, itself included.
        product: what it asks of the cube.
        multiply_adds: those that the network needs, without padding and zeros.
        weights: numbers of its constants, padded.
        vector: vector instructions, each with how many numbers it works on and how many of them are slow.
        layout: what it reads and writes.
        int8: whether the product is in 8 bit.
        known: whether the model knows the operator.
        node: the node, for a NeoCell.
    """

    name: str
    op: str
    kind: str
    inputs: list[str]
    output: str
    fused: list[str] = field(default_factory=list)
    product: Product | None = None
    multiply_adds: int = 0
    weights: int = 0
    vector: list[tuple[float, float, float]] = field(default_factory=list)
    layout: str = ""
    int8: bool = False
    known: bool = True
    node: Node | None = None


def ceil(size: float, unit: int) -> int:
    """How many units cover a size."""
    return -(-int(size) // unit)


def blocked_size(shape: tuple[int, ...], layout: str) -> int:
    """Numbers of a value in a layout, padding included."""
    if layout == BLOCKED and len(shape) >= 2:
        return shape[0] * ceil(shape[1], TILE) * TILE * math.prod(shape[2:])
    if layout == FRACTAL and len(shape) >= 2:
        return math.prod(shape[:-2]) * ceil(shape[-2], TILE) * TILE * ceil(shape[-1], TILE) * TILE
    return math.prod(shape)


def operators(graph: Graph, int8: bool = False, small_channels: bool = False, split: bool = False) -> list[Operator]:
    """Operators of a network with CANN's graph fusion, in order, before they are joined into tasks.

    Args:
        graph: the network.
        int8: convolutions and linear layers in 8 bit.
        small_channels: the first convolution takes 4 channels in a block instead of 16 (`--enable_small_channel`).
        split: cube and vector are separate cores, whose MatMul takes plain matrices.
    """
    last, inner = positions(chains(graph))
    quantised = {value for node in graph.nodes if node.op == "AscendQuant" for value in node.outputs}
    result = []
    for i, node in enumerate(graph.nodes):
        if i in inner:
            continue
        chain = last.get(i)
        if chain is not None:
            node = replace(node, op=chain.op, inputs=chain.inputs, outputs=(chain.output,), attributes={})
        in_8_bit = int8 or node.inputs[0] in quantised
        result.append(_operator(graph, node, in_8_bit, small_channels, FRACTAL if not split else PLAIN))
    return result


def _operator(graph: Graph, node: Node, int8: bool, small_channels: bool, matrices: str) -> Operator:
    variable = [v for v in node.inputs if v and v not in graph.constants]
    made = Operator(node.name, node.op, "vector", variable, node.outputs[0], [node.op])
    shape = graph.shape(node.outputs[0])
    numbers = math.prod(shape)
    if node.op in ("Conv", "ConvTranspose"):
        _convolution(graph, node, made, int8, small_channels and node.inputs[0] in graph.inputs)
    elif node.op in ("MatMul", "Gemm"):
        _matmul(graph, node, made, int8, matrices)
    elif node.op == OP_TYPE:
        made.kind, made.layout, made.node = "neocell", BLOCKED, node
        made.multiply_adds = _neocell_multiply_adds(graph, node)
    elif node.op in VIEWS:
        made.kind = "view"
    elif node.op in LAYOUTS:
        made.kind, made.layout = "layout", PLAIN
    elif node.op in COPIES:
        made.kind, made.layout = "copy", _copy_layout(graph, node)
    elif node.op in ("MaxPool", "AveragePool"):
        made.layout = BLOCKED
        kernel = math.prod(node.attributes.get("kernel_shape", (1,)))
        made.vector.append((blocked_size(shape, BLOCKED), kernel, 0))
    else:
        quick, slow = INSTRUCTIONS.get(node.op, (1, 0))
        worked = math.prod(graph.shape(variable[0])) if node.op in REDUCTIONS and variable else numbers
        made.known = node.op in INSTRUCTIONS or node.op in QUANT_OPS
        made.vector.append((worked, quick, slow))
        made.weights = sum(math.prod(graph.shape(v)) for v in node.inputs if v in graph.constants)
        if (node.op in _BLOCKED and len(shape) == 4) or (
            node.op in REDUCTIONS and len(graph.shape(variable[0])) == 4 and axes(graph, node) == (2, 3)
        ):
            made.layout = BLOCKED
        elif node.op not in ELEMENTWISE and node.op not in KEEPING and node.op != "BatchNormalization":
            made.layout = PLAIN
    return made


def _convolution(graph: Graph, node: Node, made: Operator, int8: bool, small: bool) -> None:
    x, weight = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    y = graph.shape(node.outputs[0])
    groups = int(node.attributes.get("group", 1))
    # A transposed convolution multiplies its weights with every number of its input.
    transposed = node.op == "ConvTranspose"
    inputs, outputs = x[1] // groups, y[1] // groups
    kernel = math.prod(weight[2:])
    positions_ = math.prod((x if transposed else y)[2:])
    made.multiply_adds = x[0] * positions_ * groups * inputs * outputs * kernel
    made.layout, made.kind = BLOCKED, "conv" if inputs > 1 or groups == 1 else "depthwise"
    made.int8 = int8
    block = 2 * TILE if int8 else TILE
    rows = x[0] * ceil(positions_, TILE)
    if groups == 1:
        # Four channels to a block fill a tile with four taps.
        depth = ceil(kernel * 4, block) if small and inputs <= 4 else kernel * ceil(inputs, block)
        made.product = Product(1, rows, ceil(outputs, TILE), depth)
        made.weights = depth * block * ceil(outputs, TILE) * TILE
        return
    # CANN joins as many groups as fill a block of channels on both sides.
    joined = min(groups, math.lcm(math.lcm(inputs, block) // inputs, math.lcm(outputs, TILE) // outputs))
    depth, columns = kernel * ceil(joined * inputs, block), ceil(joined * outputs, TILE)
    made.product = Product(ceil(groups, joined), rows, columns, depth)
    made.weights = made.product.number * depth * block * columns * TILE


def _matmul(graph: Graph, node: Node, made: Operator, int8: bool, layout: str) -> None:
    a, b = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    y = graph.shape(node.outputs[0])
    inner = (a[0] if node.attributes.get("transA") else a[-1]) if node.op == "Gemm" else a[-1]
    rows, columns = (y[-2] if len(y) > 1 else 1), y[-1]
    lead = math.prod(y[:-2])
    made.layout = layout
    made.multiply_adds = lead * rows * columns * inner
    constant = [value for value in node.inputs[:2] if value in graph.constants]
    linear = bool(constant) and constant[0] == node.inputs[1] and math.prod(b[:-2]) == 1
    made.kind = "matmul" if linear else "batched matmul"
    made.int8 = int8 and linear
    block = 2 * TILE if made.int8 else TILE
    tiles = (ceil(rows, TILE), ceil(columns, TILE), ceil(inner, block))
    if linear:
        made.product = Product(1, lead * tiles[0], tiles[1], tiles[2])
    else:
        made.product = Product(lead, *tiles)
    made.weights = sum(blocked_size(graph.shape(value), FRACTAL) for value in constant)
    if len(node.inputs) > 2 and node.inputs[2]:
        made.fused.append("Add")


def _neocell_multiply_adds(graph: Graph, node: Node) -> int:
    from .neocell import spec_of

    batch, _, height, width = graph.shape(node.inputs[0])
    return batch * spec_of(node).multiply_adds(height, width)


def _copy_layout(graph: Graph, node: Node) -> str:
    """Blocks of channels can be put side by side or taken apart only as a whole."""
    if node.op not in ("Concat", "Split") or int(node.attributes.get("axis", 0)) % 4 != 1:
        return PLAIN
    parts = node.inputs if node.op == "Concat" else node.outputs
    if all(len(graph.shape(value)) == 4 and graph.shape(value)[1] % TILE == 0 for value in parts):
        return BLOCKED
    return PLAIN
