"""Static AIPP: centre crop and normalization on the device, from 8-bit pixels, and the same arithmetic on the host.

AIPP computes `(pixel - mean_chn - min_chn) * var_reci_chn`, where `mean_chn` is an integer from 0 to 255 and the other
two are float16. So 255 * mean is split: its integer part becomes `mean_chn`, which is exact, and only the rest is
rounded to float16. docs/deploy.md names the sources of these facts; nothing here has run on a device.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from neonext_ms.common.errors import InputError, UsageError, nearest
from neonext_ms.common.text import format_size
from neonext_ms.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 4096
DTYPES = ("float16", "float32")
_SMALLEST, _LARGEST = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)

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


def default_source_size(preprocessing: Preprocessing, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the frame that the host feeds.

    This is `round(side / crop)`, or the size of the model's input if the preprocessing takes images as they are.
    """
    height, width = image_size
    if preprocessing.mode == "as-is":
        return height, width
    return round(height / preprocessing.crop), round(width / preprocessing.crop)


def crop_offsets(image_size: tuple[int, int], source_size: tuple[int, int]) -> tuple[int, int]:
    """Return top and left of the centre crop, rounded as in `images.prepare`.

    Raises:
        InputError: a source smaller than the image.
    """
    top, left = (source - side for source, side in zip(source_size, image_size, strict=True))
    if min(top, left) < 0:
        raise InputError(
            f"AIPP: cannot crop {format_size(image_size)} (height x width) out of a source of "
            f"{format_size(source_size)}. Use a source that is at least as large."
        )
    return round(top / 2.0), round(left / 2.0)


def aipp_config(
    preprocessing: Preprocessing, image_size: tuple[int, int], source_size: tuple[int, int] | None = None
) -> str:
    """Return a static AIPP file for ATC's `--insert_op_conf`, the same text for the same arguments.

    With it, uint8 RGB images (N, H, W, 3) become the model's normalized input.

    Args:
        preprocessing: mean and std, and the crop that decides the default of `source_size`.
        image_size: height and width of the model's input.
        source_size: height and width of the frame that the host feeds. The device crops its centre to the model's
            size. None means `default_source_size`.

    Raises:
        InputError: a size outside 1 to 4096, a source smaller than the image, or a mean or std that AIPP cannot hold.
    """
    source = source_size or default_source_size(preprocessing, image_size)
    for what, size in (("image", image_size), ("source", source)):
        if not all(1 <= side <= MAX_SIDE for side in size):
            raise InputError(
                f"AIPP: {what} size {format_size(size)} (height x width) is not supported; sides must be from 1 to "
                f"{MAX_SIDE}. Export without AIPP, or feed smaller images."
            )
    top, left = crop_offsets(image_size, source)
    fields: dict[str, object] = {
        "aipp_mode": "static",
        "related_input_rank": 0,
        "input_format": "RGB888_U8",
        "csc_switch": "false",
        "rbuv_swap_switch": "false",
        "src_image_size_w": source[1],
        "src_image_size_h": source[0],
        "crop": "false",
    }
    if source != tuple(image_size):
        fields |= {
            "crop": "true",
            "load_start_pos_w": left,
            "load_start_pos_h": top,
            "crop_size_w": image_size[1],
            "crop_size_h": image_size[0],
        }
    split = [_split(mean) for mean in preprocessing.mean]
    fields |= {f"mean_chn_{i}": integer for i, (integer, _) in enumerate(split)}
    # Nine digits give the same float32 when they are read. `e+` never occurs at these magnitudes.
    fields |= {f"min_chn_{i}": f"{rest:.9g}" for i, (_, rest) in enumerate(split)}
    fields |= {f"var_reci_chn_{i}": f"{_reciprocal(std):.9g}" for i, std in enumerate(preprocessing.std)}
    return "aipp_op {\n" + "".join(f"    {name}: {value}\n" for name, value in fields.items()) + "}\n"


def _split(mean: float) -> tuple[int, float]:
    """Return the integer part of 255 * mean, at most 255, and the rest."""
    integer = min(math.floor(255 * mean), 255)
    rest = 255 * mean - integer
    if not (integer >= 0 and 0 <= rest <= 255):
        raise InputError(f"AIPP: cannot subtract a mean of {mean:g}; it must be from 0 to 2. Export without AIPP.")
    return integer, rest


