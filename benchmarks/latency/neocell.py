"""The NeoCell node of our own exports: which NeoCell its attributes describe."""

from __future__ import annotations

from neonext_ms.common.errors import InputError
from neonext_ms.ops.packing import RUN_ATTRIBUTES, plan
from neonext_ms.ops.spec import NeoCellGroup, NeoCellSpec

from .reader import Node


def spec_of(node: Node) -> NeoCellSpec:
    """The NeoCell of a node.

    The attributes are runs of channels with one shift each; runs of one matrix size whose shifts count up are one
    group, and the first step between them is the group's shift.

    Raises:
        InputError: an attribute is missing, or no NeoCell has these runs.
    """
    missing = [name for name in RUN_ATTRIBUTES if name not in node.attributes]
    if missing:
        raise InputError(f"{node.name}: the attribute {missing[0]} is missing; expected {', '.join(RUN_ATTRIBUTES)}")
    given = {name: list(node.attributes[name]) for name in RUN_ATTRIBUTES}
    groups: list[list[tuple[int, ...]]] = []
    for run in zip(*given.values(), strict=True):
        before = groups[-1][-1] if groups else None
        if before and before[1:5] == run[1:5] and before[5] <= run[5] and before[6] <= run[6] and before != run:
            groups[-1].append(run)
        else:
            groups.append([run])
    made = []
    for group in groups:
        second = group[min(1, len(group) - 1)]
        steps = second[5] - group[0][5], second[6] - group[0][6]
        made.append(NeoCellGroup(*group[0][1:5], sum(run[0] for run in group), *steps))
    spec = NeoCellSpec(made)
    found = plan(spec).attributes
    if any(list(found[name]) != given[name] for name in RUN_ATTRIBUTES):
        raise InputError(f"{node.name}: no NeoCell has these runs of channels: {given}")
    return spec
