"""The state dict inside a file: wrappers, prefixes and MindSpore names removed, other entries set aside."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import list_names
from neonext_ms.models.names import official_name

from .mapped_file import printable

REGULAR = ("state_dict", "model_state_dict", "model")
EMA = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
# DistributedDataParallel and torch.compile put these before every name.
_PREFIXES = ("module.", "_orig_mod.")
_DEPTH = 4

# A `.ckpt` has no levels, so the state of the training lies beside the weights.
_OPTIMIZER = re.compile(
    r"^(moments?|moment[12]|exp_avg|exp_avg_sq|exp_inf|max_exp_avg_sq|momentum_buffer|stat|accum|adam_[mv]|lamb_[mv]"
    r"|accu_grads|grad_sum)\..+"
)
_STEPS = re.compile(
    r"^(global_step|epoch_num|step_num|epoch|step|state_step|learning_rate|lr|weight_decay|momentum|beta[12]_power"
    r"|loss_scale|scale_sense|scale_value|current_iterator_step|last_overflow_iterator_step)$"
)


def select_state_dict(tree: object, source: str, ema: bool = False) -> tuple[dict, list[str]]:
    """Find the state dict in the values of a file: the values themselves, or those below `model`, `model_ema` etc.

    Args:
        tree: values of the file. Names such as `ema.stem.conv.weight` count as `ema` holding `stem.conv.weight`.
        source: name of the file in messages.
        ema: whether to take the moving average of the weights.

    Returns:
        The state dict, still with all its entries, and notes on the choice.

    Raises:
        InputError: the file has no tensors, or no moving average although `ema` asks for it.
    """
    if not isinstance(tree, dict):
        raise InputError(
            f"{source}: not a dictionary of tensors by name (got a {_kind(tree)}). Save model.state_dict()."
        )
    path: list[str] = []
    others: list[str] = []
    wanted = ema
    for _ in range(_DEPTH):
        plain, groups = _split(tree)
        averages = [name for name in EMA if name in groups]
        regular = [name for name in REGULAR if name in groups]
        if wanted and averages:
            chosen, wanted = averages[0], False
        elif regular:
            chosen = regular[0]
            others += [*regular[1:], *averages]
        elif _has_weights(plain) or not averages:
            others += averages
            tree = plain
            break
        else:
            chosen = averages[0]
        path.append(chosen)
        tree = groups[chosen]
    if not any(isinstance(value, np.ndarray) for value in tree.values()):
        raise InputError(
            f"{source}: no tensors by name (expected a state dict, bare or below {', '.join((*REGULAR, *EMA))}). The "
            f"keys are:\n{list_names(map(printable, tree), 50)}"
        )
    if wanted:
        content = f"it holds {' / '.join(map(repr, path))} only" if path else "it is a bare state dict"
        raise InputError(
            f"{source}: no moving average (EMA) beside the weights; {content}. Leave out ema=True / --ema, or name the "
            "file that has it."
        )
    notes = []
    if path or others:
        text = f"read {'/'.join(path) or 'the weights'!r}"
        if averages := [name for name in others if name in EMA]:
            text += f"; the file also holds {averages[0]!r} (use ema=True / --ema)"
        elif others:
            text += f"; the file also holds {', '.join(map(repr, others))}"
        elif not ema and path[-1] in EMA:
            text += ", the moving average: the file holds no other weights"
        notes.append(text)
    return tree, notes


def official_tensors(values: Mapping, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tensors of a state dict by official name, and the names of the ignored entries.

    Ignored are numbers, texts and the state of an optimizer (listed as `moment1.*`). The prefixes `module.` and
    `_orig_mod.` are removed, MindSpore's names are translated.

    Raises:
        InputError: two tensors have the same official name.
    """
    tensors: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    ignored: dict[str, None] = {}
    collisions = []
    for key, value in values.items():
        name = str(key)
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        if not isinstance(value, np.ndarray) or _STEPS.match(name):
            ignored[str(key)] = None
            continue
        if match := _OPTIMIZER.match(name):
            ignored[f"{match[1]}.*"] = None
            continue
        name = official_name(name)
        if name in tensors:
            collisions.append(f"{printable(origin[name])} and {printable(key)}")
            continue
        tensors[name] = value
        origin[name] = str(key)
    if collisions:
        raise InputError(
            f"{source}: {len(collisions)} pairs of tensors have the same official name. Remove one of each:\n"
            + list_names(collisions, 200)
        )
    return tensors, list(ignored)


def _split(tree: Mapping) -> tuple[dict, dict[str, dict]]:
    """Split a level into its plain entries and the groups of tensors below the names of `REGULAR` and `EMA`."""
    plain: dict = {}
    groups: dict[str, dict] = {}
    for key, value in tree.items():
        head, dot, rest = key.partition(".") if isinstance(key, str) else (key, "", "")
        if head not in REGULAR and head not in EMA:
            plain[key] = value
        elif dot:
            groups.setdefault(head, {})[rest] = value
        elif _holds_tensors(value, set()):
            groups[head] = {**groups.get(head, {}), **value}
        else:
            plain[key] = value
    return plain, groups


def _holds_tensors(value: object, seen: set[int]) -> bool:
    # A hostile file can make a dictionary contain itself.
    if not isinstance(value, dict) or id(value) in seen:
        return False
    seen.add(id(value))
    if any(isinstance(inner, np.ndarray) for inner in value.values()):
        return True
    return len(seen) <= _DEPTH and any(_holds_tensors(value.get(name), seen) for name in (*REGULAR, *EMA))


def _has_weights(values: Mapping) -> bool:
    # Counters and learning rates have no axes.
    return any(isinstance(value, np.ndarray) and value.ndim for value in values.values())


def _kind(tree: object) -> str:
    if isinstance(tree, np.ndarray):
        return "single tensor"
    return f"{type(tree).__name__} of {len(tree)} values" if isinstance(tree, (list, tuple)) else type(tree).__name__
