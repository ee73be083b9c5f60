"""The mean of several checkpoints of one network, as timm's `avg_checkpoints.py` (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import shorten

from .checkpoint import Checkpoint
from .metadata import SCALES

# What must be equal where it is recorded: the mean has one meaning of its classes and one kind of input.
_SHARED = ("labels", "preprocessing", "image_size")


def average(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return the mean of the weights and BatchNorm statistics, computed in float64, in the dtypes of the first.

    Metadata is that of the first, completed by the others; the counters are the first's.

    Raises:
        InputError: the networks, classes or inputs differ, or the weights of one were fine-tuned for 8 bit.
    """
    first, *others = checkpoints
    metadata = dict(first.metadata)
    for checkpoint in checkpoints:
        _check(first, checkpoint, metadata)
        metadata = {**checkpoint.metadata, **metadata}
    arrays = {}
    for name, array in first.arrays.items():
        total = array.astype(np.float64)
        for other in others:
            total += other.arrays[name].astype(np.float64)
        arrays[name] = (total / len(checkpoints)).astype(array.dtype)
    notes = list(dict.fromkeys(note for checkpoint in checkpoints for note in checkpoint.notes))
    return replace(first, arrays=arrays, metadata=metadata, notes=notes)


def _check(first: Checkpoint, other: Checkpoint, metadata: dict) -> None:
    """Reject a checkpoint that has no mean with the first, or not the metadata of those before."""
    if other.architecture != first.architecture:
        raise InputError(
            f"{other.path}: is another network than {first.path} (got {other.architecture.summary()}, expected "
            f"{first.architecture.summary()}). Average checkpoints of one network."
        )
    for key in _SHARED:
        own, expected = other.metadata.get(key), metadata.get(key)
        if own is not None and expected is not None and own != expected:
            raise InputError(
                f"{other.path}: {key} differs from that of the checkpoints before it (got {shorten(own)}, expected "
                f"{shorten(expected)}). Average checkpoints that were trained for the same classes and inputs."
            )
    if SCALES in other.metadata:
        raise InputError(
            f"{other.path}: its weights were fine-tuned for the scales of 8 bit that it records, which a mean does not "
            "have. Average checkpoints from before that."
        )
