"""Static AIPP: normalisation and centre crop on the device from 8-bit pixels, and the same arithmetic on the host.

AIPP computes `(pixel - mean_chn - min_chn) * var_reci_chn`, where `mean_chn` is an 8-bit whole number and the other two
are float16. So 255 mean is split: its whole part, at most 255, is `mean_chn`, and only what is left is rounded to
float16. Where these facts come from is in docs/aipp.md; nothing here has run on a device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from neonext_ms.common.errors import InputError, UsageError, nearest
from neonext_ms.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 4096
PRECISIONS = ("float16", "float32")
_CHANNELS = range(3)
_SWITCHES = ("csc_switch", "rbuv_swap_switch", "ax_swap_switch", "crop", "resize", "padding", "single_line_mode")
_WHOLE = (
    *("related_input_rank", "src_image_size_w", "src_image_size_h", "load_start_pos_w", "load_start_pos_h"),
    *("crop_size_w", "crop_size_h", *(f"mean_chn_{i}" for i in range(4))),
)
_NUMBERS = tuple(f"{kind}_chn_{i}" for kind in ("min", "var_reci") for i in range(4))
_WORDS = {"aipp_mode": ("static",), "input_format": ("RGB888_U8",)}
_FIELD = re.compile(r"([a-z]\w*)\s*:\s*([^\s#{}]+)")
_SMALLEST = float(np.finfo(np.float16).tiny)
_LARGEST = float(np.finfo(np.float16).max)


def default_source_size(preprocessing: Preprocessing, image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the frame that the host feeds: `round(side / crop)`; the model's own size if mode is "as-is".

    Args:
        preprocessing: of the model.
        image_size: height and width of the model's input.
    """
    if preprocessing.mode == "as-is":
        return tuple(image_size)
    return tuple(round(side / preprocessing.crop) for side in image_size)


