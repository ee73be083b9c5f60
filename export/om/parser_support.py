"""A check of an ONNX model before `atc` starts: what CANN's ONNX parser refuses, and what makes the result slow or odd.

`onnx_plugins` says which operators are known. The other rules are those of the parser itself (hicann/ge,
parser/parser/onnx/onnx_parser.cc and parser/parser/common/pre_checker.cc) and of the plugins; each names its source.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..onnx import neocell_node
from . import wiring
from .onnx_plugins import BUILT_IN, DEFAULT_DOMAIN, LAST_OPSET, domain_of, parsers, ranges

if TYPE_CHECKING:
    import onnx

# The highest opset that is publicly known to have gone through an ATC (Ultralytics, PR 25432 and its documentation).
LAST_SEEN_OPSET = 17
_GELU = "write it as a chain (--gelu erf or --gelu tanh), or as NPUGeluV2 of the domain npu (--gelu npu)"
# Advice for operators that have no parser at an opset.
_INSTEAD = {
    "Gelu": _GELU,
    "LayerNormalization": "write it as a chain, as --target om does, or export with opset 17 or 18",
    "GroupNormalization": "write it as InstanceNormalization, Mul and Add",
    "QuantizeLinear": "write AscendQuant",
    "DequantizeLinear": "write AscendDequant",
}
# Inputs that are shapes or positions and should be constants.
_POSITIONS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1,),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Resize": (1, 2, 3),
}
_LAYOUT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "SpaceToDepth", "DepthToSpace")
# An AveragePool of our graphs is the mean over a whole map too.
_POOLING_TO_A_PIXEL = ("GlobalAveragePool", "AveragePool")
_DYNAMIC = ("Shape", "Size", "ConstantOfShape", "NonZero")
# Types of a constant that the parser converts (datatype_val_size_map in onnx_constant_parser.cc): ONNX's up to
# BFLOAT16, and INT4.
_CONSTANT_TYPES = (*range(1, 17), 22)

# Types of the attributes of operators that ONNX does not have.
_OWN_ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "AscendQuant": {"scale": "FLOAT", "offset": "FLOAT", "dst_type": "STRING", "round_mode": "STRING"},
    "AscendDequant": {"dtype": "INT"},
    neocell_node.OP_TYPE: neocell_node.ATTRIBUTES,
}


class Finding(NamedTuple):
    """Something in a model that the parser refuses, or that it takes although it is better avoided.

    Attributes:
        node: name of the node, or of its first output; empty for the model as a whole.
        operator: its type.
        opset: opset of its domain that the model imports, if it imports any.
        problem: what is wrong.
        remedy: what to do.
        refused: whether the parser rejects the model, or silently reads something else from it.
    """

    node: str
    operator: str
    opset: int | None
    problem: str
    remedy: str
    refused: bool = True

    def __str__(self) -> str:
        opset = "" if self.opset is None else f", opset {self.opset}"
        where = f"node {self.node!r}, operator {self.operator}{opset}: " if self.node else ""
        return f"{where}{self.problem}; {self.remedy}"


def check(model: onnx.ModelProto) -> list[Finding]:
    """Return what would make ATC's parser reject a model, or what is better avoided.

    Args:
        model: ONNX model, sound as `runtime.onnx_file.check_model` has it. Its weights may be missing; only their
            names and types count.
    """
    imports = {domain_of(entry.domain): entry.version for entry in model.opset_import}
    findings = [*_model_findings(model, imports)]
    for node, problem, remedy in wiring.problems(model.graph):
        findings.append(of_model(problem, remedy) if node is None else _of(node, imports, problem, remedy))
    for graph in graphs(model.graph):
        findings += _graph_findings(graph, imports)
    return findings


def opset_support(model: onnx.ModelProto) -> dict[int, list[str]]:
    """Return opset -> the operators of a model's default domain that have no parser there, for every opset known."""
    used = {
        node.op_type
        for graph in graphs(model.graph)
        for node in graph.node
        if domain_of(node.domain) == DEFAULT_DOMAIN and node.op_type not in BUILT_IN
    }
    known = {opset for (domain, _), opsets in parsers().items() if domain == DEFAULT_DOMAIN for opset in opsets}
    return {
        opset: sorted(op for op in used if opset not in parsers().get((DEFAULT_DOMAIN, op), ()))
        for opset in sorted(known)
        if opset >= 8
    }


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in wiring.inner_graphs(node):
            yield from graphs(inner)


