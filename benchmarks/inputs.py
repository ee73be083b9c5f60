"""Arrays and batch sizes to measure a model of images with, derived from its signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.runtime.base import Signature

# Image size of a model that leaves it open, when none is asked for.
DEFAULT_SIZE = (224, 224)


def random_images(signature: Signature, batch: int, image_size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return normally distributed images, or noise over the whole range for 8 bit; equal for equal arguments.

    Returns:
        Array (N, C, H, W) or (N, H, W, C), by the signature's layout, of its dtype.
    """
    generator = np.random.default_rng(seed)
    shape = signature.shape_of(batch, image_size)
    if signature.dtype in ("uint8", "int8"):
        dtype: Any = np.dtype(signature.dtype)
        return generator.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return generator.standard_normal(shape, np.float32).astype(signature.dtype)


def check_batches(path: str, signature: Signature, asked: Sequence[int]) -> list[int]:
    """Return the batch sizes of `asked` that a model takes.

    Raises:
        InputError: it takes none of them.
    """
    fitting = [batch for batch in asked if signature.batches is None or batch in signature.batches]
    if not fitting:
        own = ", ".join(map(str, signature.batches or ()))
        raise InputError(
            f"{path}: its input is {signature.describe()}, so it takes batches of {own} only (got "
            f"{', '.join(map(str, asked))}). Pass --batch {own.replace(', ', ',')}, or export it with an open batch."
        )
    return fitting
