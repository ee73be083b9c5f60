"""Static AIPP: centre crop and normalization on the device, from 8-bit pixels, and what the host has to feed.

AIPP computes `(pixel - mean_chn - min_chn) * var_reci_chn`, where `mean_chn` is an integer from 0 to 255 and the other
two are float16. So 255 * mean is split: its integer part becomes `mean_chn`, which is exact, and only the rest is
rounded to float16. docs/deploy.md names the sources of these facts; nothing here has run on a device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size
from neonext_ms.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 4096


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
        InputError: a size outside 1 to 4096, or a source smaller than the image.
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
    fields |= {f"var_reci_chn_{i}": f"{1 / (255 * std):.9g}" for i, std in enumerate(preprocessing.std)}
    return "aipp_op {\n" + "".join(f"    {name}: {value}\n" for name, value in fields.items()) + "}\n"


def _split(mean: float) -> tuple[int, float]:
    """Return the integer part of 255 * mean, at most 255, and the rest."""
    integer = min(math.floor(255 * mean), 255)
    return integer, 255 * mean - integer


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
