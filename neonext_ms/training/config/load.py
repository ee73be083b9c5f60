"""Configurations from YAML files and `key=value` overrides; every error names the file and the key."""

from __future__ import annotations

import dataclasses
import os
import re
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import can_be_name
from neonext_ms.common.text import DECIMAL, nearest, shorten
from neonext_ms.common.yaml_file import parse_yaml, read_yaml
from neonext_ms.models.architecture import Architecture, make_architecture
from neonext_ms.models.registry import model_config

from .describe import alternatives, expected
from .schema import Config, ModelConfig, annotated_keys, known_keys

# Options of `make_architecture` that are None if the configuration leaves them to the named model or the checkpoint.
NETWORK_OPTIONS = (
    "per_stage_layers", "dims", "kernel_spec", "shifts", "layer_scale_init_value", "linear_bias", "downsample",
    "activation",
)  # fmt: skip
_BASE = "base"
_LARGEST = 3.4e38  # of float32
_WHOLE = re.compile(r"\s*-?(0|[1-9][0-9]{0,17})\s*")


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: YAML file; its key `base` names another file, relative to it, whose values it changes.
        overrides: texts such as `optimizer.lr=1e-3`, applied in order. The value of a key that takes text is taken as
            typed, except that `null` stands for no value; any other value is YAML.

    Raises:
        InputError: a file cannot be read, or has an unknown key (the nearest one is named) or an invalid value.
        UsageError: an override has one of these, or values that do not go together, which those of the file do.
    """
    source, values = os.fspath(path), _read(Path(path), ())
    changed = dict(values)
    for text in overrides:
        _override(changed, text)
    try:
        return make_config(changed, source)
    except InputError as error:
        # The file alone may have the same fault, or another one.
        make_config(values, source)
        raise UsageError(str(error)) from error


def make_config(values: Mapping, source: str = "config") -> Config:
    """Return a `Config` from nested plain values; keys that are left out keep their defaults.

    Raises:
        InputError: a key is unknown, a value is invalid, or there is no such network; the message names `source` and
            the key.
    """
    config: Config = _build(Config, values, "", source)
    for key in ("scale", "ratio"):
        low, high = getattr(config.augmentation, key)
        if low > high:
            raise InputError(
                f"{source}: wrong order in augmentation.{key} (got [{low:g}, {high:g}], expected the smaller number "
                "first)"
            )
    paths = {"model.init": config.model.init, "data.path": config.data.path, "run.output": config.run.output}
    # An empty one would count as not given, or as this folder.
    if empty := next((key for key, path in paths.items() if path == ""), None):
        raise InputError(f"{source}: {empty} is empty (expected a path or null). Is a variable of the shell not set?")
    schedule = config.schedule
    for key in ("warmup_epochs", "blend_epochs"):
        # A change of the activation that never ends would leave a network that was not trained with its own.
        if getattr(schedule, key) > schedule.epochs:
            raise InputError(
                f"{source}: schedule.{key} ({getattr(schedule, key):g}) is more than schedule.epochs "
                f"({schedule.epochs})"
            )
    try:
        _check_network(config.model)
    except InputError as error:
        raise InputError(f"{source}: model: {error}") from error
    return config


def network_options(model: ModelConfig, classes: int) -> dict[str, Any]:
    """Return the arguments of `make_architecture` that a configuration gives."""
    options = {name: getattr(model, name) for name in NETWORK_OPTIONS if getattr(model, name) is not None}
    return {**options, "num_classes": classes, "drop_path": model.drop_path}


def described_network(model: ModelConfig, classes: int) -> tuple[Architecture, tuple[int, int] | None] | None:
    """Return the network that a configuration describes, and the image size of a named one; None if it leaves it open.

    Raises:
        InputError: the name is unknown, or an option is out of range.
    """
    options = network_options(model, classes)
    if model.name is not None:
        named = model_config(model.name, **options)
        return named.architecture, named.image_size
    return (make_architecture(**options), None) if model.dims is not None else None


def _check_network(model: ModelConfig) -> None:
    """Check what a configuration says of the network, before MindSpore is imported and the data are read."""
    described = described_network(model, model.num_classes or 1)
    size = model.image_size
    if described and size is not None:
        described[0].maps((size, size) if isinstance(size, int) else size)


def config_yaml(config: Config) -> str:
    """Return the whole configuration as YAML; `load_config` reads it back to an equal one."""
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    """Return the values of a file merged into those of its bases; `seen` are the files that led here."""
    values = read_yaml(path, "configs/digits.yaml")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: wrong content (got {type(values).__name__}, expected lines 'key: value'). See configs/digits.yaml"
        )
    base = values.pop(_BASE, None)
    # Checked before the merge, so that an error names the file that has the key.
    _build(Config, values, "", str(path))
    if base is None:
        return values
    if not isinstance(base, str) or not can_be_name(base):
        raise InputError(f"{path}: wrong value for base (got {shorten(base)}, expected the name of a YAML file)")
    seen = (*seen, path.resolve())
    parent = path.parent / base
    if parent.resolve() in seen:
        raise InputError(f"{path}: base leads back to {parent}. Remove one of these lines")
    merged = _read(parent, seen)
    for part, keys in values.items():
        merged[part] = {**(merged.get(part) or {}), **(keys or {})}
    return merged


def _override(values: dict, text: str) -> None:
    key, equals, written = text.partition("=")
    source = shorten(text)
    if not equals:
        raise UsageError(f"{source}: not an override (expected key=value, such as optimizer.lr=1e-3)")
    part, _, leaf = key.partition(".")
    if key not in known_keys():
        raise UsageError(f"{source}: unknown key {shorten(key)}{_suggestion(key, ())}")
    annotation = annotated_keys(annotated_keys(Config)[part])[leaf]
    kinds = alternatives(annotation)
    value: object = written
    try:
        if types.NoneType in kinds and written == "null":
            value = None
        elif not all(kind in (str, types.NoneType) or get_origin(kind) is Literal for kind in kinds):
            value = parse_yaml(written, source)
        # YAML takes nothing, or a comment, for null.
        if not written.strip() or (value is None and written.strip() not in ("null", "~")):
            raise UsageError(
                f"{source}: {key} is empty (expected {expected(annotation)}). Is a variable of the shell not set?"
            )
        _build(Config, {part: {leaf: value}}, "", source)
        if key == "model.name" and value is not None:
            model_config(str(value))
    except InputError as error:
        raise UsageError(str(error)) from error
    values[part] = {**(values.get(part) or {}), leaf: value}


def _build(kind: type, values: object, prefix: str, source: str):
    """Return an instance of the dataclass `kind` from a mapping of its fields; `prefix` is its key with a dot."""
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise InputError(
            f"{source}: wrong value for {prefix.rstrip('.')} (got {shorten(values)}, expected keys of its own)"
        )
    annotations = annotated_keys(kind)
    converted = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in annotations:
            raise InputError(f"{source}: unknown key {shorten(name)}{_suggestion(name, annotations)}")
        if dataclasses.is_dataclass(annotations[key]):
            converted[key] = _build(annotations[key], value, f"{name}.", source)
        else:
            converted[key] = _convert(value, annotations[key], name, source)
    return kind(**converted)


def _suggestion(name: str, siblings: Collection[str]) -> str:
    """Return a hint for an unknown key: the same last word elsewhere, the nearest key, or what is known here."""
    name = name[:100]
    part, _, leaf = name.rpartition(".")
    if name in known_keys():
        return f" (write {leaf} below {part}, as in {part}: {{{leaf}: ...}})"
    if elsewhere := [key for key in known_keys() if key.rpartition(".")[2] == leaf]:
        return f" (did you mean {' or '.join(elsewhere)}?)"
    listed = f"; known: {', '.join(siblings)}" if siblings else ""
    return nearest(leaf, siblings) or nearest(name, known_keys()) or listed


def _convert(value: object, annotation, name: str, source: str):
    """Return the value in the type that the annotation asks for.

    Raises:
        InputError: the value has another type, or is outside of the range or the choices.
    """
    kinds = alternatives(annotation)
    for kind in kinds:
        try:
            return _fit(value, kind)
        except (ValueError, OverflowError):
            continue
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    hint = nearest(value[:100], choices) if isinstance(value, str) else ""
    if str in kinds and isinstance(value, (bool, float)):
        hint = ". Put it in quotes"
    raise InputError(f"{source}: wrong value for {name} (got {shorten(value)}, expected {expected(annotation)}){hint}")


def _fit(value, kind):
    """Return the value as `kind`, one of the alternatives of an annotation; ValueError if it does not fit."""
    arguments = get_args(kind)
    fits: bool
    if get_origin(kind) is Literal:
        fits = value in arguments
    elif get_origin(kind) is Annotated:
        value = _fit(value, arguments[0])
        fits = value in arguments[1]
    elif get_origin(kind) is tuple:
        if isinstance(value, str):
            # The official notation of shifts and depths, such as 1,1,1,0.
            value = [int(part) if _WHOLE.fullmatch(part) else part for part in value.split(",")]
        variable = arguments[-1] is Ellipsis
        fits = isinstance(value, (list, tuple)) and (variable or len(value) == len(arguments))
        value = tuple(_fit(item, arguments[0]) for item in value) if fits else value
    elif kind is float:
        # float() would also read 1_000 and nan.
        fits = type(value) in (int, float) or (isinstance(value, str) and bool(DECIMAL.fullmatch(value)))
        value = float(value) if fits else value
        fits = fits and abs(value) <= _LARGEST
    elif kind is int:
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        fits = type(value) is int
    elif kind is str:
        # A kernel of 7, or a folder named 2024. A number such as 1.10 would lose its last digit.
        value = str(value) if type(value) is int else value
        # The system would raise an error of its own.
        fits = isinstance(value, str) and can_be_name(value)
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError(value)
    return value
