"""Operators joined into the tasks that a device launches, with the changes of layout between them.

What joins (documentation of CANN's graph and UB fusion; the SoCs are those of its pages):
- Conv + BatchNormalization: folded into the weights.
- Conv + activation (depthwise: ReLU and its relatives only; never hard swish), + Add of another map, + activation
  (TbeConv...Elemwise and ...VaddRelu fusions; Sigmoid + Mul: `TbeConvSigmoidMulQuantFusionPass`, 310B, 310P, 910).
- MatMul + bias, + activation (`TbeFullyconnectionElemwiseDequantFusionPass`; 310B, 310P and 910, static shapes), not
  MatMul + Add of another value or + Mul, and nothing behind products of two values.
- AscendQuant and AscendDequant with the product between them.
- Concat of convolutions' outputs whose channels are multiples of 16 (`ConvConcatFusionPass`): no task.
- Where cube and vector are separate cores (910B): ReLU only.
- BatchNormalization, Add or Mul + ReLU: assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .operators import ACTIVATIONS, BLOCKED, FRACTAL, KEEPING, PLAIN, TILE, Operator, blocked_size, operators
from .reader import QUANT_OPS, Graph

FP16 = 2
_PRODUCTS = ("conv", "depthwise", "matmul")
_SIMPLE = ("Relu", "Clip", "LeakyRelu", "PRelu")
_JOINING = (*_SIMPLE, "Sigmoid", "Swish", "Tanh", "Elu", "Gelu")
_LIGHT = ("BatchNormalization", "Add", "Mul", "Sum")


@dataclass
class Task:
    """One launch.

    Attributes:
        operator: what runs in it.
        reads: bytes of each value it reads, padding included; constants apart.
        between: bytes that other tasks touched since each of those values was last touched.
        written: bytes of what it writes.
        weights: bytes of its constants.
        output_numbers: numbers that a product leaves, padding included.
    """

    operator: Operator
    reads: list[int] = field(default_factory=list)
    between: list[int] = field(default_factory=list)
    written: int = 0
    weights: int = 0
    output_numbers: int = 0


def tasks(graph: Graph, *, int8: bool = False, aipp: bool = False, split: bool = False) -> list[Task]:
    """Tasks of one run.

    Args:
        graph: the network.
        int8: convolutions and linear layers in 8 bit.
        aipp: images come as bytes and are converted inside the first convolution, which takes 4 channels in a block.
        split: for devices whose cube and vector units are separate cores: MatMul reads plain matrices there and no
            vector work joins it.
    """
    joined = join(graph, operators(graph, int8, aipp, split), split)
    return _laid_out(graph, joined, aipp)


def join(graph: Graph, made: Iterable[Operator], split: bool = False) -> list[Operator]:
    """Operators that run as one become one."""
    made = list(made)
    readers: dict[str, int] = dict.fromkeys(graph.outputs, 1)
    for operator in made:
        for value in operator.inputs:
            readers[value] = readers.get(value, 0) + 1
    place: dict[str, int] = {}
    kept: list[Operator | None] = []
    for operator in made:
        candidates = [place[v] for v in operator.inputs if v in place and readers[v] == 1]
        before = max(candidates, default=None)
        if before is not None and _joins(kept[before], operator, before, place, split):
            previous = kept[before]
            others = [v for v in operator.inputs if v != previous.output]
            previous.inputs += others
            previous.fused += operator.fused
            if not (operator.op == "BatchNormalization" and previous.kind in _PRODUCTS):
                previous.vector += operator.vector
            previous.output = operator.output
            place[operator.output] = before
            continue
        kept.append(operator)
        place[operator.output] = len(kept) - 1
    for operator in kept:
        if (
            operator.op == "Concat"
            and operator.layout == BLOCKED
            and all(v in place and readers[v] == 1 and kept[place[v]].kind == "conv" for v in operator.inputs)
        ):
            operator.kind = "view"
    return kept


def _joins(previous: Operator, operator: Operator, at: int, place: dict[str, int], split: bool) -> bool:
    others = [v for v in operator.inputs if v != previous.output]
    if previous.kind == "view":
        return False
    if operator.op in QUANT_OPS:
        return previous.kind in _PRODUCTS or previous.kind == "vector"
    if previous.op in ("AscendQuant",) and operator.kind in _PRODUCTS:
        return False
    tail = previous.fused[-1]
    if previous.kind in ("conv", "depthwise"):
        if operator.op == "BatchNormalization":
            return previous.fused[-1] in ("Conv", "ConvTranspose")
        if operator.op in ACTIVATIONS:
            joining = ("Relu",) if split else _SIMPLE if previous.kind == "depthwise" else _JOINING
            return tail not in ACTIVATIONS and operator.op in joining
        if operator.op == "Add" and "Add" not in previous.fused and not split:
            return len(others) <= 1 and all(place.get(v, -1) < at for v in others)
        return False
    if previous.kind == "matmul":
        if operator.op == "Add":
            return not others and "Add" not in previous.fused and tail not in ACTIVATIONS
        return not split and operator.op in ACTIVATIONS and tail not in ACTIVATIONS
    return previous.kind == "vector" and tail in _LIGHT and operator.op == "Relu"


class _Layouts:
    """In which layouts every value is held, and the tasks so far."""

    def __init__(self, graph: Graph, aipp: bool):
        self.graph, self.aipp = graph, aipp
        self.held: dict[str, dict[str, int]] = {}
        self.tasks: list[Task] = []

    def size(self, value: str, layout: str) -> int:
        return blocked_size(self.graph.shape(value), layout)

    def bring(self, value: str, layout: str) -> int:
        """Bytes of a value in a layout; a task is added if it is not held so yet."""
        held = self.held.setdefault(value, {PLAIN: self.size(value, PLAIN) * FP16})
        if layout in held:
            return held[layout]
        shape = self.graph.shape(value)
        source = next(iter(held))
        if source == BLOCKED and layout == FRACTAL and PLAIN not in held:
            self.bring(value, PLAIN)
            source = PLAIN
        # One position, whole blocks of channels: the same bytes.
        if (
            {source, layout} == {BLOCKED, PLAIN}
            and all(n == 1 for n in shape[2:])
            and shape[1:2]
            and not shape[1] % TILE
        ) or len(shape) < 2:
            held[layout] = held[source]
        else:
            held[layout] = self.size(value, layout) * FP16
            operator = Operator(f"{value}:{layout}", "TransData", "layout", [value], value, ["TransData"])
            self.tasks.append(Task(operator, [held[source]], written=held[layout]))
        return held[layout]

    def arriving(self, value: str) -> None:
        """The network's input: images as bytes that the first convolution converts, or float32 numbers and a Cast."""
        size = self.size(value, PLAIN)
        if self.aipp:
            self.held[value] = dict.fromkeys((PLAIN, BLOCKED, FRACTAL), size)
            return
        self.held[value] = {PLAIN: size * FP16}
        cast = Operator(f"{value}:float16", "Cast", "vector", [value], value, ["Cast"], vector=[(size, 1, 0)])
        self.tasks.append(Task(cast, [size * 4], written=size * FP16))


