"""From a configuration to a network with its first weights: new ones, or those of a checkpoint to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from neonext_ms.checkpoint.checkpoint import load_checkpoint
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.models.architecture import Architecture, make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.registry import model_config
from neonext_ms.ops.init import skewed_identity

from .config.schema import Config, ModelConfig
from .data.datasets import ImageSet

# Options of `make_architecture` that are None where the configuration leaves them to the named model.
_OPTIONS = (
    "per_stage_layers", "dims", "kernel_spec", "shifts", "layer_scale_init_value", "linear_bias", "downsample",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        architecture: of the network.
        size: height and width of its input in pixels.
        weights: to begin with, float32 by official name.
        preprocessing: of the validation, and of everything after training.
        metadata: what travels inside the checkpoints (`metadata.check`).
    """

    architecture: Architecture
    size: tuple[int, int]
    weights: dict[str, np.ndarray]
    preprocessing: Preprocessing
    metadata: dict


def make_plan(config: Config, train: ImageSet, note: Callable[[str], None]) -> Plan:
    """The network of a configuration for a data set.

    Args:
        config: the run's.
        train: says how many classes there are, and their names.
        note: told what a person should hear.

    Raises:
        InputError: an option is out of its range, or the checkpoint to start from does not fit.
        UsageError: the configuration does not say which network, or how large its input is.
    """
    model = config.model
    classes = len(train.classes)
    if model.num_classes not in (None, classes):
        raise InputError(
            f"model.num_classes is {model.num_classes}, but the data has {classes} classes; leave it out "
            "to follow the data"
        )
    checkpoint = None
    if model.init:
        checkpoint = load_checkpoint(model.init, ema=model.init_ema)
        for text in checkpoint.notes:
            note(f"{model.init}: {text}")
    architecture, published = _architecture(model, classes, checkpoint)
    size = _size(model, checkpoint, published, train)
    architecture.maps(size)
    rng = np.random.RandomState(config.run.seed)
    weights = initial_arrays(architecture, model.conv_init, rng)
    if model.neocell_init == "normal":
        # The same noise as NeoInit's, without the identity that it is added to.
        for name in weights:
            if ".weight_a." in name or ".weight_b." in name:
                weights[name] = weights[name] - skewed_identity(*weights[name].shape[1:])
    if checkpoint is not None:
        weights = _start_from(checkpoint, architecture, weights, note)
    preprocessing = Preprocessing(
        mean=config.data.mean,
        std=config.data.std,
        crop=config.data.val_crop,
        interpolation=config.data.val_interpolation,
        mode=config.data.val_mode,
    )
    metadata = {
        "shifts": list(architecture.shifts),
        "image_size": list(size),
        "labels": list(train.classes),
        "preprocessing": preprocessing.to_dict(),
    }
    return Plan(architecture, size, weights, preprocessing, metadata)


def _architecture(model: ModelConfig, classes: int, checkpoint) -> tuple[Architecture, tuple[int, int] | None]:
    """The architecture, and the image size that the named model was made for."""
    options = {name: getattr(model, name) for name in _OPTIONS if getattr(model, name) is not None}
    options.update(num_classes=classes, drop_path=model.drop_path)
    if model.name is not None:
        named = model_config(model.name, **options)
        return named.architecture, named.image_size
    if model.dims is not None:
        return make_architecture(**options), None
    if checkpoint is None:
        raise UsageError("the configuration names no network; set model.name (neonext-info --list), or model.dims")
    found = checkpoint.architecture
    shifts = model.shifts if model.shifts is not None else found.shifts
    if shifts is None:
        raise UsageError(
            f"{checkpoint.path}: does not record the shifts; add model.shifts=1,1,1,0 or what it was made with"
        )
    base = {
        "per_stage_layers": found.per_stage_layers, "dims": found.dims, "kernel_spec": found.kernel_spec,
        "linear_bias": found.linear_bias, "downsample": found.downsample,
        "layer_scale_init_value": found.layer_scale_init_value,
    }  # fmt: skip
    return make_architecture(**{**base, **options, "shifts": shifts}), None


def _size(model: ModelConfig, checkpoint, published, train: ImageSet) -> tuple[int, int]:
    recorded = checkpoint.metadata.get("image_size") if checkpoint else None
    size = model.image_size or published or recorded or train.natural_size
    if size is None:
        raise UsageError(
            "model.image_size is not set; add the side of the input in pixels, such as model.image_size=224"
        )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise InputError(f"model.image_size must be one side in pixels, or height and width, got {list(sides)}")
    return sides


def check_network(found: Architecture, expected: Architecture, source: str, hint: str, classes: bool = True) -> None:
    """Refuse weights of another network.

    Args:
        found: the network of the weights; its shifts do not matter.
        expected: the one of the run.
        source: name of the file.
        hint: what to do about it.
        classes: whether the number of classes matters.

    Raises:
        InputError: they differ; the message has one line and names the options.
    """
    options, wanted = found.to_dict(), expected.to_dict()
    names = [name for name in options if name != "shifts" and (classes or name != "num_classes")]
    different = [
        f"{name} {options[name]} (this run: {wanted[name]})" for name in names if options[name] != wanted[name]
    ]
    if different:
        raise InputError(f"{source}: a checkpoint of another architecture: {', '.join(different)}; {hint}")


def _start_from(checkpoint, architecture: Architecture, fresh: dict, note: Callable[[str], None]) -> dict:
    """The checkpoint's weights; the head stays new where it has another number of classes."""
    found = checkpoint.architecture
    check_network(
        found, architecture, checkpoint.path, "leave out the options under model to take its own", classes=False
    )
    given = checkpoint.float32()
    if found.num_classes != architecture.num_classes:
        head = [name for name in given if name.startswith("head.fc.")]
        note(
            f"{checkpoint.path} has {found.num_classes} classes, the data {architecture.num_classes}: "
            f"{' and '.join(head)} start anew"
        )
        given = {**given, **{name: fresh[name] for name in head}}
    if found.shifts is not None and found.shifts != architecture.shifts:
        note(
            f"{checkpoint.path} was made with shifts {','.join(map(str, found.shifts))}, this run has "
            f"{','.join(map(str, architecture.shifts))}"
        )
    return given
