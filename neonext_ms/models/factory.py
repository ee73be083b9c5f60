"""Entry points: a NeoNeXt by its registered name, with new weights or those of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from neonext_ms.checkpoint.checkpoint import load_checkpoint

from .architecture import Architecture
from .initialization import initial_arrays
from .neonext import NeoNeXt
from .registry import model_config
from .weights import load_arrays


def create_model(
    name: str, checkpoint: str | os.PathLike | None = None, features_only: bool = False, **options: Any
) -> NeoNeXt:
    """Create a model by its registered name (see `list_models`).

    Args:
        name: registered name, such as "neonext_t" or "neonext_t.released_224".
        checkpoint: file with the weights (`.pt`, `.pth`, `.ckpt` or `.safetensors`); None for new weights.
        features_only: whether to return the outputs of the four stages; there is no head then.
        options: official keyword arguments of `NeoNeXt` that differ from the registered configuration.

    Raises:
        InputError: the name or an option is unknown, or the checkpoint is of another architecture.

    Example:
        >>> model = create_model("neonext_t.released_224", num_classes=10, drop_path=0.1)
    """
    conv_init = options.pop("conv_init", None)
    architecture = model_config(name, **options).architecture
    if checkpoint is None:
        arrays = initial_arrays(architecture, conv_init)
    else:
        arrays = load_checkpoint(checkpoint, architecture.shifts, activation=architecture.activation).arrays
    return NeoNeXt.from_architecture(architecture, arrays, features_only)


def load_weights(model: NeoNeXt, path: str | os.PathLike, ema: bool = False, key: str | None = None) -> None:
    """Load the weights of a checkpoint file into a model in place.

    Args:
        model: the model to change.
        path: a `.pt`, `.pth`, `.ckpt` or `.safetensors` file.
        ema: whether to load the moving average that a training checkpoint holds beside the weights.
        key: key or prefix of the weights in a checkpoint of several models.

    Raises:
        InputError: the file cannot be read, or is of another architecture; every tensor that differs is listed.
    """
    architecture = model.architecture
    checkpoint = load_checkpoint(path, architecture.shifts, ema, key, architecture.activation)
    load_arrays(model, checkpoint.arrays)


def build_model(architecture: Architecture, arrays: Mapping[str, np.ndarray]) -> NeoNeXt:
    """Build a model in evaluation mode from an architecture and arrays under their official names."""
    model = NeoNeXt.from_architecture(architecture, arrays)
    model.set_train(False)
    return model
