"""`QuantizeOptions`: what can be asked of an 8-bit export."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import get_args

from neonext_ms.common.cli import MAX_DROP, MIN_WEIGHT_BITS, WEIGHT_BITS
from neonext_ms.common.errors import UsageError, nearest
from neonext_ms.training.config.schema import MAX_CALIBRATION as MAX_CALIBRATION
from neonext_ms.training.config.schema import MIN_CALIBRATION, CalibrationMethod, QuantizeConfig

METHODS: tuple[str, ...] = get_args(CalibrationMethod)
DEFAULT_METHOD = QuantizeConfig.method
DEFAULT_COUNT, MIN_COUNT = QuantizeConfig.calibrate, MIN_CALIBRATION
SOURCES = (
    "either images to calibrate on (--calibrate FOLDER) or the scales of an earlier export (--quantize-scales FILE)"
)


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of an 8-bit export.

    Attributes:
        calibrate: calibration images: a folder, a `.npy` file of prepared images, or "digits"; None with `scales`, or
            for the scales that a fine-tuned checkpoint records.
        count: number of images to use, spread evenly over all of them.
        method: how the range of an activation is chosen, a key of `ranges.RANGES`.
        weight_bits: bits of the weights, 2 to 8.
        skip: layers that stay in floating point, by name or pattern such as `stage_4.*`.
        scales: file of scales to use instead of calibrating.
        validate: folder of labelled images to measure the accuracy on, or "digits"; None for none.
        max_drop: largest loss of top-1 on `validate` in percentage points; layers are left in floating point until it
            holds. None accepts any.

    Raises:
        UsageError: options that do not go together, or a value out of its range.
    """

    calibrate: str | None = None
    count: int = DEFAULT_COUNT
    method: str = DEFAULT_METHOD
    weight_bits: int = WEIGHT_BITS
    skip: tuple[str, ...] = ()
    scales: str | None = None
    validate: str | None = None
    max_drop: float | None = None

    def __post_init__(self):
        for name in ("calibrate", "scales", "validate"):
            if (path := getattr(self, name)) is not None:
                # A `Path` is one of them in Python.
                object.__setattr__(self, name, os.fspath(path))
        if isinstance(self.skip, str):
            raise UsageError(f"layers to skip: got the text {self.skip!r}, expected a sequence of names or patterns")
        if self.calibrate is not None and self.scales is not None:
            raise UsageError(f"8 bit needs {SOURCES}, got both.")
        if self.method not in METHODS:
            raise UsageError(
                f"unknown calibration method {self.method!r}{nearest(self.method, METHODS)}; known: "
                f"{', '.join(METHODS)}"
            )
        if self.count < MIN_COUNT:
            raise UsageError(f"calibration on {self.count} images: expected at least {MIN_COUNT}")
        if not MIN_WEIGHT_BITS <= self.weight_bits <= WEIGHT_BITS:
            raise UsageError(f"{self.weight_bits} bits for weights: expected {MIN_WEIGHT_BITS} to {WEIGHT_BITS}")
        if self.max_drop is not None and not 0 <= self.max_drop <= MAX_DROP:
            raise UsageError(f"largest drop {self.max_drop}: expected 0 to {MAX_DROP:g} percentage points")
        if self.max_drop is not None and self.validate is None:
            raise UsageError("a largest drop is measured on labelled images. Pass --validate FOLDER.")
