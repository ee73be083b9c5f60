"""The network of a configuration and its initial weights, new or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neonext_ms.checkpoint.checkpoint import load_checkpoint
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.text import printable
from neonext_ms.images.folder import is_named, match_classes, order_rule
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.architecture import Architecture, make_architecture
from neonext_ms.models.initialization import initial_arrays

from .config.load import NETWORK_OPTIONS, described_network, network_options
from .config.schema import Config, ModelConfig
from .data.image_sets import ImageSet


@dataclass(frozen=True)
class TrainingPlan:
    """The network to train.

    Attributes:
        architecture: architecture of the network.
        size: height and width of the input in pixels.
        weights: initial weights, float32 by official name.
        preprocessing: preprocessing in validation and after training.
        metadata: metadata of the checkpoints (`metadata.check`).
        classes_by: rule of `match_classes` that ordered the classes.
        blend_from: activation that the network starts with and changes from, or None (`schedule.blend_epochs`).
    """

    architecture: Architecture
    size: tuple[int, int]
    weights: dict[str, np.ndarray]
    preprocessing: Preprocessing
    metadata: dict
    classes_by: str
    blend_from: str | None = None


def make_plan(
    config: Config, train: ImageSet, val: ImageSet, recorded: Sequence[str] | None, note: Callable[[str], None]
) -> TrainingPlan:
    """Return the network of a configuration for a data set, whose classes are put in their order.

    Args:
        config: configuration of the run.
        train, val: training and validation images, with the same classes.
        recorded: classes of the run that is resumed; None for a new run.
        note: called with messages to show to the user.

    Raises:
        InputError: an option is out of range, or the checkpoint to start from does not match.
        UsageError: the configuration has no network, or no size of its input.
    """
    model = config.model
    classes = len(train.classes)
    if model.num_classes not in (None, classes):
        raise InputError(
            f"model.num_classes is {model.num_classes}, but the data has {classes} classes. Leave it out to follow the "
            "data."
        )
    checkpoint = None
    if model.init:
        checkpoint = load_checkpoint(model.init, ema=model.init_ema, key=model.init_key)
        for text in checkpoint.notes:
            note(f"{model.init}: {text}")
    rule = _order_classes(config, train, val, recorded, checkpoint, note)
    architecture, published = _architecture(model, classes, checkpoint)
    size = _size(model, checkpoint, published, train)
    architecture.maps(size)
    rng = np.random.RandomState(config.run.seed)
    weights = initial_arrays(architecture, model.conv_init, rng, model.neocell_init)
    if checkpoint is not None:
        weights = _start_from(checkpoint, architecture, weights, note)
    preprocessing = Preprocessing(
        mean=config.data.mean,
        std=config.data.std,
        crop=config.data.val_crop,
        interpolation=config.data.val_interpolation,
        mode=config.data.val_mode,
    )
    if checkpoint is not None and (recorded_as := checkpoint.metadata.get("preprocessing")):
        before = Preprocessing.from_dict(recorded_as)
        if (before.mean, before.std) != (preprocessing.mean, preprocessing.std):
            note(
                f"mean and std differ: {list(before.mean)} and {list(before.std)} in {model.init}, "
                f"{list(preprocessing.mean)} and {list(preprocessing.std)} in this run"
            )
    metadata = {
        "shifts": list(architecture.shifts or ()),
        "activation": architecture.activation,
        "image_size": list(size),
        "labels": list(train.classes),
        "preprocessing": preprocessing.to_dict(),
    }
    blend_from = _blend_from(config, checkpoint, architecture)
    return TrainingPlan(architecture, size, weights, preprocessing, metadata, rule, blend_from)


def _blend_from(config: Config, checkpoint, architecture: Architecture) -> str | None:
    """Return the activation that the network changes from, or None if it does not change."""
    if not config.schedule.blend_epochs:
        return None
    if checkpoint is None:
        raise UsageError(
            "schedule.blend_epochs: there is no activation to change from. Set model.init to the checkpoint to start "
            "from, or leave it out."
        )
    before = checkpoint.architecture.activation
    if before == architecture.activation:
        raise UsageError(
            f"schedule.blend_epochs: {checkpoint.path} and the network both have the activation {before}. Set "
            "model.activation to another one, or leave it out."
        )
    return before


def _order_classes(
    config: Config,
    train: ImageSet,
    val: ImageSet,
    recorded: Sequence[str] | None,
    checkpoint,
    note: Callable[[str], None],
) -> str:
    """Put the classes of both parts in their order; return the rule of `match_classes` that applied."""
    classes = len(train.classes)
    rule: str | None = config.data.classes
    source = printable(config.data.path or config.data.dataset)
    labels = recorded
    if recorded:
        # The weights have an order of classes already, whatever the configuration says now.
        rule = "by-name"
    elif checkpoint is not None and checkpoint.architecture.num_classes == classes:
        labels = checkpoint.metadata.get("labels")
        if labels and rule is None and not is_named(train.classes, labels):
            note(f"{checkpoint.path}: its labels are those of other classes; the head starts from their weights")
            labels = None
    if not labels and rule is None:
        rule = order_rule(train.classes)
    numbers, applied = match_classes(train.classes, classes, labels, rule, source, "data.classes=")
    for part in (train, val):
        part.renumber(numbers)
    return applied


def _architecture(model: ModelConfig, classes: int, checkpoint) -> tuple[Architecture, tuple[int, int] | None]:
    """Return the architecture, and the image size of the named model if there is one."""
    if described := described_network(model, classes):
        return described
    if checkpoint is None:
        raise UsageError("the configuration has no network. Set model.name (see neonext-info --list) or model.dims.")
    recorded = {name: getattr(checkpoint.architecture, name) for name in NETWORK_OPTIONS}
    if recorded["shifts"] is None and model.shifts is None:
        raise UsageError(
            f"{checkpoint.path}: does not record its shifts. Add those of its training, such as model.shifts=1,1,1,0."
        )
    return make_architecture(**{**recorded, **network_options(model, classes)}), None


def _size(model: ModelConfig, checkpoint, published, train: ImageSet) -> tuple[int, int]:
    """Return the input size: of the configuration, the named model, the checkpoint or the data, in this order."""
    recorded = checkpoint.metadata.get("image_size") if checkpoint else None
    size = model.image_size or published or recorded or train.natural_size
    if size is None:
        raise UsageError(
            "model.image_size is not set. Add the side of the input in pixels, such as model.image_size=224."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def check_network(
    architecture: Architecture, expected: Architecture, source: str, hint: str, classes: bool = True
) -> None:
    """Check that weights are of the network of the run.

    Args:
        architecture: network of the weights; its shifts and its activation do not matter.
        expected: network of the run.
        source: name of the file.
        hint: advice for the error message.
        classes: whether the number of classes matters.

    Raises:
        InputError: the networks differ; the message has one line and names the options.
    """
    options, wanted = architecture.to_dict(), expected.to_dict()
    ignored = {"shifts", "activation"} | ({"num_classes"} if not classes else set())
    names = [name for name in options if name not in ignored]
    different = [
        f"{name} {options[name]} (this run: {wanted[name]})" for name in names if options[name] != wanted[name]
    ]
    if different:
        raise InputError(f"{source}: a checkpoint of another architecture: {', '.join(different)}. {hint}")


def _start_from(checkpoint, architecture: Architecture, fresh: dict, note: Callable[[str], None]) -> dict:
    """Return the checkpoint's weights; the head stays new if the number of classes differs."""
    own = checkpoint.architecture
    hint = "Leave out the options under model to use those of the checkpoint."
    check_network(own, architecture, checkpoint.path, hint, classes=False)
    weights = checkpoint.float32()
    if own.num_classes != architecture.num_classes:
        head = {name: fresh[name] for name in weights if name.startswith("head.fc.")}
        note(
            f"{checkpoint.path} has {own.num_classes} classes, the data {architecture.num_classes}: "
            f"{' and '.join(head)} are initialised anew"
        )
        weights = {**weights, **head}
    if own.shifts is not None and own.shifts != architecture.shifts:
        note(f"shifts differ: {list(own.shifts)} in {checkpoint.path}, {list(architecture.shifts or ())} in this run")
    if own.activation != architecture.activation:
        note(f"activations differ: {own.activation} in {checkpoint.path}, {architecture.activation} in this run")
    return weights
