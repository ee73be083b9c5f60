"""The learning rate of every step, and how far the activation has changed."""

from __future__ import annotations

import math
from collections.abc import Callable

from .config.schema import ScheduleConfig


def _cosine(config: ScheduleConfig, progress: float, epoch: float) -> float:
    return config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def _linear(config: ScheduleConfig, progress: float, epoch: float) -> float:
    return config.final_lr + (1 - config.final_lr) * (1 - progress)


def _step(config: ScheduleConfig, progress: float, epoch: float) -> float:
    return config.factor ** sum(epoch >= milestone for milestone in config.milestones)


# Name -> fraction of the full rate after the warm-up, from the progress since then (0 to 1) and the epoch.
SCHEDULES: dict[str, Callable[[ScheduleConfig, float, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": lambda config, progress, epoch: 1.0,
    "step": _step,
}


def learning_rate(config: ScheduleConfig, rate: float, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Of W warm-up steps, step i (from 0) runs at `warmup_lr + (1 - warmup_lr) (i + 1) / W` of the full rate. The official
    code sets its schedule after a step, so its very first step runs at the full rate; here it does not.

    Args:
        config: options of the schedule.
        rate: full learning rate.
        step: number of steps before this one.
        steps_per_epoch: number of steps in an epoch.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return rate * (config.warmup_lr + (1 - config.warmup_lr) * (step + 1) / warmup)
    total = config.epochs * steps_per_epoch
    # At most 1: a resumed run may have fewer epochs than it has done.
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return rate * SCHEDULES[config.name](config, progress, step / steps_per_epoch)


def activation_share(config: ScheduleConfig, step: int, steps_per_epoch: int) -> float:
    """Return the share of the new activation in a step: `(i + 1) / B` in step i (from 0) of a change over B steps.

    Args:
        config: options of the schedule.
        step: number of steps before this one.
        steps_per_epoch: number of steps in an epoch.
    """
    length = round(config.blend_epochs * steps_per_epoch)
    return min(1.0, (step + 1) / length) if length else 1.0
