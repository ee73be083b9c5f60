"""Official (PyTorch) tensor names and their MindSpore counterparts, one to one."""

from __future__ import annotations

import re

from .architecture import BATCH_COUNTER

# PyTorch name -> MindSpore name of the last part, by kind of layer.
_BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_LAYER_NORM = {"weight": "gamma", "bias": "beta"}
_RULES = (
    (re.compile(r"^(.*\.norm(?:_\d+)?)\.(\w+)$"), _BATCH_NORM),
    (re.compile(r"^(head\.ln)\.(\w+)$"), _LAYER_NORM),
)


def mindspore_name(official: str) -> str | None:
    """MindSpore's name of an official tensor.

    Only the normalisation layers differ: `weight, bias, running_mean, running_var` are `gamma, beta, moving_mean,
    moving_variance`. `num_batches_tracked` has no counterpart: None.

    Example:
        >>> mindspore_name("stage_1.0.ops.content.norm.running_var")
        'stage_1.0.ops.content.norm.moving_variance'
    """
    if official.endswith(BATCH_COUNTER):
        return None
    return _rename(official, lambda table: table)


def official_name(mindspore: str) -> str:
    """The official name of a MindSpore parameter, the inverse of `mindspore_name`."""
    return _rename(mindspore, lambda table: {new: old for old, new in table.items()})


def _rename(name: str, direction) -> str:
    for pattern, table in _RULES:
        if (found := pattern.match(name)) and found[2] in direction(table):
            return f"{found[1]}.{direction(table)[found[2]]}"
    return name
