"""Tasks that a device launches: operators that run as one, and the changes of layout between them.

What joins (documentation of CANN's graph and UB fusion; the SoCs are those of its pages):
- Conv + BatchNormalization: folded into the weights.
- Conv + activation (depthwise: ReLU and its relatives only), + Add of another map, + activation (TbeConv...Elemwise and
  ...VaddRelu fusions; Sigmoid + Mul: `TbeConvSigmoidMulQuantFusionPass`; HardSwish as Add, Clip, Mul, Div, in floating
  point: `TbeConv2dAddClipMulDivFusionPass`; 310B, 310P, 910). Never the node HardSwish.
- MatMul + bias, + activation (`TbeFullyconnectionElemwiseDequantFusionPass`; 310B, 310P and 910, static shapes), but no
  form of HardSwish. Neither Add of another value nor Mul joins a MatMul, and nothing joins a product of two values.
- AscendQuant, AscendDequant and AscendRequant with the product between or before them.
- Concat of convolutions' outputs whose channels are multiples of 16 (`ConvConcatFusionPass`): no task.
- Where cube and vector are separate cores (910B): ReLU only.
- BatchNormalization, Add or Mul + ReLU: assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .operators import ACTIVATIONS, BLOCKED, FRACTAL, KEEPING, PLAIN, Operator, operators, padded_size
from .patterns import HARD_SWISH_CHAIN
from .reader import QUANT_OPS, Graph
from .unit_costs import FP16, TILE

_PRODUCTS = ("conv", "depthwise", "matmul")
# Activations that a depthwise convolution takes in, and those that any other convolution does.
_JOIN_DEPTHWISE = ("Relu", "Clip", "LeakyRelu", "PRelu")
_JOIN_CONV = (*_JOIN_DEPTHWISE, "Sigmoid", "Swish", "Tanh", "Elu", "Gelu", HARD_SWISH_CHAIN)
_NEVER_JOIN_MATMUL = ("HardSwish", HARD_SWISH_CHAIN)
_JOINED_BY_RELU = ("BatchNormalization", "Add", "Mul", "Sum")


@dataclass
class DeviceTask:
    """One launch.

    Attributes:
        operator: work of the task.
        reads: bytes of each value read, padding included, constants excluded.
        between: bytes that other tasks touched since each of those values was last touched.
        written: bytes of the output.
        weights: bytes of the constants.
        output_numbers: numbers that a product leaves, padding included.
    """

    operator: Operator
    reads: list[int]
    between: list[int] = field(default_factory=list)
    written: int = 0
    weights: int = 0
    output_numbers: int = 0


def tasks(
    graph: Graph, *, int8: bool = False, aipp: bool = False, split: bool = False, requant: bool = False
) -> list[DeviceTask]:
    """Return the tasks of one run.

    Args:
        graph: the network.
        int8: run convolutions and linear layers in 8 bit.
        aipp: images arrive as bytes and are converted inside the first convolution, which packs 4 channels in a block.
        split: the device has cube and vector on separate cores. MatMul reads plain matrices there, and no vector work
            joins it.
        requant: the device has AscendRequant.
    """
    joined = _joined(graph, operators(graph, int8, aipp, split, requant), split)
    layouts = _Layouts(graph, joined, aipp)
    for operator in joined:
        layouts.add(operator)
    layouts.finish()
    # How much is touched between two uses of a value decides if L2 may still hold it.
    clock = 0
    touched: dict[str, int] = {}
    for task in layouts.tasks:
        operator = task.operator
        task.between = [clock - touched.get(value, clock) for value in operator.inputs]
        clock += sum(task.reads) + task.weights + task.written
        touched.update(dict.fromkeys((*operator.inputs, operator.output), clock))
    return layouts.tasks


def _joined(graph: Graph, separate: Sequence[Operator], split: bool) -> list[Operator]:
    """Join the operators that run as one."""
    readers: dict[str, int] = dict.fromkeys(graph.outputs, 1)
    for operator in separate:
        for value in operator.inputs:
            readers[value] = readers.get(value, 0) + 1
    place: dict[str, int] = {}  # of the operator that writes a value, in `kept`
    kept: list[Operator] = []
    for operator in separate:
        at = max((place[v] for v in operator.inputs if v in place and readers[v] == 1), default=None)
        if at is not None and _joins(kept[at], operator, at, place, split):
            previous = kept[at]
            previous.inputs += [v for v in operator.inputs if v != previous.output]
            previous.fused += operator.fused
            if not (operator.op == "BatchNormalization" and previous.kind in _PRODUCTS):
                previous.vector += operator.vector
            previous.output = operator.output
        else:
            at = len(kept)
            kept.append(operator)
        place[operator.output] = at
    for operator in kept:
        if operator.op == "Concat" and operator.layout == BLOCKED:
            alone = all(v in place and readers[v] == 1 for v in operator.inputs)
            if alone and all(kept[place[v]].kind == "conv" for v in operator.inputs):
                operator.kind = "view"
    return kept


def _joins(previous: Operator, operator: Operator, at: int, place: dict[str, int], split: bool) -> bool:
    """Return if an operator joins the previous one, number `at`."""
    others = [v for v in operator.inputs if v != previous.output]
    last = previous.fused[-1]
    if previous.kind == "view":
        return False
    if operator.op in QUANT_OPS:
        return previous.kind in _PRODUCTS or previous.kind == "vector"
    if previous.op == "AscendQuant" and operator.kind in _PRODUCTS:
        return False
    if previous.kind in ("conv", "depthwise"):
        if operator.op == "BatchNormalization":
            return last in ("Conv", "ConvTranspose")
        if operator.op in ACTIVATIONS:
            joining = ("Relu",) if split else _JOIN_DEPTHWISE if previous.kind == "depthwise" else _JOIN_CONV
            free = last not in (*ACTIVATIONS, *(QUANT_OPS if operator.op == HARD_SWISH_CHAIN else ()))
            return free and operator.op in joining
        if operator.op == "Add" and "Add" not in previous.fused and not split:
            # The other map has to exist when the convolution runs.
            return len(others) <= 1 and all(place.get(v, -1) < at for v in others)
        return False
    if previous.kind == "matmul":
        if operator.op == "Add":
            return not others and "Add" not in previous.fused and last not in ACTIVATIONS
        joining = operator.op in ACTIVATIONS and operator.op not in _NEVER_JOIN_MATMUL
        return not split and joining and last not in ACTIVATIONS
    return previous.kind == "vector" and last in _JOINED_BY_RELU and operator.op == "Relu"


class _Layouts:
    """The layouts in which every value is held, and the tasks so far."""

    def __init__(self, graph: Graph, joined: Sequence[Operator], aipp: bool):
        self.graph = graph
        self.held: dict[str, dict[str, int]] = {}  # value -> layout -> bytes
        self.tasks: list[DeviceTask] = []
        # Values that products in 8 bit read have one byte a number. They stay so for residual connections and through
        # pooling (assumed).
        self.in_bytes: set[str] = set()
        for operator in reversed(joined):
            pooled = operator.op in ("MaxPool", "AveragePool") and operator.output in self.in_bytes
            if operator.int8 or pooled:
                self.in_bytes.update(operator.inputs[:1])
        for value in graph.inputs:
            numbers = self.size(value, PLAIN)
            if aipp:  # bytes that the first convolution converts
                self.held[value] = dict.fromkeys((PLAIN, BLOCKED, FRACTAL), numbers)
            else:
                self.held[value] = {PLAIN: numbers * FP16}
                self._cast(value, "float16", numbers, 4, FP16)

    def size(self, value: str, layout: str) -> int:
        """Return the numbers of a value in a layout."""
        return padded_size(self.graph.shape(value), layout)

    def _cast(self, value: str, dtype: str, numbers: int, before: int, after: int) -> None:
        cast = Operator(f"{value}:{dtype}", "Cast", "vector", [value], value, ["Cast"], vector=[(numbers, 1, 0)])
        self.tasks.append(DeviceTask(cast, [numbers * before], written=numbers * after))

    def bring(self, value: str, layout: str) -> int:
        """Return the bytes of a value in a layout, adding a TransData task if it is not held so yet."""
        held = self.held.setdefault(value, {PLAIN: self.size(value, PLAIN) * FP16})
        if layout in held:
            return held[layout]
        shape = self.graph.shape(value)
        source = next(iter(held))
        if source == BLOCKED and layout == FRACTAL and PLAIN not in held:
            self.bring(value, PLAIN)
            source = PLAIN
        # One position in complete blocks of channels has the same bytes in both layouts.
        one_position = len(shape) > 1 and all(n == 1 for n in shape[2:]) and shape[1] % TILE == 0
        if len(shape) < 2 or ({source, layout} == {BLOCKED, PLAIN} and one_position):
            held[layout] = held[source]
        else:
            held[layout] = self.size(value, layout) * FP16
            operator = Operator(f"{value}:{layout}", "TransData", "layout", [value], value, ["TransData"])
            self.tasks.append(DeviceTask(operator, [held[source]], written=held[layout]))
        return held[layout]

    def add(self, operator: Operator) -> None:
        """Add the task of an operator, after those that bring its inputs into its layout."""
        if operator.kind == "view":
            self._add_view(operator)
            return
        layout = operator.layout or self._elementwise_layout(operator)
        # Convolutions add a map in their own layout; a product's other inputs come in the layout of the product. A
        # value that both kinds of readers want is written in both types.
        sizes = [(value, self.bring(value, layout)) for value in operator.inputs]
        reads = [size // 2 if value in self.in_bytes else size for value, size in sizes]
        numbers = self.size(operator.output, layout)
        self.held[operator.output] = {layout: numbers * FP16}
        written = numbers * (1 if operator.output in self.in_bytes else FP16)
        if operator.op in ("Slice", "Gather", "Split"):
            reads = [min(sum(reads), max(written, 1))]
        if operator.kind == "copy" and layout == PLAIN:
            # Only complete blocks of channels are copied as they lie.
            operator.kind = "layout"
        weights = operator.weights * (1 if operator.int8 else FP16)
        self.tasks.append(DeviceTask(operator, reads, written=written, weights=weights, output_numbers=numbers))

    def _add_view(self, operator: Operator) -> None:
        if operator.op == "Concat":
            self.held[operator.output] = {BLOCKED: self.size(operator.output, BLOCKED) * FP16}
            return
        value = operator.inputs[0]
        held = self.held.setdefault(value, {PLAIN: self.size(value, PLAIN) * FP16})
        before, after = self.graph.shape(value), self.graph.shape(operator.output)
        if before == after or (FRACTAL in held and before[-2:] == after[-2:] and BLOCKED not in held):
            self.held[operator.output] = dict(held)
        else:
            self.held[operator.output] = {PLAIN: self.bring(value, PLAIN)}

    def _elementwise_layout(self, operator: Operator) -> str:
        """Return the layout of an operator that works in that of its inputs, if they agree."""
        held = [next(iter(self.held.get(value, {PLAIN: 0}))) for value in operator.inputs]
        shapes = [self.graph.shape(value) for value in operator.inputs]
        out = self.graph.shape(operator.output)
        if operator.op in KEEPING:
            return FRACTAL if held[:1] == [FRACTAL] else PLAIN
        # Maps, and one number for each channel.
        blocked = all(s == out or (len(s) == 4 and s[1:] == (out[1], 1, 1)) for s in shapes)
        if BLOCKED in held and len(out) == 4 and blocked:
            return BLOCKED
        return FRACTAL if FRACTAL in held and all(s == out for s in shapes) else PLAIN

    def finish(self) -> None:
        """Add the tasks that turn the network's outputs into plain float32."""
        for value in self.graph.outputs:
            self.bring(value, PLAIN)
            self._cast(value, "float32", self.size(value, PLAIN), FP16, 4)
