"""What travels inside a checkpoint beside the weights: shifts, image size, labels, preprocessing, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from neonext_ms.common.errors import InputError
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.architecture import BATCH_COUNTER, STAGES

from .mapped_file import printable

KEY = "neonext_ms"
_MAX_BYTES = 16 << 20
_COUNTERS = "counters"


def encode(metadata: Mapping, counters: Mapping[str, int] | None = None, source: str = "metadata") -> str:
    """Metadata (and BatchNorm counters, where the format has no place for them) as one line of ASCII JSON.

    Raises:
        InputError: a value that `check` refuses, or one that JSON cannot hold.
    """
    values = check(dict(metadata), source)
    if counters:
        values[_COUNTERS] = dict(counters)
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: cannot be written as JSON ({error}); use dict, list, str and numbers only"
        ) from error


def decode(text: str | bytes, source: str) -> tuple[dict, dict[str, int]]:
    """The inverse of `encode`: metadata and counters.

    Raises:
        InputError: it is not what `encode` writes; the message names `source`.
    """
    if len(text) > _MAX_BYTES:
        raise InputError(f"{source}: its metadata has {len(text)} bytes, too many (at most {_MAX_BYTES})")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: its metadata is not JSON ({printable(error, 200)}); save it again") from error
    if type(values) is not dict:
        raise InputError(f"{source}: its metadata is a {type(values).__name__}; expected a JSON object; save it again")
    counters = values.pop(_COUNTERS, {})
    if type(counters) is not dict or not all(
        name.endswith(BATCH_COUNTER) and _is_whole(count, 0) and count < 1 << 63 for name, count in counters.items()
    ):
        raise InputError(f"{source}: its metadata has counters that are no num_batches_tracked; save it again")
    return check(values, f"{source}: its metadata"), counters


def check(values: dict, source: str) -> dict:
    """A copy of metadata in which the keys that this package uses have their JSON form.

    `shifts` is four whole numbers, `image_size` two (one is taken for both), `labels` texts, `preprocessing` what
    `Preprocessing` takes. None counts as left out. Other keys are kept as they are.

    Raises:
        InputError: one of these keys has another value; the message begins with `source`.
    """
    result = {key: value for key, value in values.items() if value is not None}
    if any(not isinstance(key, str) for key in result):
        raise InputError(f"{source}: a key is not a text")
    if "shifts" in result:
        shifts = result["shifts"]
        if not _is_sequence(shifts) or len(shifts) != STAGES or not all(_is_whole(s, 0) for s in shifts):
            raise InputError(f"{source}: shifts must be four whole numbers, one per stage, got {_shown(shifts)}")
        result["shifts"] = list(shifts)
    if "image_size" in result:
        size = result["image_size"]
        size = [size, size] if _is_whole(size, 1) else size
        if not _is_sequence(size) or len(size) != 2 or not all(_is_whole(s, 1) for s in size):
            raise InputError(f"{source}: image_size must be height and width in pixels, got {_shown(size)}")
        result["image_size"] = list(size)
    if "labels" in result:
        labels = result["labels"]
        if not _is_sequence(labels) or not all(isinstance(label, str) for label in labels):
            raise InputError(f"{source}: labels must be a list of texts, one per class")
        result["labels"] = list(labels)
    if "preprocessing" in result:
        values = result["preprocessing"]
        if isinstance(values, Preprocessing):
            values = values.to_dict()
        if not isinstance(values, Mapping):
            raise InputError(f"{source}: preprocessing must be an object such as {Preprocessing().to_dict()}")
        try:
            result["preprocessing"] = Preprocessing.from_dict(values).to_dict()
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
    return result


def _is_sequence(value) -> bool:
    return isinstance(value, (list, tuple))


def _is_whole(value, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 63


def _shown(value) -> str:
    return printable(json.dumps(value, default=lambda other: type(other).__name__))
