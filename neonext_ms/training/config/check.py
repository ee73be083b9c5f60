"""What values the keys of a configuration may have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from neonext_ms.common.errors import InputError, nearest

if TYPE_CHECKING:
    from .schema import Config


def check(config: Config, source: str) -> None:
    """Ranges and choices; what only the data or the device can tell is checked where it is used.

    Raises:
        InputError: a value is not one of its choices or out of its range; the message names `source` and the key.
    """
    from ..data.datasets import DATASETS
    from ..optimizers import LR_RULES, OPTIMIZERS
    from ..precision import LEVELS
    from ..schedule import SCHEDULES

    choices = {
        "model.neocell_init": ("neoinit", "normal"),
        "data.dataset": tuple(DATASETS),
        "data.val_interpolation": ("bilinear", "bicubic"),
        "data.val_mode": ("auto", "resize", "as-is"),
        "augmentation.crop": ("resized", "pad", "none"),
        "augmentation.interpolation": ("bilinear", "bicubic"),
        "optimizer.name": tuple(OPTIMIZERS),
        "optimizer.lr_rule": tuple(LR_RULES),
        "schedule.name": tuple(SCHEDULES),
        "precision.level": tuple(LEVELS),
        "run.device": ("auto", "CPU", "Ascend"),
    }
    for key, known in choices.items():
        value = _get(config, key)
        if value not in known:
            raise InputError(f"{source}: {key} must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}")
    for key, (low, high, includes_high) in _RANGES.items():
        value = _get(config, key)
        inside = low <= value <= high if includes_high else low <= value < high
        if not inside:
            upper = "" if high == math.inf else f" and {'at most' if includes_high else 'below'} {high:g}"
            raise InputError(f"{source}: {key} must be at least {low:g}{upper}, got {value:g}")
    for key in ("optimizer.lr", "optimizer.eps", "precision.initial_scale"):
        if not _get(config, key) > 0:
            raise InputError(f"{source}: {key} must be above 0, got {_get(config, key):g}")
    for key, count in _LENGTHS.items():
        if len(_get(config, key)) != count:
            raise InputError(f"{source}: {key} must be {count} numbers, got {list(_get(config, key))}")
    for key in ("augmentation.scale", "augmentation.ratio"):
        low, high = _get(config, key)
        if not 0 < low <= high:
            raise InputError(f"{source}: {key} must be a positive least and largest value, got {[low, high]}")
    if config.augmentation.scale[1] > 1:
        raise InputError(
            f"{source}: augmentation.scale is a share of the area, at most 1, got {config.augmentation.scale[1]:g}"
        )
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise InputError(
            f"{source}: optimizer.betas must be at least 0 and below 1, got {list(config.optimizer.betas)}"
        )
    if isinstance(config.precision.loss_scale, str) and config.precision.loss_scale not in ("auto", "dynamic", "none"):
        raise InputError(
            f"{source}: precision.loss_scale must be auto, dynamic, none or a number, got "
            f"{config.precision.loss_scale!r}"
        )
    if isinstance(config.precision.loss_scale, float) and config.precision.loss_scale <= 0:
        raise InputError(f"{source}: precision.loss_scale must be above 0, got {config.precision.loss_scale:g}")
    if config.schedule.warmup_epochs > config.schedule.epochs:
        raise InputError(
            f"{source}: schedule.warmup_epochs ({config.schedule.warmup_epochs:g}) is more than schedule.epochs "
            f"({config.schedule.epochs})"
        )


# Key -> least value, largest value, whether the largest is allowed.
_RANGES = {
    "data.batch_size": (1, math.inf, True),
    "data.val_batch_size": (1, math.inf, True),
    "data.workers": (1, 256, True),
    "data.broken_limit": (0, math.inf, True),
    "augmentation.pad": (0, math.inf, True),
    "augmentation.flip": (0, 1, True),
    "augmentation.randaugment_ops": (0, 14, True),
    "augmentation.randaugment_magnitude": (0, 30, True),
    "augmentation.erasing": (0, 1, True),
    "augmentation.mixup": (0, math.inf, True),
    "augmentation.cutmix": (0, math.inf, True),
    "augmentation.switch": (0, 1, True),
    "augmentation.mix_probability": (0, 1, True),
    "optimizer.reference_batch": (1, math.inf, True),
    "optimizer.weight_decay": (0, math.inf, True),
    "optimizer.momentum": (0, 1, False),
    "optimizer.clip_norm": (0, math.inf, True),
    "optimizer.accumulate": (1, math.inf, True),
    "optimizer.layer_decay": (0.01, 1, True),
    "schedule.epochs": (1, math.inf, True),
    "schedule.warmup_epochs": (0, math.inf, True),
    "schedule.warmup_lr": (0, 1, True),
    "schedule.final_lr": (0, 1, True),
    "schedule.factor": (0, 1, True),
    "loss.smoothing": (0, 1, False),
    "ema.decay": (0, 1, False),
    "precision.growth_interval": (1, math.inf, True),
    "run.seed": (0, 2**32, False),
    "run.log_every": (1, math.inf, True),
    "run.checkpoint_every": (0, math.inf, True),
    "run.keep": (1, math.inf, True),
    "run.validate_every": (1, math.inf, True),
    "run.stop_after": (0, math.inf, True),
}
_LENGTHS = {
    "data.mean": 3,
    "data.std": 3,
    "augmentation.scale": 2,
    "augmentation.ratio": 2,
    "optimizer.betas": 2,
}


def _get(config: Config, key: str):
    part, _, leaf = key.partition(".")
    return getattr(getattr(config, part), leaf)
