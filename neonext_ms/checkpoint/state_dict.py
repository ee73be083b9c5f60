"""The weights inside a file: found below any keys and prefixes, MindSpore names translated, other entries set aside.

A key of a training checkpoint (`model`, `model_ema`) and a prefix of names (`net.`, `backbone.`) are the same idea: the
part of a tensor's path before the first official name. Tensors with the same such part are one group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import list_names
from neonext_ms.models.architecture import BATCH_COUNTER
from neonext_ms.models.names import official_name

from .budget import Budget
from .mapped_file import printable
from .pytorch_pickle import Placeholder

_DEPTH = 6
_ANCHOR = re.compile(
    r"(?:^|(?<=\.))(?:stem\.(?:conv|norm)|stage_[1-4]\.\d+|downsample_[1-3]\.(?:conv|neocell|norm_[12])|head\.(?:ln|fc))\."
)
# torch.compile, FSDP and activation checkpointing put these anywhere; DistributedDataParallel and DeepSpeed before a
# name.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MODULE = "module"
_AVERAGE = re.compile(r"(?:^|_)(?:ema|swa|averaged?|shadow)(?:_|$)|moving_average", re.IGNORECASE)
# A group below these names only is the model itself; any other name says that there is more than one model.
_CONVENTIONAL = re.compile(
    r"state_dict|model_state_dict|model_state|model|model_without_ddp|net|network|backbone|encoder|weights|params"
)

# State of the training that lies beside the weights.
_OPTIMIZER = re.compile(
    r"moments?|moment[12]|exp_avg|exp_avg_sq|exp_inf|max_exp_avg_sq|momentum_buffer|stat|accum|adam_[mv]|lamb_[mv]"
    r"|accu_grads|grad_sum|optim|optimizers?|optimizer_states?|optimizer_state_dict"
)
_STEPS = re.compile(
    r"(?:global_step|epoch_num|step_num|epoch|step|state_step|learning_rate|lr|weight_decay|momentum|beta[12]_power"
    r"|loss_scale|scale_sense|scale_value|current_iterator_step|last_overflow_iterator_step)"
)
# Counters of moving averages: torch.optim.swa_utils.AveragedModel, ema_pytorch, LitEma.
_AVERAGE_COUNTERS = ("n_averaged", "num_updates", "initted", "decay")
# thop.profile leaves these in every module.
_PROFILE = ("total_ops", "total_params")
_ROOT = "."


@dataclass(frozen=True)
class _Entry:
    """A value of a file: the path of its container, its key there, and its group and name by the rules above."""

    container: tuple[str, ...]
    key: str
    value: object
    group: str | None
    name: str


def select_state_dict(
    tree: object, budget: Budget, ema: bool = False, key: str | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Find the weights in the values of a file, and return them by their official names.

    The weights are the group of tensors with official names. If there are several groups, the one that lies below
    conventional names only (`model`, `state_dict`, `net`, ...) or no name at all.

    Args:
        tree: values of the file.
        budget: budget of the file.
        ema: whether to take the moving average of the weights.
        key: name of the group, such as `teacher` or `model.backbone`; `.` is the group without a name.

    Returns:
        The tensors, also those that do not belong to a NeoNeXt but lie among its weights, and notes on the choice and
        on all that is ignored.

    Raises:
        InputError: the file has no tensors, several groups fit or none does, it has no moving average although `ema`
            asks for it, two tensors have the same official name, or a weight is not a tensor.
    """
    source = budget.source
    containers = dict(_containers(tree, budget)) if isinstance(tree, (dict, list, tuple)) else {}
    entries = list(_entries(containers, budget))
    groups: dict[str, list[_Entry]] = {}
    for entry in entries:
        if entry.group is not None and isinstance(entry.value, np.ndarray):
            groups.setdefault(entry.group, []).append(entry)
    if not _matching(groups, key):
        if not isinstance(tree, dict) and not groups:
            raise InputError(
                f"{source}: not a dictionary of tensors by name (got a {_kind(tree)}). Save model.state_dict()."
            )
        entries, groups = _by_container(entries, groups)
    least = max(map(len, groups.values()), default=0) / 2
    groups = {name: members for name, members in groups.items() if len(members) >= least}
    if not groups:
        keys = [f"{name} ({_kind(value)})" for name, value in _items(tree)]
        raise InputError(
            f"{source}: no tensors by name (expected a state dict, bare or below a key such as model). The keys are:\n"
            + list_names(map(printable, keys), 50)
        )
    group, others = _choose(groups, source, ema, key)
    tensors, ignored = _members(group, entries, groups, source)
    ignored = [*_beside(containers, groups, group), *ignored]
    notes = _choice_notes(group, others, ema, key)
    if ignored:
        rest = f" and {len(ignored) - 12} more" if len(ignored) > 12 else ""
        notes.append(f"ignored entries that are not weights: {', '.join(map(printable, ignored[:12]))}{rest}")
    return tensors, notes


