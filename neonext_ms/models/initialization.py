"""Initial weights of a NeoNeXt as NumPy arrays under their official names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.ops.init import INITIALIZATIONS, initial_matrices

from .architecture import Architecture

CONV_INITS = ("xavier_uniform", "kaiming_normal")


def initial_arrays(
    architecture: Architecture,
    conv_init: str | None = None,
    rng: np.random.RandomState | None = None,
    neocell_init: str = "neoinit",
) -> dict[str, np.ndarray]:
    """Make new weights: NeoInit, if not told otherwise, for the matrices of NeoCell, PyTorch's defaults for the rest.

    Args:
        architecture: the model to initialize.
        conv_init: scheme for the weights of convolutions and linear layers: None for PyTorch's default (uniform
            within 1 / sqrt(fan_in)), "xavier_uniform" or "kaiming_normal"; biases keep the default.
        rng: source of randomness; NumPy's global one if None, which `mindspore.set_seed` seeds.
        neocell_init: initialization of the matrices of NeoCell, a name of `ops.init.INITIALIZATIONS`.

    Returns:
        float32 arrays in the order of `architecture.tensors()`.

    Raises:
        InputError: unknown `conv_init` or `neocell_init`.
    """
    if conv_init is not None and conv_init not in CONV_INITS:
        raise InputError(f"conv_init must be None or one of {', '.join(CONV_INITS)} (got {conv_init!r})")
    if neocell_init not in INITIALIZATIONS:
        raise InputError(f"neocell_init must be one of {', '.join(INITIALIZATIONS)} (got {neocell_init!r})")
    source: Any = rng or np.random.mtrand._rand
    arrays: dict[str, np.ndarray] = {}
    for name, shape in architecture.tensors().items():
        layer, _, leaf = name.rpartition(".")
        if ".weight_a." in name or ".weight_b." in name:
            side = layer.rpartition("_")[2]
            array = initial_matrices((shape[0], shape[1], shape[2]), source, neocell_init, side)
        elif leaf == "gamma":
            array = np.full(shape, architecture.layer_scale_init_value)
        elif leaf == "weight" and len(shape) > 1:
            array = _linear_weight(shape, conv_init, source)
        elif leaf == "bias" and layer.endswith((".fc", ".fc_1", ".fc_2")):
            # PyTorch draws a bias within the bound of its weight.
            array = _uniform(source, shape, 1 / math.sqrt(arrays[f"{layer}.weight"].shape[1]))
        else:
            array = np.zeros(shape) if leaf in ("bias", "running_mean") else np.ones(shape)
        arrays[name] = array.astype(np.float32, copy=False)
    return arrays


def _linear_weight(shape: tuple[int, ...], conv_init: str | None, rng: Any) -> np.ndarray:
    outputs, inputs = shape[:2]
    if conv_init == "xavier_uniform":
        return _uniform(rng, shape, math.sqrt(6 / (inputs + outputs)))
    if conv_init == "kaiming_normal":
        return rng.standard_normal(shape) * math.sqrt(2 / inputs)
    return _uniform(rng, shape, 1 / math.sqrt(inputs))


def _uniform(rng: Any, shape: tuple[int, ...], bound: float) -> np.ndarray:
    return rng.uniform(-bound, bound, shape)