def _reciprocal(std: float) -> float:
    factor = 1 / (255 * std)
    if not _SMALLEST <= factor <= _LARGEST:
        raise InputError(
            f"AIPP: a std of {std:g} needs the factor {factor:g}, which float16 cannot hold with full precision "
            f"(expected {_SMALLEST:.2g} to {_LARGEST:g}). Export without AIPP."
        )
    return factor


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


def host_pixels(
    image: Image.Image,
    preprocessing: Preprocessing,
    image_size: tuple[int, int],
    source_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Prepare an image as the host feeds it to a model with `aipp_config` of the same arguments.

    The image is resized as in `images.prepare`. Then a frame of the source size is cropped so that AIPP's own crop
    takes exactly the pixels that `images.prepare` takes. An image that needs no resizing lies inside a black frame.

    Args:
        image: a Pillow image of any mode.
        preprocessing: preprocessing of the model.
        image_size: height and width of the model's input.
        source_size: height and width of the frame, as in `aipp_config`.

    Returns:
        uint8 (1, H, W, 3) of the source size, channels R, G, B.

    Raises:
        InputError: a source smaller than the image or larger than the resized image, pixel values of no known scale,
            or mode "as-is" and an image of another size.
    """
    from PIL import Image as Pillow

    from neonext_ms.images.images import needs_resize, resized_size, to_rgb

    source = source_size or default_source_size(preprocessing, image_size)
    inner_top, inner_left = crop_offsets(image_size, source)
    image = to_rgb(image)
    original = image.height, image.width
    if not needs_resize(original, preprocessing, image_size):
        if original != tuple(image_size):
            raise InputError(
                f"image: {format_size(original)} pixels (height x width); preprocessing 'as-is' expects exactly "
                f"{format_size(image_size)}. Resize the image or use another mode."
            )
        frame = np.zeros((1, *source, 3), np.uint8)
        frame[0, inner_top : inner_top + original[0], inner_left : inner_left + original[1]] = np.asarray(image)
        return frame
    resized = resized_size(original, image_size, preprocessing.crop)
    image = image.resize((resized[1], resized[0]), Pillow.Resampling[preprocessing.interpolation.upper()])
    # Cropping the centre twice could be off by a pixel, so the frame is placed relative to the ordinary crop.
    top, left = crop_offsets(image_size, resized)
    top, left = top - inner_top, left - inner_left
    if min(top, left) < 0 or top + source[0] > resized[0] or left + source[1] > resized[1]:
        raise InputError(
            f"AIPP: the image is {format_size(resized)} (height x width) after resizing, less than the source of "
            f"{format_size(source)}. Use a source of at most "
            f"{format_size(default_source_size(preprocessing, image_size))}."
        )
    return np.asarray(image.crop((left, top, left + source[1], top + source[0])))[None]


def host_feed(
    preprocessing: Preprocessing, image_size: tuple[int, int], source_size: tuple[int, int] | None = None
) -> dict[str, object]:
    """Describe what the host must feed to a model with `aipp_config` of the same arguments, for a manifest.

    Raises:
        InputError: arguments that `aipp_config` rejects.
    """
    aipp_config(preprocessing, image_size, source_size)
    source = source_size or default_source_size(preprocessing, image_size)
    top, left = crop_offsets(image_size, source)
    resize = {
        "filter": f"{preprocessing.interpolation}, antialiased (Pillow)",
        "sides_at_least": list(default_source_size(Preprocessing(crop=preprocessing.crop), image_size)),
        "only_if_size_differs": preprocessing.mode == "auto",
    }
    return {
        "dtype": "uint8",
        "layout": "NHWC",
        "channels": "RGB",
        "height": source[0],
        "width": source[1],
        "bytes_per_image": source[0] * source[1] * 3,
        "resize": None if preprocessing.mode == "as-is" else resize,
        "host_crop": {
            "top": f"round((height - {image_size[0]}) / 2) - {top}",
            "left": f"round((width - {image_size[1]}) / 2) - {left}",
            "of": "the resized image, halves to even",
        },
        "device_crop": {"top": top, "left": left, "height": image_size[0], "width": image_size[1]},
        "device_normalises": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
    }