def _items(container: object) -> Iterable[tuple[str, object]]:
    if isinstance(container, (list, tuple)):
        return ((str(i), value) for i, value in enumerate(container))
    return container.items() if isinstance(container, dict) else ()


def _containers(tree: object, budget: Budget) -> Iterator[tuple[tuple[str, ...], dict[str, object]]]:
    """Yield path and items of every container, the outer ones first. A hostile file can make one contain itself."""
    level: list[tuple[tuple[str, ...], object]] = [((), tree)]
    for _ in range(_DEPTH):
        below: list[tuple[tuple[str, ...], object]] = []
        for path, container in level:
            budget.spend(4 + 4 * len(container))  # type: ignore[arg-type]
            items = dict(_items(container))
            yield path, items
            below += [((*path, k), v) for k, v in items.items() if isinstance(v, (dict, list, tuple)) and v]
        level = below


def _entries(containers: Mapping[tuple[str, ...], dict[str, object]], budget: Budget) -> Iterator[_Entry]:
    for path, items in containers.items():
        for key, value in items.items():
            if isinstance(value, (dict, list, tuple)) and value:
                continue
            text = ".".join((*path, key)) if path else key
            if isinstance(value, np.ndarray):
                budget.name(text)
            elif len(text) > 200:
                text = text[:200]
            text = _WRAPPERS.sub("", text)
            match = _ANCHOR.search(text)
            if match is None:
                yield _Entry(path, key, value, None, _without_module(text))
                continue
            group = _without_module(text[: match.start()].rstrip("."))
            training = any(_OPTIMIZER.fullmatch(part) for part in group.split("."))
            yield _Entry(path, key, value, None if training else group, text[match.start() :] if not training else text)


def _without_module(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _MODULE)


def _by_container(entries: list[_Entry], groups: dict) -> tuple[list[_Entry], dict[str, list[_Entry]]]:
    """Group the tensors by container, for a file without any official name, whose names the error should list."""
    names = {entry.container: _without_module(".".join(entry.container)) for entry in entries}
    moved = []
    result: dict[str, list[_Entry]] = {}
    for entry in entries:
        group = names[entry.container]
        name = entry.name.removeprefix(f"{group}.") if entry.group is None else entry.name
        moved.append(_Entry(entry.container, entry.key, entry.value, group, name))
        if isinstance(entry.value, np.ndarray) and (entry.value.ndim or groups):
            result.setdefault(group, []).append(moved[-1])
    return moved, result


def _matching(groups: Iterable[str], key: str | None) -> list[str]:
    """Return the names of the groups that a key names: itself, or all below it."""
    if key is None:
        return list(groups)
    wanted = _without_module(_WRAPPERS.sub("", key.replace("/", ".").strip(".") + ".").strip("."))
    return [name for name in groups if name == wanted or (wanted and name.startswith(f"{wanted}."))]


def _is_average(group: str) -> bool:
    return any(_AVERAGE.search(part) for part in group.split("."))


def _choose(groups: dict[str, list[_Entry]], source: str, ema: bool, key: str | None) -> tuple[str, list[str]]:
    """Return the name of the group to read, and those of the others."""
    names = _matching(groups, key)
    if not names:
        raise InputError(
            f"{source}: no weights below {key!r}. Name one of these with key=NAME / --key NAME:\n{_listed(groups)}"
        )
    averages = [name for name in names if _is_average(name)]
    regular = [name for name in names if name not in averages]
    if ema and not averages:
        content = "it is a bare state dict" if regular == [""] else f"it holds {' / '.join(map(repr, regular))} only"
        raise InputError(
            f"{source}: no moving average (EMA) beside the weights; {content}. Leave out ema=True / --ema, or name the "
            "file that has it."
        )
    fitting = _distinct(averages if ema or not regular else regular, groups)
    if len(fitting) > 1:
        conventional = [name for name in fitting if all(map(_is_conventional, name.split(".")))]
        if len(conventional) != 1:
            raise InputError(
                f"{source}: several sets of weights fit. Name one with key=NAME / --key NAME:\n{_listed(fitting)}"
            )
        fitting = conventional
    return fitting[0], [name for name in groups if name != fitting[0]]


def _is_conventional(part: str) -> bool:
    return not part or bool(_CONVENTIONAL.fullmatch(part) or _AVERAGE.search(part))


