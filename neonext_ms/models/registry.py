"""The registered models: sizes, variants, official checkpoints, and the published figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import nearest
from neonext_ms.images.preprocessing import Preprocessing

from .activations import ACTIVATIONS, GELU
from .architecture import Architecture, make_architecture

PAPER = "arXiv:2403.11251v1"
REPOSITORY = "HapKoM/neonext"

_SIZES = {
    "t": {"per_stage_layers": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "s": {"per_stage_layers": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "b": {"per_stage_layers": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "l": {"per_stage_layers": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    "xl": {"per_stage_layers": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048)},
}

_RELEASED = {"kernel_spec": "4+7", "linear_bias": True, "layer_scale_init_value": 1e-6}

# Variant -> (options, image size). `relu`, `leakyrelu` and `hardswish` are the released networks with another
# activation, so the official weights fit them for fine-tuning. Only with 7x7 alone in stage 3 do the parameters of
# `paper` reach the totals of Table 1; docs/models.md has the calculation.
_VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "": ({}, 224),
    "released_224": ({**_RELEASED, "shifts": (1, 1, 1, 0)}, 224),
    "released_384": ({**_RELEASED, "shifts": (1, 1, 1, 1)}, 384),
    "paper": ({"downsample": "paper"}, 224),
    **{name: ({**_RELEASED, "shifts": (1, 1, 1, 0), "activation": name}, 224) for name in ACTIVATIONS if name != GELU},
}

# (size, variant) -> official checkpoint below `checkpoints/` of the repository.
_CHECKPOINTS = {
    ("t", "released_224"): "neonext-t-224/epoch_286",
    ("s", "released_224"): "neonext-s-224/epoch_299",
    ("b", "released_224"): "neonext-b-224/epoch_286",
    ("t", "released_384"): "neonext-t-384/epoch_285",
    ("s", "released_384"): "neonext-s-384/epoch_295",
    ("b", "released_384"): "neonext-b-384/epoch_285",
    ("l", "released_384"): "neonext-l-384/epoch_235",
}


@dataclass(frozen=True)
class Published:
    """A published figure of a model.

    Attributes:
        model: registered name.
        quantity: "parameters" or "multiply_adds".
        image_size: side of the image in pixels.
        published: the published number.
        digits: power of ten that the number was rounded to.
        source: the publication.
    """

    model: str
    quantity: str
    image_size: int
    published: float
    digits: int
    source: str


def _published() -> Iterator[Published]:
    readme = f"README of {REPOSITORY}"
    for size, value in (("t", 27.5e6), ("s", 49.3e6), ("b", 86.8e6), ("l", 193.5e6)):
        variant = "released_384" if size == "l" else "released_224"
        yield Published(f"neonext_{size}.{variant}", "parameters", int(variant[-3:]), value, 5, readme)
    for size, at_224, at_384 in (("t", 4.4e9, 13.3e9), ("s", 8.6e9, 25.7e9), ("b", 15.2e9, 45.2e9)):
        yield Published(f"neonext_{size}.released_224", "multiply_adds", 224, at_224, 8, readme)
        yield Published(f"neonext_{size}.released_384", "multiply_adds", 384, at_384, 8, readme)
    for size, value in (("t", 27.7e6), ("s", 49.6e6), ("b", 87.3e6)):
        yield Published(f"neonext_{size}.paper", "parameters", 224, value, 5, f"{PAPER}, Table 1")


PUBLISHED = tuple(_published())


@dataclass(frozen=True)
class ModelConfig:
    """A registered model and the requirements of its pretrained weights.

    Attributes:
        name: name that `create_model` takes.
        architecture: options of the model.
        image_size: height and width in pixels that the model was designed for.
        preprocessing: transformation of an image into the model's input.
        checkpoint: path of the official weights in the official repository (`_ema` before `.pt` for the moving
            average), or None.
        source: publication of the architecture.
        licence: licence of the official code and weights.
    """

    name: str
    architecture: Architecture
    image_size: tuple[int, int] = (224, 224)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    checkpoint: str | None = None
    source: str = REPOSITORY
    licence: str = "BSD-3-Clause"


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of all registered models that match a shell pattern such as `neonext_t*`."""
    names = [f"neonext_{size}" + (f".{variant}" if variant else "") for size in _SIZES for variant in _VARIANTS]
    return [name for name in names if fnmatch(name, pattern)]


def model_config(name: str, **options: Any) -> ModelConfig:
    """Return the configuration of a registered model.

    Args:
        name: registered name.
        options: official keyword arguments that replace those of the configuration.

    Raises:
        InputError: the name is unknown.
        InputError: an option is unknown or out of range.
    """
    if name not in list_models():
        raise InputError(
            f"{name!r}: unknown model{nearest(name, list_models())}. Run neonext-info --list for all names."
        )
    size, _, variant = name.removeprefix("neonext_").partition(".")
    base, pixels = _VARIANTS[variant]
    checkpoint = _CHECKPOINTS.get((size, variant))
    known = make_architecture.__annotations__.keys() - {"return"}
    for option in options:
        if option not in known:
            raise InputError(f"{name}: unknown option {option!r}{nearest(option, known)}")
    return ModelConfig(
        name=name,
        architecture=make_architecture(**{**_SIZES[size], **base, **options}),
        image_size=(pixels, pixels),
        checkpoint=f"checkpoints/{checkpoint}.pt" if checkpoint else None,
        source=PAPER if variant == "paper" else REPOSITORY,
    )


def candidates(architecture: Architecture) -> list[str]:
    """Return the names of the registered models with this architecture, for any number of classes and drop path.

    Unknown shifts match any. The layer scale counts only as present or absent, because its size is an initial value.
    """

    def key(a: Architecture) -> Architecture:
        return replace(a, num_classes=1, drop_path=0.0, shifts=None, layer_scale_init_value=float(a.layer_scale))

    registered = {name: model_config(name).architecture for name in list_models()}
    return [
        name
        for name, other in registered.items()
        if key(architecture) == key(other) and architecture.shifts in (None, other.shifts)
    ]


def identify(architecture: Architecture) -> str | None:
    """Return the name of the only registered model with this architecture, or None (see `candidates`)."""
    names = candidates(architecture)
    return names[0] if len(names) == 1 else None