def crop_offsets(image_size: tuple[int, int], source_size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the centre crop, rounded as in `images.prepare`.

    Raises:
        InputError: the source is smaller than the image.
    """
    if any(source < side for source, side in zip(source_size, image_size, strict=True)):
        raise InputError(
            f"AIPP: cannot cut {_size(image_size)} (height x width) out of a source of {_size(source_size)}; give a "
            "source that is at least as large"
        )
    return tuple(round((source - side) / 2.0) for source, side in zip(source_size, image_size, strict=True))


def aipp_config(
    preprocessing: Preprocessing, image_size: tuple[int, int], source_size: tuple[int, int] | None = None
) -> str:
    """A static AIPP file, for ATC's `--insert_op_conf`: uint8 RGB (N, H, W, 3) becomes the model's normalised input.

    Args:
        preprocessing: mean and std, and the crop for the default of `source_size`.
        image_size: height and width of the model's input.
        source_size: height and width of what the host feeds; see `default_source_size`. The centre of the model's
            size is cut out of it on the device; nothing is cut if it has that size.

    Returns:
        The text of the file; the same arguments give the same text.

    Raises:
        InputError: a size outside 1 to 4096, a source smaller than the image, or a mean or std that AIPP cannot hold.
    """
    source = default_source_size(preprocessing, image_size) if source_size is None else tuple(source_size)
    for what, size in (("image", image_size), ("source", source)):
        if any(not 1 <= side <= MAX_SIDE for side in size):
            raise InputError(
                f"AIPP: {what} size {_size(size)} (height x width); AIPP takes sides from 1 to {MAX_SIDE}; export "
                "without AIPP, or feed a smaller image"
            )
    top, left = crop_offsets(image_size, source)
    lines = [
        "aipp_mode: static",
        "related_input_rank: 0",
        "input_format: RGB888_U8",
        "csc_switch: false",
        "rbuv_swap_switch: false",
        f"src_image_size_w: {source[1]}",
        f"src_image_size_h: {source[0]}",
    ]
    if source == tuple(image_size):
        lines.append("crop: false")
    else:
        lines += [
            "crop: true",
            f"load_start_pos_w: {left}",
            f"load_start_pos_h: {top}",
            f"crop_size_w: {image_size[1]}",
            f"crop_size_h: {image_size[0]}",
        ]
    split = [_split(mean) for mean in preprocessing.mean]
    lines += [f"mean_chn_{i}: {whole}" for i, (whole, _) in enumerate(split)]
    lines += [f"min_chn_{i}: {_number(rest)}" for i, (_, rest) in enumerate(split)]
    lines += [f"var_reci_chn_{i}: {_number(_reciprocal(std))}" for i, std in enumerate(preprocessing.std)]
    return "aipp_op {\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def _split(mean: float) -> tuple[int, float]:
    value = 255 * mean
    whole = min(math.floor(value), 255)
    rest = value - whole
    if not (whole >= 0 and 0 <= rest <= 255):
        raise InputError(
            f"AIPP: a mean of {mean:g} cannot be subtracted on the device; it takes 0 to 2; export without AIPP"
        )
    return whole, rest


def _reciprocal(std: float) -> float:
    value = 1 / (255 * std)
    if not _SMALLEST <= value <= _LARGEST:
        raise InputError(
            f"AIPP: a std of {std:g} needs the factor {value:g}, which float16 cannot hold with full precision "
            f"({_SMALLEST:.2g} to {_LARGEST:g}); export without AIPP"
        )
    return value


def _number(value: float) -> str:
    """Nine digits: float32 comes back exactly; never with an exponent of 'e+'."""
    return f"{value:.9g}"


def _size(size) -> str:
    return "x".join(map(str, size))


def parse(text: str) -> dict[str, object]:
    """The fields of a static AIPP file for RGB888_U8, with AIPP's defaults, checked.

    Args:
        text: one `aipp_op { ... }` in prototxt, with or without comments.

    Returns:
        Name -> bool, int, float or str.

    Raises:
        InputError: another syntax, an unknown or repeated field, a value out of its range, or a feature (colour
            conversion, resizing, padding, another format) that this project does not use.
    """
    bare = "\n".join(line.partition("#")[0] for line in text.splitlines())
    body = re.fullmatch(r"\s*aipp_op\s*\{([^{}]*)\}\s*", bare)
    if body is None or _FIELD.sub("", body[1]).strip():
        raise InputError("AIPP: expected one 'aipp_op { name: value ... }'; write the file with aipp_config")
    fields: dict[str, object] = {name: False for name in _SWITCHES}
    fields |= dict.fromkeys(_WHOLE, 0) | {name: float(name.startswith("var")) for name in _NUMBERS}
    known = (*fields, *_WORDS)
    seen = set()
    for name, value in _FIELD.findall(body[1]):
        if name not in known:
            raise InputError(f"AIPP: unknown field {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        if name in seen:
            raise InputError(f"AIPP: field {name!r} is given twice; ATC refuses that; leave one out")
        seen.add(name)
        fields[name] = _value(name, value)
    _check(fields)
    return fields


def _value(name: str, text: str) -> object:
    try:
        if name in _WORDS:
            if text not in _WORDS[name]:
                raise ValueError
            return text
        if name in _SWITCHES:
            return {"true": True, "false": False}[text]
        return int(text) if name in _WHOLE else float(text)
    except (KeyError, ValueError):
        kinds = {**dict.fromkeys(_SWITCHES, "true or false"), **dict.fromkeys(_WHOLE, "a whole number")}
        expected = " or ".join(_WORDS.get(name, ())) or kinds.get(name, "a number")
        raise InputError(f"AIPP: {name} must be {expected}, got {text!r}") from None


def _check(fields: Mapping[str, object]) -> None:
    for name in _WORDS:
        if name not in fields:
            raise InputError(f"AIPP: {name} is missing; expected {_WORDS[name][0]}")
    for name in _SWITCHES:
        if fields[name] and name not in ("crop", "rbuv_swap_switch"):
            raise InputError(f"AIPP: {name} is on, which this project does not use or emulate; switch it off")
    ranges = {f"mean_chn_{i}": (0, 255) for i in range(4)} | {f"min_chn_{i}": (0, 255) for i in range(4)}
    ranges |= {f"var_reci_chn_{i}": (-_LARGEST, _LARGEST) for i in range(4)}
    least = int(bool(fields["crop"]))
    ranges |= {f"src_image_size_{side}": (least, MAX_SIDE) for side in "hw"}
    ranges |= {f"load_start_pos_{side}": (0, MAX_SIDE - 1) for side in "hw"}
    ranges |= {f"crop_size_{side}": (least, MAX_SIDE) for side in "hw"}
    ranges["related_input_rank"] = (0, math.inf)
    for name, (low, high) in ranges.items():
        if not low <= fields[name] <= high:
            raise InputError(f"AIPP: {name} must be from {low:g} to {high:g}, got {fields[name]:g}")
    for side in "hw" if fields["crop"] else "":
        start, length, whole = (fields[f"{key}_{side}"] for key in ("load_start_pos", "crop_size", "src_image_size"))
        if start + length > whole:
            raise InputError(
                f"AIPP: load_start_pos_{side} {start} + crop_size_{side} {length} is beyond src_image_size_{side} "
                f"{whole}; the crop must lie inside the source"
            )


def emulate(config_text: str, pixels: np.ndarray, precision: str = "float16") -> np.ndarray:
    """What AIPP makes of pixels, computed on the host.

    Args:
        config_text: a static AIPP file; see `parse`.
        pixels: uint8 (N, H, W, 3) of the source size.
        precision: "float16" as on the device: `min_chn` and `var_reci_chn` are held in float16 and every step is
            rounded to it. "float32" is the formula itself.

    Returns:
        float32 (N, 3, H, W), cropped and normalised.

    Raises:
        InputError: a file that `parse` refuses, or pixels of another type or size.
        UsageError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"AIPP: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    fields = parse(config_text)
    pixels = np.asarray(pixels)
    expected = tuple(fields[f"src_image_size_{side}"] or None for side in "hw")
    shape = pixels.shape[1:3]
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or pixels.shape[3] != 3
        or any(want not in (None, have) for want, have in zip(expected, shape, strict=True))
    ):
        sides = ", ".join(str(side or letter) for side, letter in zip(expected, "HW", strict=True))
        raise InputError(f"AIPP: expected uint8 pixels of shape (N, {sides}, 3), got {pixels.dtype} {pixels.shape}")
    if fields["rbuv_swap_switch"]:
        pixels = pixels[..., ::-1]
    if fields["crop"]:
        top, left = fields["load_start_pos_h"], fields["load_start_pos_w"]
        pixels = pixels[:, top : top + fields["crop_size_h"], left : left + fields["crop_size_w"]]
    kind = np.dtype(precision).type
    mean, least, factor = (
        np.array([fields[f"{name}_chn_{i}"] for i in _CHANNELS], kind) for name in ("mean", "min", "var_reci")
    )
    values = (pixels.astype(kind) - mean - least) * factor
    return np.ascontiguousarray(values.astype(np.float32).transpose(0, 3, 1, 2))


