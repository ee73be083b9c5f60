"""A stand-in for the AIPP unit of a device: it reads a static AIPP file and computes its arithmetic in NumPy."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.text import nearest

MAX_SIDE = 4096
DTYPES = ("float16", "float32")
_LARGEST = float(np.finfo(np.float16).max)

_REQUIRED = {"aipp_mode": "static", "input_format": "RGB888_U8"}
_UNUSED = ("csc_switch", "ax_swap_switch", "resize", "padding", "single_line_mode")
_SWITCHES = ("crop", "rbuv_swap_switch", *_UNUSED)
# Name -> default, smallest and largest value. The type of the default is that of the field.
_NUMBERS: dict[str, tuple[int | float, float, float]] = {
    "related_input_rank": (0, 0, math.inf),
    **{f"src_image_size_{side}": (0, 0, MAX_SIDE) for side in "wh"},
    **{f"load_start_pos_{side}": (0, 0, MAX_SIDE - 1) for side in "wh"},
    **{f"crop_size_{side}": (0, 0, MAX_SIDE) for side in "wh"},
    **{f"mean_chn_{i}": (0, 0, 255) for i in range(4)},
    **{f"min_chn_{i}": (0.0, 0, 255) for i in range(4)},
    **{f"var_reci_chn_{i}": (1.0, -_LARGEST, _LARGEST) for i in range(4)},
}
_KNOWN = (*_REQUIRED, *_SWITCHES, *_NUMBERS)
_FIELD = re.compile(r"([a-z]\w*)\s*:\s*([^\s#{}]+)")


def parse(text: str) -> dict[str, Any]:
    """Parse and check a static AIPP file for RGB888_U8.

    Args:
        text: one `aipp_op { ... }` in prototxt, with or without comments.

    Returns:
        Name -> bool, int, float or str; fields that the file lacks have AIPP's defaults.

    Raises:
        InputError: another syntax, an unknown or repeated field, a value out of its range, or a feature (colour
            conversion, resizing, padding, another format) that this project does not use.
    """
    content = "\n".join(line.partition("#")[0] for line in text.splitlines())
    body = re.fullmatch(r"\s*aipp_op\s*\{([^{}]*)\}\s*", content)
    if body is None or _FIELD.sub("", body[1]).strip():
        raise InputError("AIPP: expected one 'aipp_op { name: value ... }'. Write the file with aipp_config.")
    written: dict[str, Any] = {}
    for name, value in _FIELD.findall(body[1]):
        if name not in _KNOWN:
            raise InputError(f"AIPP: unknown field {name!r}{nearest(name, _KNOWN)}; known: {', '.join(_KNOWN)}")
        if name in written:
            raise InputError(f"AIPP: field {name!r} is given twice, which ATC rejects. Leave one out.")
        written[name] = _value(name, value)
    for name, value in _REQUIRED.items():
        if name not in written:
            raise InputError(f"AIPP: {name} is missing; expected {value}")
    fields = dict.fromkeys(_SWITCHES, False) | {name: row[0] for name, row in _NUMBERS.items()} | written
    for name in _UNUSED:
        if fields[name]:
            raise InputError(f"AIPP: {name} is on, which this project neither uses nor emulates. Switch it off.")
    for name, (_, low, high) in _NUMBERS.items():
        if fields["crop"] and name.startswith(("src_image_size", "crop_size")):
            low = 1
        if not low <= fields[name] <= high:
            raise InputError(f"AIPP: {name} must be from {low:g} to {high:g}, got {fields[name]:g}")
    for side in "hw" if fields["crop"] else "":
        start, length, whole = (fields[f"{key}_{side}"] for key in ("load_start_pos", "crop_size", "src_image_size"))
        if start + length > whole:
            raise InputError(
                f"AIPP: load_start_pos_{side} {start} + crop_size_{side} {length} is beyond src_image_size_{side} "
                f"{whole}. The crop must lie inside the source."
            )
    return fields


def _value(name: str, text: str) -> bool | int | float | str:
    try:
        if name in _NUMBERS:
            return type(_NUMBERS[name][0])(text)
        choices = {"true": True, "false": False} if name in _SWITCHES else {_REQUIRED[name]: text}
        return choices[text]
    except (KeyError, ValueError):
        expected = _REQUIRED.get(name, "true or false")
        if name in _NUMBERS:
            expected = "a whole number" if isinstance(_NUMBERS[name][0], int) else "a number"
        raise InputError(f"AIPP: {name} must be {expected}, got {text!r}") from None


def emulate(config_text: str, pixels: np.ndarray, dtype: str = "float16") -> np.ndarray:
    """Compute on the host what AIPP makes of pixels.

    Args:
        config_text: a static AIPP file; see `parse`.
        pixels: uint8 (N, H, W, 3) of the source size.
        dtype: "float16" as on the device, where `min_chn` and `var_reci_chn` are float16 and every step is rounded to
            it, or "float32" for the formula itself.

    Returns:
        float32 (N, 3, H, W), cropped and normalized.

    Raises:
        InputError: a file that `parse` rejects, or pixels of another dtype or size.
        UsageError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UsageError(f"AIPP: unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    fields = parse(config_text)
    pixels = np.asarray(pixels)
    # A source size of 0 accepts any.
    height, width = (fields[f"src_image_size_{side}"] or None for side in "hw")
    expected = (len(pixels), height or pixels.shape[1], width or pixels.shape[2], 3) if pixels.ndim == 4 else None
    if pixels.dtype != np.uint8 or pixels.shape != expected:
        raise InputError(
            f"AIPP: expected uint8 pixels of shape (N, {height or 'H'}, {width or 'W'}, 3), got {pixels.dtype} "
            f"{pixels.shape}"
        )
    if fields["rbuv_swap_switch"]:
        pixels = pixels[..., ::-1]
    if fields["crop"]:
        top, left = fields["load_start_pos_h"], fields["load_start_pos_w"]
        pixels = pixels[:, top : top + fields["crop_size_h"], left : left + fields["crop_size_w"]]
    mean, least, factor = (
        np.array([fields[f"{name}_chn_{i}"] for i in range(3)], dtype) for name in ("mean", "min", "var_reci")
    )
    values = (pixels.astype(dtype) - mean - least) * factor
    return np.ascontiguousarray(values.astype(np.float32).transpose(0, 3, 1, 2))
