"""Weights in and out of a MindSpore model, as NumPy arrays under their official names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Tensor, nn

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import list_names, plural

from .names import mindspore_name, official_name


def load_arrays(model: nn.Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Load weights into a model in place; its parameters keep their dtype (float32).

    Args:
        model: a `NeoNeXt`, or another network of its cells; without a head (`features_only`), the arrays of a head are
            ignored.
        arrays: official name -> array; batch counters are ignored.

    Raises:
        InputError: arrays are missing, unexpected or of another shape. The message lists them all, and the model is
            unchanged.
    """
    parameters = {parameter.name: parameter for parameter in model.get_parameters()}
    renamed = {new: array for name, array in arrays.items() if (new := mindspore_name(name))}
    if getattr(model, "features_only", False):
        renamed = {name: array for name, array in renamed.items() if not name.startswith("head.")}
    problems = [f"missing: {official_name(name)}" for name in parameters if name not in renamed]
    problems += [f"unexpected: {official_name(name)}" for name in renamed if name not in parameters]
    problems += [
        f"misshapen: {official_name(name)} is {tuple(array.shape)}, expected {tuple(parameters[name].shape)}"
        for name, array in renamed.items()
        if name in parameters and tuple(array.shape) != tuple(parameters[name].shape)
    ]
    if problems:
        count = plural(len(problems), "problem")
        raise InputError(f"the weights do not fit the model ({count}):\n{list_names(problems, 200)}")
    for name, array in renamed.items():
        parameters[name].set_data(Tensor(np.ascontiguousarray(array, dtype=np.float32)))


def model_arrays(model: nn.Cell) -> dict[str, np.ndarray]:
    """Copy the parameters and BatchNorm statistics of a `NeoNeXt` as float32 arrays under their official names."""
    arrays = {official_name(parameter.name): parameter.asnumpy() for parameter in model.get_parameters()}
    return {name: np.array(arrays[name], np.float32) for name in model.architecture.tensors() if name in arrays}
