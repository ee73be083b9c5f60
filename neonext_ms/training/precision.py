"""Mixed precision by level, and the devices that support it."""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms

from neonext_ms.common.errors import InputError

from .config.schema import PrecisionConfig


class Level(NamedTuple):
    """A precision level.

    Attributes:
        amp: level and dtype for `mindspore.amp.auto_mixed_precision`, or None for float32.
        scaled: whether gradients need a loss scale because the dtype has a small exponent range.
        devices: devices for which MindSpore has the operators.
    """

    amp: tuple[str, str] | None
    scaled: bool
    devices: tuple[str, ...]


LEVELS = {
    "O0": Level(None, False, ("CPU", "Ascend")),
    "O2": Level(("O2", "float16"), True, ("Ascend",)),
    "O3": Level(("O3", "float16"), True, ("Ascend",)),
    "bf16": Level(("O2", "bfloat16"), False, ("Ascend",)),
}


def check_precision(config: PrecisionConfig, device: str) -> None:
    """Check that the device can compute at the configured level.

    Raises:
        InputError: it cannot, since MindSpore's convolutions on a CPU support only float32.
    """
    if device not in LEVELS[config.level].devices:
        raise InputError(
            f"precision.level {config.level}: not supported on {device}, where MindSpore's convolutions compute in "
            "float32 only. Use precision.level=O0, or run on Ascend."
        )


def first_scale(config: PrecisionConfig) -> tuple[float, bool]:
    """Return the first loss scale, and whether it is dynamic."""
    if config.loss_scale == "dynamic" or (config.loss_scale == "auto" and LEVELS[config.level].scaled):
        return config.initial_scale, True
    return (config.loss_scale, False) if isinstance(config.loss_scale, float) else (1.0, False)


def cast_model(model, config: PrecisionConfig):
    """Return the model at its level; `mindspore.amp` inserts the casts, and weights stay float32 except at O3."""
    level = LEVELS[config.level]
    if level.amp is None:
        return model
    name, dtype = level.amp
    return ms.amp.auto_mixed_precision(model, name, getattr(ms, dtype))
