"""Metadata inside a checkpoint: shifts, activation, image size, labels and preprocessing, as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping

from neonext_ms.common.cli import MAX_SIDE
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import parse_json
from neonext_ms.common.text import shorten
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.activations import ACTIVATIONS, is_activation
from neonext_ms.models.architecture import BATCH_COUNTER, STAGES
from neonext_ms.models.scales import parse_scales

from .mapped_file import printable

KEY = "neonext_ms"
# Scales that the weights were fine-tuned with for 8 bit.
SCALES = "scales"
_MAX_BYTES = 4 << 20
_COUNTERS = "counters"


def encode(metadata: Mapping, counters: Mapping[str, int] | None = None, source: str = "metadata") -> str:
    """Encode metadata, and BatchNorm counters where the format has no place for them, as one line of ASCII JSON.

    Raises:
        InputError: `check` rejects a value, or JSON cannot hold it.
    """
    values = check(dict(metadata), source)
    if counters:
        values[_COUNTERS] = dict(counters)
    try:
        text = json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: cannot be written as JSON ({error}). Use dict, list, str and finite numbers only."
        ) from error
    source = f"{source}: metadata"
    _check_length(text, source)
    # It may be deeper than what is read.
    parse_json(text, source, "JSON that can be read again")
    return text


def decode(text: str | bytes, source: str) -> tuple[dict, dict[str, int]]:
    """Decode the text of `encode` into metadata and counters.

    Raises:
        InputError: the text is not what `encode` writes; the message names `source`.
    """
    source = f"{source}: metadata"
    _check_length(text, source)
    try:
        values = parse_json(text, source, "JSON")
    except InputError as error:
        raise InputError(f"{printable(error, 400)}. Save the checkpoint again.") from error
    if type(values) is not dict:
        raise InputError(f"{source}: not a JSON object (got {type(values).__name__}). Save the checkpoint again.")
    counters = values.pop(_COUNTERS, {})
    if type(counters) is not dict or not all(
        name.endswith(BATCH_COUNTER) and _is_whole(count, 0) for name, count in counters.items()
    ):
        raise InputError(f"{source}: the counters are not those of num_batches_tracked. Save the checkpoint again.")
    return check(values, source), counters


def check(values: dict, source: str) -> dict:
    """Return a copy of metadata with the keys that this package uses in their JSON form.

    `shifts` is four whole numbers, `activation` a name of `models.activations`, `image_size` two whole numbers up to
    `MAX_SIDE` (a single one stands for both), `labels` a list of str, `preprocessing` what `Preprocessing` takes, and
    `scales` those that the weights were fine-tuned with (`Scales`). Keys whose value is None are dropped, others are
    kept unchanged.

    Raises:
        InputError: one of these keys has another value; the message begins with `source`.
    """
    result = {key: value for key, value in values.items() if value is not None}
    if any(not isinstance(key, str) for key in result):
        raise InputError(f"{source}: a key is not a str")
    size = result.get("image_size")
    for key, value, expected in (
        ("shifts", _whole_numbers(result.get("shifts"), STAGES, 0), "four whole numbers, one per stage"),
        (
            "image_size",
            _whole_numbers([size, size] if type(size) is int else size, 2, 1, MAX_SIDE),
            f"height and width in pixels, at most {MAX_SIDE:,}",
        ),
        ("activation", _activation(result.get("activation")), f"one of {', '.join(ACTIVATIONS)}"),
        ("labels", _texts(result.get("labels")), "a list of str, one per class"),
    ):
        if key in result:
            if value is None:
                shown = printable(shorten(result[key]))
                raise InputError(f"{source}: {key} must be {expected} (got {shown})")
            result[key] = value
    if SCALES in result:
        result[SCALES] = parse_scales(result[SCALES], f"{source}: {SCALES}").to_dict()
    if "preprocessing" in result:
        preprocessing = result["preprocessing"]
        try:
            if not isinstance(preprocessing, Preprocessing):
                preprocessing = Preprocessing.from_dict(preprocessing)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        result["preprocessing"] = preprocessing.to_dict()
    return result


def _check_length(text: str | bytes, source: str) -> None:
    if len(text) > _MAX_BYTES:
        raise InputError(
            f"{source}: too long (got {len(text):,} bytes, expected at most {_MAX_BYTES:,}). Shorten the labels."
        )


def _is_whole(value: object, least: int, most: int = 2**63 - 1) -> bool:
    return type(value) is int and least <= value <= most


def _whole_numbers(value: object, count: int, least: int, most: int = 2**63 - 1) -> list[int] | None:
    """Return `value` as a list if it is a sequence of that many whole numbers, else None."""
    if isinstance(value, (list, tuple)) and len(value) == count and all(_is_whole(v, least, most) for v in value):
        return list(value)
    return None


def _activation(value: object) -> str | None:
    return str(value) if is_activation(value) else None


def _texts(value: object) -> list[str] | None:
    return list(value) if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value) else None
