"""The scales of a run that fine-tunes for 8 bit."""

from __future__ import annotations

import json
from collections.abc import Callable

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.text import plural
from neonext_ms.models.scales import Scales, parse_scales

from .config.schema import Config, QuantizeConfig
from .data.image_sets import ImageSet
from .distributed import Cards
from .plan import TrainingPlan

# Makes the scales of a network from its options, and from training images.
ScalesOf = Callable[[QuantizeConfig, TrainingPlan, ImageSet], Scales]


def check_quantize(config: Config, resuming: bool) -> None:
    """Check the options that do not go together with fine-tuning for 8 bit.

    Args:
        config: configuration of the run.
        resuming: whether the run goes on from its own checkpoint.

    Raises:
        UsageError: one of them is set.
    """
    if not config.quantize.enabled:
        return
    for wrong, problem in (
        (not config.model.init and not resuming, "it fine-tunes a trained network. Name its checkpoint with --init"),
        (config.precision.level != "O0", "it computes in float32. Use precision.level=O0"),
        (config.run.sync_batch_norm, "BatchNorm's statistics stay as they are. Leave out run.sync_batch_norm"),
        (config.schedule.blend_epochs, "scales are those of one activation. Change it first, in a run of its own"),
    ):
        if wrong:
            raise UsageError(f"quantize.enabled: {problem}.")


def find_scales(
    config: QuantizeConfig,
    plan: TrainingPlan,
    images: ImageSet,
    resumed,
    scales_of: ScalesOf | None,
    cards: Cards,
    note: Callable[[str], None],
) -> Scales:
    """Return the scales to train with: those of the run that is resumed, else new ones, made by the first card.

    Args:
        config: options of 8 bit.
        plan: network of the run.
        images: training images, to calibrate on.
        resumed: result of `find_state`.
        scales_of: makes new scales; None if the caller cannot.
        cards: cards of the run.
        note: called with messages to show to the user.

    Raises:
        InputError: the run that is resumed has no scales.
        UsageError: there is nothing that makes them.
    """
    if resumed:
        path, _, progress = resumed
        if not progress.scales:
            raise InputError(f"{path}: a run without quantize.enabled. Start a new run from its weights with --init.")
        return parse_scales(progress.scales, f"{path}: scales")
    if scales_of is None:
        raise UsageError("quantize.enabled: this command has no calibration. Use neonext-train.")
    made = scales_of(config, plan, images) if cards.first else None
    text = cards.broadcast_text("" if made is None else json.dumps(made.to_dict()))
    scales = parse_scales(json.loads(text), "scales of the first card")
    note(f"fine-tuning for 8 bit: {plural(len(scales.layers), 'layer')}; BatchNorm's statistics stay")
    return scales