def _model_findings(model: onnx.ModelProto, imports: Mapping[str, int]) -> Iterator[Finding]:
    """Yield what is wrong with a model as a whole."""
    used = {domain_of(node.domain) for graph in graphs(model.graph) for node in graph.node}
    if DEFAULT_DOMAIN not in imports and DEFAULT_DOMAIN in used:
        yield of_model("the model does not import the default domain", "export it with one opset, 13")
    for domain in imports:
        if domain == DEFAULT_DOMAIN:
            continue
        without = "leave out its nodes and its import" if domain in used else "no node uses it, so leave it out"
        yield of_model(
            f"the model imports a second domain, {domain!r}: today's parser takes it, but CANN 8.1 is reported "
            "to refuse a model with two (E16005)",
            f"if yours does, {without}",
            refused=False,
        )
    for what, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        if not values:
            yield of_model(f"the model has no {what} (E16001)", "export it again")
    opset = imports.get(DEFAULT_DOMAIN, 0)
    if LAST_SEEN_OPSET < opset <= LAST_OPSET:
        yield of_model(
            f"the model has opset {opset}; the highest that is known to have worked in an ATC is {LAST_SEEN_OPSET}",
            "export it with opset 13",
            refused=False,
        )


def _graph_findings(graph: onnx.GraphProto, imports: Mapping[str, int]) -> Iterator[Finding]:
    """Yield what is wrong with one graph and its nodes."""
    nodes = list(graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {output for node in nodes if node.op_type == "Constant" for output in node.output}
    yield from _repeated_names(graph, imports)
    for tensor in graph.initializer:
        if tensor.data_type not in _CONSTANT_TYPES:
            problem = f"the parser does not read the type {_type_name(tensor.data_type)} of {tensor.name!r}"
            yield of_model(problem, "store it in another type")
    for sparse in graph.sparse_initializer:
        yield of_model(f"the parser ignores the sparse {sparse.values.name!r}", "store it as a dense tensor")
    for node in nodes:
        for problem, remedy in _refusals(node, imports.get(domain_of(node.domain))):
            yield _of(node, imports, problem, remedy)
        if node.op_type in _DYNAMIC:
            yield _of(node, imports, "shape arithmetic", "export with a fixed image size", False)
        for i in _POSITIONS.get(node.op_type, ()):
            if i < len(node.input) and node.input[i] and node.input[i] not in constants:
                problem = f"input {i} ({node.input[i]}) is computed; it has to be a constant"
                yield _of(node, imports, problem, "export with a fixed image size", False)
    for node in _between_convolutions(nodes):
        problem = "it stands between two convolutions, where ATC converts the layout of the map (TransData) twice"
        yield _of(node, imports, problem, "fold the network first", False)


def of_model(problem: str, remedy: str, refused: bool = True) -> Finding:
    """Return a finding of the model as a whole."""
    return Finding("", "", None, problem, remedy, refused)


def _of(node: onnx.NodeProto, imports: Mapping[str, int], problem: str, remedy: str, refused: bool = True) -> Finding:
    """Return a finding of one node."""
    name = node.name or next(filter(None, node.output), "")
    return Finding(name, node.op_type, imports.get(domain_of(node.domain)), problem, remedy, refused)


def _repeated_names(graph: onnx.GraphProto, imports: Mapping[str, int]) -> Iterator[Finding]:
    """Yield a finding for each name that the parser would give to several nodes (PreChecker::CheckName, E13009).

    Inputs and constants become nodes too, and a node without a name gets its type and a number.
    """
    constants = sorted({tensor.name for tensor in graph.initializer if tensor.name})
    inputs = {value.name for value in graph.input} - set(constants)
    taken = Counter(inputs)
    taken.update(f"{name}_Initializer_{i}" for i, name in enumerate(constants))
    unnamed = 0
    named = []
    for node in graph.node:
        named.append(node.name or f"{node.op_type}_{unnamed}")
        unnamed += not node.name
    taken.update(named)
    for node, name in zip(graph.node, named, strict=True):
        if taken[name] > 1:
            taken[name] = 0
            problem = "it is named like an input of the model" if name in inputs else f"{name!r} names several nodes"
            opset = imports.get(domain_of(node.domain))
            yield Finding(name, node.op_type, opset, f"{problem} (E13009)", "give every node a name of its own")


def _refusals(node: onnx.NodeProto, opset: int | None) -> list[tuple[str, str]]:
    """Return why the parser or a plugin refuses a node, and what to do.

    Args:
        node: the node.
        opset: opset of its domain that the model imports, or None.
    """
    domain, op = domain_of(node.domain), node.op_type
    opsets = parsers().get((domain, op), ())
    instead = _INSTEAD.get(op)
    if op in BUILT_IN or opset in opsets:
        if domain != DEFAULT_DOMAIN:
            return []
        # A rule reads the attributes in the types that they ought to have.
        return _wrong_types(node, opset or 0) or [(r.problem, r.remedy) for r in _broken_rules(node, opset or 0)]
    if domain == DEFAULT_DOMAIN:
        if opset is None:
            # A finding of the whole model.
            return []
        if not opsets:
            return [("CANN has no parser for it", instead or "write it with other operators, or install its plugin")]
        remedy = f"export with one of these, such as --opset {13 if 13 in opsets else opsets[-1]}"
    else:
        if opset is None:
            other = instead or "write it without one"
            return [(f"domain {domain!r}, which the model does not import", f"import it, or {other}")]
        if not opsets:
            return [(f"CANN has no parser for it in the domain {domain!r}", instead or "write it without a domain")]
        remedy = f"import {domain} {opsets[-1]}"
    plural = "opset" if len(opsets) == 1 else "opsets"
    return [(f"CANN's parser takes it at {plural} {ranges(opsets)}", instead or remedy)]


def _wrong_types(node: onnx.NodeProto, opset: int) -> list[tuple[str, str]]:
    """Return what is wrong with the types of a node's attributes: a plugin does not see one of another type."""
    from onnx import AttributeProto

    names = {number: name for name, number in AttributeProto.AttributeType.items()}
    types, found = _attribute_types(node.op_type, opset), []
    for attribute in node.attribute:
        kind, expected = names.get(attribute.type, "UNDEFINED"), types.get(attribute.name)
        if expected not in (None, kind):
            found.append(
                (f"its attribute {attribute.name} is {kind}, and {expected} is read", f"write it as {expected}")
            )
    return found


@functools.cache
def _attribute_types(operator: str, opset: int) -> Mapping[str, str]:
    """Return attribute -> type for an operator of the default domain, as far as it is known."""
    from onnx.defs import SchemaError, get_schema

    if operator in _OWN_ATTRIBUTES:
        return _OWN_ATTRIBUTES[operator]
    try:
        schema = get_schema(operator, opset, "")
    except (SchemaError, TypeError):
        return {}
    return {name: attribute.type.name for name, attribute in schema.attributes.items()}


def _type_name(kind: int) -> str:
    from onnx import TensorProto

    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)


