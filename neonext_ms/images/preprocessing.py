"""How an image becomes the input of a model: sizes, crop, interpolation, normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from neonext_ms.common.errors import InputError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
MODES = ("auto", "resize", "as-is")


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing of the official code: resize by 1 / crop, centre crop, (x / 255 - mean) / std.

    Attributes:
        mean: of the channels R, G, B after division by 255.
        std: likewise.
        crop: side of the centre crop relative to the resized image, in (0, 1].
        interpolation: "bilinear" (the official code) or "bicubic".
        mode: "resize" (always resize and crop), "as-is" (the image must have the model's size already), or "auto"
            (as it is when it has exactly the model's size, otherwise resize and crop).

    Raises:
        InputError: a value out of its range.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: float = 0.875
    interpolation: str = "bilinear"
    mode: str = "auto"

    def __post_init__(self):
        for name in ("mean", "std"):
            try:
                # float() would take texts and booleans, too.
                values = tuple(math.nan if isinstance(v, (str, bool)) else float(v) for v in getattr(self, name))
            except (TypeError, ValueError, OverflowError):
                values = ()
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                what = "three positive numbers" if name == "std" else "three numbers"
                raise InputError(f"preprocessing: {name} must be {what} (R, G, B), got {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if not isinstance(self.crop, (int, float)) or isinstance(self.crop, bool) or not 0 < self.crop <= 1:
            raise InputError(f"preprocessing: crop must be in (0, 1], got {self.crop!r}")
        for name, known in (("interpolation", INTERPOLATIONS), ("mode", MODES)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"preprocessing: {name} must be one of {', '.join(known)}, got {value!r}")

    def to_dict(self) -> dict:
        """Plain values for JSON or YAML."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping) -> Preprocessing:
        """The inverse of `to_dict`; keys left out keep their defaults.

        Raises:
            InputError: an unknown key, or a value out of its range.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"preprocessing: unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")
        return cls(**values)