def _laid_out(graph: Graph, made: list[Operator], aipp: bool) -> list[Task]:
    layouts = _Layouts(graph, aipp)
    for value in graph.inputs:
        layouts.arriving(value)
    bits = _byte_wide(made)
    for operator in made:
        if operator.kind == "view":
            _view(graph, layouts, operator)
            continue
        layout = operator.layout or _elementwise_layout(graph, layouts, operator)
        reads = []
        for value in operator.inputs:
            # Convolutions add a map in their own layout; a product's other inputs come in that of the product.
            size = layouts.bring(value, layout)
            # A value that both kinds of readers want is written in both types.
            reads.append(size // 2 if value in bits else size)
        numbers = layouts.size(operator.output, layout)
        # A task that changes only the last operator's shape still writes the output of that operator.
        layouts.held[operator.output] = {layout: numbers * FP16}
        for other in operator.node.outputs[1:] if operator.node else ():
            layouts.held.setdefault(other, {layout: layouts.size(other, layout) * FP16})
        written = numbers * bits.get(operator.output, FP16)
        task = Task(operator, reads, [], written, operator.weights * (1 if operator.int8 else FP16), numbers)
        if operator.kind == "copy" and operator.op in ("Slice", "Gather", "Split"):
            task.reads = [min(sum(reads), max(written, 1))]
        # Whole blocks of channels are copied as they lie; anything else is put into another order.
        if operator.kind == "copy" and layout == PLAIN:
            operator.kind = "layout"
        layouts.tasks.append(task)
    for value in graph.outputs:
        layouts.bring(value, PLAIN)
        size = layouts.size(value, PLAIN)
        cast = Operator(f"{value}:float32", "Cast", "vector", [value], value, ["Cast"], vector=[(size, 1, 0)])
        layouts.tasks.append(Task(cast, [size * FP16], written=size * 4))
    _count_between(layouts.tasks)
    return layouts.tasks


def _count_between(made: list[Task]) -> None:
    """How much is touched between two uses of a value: whether L2 may still hold it."""
    clock, touched = 0, {}
    for task in made:
        operator = task.operator
        task.between = [clock - touched.get(value, clock) for value in operator.inputs]
        clock += sum(task.reads) + task.weights + task.written
        touched.update(dict.fromkeys((*operator.inputs, operator.output), clock))


def _byte_wide(made: list[Operator]) -> dict[str, int]:
    """Bytes of each number of the values that products in 8 bit read.

    They stay in 8 bit for residual connections and through pooling too (assumed).
    """
    bits: dict[str, int] = {}
    for operator in reversed(made):
        pooled = operator.op in ("MaxPool", "AveragePool") and operator.output in bits
        bits.update(dict.fromkeys(operator.inputs[:1] if operator.int8 or pooled else (), 1))
    return bits


def _view(graph: Graph, layouts: _Layouts, operator: Operator) -> None:
    if operator.op == "Concat":
        size = layouts.size(operator.output, BLOCKED) * FP16
        layouts.held[operator.output] = {BLOCKED: size}
        return
    (value,) = operator.inputs[:1]
    held = layouts.held.setdefault(value, {PLAIN: layouts.size(value, PLAIN) * FP16})
    before, after = graph.shape(value), graph.shape(operator.output)
    if before == after or (FRACTAL in held and before[-2:] == after[-2:] and BLOCKED not in held):
        layouts.held[operator.output] = dict(held)
        return
    size = layouts.bring(value, PLAIN)
    layouts.held[operator.output] = {PLAIN: size}


def _elementwise_layout(graph: Graph, layouts: _Layouts, operator: Operator) -> str:
    held = [next(iter(layouts.held.get(v, {PLAIN: 0}))) for v in operator.inputs]
    shapes = [graph.shape(v) for v in operator.inputs]
    out = graph.shape(operator.output)
    if operator.op in KEEPING:
        return FRACTAL if held[:1] == [FRACTAL] else PLAIN
    if BLOCKED in held and len(out) == 4 and all(s == out or (len(s) == 4 and s[1] == out[1] and s[2:] == (1, 1))
                                                 for s in shapes):  # fmt: skip
        return BLOCKED
    if FRACTAL in held and all(s == out for s in shapes):
        return FRACTAL
    return PLAIN