def host_pixels(
    image: Image.Image,
    preprocessing: Preprocessing,
    image_size: tuple[int, int],
    source_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """An image as the host feeds it to a model with `aipp_config(preprocessing, image_size, source_size)`.

    It is resized as in `images.prepare`; then a frame of the source size is cut out so that AIPP's crop takes exactly
    the pixels that `images.prepare` takes. An image that is taken as it is lies inside the frame, with black around.

    Args:
        image: a Pillow image of any mode.
        preprocessing: of the model.
        image_size: height and width of the model's input.
        source_size: as in `aipp_config`.

    Returns:
        uint8 (1, H, W, 3) of the source size, channels R, G, B.

    Raises:
        InputError: a source smaller than the image or larger than the resized image, pixel values of no known scale,
            or mode "as-is" and an image of another size.
    """
    from PIL import Image as Pillow

    from neonext_ms.images.images import needs_resize, resized_size, to_rgb

    source = default_source_size(preprocessing, image_size) if source_size is None else tuple(source_size)
    inner = crop_offsets(image_size, source)
    image = to_rgb(image)
    original = image.height, image.width
    if not needs_resize(original, preprocessing, image_size):
        if original != tuple(image_size):
            raise InputError(
                f"image: {_size(original)} pixels (height x width); preprocessing 'as-is' expects exactly "
                f"{_size(image_size)}; resize the image or use another mode"
            )
        frame = np.zeros((1, *source, 3), np.uint8)
        frame[0, inner[0] : inner[0] + original[0], inner[1] : inner[1] + original[1]] = np.asarray(image)
        return frame
    height, width = resized_size(original, image_size, preprocessing.crop)
    image = image.resize((width, height), Pillow.Resampling[preprocessing.interpolation.upper()])
    top, left = (outer - inside for outer, inside in zip(crop_offsets(image_size, (height, width)), inner, strict=True))
    if min(top, left) < 0 or top + source[0] > height or left + source[1] > width:
        raise InputError(
            f"AIPP: the image is {height}x{width} (height x width) after resizing, less than the source of "
            f"{_size(source)}; give a source of at most {_size(default_source_size(preprocessing, image_size))}"
        )
    return np.asarray(image.crop((left, top, left + source[1], top + source[0])))[None]


def host_feed(
    preprocessing: Preprocessing, image_size: tuple[int, int], source_size: tuple[int, int] | None = None
) -> dict[str, object]:
    """What the host must feed to a model with `aipp_config` of the same arguments, in plain values for a manifest.

    Raises:
        InputError: as `aipp_config`.
    """
    aipp_config(preprocessing, image_size, source_size)
    source = default_source_size(preprocessing, image_size) if source_size is None else tuple(source_size)
    top, left = crop_offsets(image_size, source)
    return {
        "dtype": "uint8",
        "layout": "NHWC",
        "channels": "RGB",
        "height": source[0],
        "width": source[1],
        "bytes_per_image": source[0] * source[1] * 3,
        "resize": None
        if preprocessing.mode == "as-is"
        else {
            "filter": f"{preprocessing.interpolation}, antialiased (Pillow)",
            "sides_at_least": list(default_source_size(Preprocessing(crop=preprocessing.crop), image_size)),
            "only_if_size_differs": preprocessing.mode == "auto",
        },
        "host_crop": {
            "top": f"round((height - {image_size[0]}) / 2) - {top}",
            "left": f"round((width - {image_size[1]}) / 2) - {left}",
            "of": "the resized image, halves to even",
        },
        "device_crop": {"top": top, "left": left, "height": image_size[0], "width": image_size[1]},
        "device_normalises": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
    }