class Rule(NamedTuple):
    """A node that an operator's plugin refuses.

    Attributes:
        operator: the operator.
        refuses: whether a node is refused, from the node, its attributes by name, and the opset.
        problem: what is wrong with such a node.
        remedy: what to do.
    """

    operator: str
    refuses: Callable[[Any, Mapping[str, Any], int], bool]
    problem: str
    remedy: str


def _without(operator: str, attribute: str, remedy: str = "") -> Rule:
    problem = f"without {attribute} its plugin refuses it"
    return Rule(operator, lambda node, given, opset: not given.get(attribute), problem, remedy or f"write {attribute}")


_SHAPES_OF_CONV = ("kernel_shape", "pads", "strides", "dilations")
_RULES = (
    Rule(
        "Conv",
        lambda node, given, opset: not any(name in given for name in _SHAPES_OF_CONV),
        "without kernel_shape, pads, strides and dilations its plugin refuses it",
        "write kernel_shape",
    ),
    Rule(
        "Conv",
        lambda node, given, opset: len(given.get("pads", ())) % 2 == 1,
        "its pads are odd in number",
        "write one before and one after for each axis",
    ),
    Rule(
        "Conv",
        lambda node, given, opset: (
            len(given.get("kernel_shape", ())) > 2 and given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        ),
        "its plugin refuses this auto_pad in three dimensions",
        "write pads",
    ),
    _without("ConvTranspose", "kernel_shape"),
    _without("Transpose", "perm", "write perm, also where it only reverses the axes"),
    Rule(
        "Pad",
        lambda node, given, opset: opset >= 11 and len(node.input) > 3 and bool(node.input[3]),
        "the parser has no place for its input axes",
        "write pads for every axis, without axes",
    ),
    Rule(
        "Pad",
        lambda node, given, opset: opset < 11 and "pads" not in given,
        "without pads its plugin refuses it",
        "write the attribute pads",
    ),
    Rule(
        "Clip",
        lambda node, given, opset: opset >= 11 and not any(node.input[1:3]),
        "without minimum and maximum its plugin refuses it",
        "write Identity",
    ),
    _without("MaxPool", "kernel_shape"),
    Rule(
        "MaxPool",
        lambda node, given, opset: len(node.output) > 1,
        "its plugin refuses the output of positions",
        "export the model without it",
    ),
    Rule(
        "MaxPool",
        lambda node, given, opset: given.get("storage_order") == 1,
        "its plugin refuses storage_order 1",
        "export it with 0",
    ),
    Rule(
        "Resize",
        lambda node, given, opset: opset >= 11 and len(node.input) < 3,
        "its plugin refuses fewer than three inputs",
        "write roi, which may be empty, and scales or sizes",
    ),
    Rule(
        "Split",
        lambda node, given, opset: any(
            count not in (0, len(node.output)) for count in (len(given.get("split", ())), given.get("num_outputs", 0))
        ),
        "its attributes and its outputs differ in number",
        "give it as many outputs as parts",
    ),
    Rule(
        "ScatterND",
        lambda node, given, opset: given.get("reduction", b"none") not in (b"none", b"add", b"max", b"min"),
        "its plugin refuses this reduction",
        "write it with other operators",
    ),
    Rule(
        "Upsample",
        lambda node, given, opset: given.get("mode", b"nearest") not in (b"nearest", b"linear"),
        "its plugin refuses this mode",
        "write the mode nearest or linear",
    ),
    *(
        Rule(
            operator,
            lambda node, given, opset: given.get("select_last_index") == 1,
            "its plugin refuses select_last_index 1",
            "export it with 0",
        )
        for operator in ("ArgMax", "ArgMin")
    ),
    Rule(
        "IsInf",
        lambda node, given, opset: 0 in (given.get("detect_negative", 1), given.get("detect_positive", 1)),
        "its plugin refuses to detect one sign only",
        "detect both, and compare the sign",
    ),
    _without("Cast", "to"),
    Rule(
        "AscendQuant",
        lambda node, given, opset: not given.get("scale"),
        "without scale its plugin reads 0",
        "write scale, the reciprocal of the step, as a float",
    ),
    Rule(
        "Constant",
        lambda node, given, opset: "value" not in given,
        "the parser reads its attribute value only, and would make an empty tensor of it",
        "write the constant as a tensor",
    ),
    Rule(
        "Constant",
        lambda node, given, opset: "value" in given and given["value"].data_type not in _CONSTANT_TYPES,
        "the parser does not read the type of its tensor",
        "store it in another type",
    ),
)


def _broken_rules(node: onnx.NodeProto, opset: int) -> Iterator[Rule]:
    """Yield the rules of its plugin that a node breaks."""
    from onnx.helper import get_attribute_value

    rules = [rule for rule in _RULES if rule.operator == node.op_type]
    given = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute} if rules else {}
    return (rule for rule in rules if rule.refuses(node, given, opset))


def _between_convolutions(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return layout nodes with a convolution before and another one after them, on any path."""
    after: set[str] = set()
    for node in nodes:
        # Behind the pooling of the head, a map has one pixel and the same order of values in every layout.
        if node.op_type in _POOLING_TO_A_PIXEL:
            continue
        if node.op_type == "Conv" or after.intersection(node.input):
            after.update(node.output)
    before: set[str] = set()
    for node in reversed(nodes):
        if node.op_type == "Conv" or before.intersection(node.output):
            before.update(node.input)
    return [
        node
        for node in nodes
        if node.op_type in _LAYOUT and after.intersection(node.input) and before.intersection(node.output)
    ]
