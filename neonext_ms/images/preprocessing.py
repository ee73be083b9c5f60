"""The transformation of an image into the input of a model: resize, crop, interpolation, normalization."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from neonext_ms.common.cli import MIN_CROP, MIN_STD
from neonext_ms.common.errors import InputError
from neonext_ms.common.text import nearest, shorten
from neonext_ms.common.yaml_file import read_yaml

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
MODES = ("auto", "resize", "as-is")


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation preprocessing of the official code: resize by 1 / crop, centre crop, (x / 255 - mean) / std.

    Attributes:
        mean: means of the channels R, G, B after division by 255, from 0 to 1.
        std: standard deviations of the channels R, G, B after division by 255, from 0.002 to 1.
        crop: side of the centre crop relative to the resized image, from 0.01 to 1.
        interpolation: "bilinear" (the official code) or "bicubic".
        mode: "resize" (resize and crop every image), "as-is" (reject images of another size than the model's), or
            "auto" (resize and crop only images of another size).

    Raises:
        InputError: a value is out of range.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: float = 0.875
    interpolation: str = "bilinear"
    mode: str = "auto"

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            try:
                # float() would also accept texts and booleans.
                values = tuple(math.nan if isinstance(v, (str, bool)) else float(v) for v in value)
            except (TypeError, ValueError, OverflowError):
                values = ()
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                expected = "three positive numbers" if name == "std" else "three numbers"
                raise InputError(f"preprocessing: {name} must be {expected} for R, G, B (got {shorten(value)})")
            if max(values) > 1:
                raise InputError(
                    f"preprocessing: {name} refers to values from 0 to 255 (got {shorten(value)}, expected at most 1). "
                    "Divide mean and std by 255."
                )
            if min(values) < 0:
                raise InputError(
                    f"preprocessing: {name} has negative values (got {shorten(value)}). It is subtracted; write the "
                    "mean of the pixels, from 0 to 1."
                )
            if name == "std" and min(values) < MIN_STD:
                raise InputError(
                    f"preprocessing: std is smaller than that of any images (got {shorten(value)}, expected at least "
                    f"{MIN_STD}). Was it divided by 255 twice?"
                )
            # JSON and YAML give lists.
            object.__setattr__(self, name, values)
        if not isinstance(self.crop, (int, float)) or isinstance(self.crop, bool) or not MIN_CROP <= self.crop <= 1:
            raise InputError(f"preprocessing: crop must be from {MIN_CROP} to 1 (got {shorten(self.crop)})")
        for name, known in (("interpolation", INTERPOLATIONS), ("mode", MODES)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"preprocessing: {name} must be one of {', '.join(known)} (got {shorten(getattr(self, name))})"
                )

    def to_dict(self) -> dict:
        """Return plain values for JSON or YAML."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping) -> Preprocessing:
        """Make a `Preprocessing` from the values of `to_dict`; missing keys have their defaults.

        Raises:
            InputError: a key is unknown, or a value is out of range.
        """
        known = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping):
            kind = "nothing" if values is None else type(values).__name__
            raise InputError(f"preprocessing: not a mapping (got {kind}, expected keys among {', '.join(known)})")
        for key in values:
            if key not in known:
                shown = shorten(key)
                raise InputError(
                    f"preprocessing: unknown key {shown}{nearest(shown, known)}; known: {', '.join(known)}"
                )
        return cls(**values)


def preprocessing_from_file(path: str | os.PathLike, base: Preprocessing | None = None) -> Preprocessing:
    """Read a `Preprocessing` from a YAML file whose keys are its attributes.

    Args:
        path: YAML file.
        base: values of missing keys (default: those of `Preprocessing()`).

    Raises:
        InputError: the file cannot be read, is not YAML, has an unknown key, or a value is out of range. The message
            names the file, and the line of an error in the YAML.
    """
    values = read_yaml(path, "configs/eval_imagenet.yaml")
    try:
        Preprocessing.from_dict(values)
        return Preprocessing.from_dict({**(base or Preprocessing()).to_dict(), **values})
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from error
