"""Operators of a network and what each asks of a device: products, vector instructions, weights, and its layout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from neonext_ms.common.errors import InputError
from neonext_ms.export.onnx.neocell_node import OP_TYPE
from neonext_ms.ops.packing import RUN_ATTRIBUTES, plan
from neonext_ms.ops.spec import NeoCellGroup, NeoCellSpec

from .patterns import FAST_GELU, HARD_SWISH_CHAIN, SCALED_FAST_GELU, axes, chains
from .reader import QUANT_OPS, Graph, OnnxNode
from .unit_costs import TILE, tiles

BLOCKED, FRACTAL, PLAIN = "NC1HWC0", "FRACTAL_NZ", "ND"

# LeakyRelu is one instruction, vlrelu, which asc-devkit's headers have for 2002 and 2201.
_QUICK = ("Relu", "LeakyRelu", "Add", "Sub", "Mul", "Sum", "Max", "Min", "Neg", "Abs", "Cast", "And", "Or", "Not")
_TWO = ("Clip", "PRelu", "Where", "Equal", "Greater", "Less", "Floor", "Ceil", "Round")
_SUMS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool")
_REDUCTIONS = (*_SUMS, "ReduceL2", "ArgMax")
# Vector instructions for 128 numbers: ordinary ones, and slow ones (Exp, Ln, Sqrt, Div). A reduction's are per input.
INSTRUCTIONS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_QUICK, (1, 0)),
    **dict.fromkeys(_TWO, (2, 0)),
    **dict.fromkeys(("Div", "Sqrt", "Exp", "Log", "Reciprocal"), (0, 1)),
    **dict.fromkeys(_SUMS, (1, 0)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Tanh"), (4, 2)),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), (6, 1)),
    **dict.fromkeys(("HardSwish", "Resize", "Upsample"), (4, 0)),
    **dict.fromkeys(("HardSigmoid", "ArgMax"), (3, 0)),
    **dict.fromkeys(("BatchNormalization", "ReduceL2"), (2, 0)),
    **dict.fromkeys(("Elu", "LpNormalization"), (3, 1)),
    **{"Pow": (1, 0), "Softplus": (1, 2), "Sigmoid": (2, 2), "Swish": (3, 2), "Selu": (4, 1), "Mish": (4, 4)},
    **{"LayerNormalization": (8, 1), "LRN": (9, 3), "Gelu": (10, 3), "Erf": (14, 2)},
    **{FAST_GELU: (9, 0), SCALED_FAST_GELU: (11, 0), HARD_SWISH_CHAIN: (5, 0)},
}
ACTIVATIONS = (
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Swish", "HardSwish", "HardSigmoid", "Tanh", "Elu", "Selu"),
    *("Mish", "Softplus", "Gelu", HARD_SWISH_CHAIN),
)
_ELEMENTWISE = (
    *(*ACTIVATIONS, *_QUICK, *_TWO, *QUANT_OPS, FAST_GELU, SCALED_FAST_GELU),
    *("Div", "Exp", "Log", "Sqrt", "Pow", "Reciprocal", "Erf"),
)  # fmt: skip
# Another shape of the same bytes needs no task.
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
_COPIES = ("Slice", "Split", "Gather", "Pad", "Expand", "Tile", "GatherND", "ScatterND", "GatherElements", "Concat")
KEEPING = ("Softmax", "LogSoftmax", "LayerNormalization")  # work in ND and in FRACTAL_NZ
_BLOCKED = ("BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "GlobalMaxPool", "LRN", "Resize",
            "Upsample")  # fmt: skip


@dataclass(frozen=True)
class CubeProduct:
    """Matrix products on the cube, in tiles of 16.

    Attributes:
        number: products, each with operands of its own on both sides.
        rows, columns, depth: tiles of one product.
    """

    number: int
    rows: int
    columns: int
    depth: int


@dataclass
class Operator:
    """One operator, or several that run as one.

    Attributes:
        name: name of the first node.
        op: operator type of the first node.
        kind: "conv", "depthwise", "matmul", "batched matmul", "neocell", "vector", "copy", "layout" or "view".
        inputs: values read at run time.
        output: value written.
        fused: types of the operators that run inside, the first one included.
        product: work of the cube.
        multiply_adds: multiply-adds that the network needs, without padding and zeros.
        weights: numbers of the constants, padded.
        vector: work of the vector units: each entry has the numbers to process, and the ordinary and slow instructions
            for them.
        layout: layout that the operator reads and writes; empty if that depends on its neighbours.
        int8: the product is in 8 bit.
        known: the device model knows the operator.
        spec: the NeoCell of a NeoCell node.
    """

    name: str
    op: str
    kind: str
    inputs: list[str]
    output: str
    fused: list[str] = field(default_factory=list)
    product: CubeProduct | None = None
    multiply_adds: int = 0
    weights: int = 0
    vector: list[tuple[float, float, float]] = field(default_factory=list)
    layout: str = ""
    int8: bool = False
    known: bool = True
    spec: NeoCellSpec | None = None


def padded_size(shape: tuple[int, ...], layout: str) -> int:
    """Return the numbers of a value in a layout, padding included."""
    if layout == BLOCKED and len(shape) >= 2:
        return shape[0] * tiles(shape[1]) * TILE * math.prod(shape[2:])
    if layout == FRACTAL and len(shape) >= 2:
        return math.prod(shape[:-2]) * tiles(shape[-2]) * TILE * tiles(shape[-1]) * TILE
    return math.prod(shape)


def operators(
    graph: Graph, int8: bool = False, small_channels: bool = False, split: bool = False, requant: bool = False
) -> list[Operator]:
    """Return the operators of a network with CANN's graph fusion, in order, before they are joined into tasks.

    Args:
        graph: the network.
        int8: run convolutions and linear layers in 8 bit.
        small_channels: pack 4 channels instead of 16 in a block of the first convolution (`--enable_small_channel`).
        split: the device has cube and vector on separate cores, whose MatMul takes plain matrices.
        requant: the device has AscendRequant.
    """
    last, inner = chains(graph, requant)
    quantised = {value for node in graph.nodes if node.op == "AscendQuant" for value in node.outputs}
    result = []
    for i, node in enumerate(graph.nodes):
        if i in inner:
            continue
        if i in last:
            chain = last[i]
            node = replace(node, op=chain.op, inputs=chain.inputs, outputs=(chain.output,), attributes={})
        in_8_bit = int8 or node.inputs[0] in quantised
        result.append(_operator(graph, node, in_8_bit, small_channels, PLAIN if split else FRACTAL))
    return result


def _operator(graph: Graph, node: OnnxNode, int8: bool, small_channels: bool, matrices: str) -> Operator:
    variable = graph.variable(node)
    operator = Operator(node.name, node.op, "vector", variable, node.outputs[0], [node.op])
    shape = graph.shape(node.outputs[0])
    if node.op in ("Conv", "ConvTranspose"):
        _convolution(graph, node, operator, int8, small_channels and node.inputs[0] in graph.inputs)
    elif node.op in ("MatMul", "Gemm"):
        _matmul(graph, node, operator, int8, matrices)
    elif node.op == OP_TYPE:
        operator.kind, operator.layout, operator.spec = "neocell", BLOCKED, neocell_spec(node)
        batch, _, height, width = graph.shape(node.inputs[0])
        operator.multiply_adds = batch * operator.spec.multiply_adds(height, width)
    elif node.op in _VIEWS:
        operator.kind = "view"
    elif node.op in ("Transpose", "DepthToSpace", "SpaceToDepth"):
        operator.kind, operator.layout = "layout", PLAIN
    elif node.op in _COPIES:
        operator.kind, operator.layout = "copy", _copy_layout(graph, node)
    elif node.op in ("MaxPool", "AveragePool"):
        operator.layout = BLOCKED
        taps = math.prod(node.attributes.get("kernel_shape", (1,)))
        operator.vector.append((padded_size(shape, BLOCKED), taps, 0))
    else:
        read = graph.shape(variable[0]) if node.op in _REDUCTIONS and variable else ()
        operator.known = node.op in INSTRUCTIONS or node.op in QUANT_OPS
        operator.vector.append((math.prod(read or shape), *INSTRUCTIONS.get(node.op, (1, 0))))
        operator.weights = sum(math.prod(graph.shape(v)) for v in node.inputs if v in graph.constants)
        over_map = len(read) == 4 and axes(graph, node) == (2, 3)
        if (node.op in _BLOCKED and len(shape) == 4) or over_map:
            operator.layout = BLOCKED
        elif node.op not in (*_ELEMENTWISE, *KEEPING, "BatchNormalization"):
            operator.layout = PLAIN
    return operator


def _convolution(graph: Graph, node: OnnxNode, operator: Operator, int8: bool, small: bool) -> None:
    x, weight, y = (graph.shape(value) for value in (*node.inputs[:2], node.outputs[0]))
    groups = int(node.attributes.get("group", 1))
    if groups < 1:
        raise InputError(
            f"{graph.name}: node {node.name!r} has {groups} groups (expected at least 1). Export it again."
        )
    inputs, outputs, taps = x[1] // groups, y[1] // groups, math.prod(weight[2:])
    # A transposed convolution multiplies its weights with every number of its input.
    positions = math.prod((x if node.op == "ConvTranspose" else y)[2:])
    operator.multiply_adds = x[0] * positions * groups * inputs * outputs * taps
    operator.layout, operator.kind = BLOCKED, "conv" if inputs > 1 or groups == 1 else "depthwise"
    operator.int8 = int8
    block = 2 * TILE if int8 else TILE
    if groups == 1:
        # Four channels to a block fill a tile with four taps.
        depth = tiles(taps * 4, block) if small and inputs <= 4 else taps * tiles(inputs, block)
        number, columns = 1, tiles(outputs)
    else:
        # CANN joins as many groups as fill a block of channels on both sides.
        joined = min(groups, math.lcm(math.lcm(inputs, block) // inputs, math.lcm(outputs, TILE) // outputs))
        depth, columns = taps * tiles(joined * inputs, block), tiles(joined * outputs)
        number = tiles(groups, joined)
    operator.product = CubeProduct(number, x[0] * tiles(positions), columns, depth)
    operator.weights = number * depth * block * columns * TILE


def _matmul(graph: Graph, node: OnnxNode, operator: Operator, int8: bool, layout: str) -> None:
    a, b, y = (graph.shape(value) for value in (*node.inputs[:2], node.outputs[0]))
    inner = a[0] if node.op == "Gemm" and node.attributes.get("transA") else a[-1]
    rows, columns, lead = (y[-2] if len(y) > 1 else 1), y[-1], math.prod(y[:-2])
    constant = [value for value in node.inputs[:2] if value in graph.constants]
    linear = constant[:1] == [node.inputs[1]] and math.prod(b[:-2]) == 1
    operator.layout, operator.kind = layout, "matmul" if linear else "batched matmul"
    operator.multiply_adds = lead * rows * columns * inner
    operator.int8 = int8 and linear
    size = tiles(rows), tiles(columns), tiles(inner, 2 * TILE if operator.int8 else TILE)
    operator.product = CubeProduct(1, lead * size[0], *size[1:]) if linear else CubeProduct(lead, *size)
    operator.weights = sum(padded_size(graph.shape(value), FRACTAL) for value in constant)
    if len(node.inputs) > 2 and node.inputs[2]:
        operator.fused.append("Add")


def _copy_layout(graph: Graph, node: OnnxNode) -> str:
    """Return the layout of a copy: only complete blocks of channels can be joined or separated as they lie."""
    if node.op not in ("Concat", "Split") or int(node.attributes.get("axis", 0)) % 4 != 1:
        return PLAIN
    shapes = [graph.shape(value) for value in (node.inputs if node.op == "Concat" else node.outputs)]
    return BLOCKED if all(len(shape) == 4 and shape[1] % TILE == 0 for shape in shapes) else PLAIN


# Far beyond the matrices of any network.
_MOST_STEPS = 1000


def neocell_spec(node: OnnxNode) -> NeoCellSpec:
    """Return the NeoCell that the attributes of a NeoCell node describe.

    The attributes are runs of channels with one shift each. Runs of one matrix size whose shifts count up are one
    group, and the first step between them is the group's shift. A single run with a shift is a group of fewer channels
    than shifts, which all have the last one.

    Raises:
        InputError: an attribute is missing, or no NeoCell has these runs.
    """
    missing = [name for name in RUN_ATTRIBUTES if name not in node.attributes]
    if missing:
        raise InputError(f"{node.name}: attribute {missing[0]} is missing (expected {', '.join(RUN_ATTRIBUTES)})")
    attributes = {name: list(node.attributes[name]) for name in RUN_ATTRIBUTES}
    runs_of_groups: list[list[tuple[int, ...]]] = []
    for run in zip(*attributes.values(), strict=True):
        before = runs_of_groups[-1][-1] if runs_of_groups else None
        if before and before[1:5] == run[1:5] and before[5] <= run[5] and before[6] <= run[6] and before != run:
            runs_of_groups[-1].append(run)
        else:
            runs_of_groups.append([run])
    groups = []
    for runs in runs_of_groups:
        first, second = runs[0], runs[min(1, len(runs) - 1)]
        _, h_in, h_out, w_in, w_out, shift_a, shift_b = first
        channels = sum(run[0] for run in runs)
        step_a, step_b = second[5] - shift_a, second[6] - shift_b
        if len(runs) == 1:
            step_a, step_b = _step(h_in, channels, shift_a), _step(w_in, channels, shift_b)
        groups.append(NeoCellGroup(h_in, h_out, w_in, w_out, channels, step_a, step_b))
    spec = NeoCellSpec(groups)
    packed = plan(spec).attributes
    if any(list(packed[name]) != attributes[name] for name in RUN_ATTRIBUTES):
        raise InputError(f"{node.name}: no NeoCell has these runs of channels: {attributes}")
    return spec


def _step(k: int, channels: int, shift: int) -> int:
    """Return the step between the shifts of a group whose channels all have this one; 0 if there is none."""
    steps = range(1, min(shift // channels, _MOST_STEPS) + 1)
    return next((step for step in steps if (k - 1) // step * step == shift), 0)
