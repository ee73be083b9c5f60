"""Official (PyTorch) tensor names and their MindSpore counterparts, one to one."""

from __future__ import annotations

import re

from .architecture import BATCH_COUNTER

# PyTorch name -> MindSpore name of the last part. A LayerNorm has no statistics, so one table serves both.
_TO_MINDSPORE = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_TO_OFFICIAL = {new: old for old, new in _TO_MINDSPORE.items()}
_NORMALISATION = re.compile(r"^(.*\.norm(?:_\d+)?|head\.ln)\.(\w+)$")


def mindspore_name(official: str) -> str | None:
    """Return MindSpore's name of an official tensor.

    Only the normalization layers differ: `weight, bias, running_mean, running_var` are `gamma, beta, moving_mean,
    moving_variance`. `num_batches_tracked` has no counterpart, so the result is None.

    Example:
        >>> mindspore_name("stage_1.0.ops.content.norm.running_var")
        'stage_1.0.ops.content.norm.moving_variance'
    """
    return None if official.endswith(BATCH_COUNTER) else _rename(official, _TO_MINDSPORE)


def official_name(mindspore: str) -> str:
    """Return the official name of a MindSpore parameter, the inverse of `mindspore_name`."""
    return _rename(mindspore, _TO_OFFICIAL)


def _rename(name: str, table: dict[str, str]) -> str:
    match = _NORMALISATION.match(name)
    return f"{match[1]}.{table[match[2]]}" if match and match[2] in table else name