def _distinct(names: list[str], groups: dict[str, list[_Entry]]) -> list[str]:
    """Leave out groups that are another one under a second name: the same arrays."""
    seen: dict[tuple[int, ...], str] = {}
    for name in names:
        seen.setdefault(tuple(id(entry.value) for entry in groups[name]), name)
    return list(seen.values())


def _listed(names: Iterable[str]) -> str:
    return list_names((printable(name or _ROOT) for name in names), 20)


def _choice_notes(group: str, others: list[str], ema: bool, key: str | None) -> list[str]:
    text = f"read {printable(group)!r}" if group else "read the weights without a key"
    averages = [name for name in others if _is_average(name)]
    rest = [name for name in others if name not in averages]
    if not ema and key is None and averages and not _is_average(group):
        text += f"; the file also holds {printable(averages[0])!r} (use ema=True / --ema)"
    elif not ema and key is None and _is_average(group):
        text += ", the moving average: the file holds no other weights"
    if rest and not ema and key is None:
        names = ", ".join(repr(printable(name or _ROOT)) for name in rest[:4])
        text += f"; the file also holds {names} (use key=NAME / --key NAME)"
    return [text] if group or others else []


def _members(
    group: str, entries: list[_Entry], groups: dict[str, list[_Entry]], source: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tensors of a group by official name, and labels of the entries beside them that are ignored."""
    places = {entry.container for entry in groups[group]}
    tensors: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    ignored: dict[str, None] = {}
    collisions, strange = [], []
    for entry in entries:
        if entry.container not in places:
            continue
        last = entry.name.rpartition(".")[2]
        if last in _PROFILE:
            ignored[f"*.{last}" if "." in entry.key else last] = None
            continue
        name, value = entry.name, entry.value
        if entry.group != group:
            if entry.group in groups or (entry.group is not None and _is_average(entry.group)):
                continue
            text = f"{entry.group}.{name}" if entry.group else name
            if group and not text.startswith(f"{group}."):
                ignored[_label(entry.key, value)] = None
                continue
            name = text[len(group) + 1 :] if group else text
            if match := next((part for part in name.split(".")[:-1] if _OPTIMIZER.fullmatch(part)), None):
                ignored[f"{match}.*"] = None
                continue
        if name.endswith(BATCH_COUNTER) and type(value) is int and value.bit_length() < 64:
            value = np.array(value)
        if not isinstance(value, np.ndarray):
            if entry.group == group and last != "_extra_state" and _ANCHOR.match(name):
                strange.append(f"{printable(entry.key)}: {_kind(value)}")
            ignored[_label(entry.key, value)] = None
            continue
        if _STEPS.fullmatch(name) or (name in _AVERAGE_COUNTERS and value.size == 1):
            ignored[entry.key] = None
            continue
        name = official_name(name)
        if name in tensors:
            collisions.append(f"{printable(origin[name])} and {printable(entry.key)}")
            continue
        tensors[name] = value
        origin[name] = entry.key
    if strange:
        raise InputError(
            f"{source}: {len(strange)} weights are not tensors that can be read. Save model.state_dict():\n"
            + list_names(strange, 200)
        )
    if collisions:
        raise InputError(
            f"{source}: {len(collisions)} pairs of tensors have the same official name. Remove one of each:\n"
            + list_names(collisions, 200)
        )
    return tensors, list(ignored)


def _beside(
    containers: Mapping[tuple[str, ...], dict[str, object]], groups: dict[str, list[_Entry]], group: str
) -> list[str]:
    """Return labels of what lies beside the containers of the chosen weights and is not another set of weights."""
    used = {entry.container[:depth] for members in groups.values() for entry in members for depth in range(1, _DEPTH)}
    places = {entry.container for entry in groups[group]}
    ancestors = {place[:depth] for place in places for depth in range(len(place))} | places
    return [
        _label(key, value)
        for path in sorted(ancestors)
        for key, value in containers[path].items()
        if (*path, key) not in used
        and (path not in places or (isinstance(value, (dict, list, tuple)) and value))
        and not (path not in places and isinstance(value, np.ndarray) and _ANCHOR.search(key))
    ]


def _label(key: str, value: object) -> str:
    return f"{key} ({value.name})" if isinstance(value, Placeholder) else key


def _kind(value: object) -> str:
    if isinstance(value, Placeholder):
        return f"object of {value.name}"
    if isinstance(value, np.ndarray):
        return "single tensor"
    return (
        f"{type(value).__name__} of {len(value)} values" if isinstance(value, (list, tuple)) else type(value).__name__
    )
