"""Opening whatever can be compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from neonext_ms.common.errors import UsageError
from neonext_ms.common.files import explained
from neonext_ms.runtime.base import CHECKPOINT_SUFFIXES, model_suffix
from neonext_ms.runtime.open import SUFFIXES

from .checkpoint_side import CheckpointActivations
from .dump_side import DumpActivations
from .onnx_side import OnnxActivations
from .runtime_side import RuntimeActivations
from .side import Activations


def open_activations(
    path: str | os.PathLike,
    image_size: tuple[int, int] | None = None,
    shifts: Sequence[int] | None = None,
    ema: bool = False,
    key: str | None = None,
    activation: str | None = None,
) -> Activations:
    """Open one of two things to compare; see `model_suffix`. A folder is a dump.

    Args:
        path: a checkpoint, an ONNX, MindIR, OM or MindSpore Lite file, or a folder of dumped values.
        image_size: height and width; required unless the file records them.
        shifts: shifts of the four stages, for a checkpoint that does not record them.
        ema: whether to use the moving average of a checkpoint's weights.
        key: key or prefix of the weights in a checkpoint of several models.
        activation: activation, for a checkpoint that records none and is not of a network with GELU.

    Raises:
        InputError: contents that do not match the suffix.
        UsageError: an unknown suffix, or an argument that is missing or contradicts the file.
    """
    suffix = model_suffix(path)
    if Path(path).is_dir():
        return DumpActivations(path)
    if suffix in CHECKPOINT_SUFFIXES:
        return CheckpointActivations(path, image_size, shifts, ema, key, activation)
    if suffix == ".onnx":
        return OnnxActivations(path, image_size)
    if suffix in SUFFIXES:
        return RuntimeActivations(path, image_size)
    with explained(path):
        os.stat(path)
    raise UsageError(
        f"{os.fspath(path)}: unknown kind of file {suffix!r}; expected a folder of dumped values, or a file ending in "
        f"{', '.join(SUFFIXES)}"
    )
