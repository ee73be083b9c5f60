"""Mixed precision by level, and what a device cannot do."""

from __future__ import annotations

from dataclasses import dataclass

from neonext_ms.common.errors import InputError

from .config.schema import PrecisionConfig


@dataclass(frozen=True)
class Level:
    """A precision level.

    Attributes:
        amp: the level and type that `mindspore.amp.auto_mixed_precision` takes, or None for float32.
        scaled: whether gradients need a loss scale, since the type has few exponents.
        devices: where MindSpore has the operators for it.
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
    """Refuse a level that the device cannot compute.

    Raises:
        InputError: MindSpore's convolutions on a CPU take float32 only.
    """
    if device not in LEVELS[config.level].devices:
        raise InputError(
            f"precision.level {config.level}: MindSpore's {device} convolutions compute in float32 only; use "
            "precision.level=O0, or run on Ascend"
        )


def first_scale(config: PrecisionConfig) -> tuple[float, bool]:
    """The loss scale to start with, and whether it changes with overflows."""
    if config.loss_scale == "dynamic" or (config.loss_scale == "auto" and LEVELS[config.level].scaled):
        return config.initial_scale, True
    return (config.loss_scale, False) if isinstance(config.loss_scale, float) else (1.0, False)


def cast_model(model, config: PrecisionConfig):
    """The model at its level: casts are put in by `mindspore.amp`, weights stay float32 except at O3."""
    level = LEVELS[config.level]
    if level.amp is None:
        return model
    import mindspore as ms

    name, kind = level.amp
    return ms.amp.auto_mixed_precision(model, name, getattr(ms, kind))
