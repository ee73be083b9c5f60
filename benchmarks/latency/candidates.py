"""Candidates for the activation of NeoNeXt by what they cost on a 310P3, for `neonext-bench estimate --table`.

Each takes the place of ReLU in the files that ATC would get. What is joined, and what a candidate costs, is decided by
the device model like for any other file (`patterns`, `tasks`, `operators`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from ..report import table
from .neonext import build
from .network_model import Estimate, estimate
from .operators import INSTRUCTIONS
from .patterns import FAST_GELU, HARD_SWISH_CHAIN

SOC = "Ascend310P3"
_FORM = "AscendC"
# Batch, and whether the file is in 8 bit, of the columns with throughput.
_RUNS = ((1, False), (8, False), (8, True))


@dataclass(frozen=True)
class Candidate:
    """An activation that a NeoNeXt might have.

    Attributes:
        name: name for people.
        nodes: nodes in order: operator type, then inputs ("x", the number of an earlier node, or a constant). Empty
            for a form of GELU that the exporter writes.
        operators: operators of the device model that they become.
        gelu: that form of GELU, see `Format`.
        homogeneous: positive factors of a channel pass through it, so that 8 bit can even out channels.
    """

    name: str
    nodes: tuple[tuple[str | int | float, ...], ...]
    operators: tuple[str, ...]
    gelu: str = ""
    homogeneous: bool = False


CANDIDATES = (
    Candidate("relu", (("Relu", "x"),), ("Relu",), homogeneous=True),
    Candidate("leakyrelu", (("LeakyRelu", "x"),), ("LeakyRelu",), homogeneous=True),
    Candidate("prelu", (("PRelu", "x", 0.25),), ("PRelu",), homogeneous=True),
    Candidate("relu6", (("Clip", "x", 0.0, 6.0),), ("Clip",)),
    Candidate("hardswish", (("Add", "x", 3.0), ("Clip", 0, 0.0, 6.0), ("Mul", "x", 1), ("Div", 2, 6.0)),
              (HARD_SWISH_CHAIN,)),
    Candidate("hardswish, one node", (("HardSwish", "x"),), ("HardSwish",)),
    Candidate("elu", (("Elu", "x"),), ("Elu",)),
    Candidate("silu", (("Sigmoid", "x"), ("Mul", "x", 0)), ("Swish",)),
    Candidate("squared relu", (("Relu", "x"), ("Mul", 0, 0)), ("Relu", "Mul")),
    Candidate("gelu, --gelu fast", (), (FAST_GELU,), gelu="fast"),
    Candidate("gelu", (), ("Gelu",), gelu="erf"),
)  # fmt: skip


def candidates_table(candidates: Sequence[Candidate] = CANDIDATES) -> str:
    """Return cost, joining and predicted throughput of NeoNeXt-T at 224 with each candidate."""
    files = [build("t", 224, batch, _FORM, "relu", int8=int8) for batch, int8 in _RUNS]
    body = []
    for candidate in candidates:
        estimates = [
            estimate(_with(file, candidate) if candidate.nodes else _with_gelu(candidate, *run), SOC)
            for file, run in zip(files, _RUNS, strict=True)
        ]
        costs = [INSTRUCTIONS[op] for op in candidate.operators]
        slow = sum(slow for _, slow in costs)
        instructions = f"{sum(quick for quick, _ in costs):g}" + (f" + {slow:g} slow" if slow else "")
        rates = (f"{each.predicted_images_per_second:.0f}" for each in estimates)
        body.append([candidate.name, instructions, *_treatment(candidate, estimates), *rates])
    head = ["activation", "instructions", "joined", "8 bit", "factors pass"]
    head += [f"batch {batch}{', 8 bit' * int8}" for batch, int8 in _RUNS]
    title = f"NeoNeXt-T, {_FORM}, on a 310P3: vector instructions for 128 numbers, and predicted images per second"
    return f"{title}\n\n{table(head, body)}"


def _treatment(candidate: Candidate, estimates: Sequence[Estimate]) -> list[str]:
    """Return whether it is joined to the convolution, stays in integers in 8 bit, and lets factors pass."""
    half, eight = (
        [task for task in each.tasks if {*task.fused} & {*candidate.operators, "AscendRequant"}]
        for each in estimates[1:]
    )
    joined = all(task.kind == "conv" for task in half)
    integers = joined and "Relu" in candidate.operators and any("AscendRequant" in task.fused for task in eight)
    words = {True: "yes", False: "no"}
    return [words[joined], "in integers" if integers else "in float16", words[candidate.homogeneous]]


def _with_gelu(candidate: Candidate, batch: int, int8: bool) -> onnx.ModelProto:
    return build("t", 224, batch, _FORM, gelu=candidate.gelu, int8=int8)


def _with(model: onnx.ModelProto, candidate: Candidate) -> onnx.ModelProto:
    """Return a file with the candidate's nodes in place of each ReLU."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    constants: dict[float, str] = {}
    for node in model.graph.node:
        if node.op_type != "Relu":
            changed.graph.node.append(node)
            continue
        names = [f"{node.output[0]}.{i}" for i in range(len(candidate.nodes) - 1)] + [node.output[0]]
        for (op, *inputs), name in zip(candidate.nodes, names, strict=True):
            values = [
                node.input[0] if value == "x"
                else names[value] if isinstance(value, int)
                else constants.setdefault(value, f"constant {value}")
                for value in inputs
            ]  # fmt: skip
            changed.graph.node.append(helper.make_node(op, values, [name], name=name))
    for value, name in constants.items():
        changed.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, (), [value]))
    if any(op == "HardSwish" for op, *_ in candidate.nodes):
        for opset in changed.opset_import:
            opset.version = max(opset.version, 14) if opset.domain in ("", "ai.onnx") else opset.version
    return changed
