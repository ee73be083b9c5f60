"""Image files as model input: what the official evaluation does to an image, and every kind of file one meets."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image, ImageOps

from neonext_ms.common.errors import InputError, nearest
from neonext_ms.common.files import explain
from neonext_ms.common.yaml_file import read_yaml

from .preprocessing import Preprocessing

# Pillow can read more, but some of those formats start other programs (EPS), and none is a photograph.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "QOI")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".ico", ".qoi"),
)
MAX_RESIZED_PIXELS = 1 << 27
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class BrokenImageError(InputError):
    """A file that cannot be read as an image; the message names it."""


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as 8-bit RGB, upright.

    EXIF orientation is applied, alpha is dropped (colours stay as they are stored), palettes, CMYK and grey become
    RGB, 16-bit grey is scaled to 8 bits (rounded), and of several frames or pages the first is taken. 32-bit integer
    pixels are taken as 8-bit values if all are at most 255 and as 16-bit values if all are at most 65535;
    floating-point pixels as fractions if all are in [0, 1] and as 8-bit values if all are in [0, 255].

    Returns:
        An image in mode "RGB".

    Raises:
        BrokenImageError: (an `InputError`) no such file, not an image, truncated, empty, absurdly large, or pixel
            values of no known scale; the message names the file.
    """
    name = os.fspath(path)
    try:
        # By an open file, so that an operating-system error is about the file and any other about its content.
        with open(path, "rb") as file:
            return _decode(file, name)
    except OSError as error:
        raise BrokenImageError(str(explain(error, path))) from error


def decode_image(content: bytes, name: str) -> Image.Image:
    """The content of an image file as `read_image` reads it; `name` is what messages call it.

    Raises:
        BrokenImageError: see `read_image`.
    """
    return _decode(io.BytesIO(content), name)


def _decode(file, name: str) -> Image.Image:
    if file.seek(0, os.SEEK_END) == 0:
        raise BrokenImageError(f"{name}: the file is empty; expected an image; replace or remove it")
    file.seek(0)
    try:
        Image.init()
        with Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            image.load()
            return to_rgb(_upright(image))
    except MemoryError:
        raise
    except InputError as error:
        raise BrokenImageError(f"{name}: {error}") from error
    except Image.UnidentifiedImageError:
        raise BrokenImageError(
            f"{name}: not an image, or damaged at its start; expected one of {', '.join(FORMATS)}; replace or remove it"
        ) from None
    except Image.DecompressionBombError as error:
        raise BrokenImageError(
            f"{name}: more pixels than any photograph has ({error}); expected at most "
            f"{2 * Image.MAX_IMAGE_PIXELS:,} pixels; scale it down"
        ) from error
    except Exception as error:
        # The decoders raise whatever the damage makes them stumble over: OSError, SyntaxError, struct.error, ...
        text = " ".join(str(error).split())[:200]
        raise BrokenImageError(
            f"{name}: broken image ({text or type(error).__name__}); expected a whole file; replace or remove it"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:
        # Damaged EXIF says nothing about the pixels, which are loaded already.
        return image
    upright.format = image.format
    return upright


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB, by the rules of `read_image`.

    Raises:
        InputError: pixel values of no known scale.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = _scaled(image, 65535)
    elif image.mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise InputError(
                f"32-bit integer pixels from {low} to {high}; expected values in 0 to 255 or 0 to 65535; convert it to "
                "8 or 16 bits"
            )
        # PNG and PNM arrive in this mode only if they have 16 bits, however dark they are.
        sixteen = image.format in ("PNG", "PPM") or high > 255
        image = _scaled(image, 65535 if sixteen else 255)
    elif image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 255:
            raise InputError(
                f"floating-point pixels from {low:g} to {high:g}; expected values in 0 to 1 or 0 to 255; convert it to "
                "8 bits"
            )
        image = _scaled(image, 1 if high <= 1 else 255)
    elif "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _scaled(image: Image.Image, largest: int) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.floor(values * (255 / largest) + 0.5).astype(np.uint8), "L")


def resized_size(original: tuple[int, int], size: tuple[int, int], crop: float) -> tuple[int, int]:
    """Height and width to which an image is scaled before the centre crop.

    Both sides cover `round(side / crop)`, and one of the two exactly; for a square target this is torchvision's
    `Resize(int(round(side / crop)))`.

    Args:
        original: height and width of the image.
        size: height and width of the model's input.
        crop: side of the crop relative to the resized image.
    """
    height, width = original
    least_h, least_w = (round(side / crop) for side in size)
    if least_h * width >= least_w * height:
        return least_h, int(least_h * width / height)
    return int(least_w * height / width), least_w


def needs_resize(original: tuple[int, int], preprocessing: Preprocessing, size: tuple[int, int]) -> bool:
    """Whether an image of `original` (height, width) is resized and cropped, rather than taken as it is."""
    return preprocessing.mode == "resize" or (preprocessing.mode == "auto" and tuple(original) != tuple(size))


def prepare(
    image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int], name: str | os.PathLike = "image"
) -> np.ndarray:
    """An image as the input of a model: resized and cropped as configured, normalised.

    Args:
        image: a Pillow image of any mode.
        preprocessing: what to do with it.
        size: height and width of the model's input.
        name: what error messages call the image.

    Returns:
        float32 (3, H, W), channels R, G, B: `(value - 255 mean) / (255 std)`.

    Raises:
        InputError: mode "as-is" and the image has another size, or the image is too elongated to be scaled.
    """
    name, (height, width) = os.fspath(name), size
    try:
        image = to_rgb(image)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    original = image.height, image.width
    if needs_resize(original, preprocessing, size):
        image = _resize_and_crop(image, preprocessing, size, name)
    elif original != (height, width):
        raise InputError(
            f"{name}: {original[0]}x{original[1]} pixels (height x width); preprocessing 'as-is' expects exactly "
            f"{height}x{width}; resize the image or use --preprocess auto"
        )
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    mean, std = (np.array([255 * v for v in values], np.float32) for values in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray((pixels - mean[:, None, None]) / std[:, None, None])


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int], name: str) -> Image.Image:
    new_h, new_w = resized_size((image.height, image.width), size, preprocessing.crop)
    if new_h * new_w > MAX_RESIZED_PIXELS:
        raise InputError(
            f"{name}: {image.height}x{image.width} pixels (height x width) would become {new_h}x{new_w} for an input "
            f"of {size[0]}x{size[1]} with crop {preprocessing.crop:g}; expected a less elongated image or a larger "
            "crop; cut the image first"
        )
    image = image.resize((new_w, new_h), _RESAMPLING[preprocessing.interpolation])
    top, left = round((new_h - size[0]) / 2.0), round((new_w - size[1]) / 2.0)
    return image.crop((left, top, left + size[1], top + size[0]))


def _load(path, preprocessing: Preprocessing, size: tuple[int, int]) -> tuple[np.ndarray, bool]:
    image = read_image(path)
    resized = needs_resize((image.height, image.width), preprocessing, size)
    return prepare(image, preprocessing, size, path), resized


def load_images(paths: Sequence[str | os.PathLike], preprocessing: Preprocessing, size: tuple[int, int]) -> np.ndarray:
    """Read and prepare image files.

    Returns:
        float32 (N, 3, H, W), in the order of `paths`.

    Raises:
        InputError: a file cannot be read or prepared; the message names it.
    """
    images = np.empty((len(paths), 3, *size), np.float32)
    for i, path in enumerate(paths):
        images[i], _ = _load(path, preprocessing, size)
    return images


@dataclass(frozen=True)
class Batch:
    """Some of the images of a list.

    Attributes:
        indices: their places in the list.
        images: float32 (N, 3, H, W).
        resized: for each, whether it was resized and cropped (True) or taken as it is.
    """

    indices: list[int]
    images: np.ndarray
    resized: list[bool]


def image_batches(
    paths: Sequence[str | os.PathLike],
    preprocessing: Preprocessing,
    size: tuple[int, int],
    batch_size: int,
    workers: int | None = None,
    on_broken: Callable[[int, BrokenImageError], None] | None = None,
) -> Iterator[Batch]:
    """Read and prepare image files in batches, in order, one batch ahead of the reader.

    Args:
        paths: the image files.
        preprocessing: what to do with each.
        size: height and width of the model's input.
        batch_size: images in a batch; the last may have fewer, and so may one with broken images.
        workers: threads that decode; by default as many as processors, at most 8.
        on_broken: called with place and error of an image that cannot be read, which is then left out; without it
            the error is raised.

    Raises:
        InputError: a file cannot be read (unless `on_broken`) or prepared; the message names it.
    """
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        numbered = enumerate(paths)
        ahead = _submit(pool, islice(numbered, batch_size), preprocessing, size)
        while ahead:
            current, ahead = ahead, _submit(pool, islice(numbered, batch_size), preprocessing, size)
            indices, arrays, resized = [], [], []
            for index, future in current:
                try:
                    array, flag = future.result()
                except BrokenImageError as error:
                    if on_broken is None:
                        raise
                    on_broken(index, error)
                    continue
                indices.append(index)
                arrays.append(array)
                resized.append(flag)
            if indices:
                yield Batch(indices, np.stack(arrays), resized)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, numbered, preprocessing: Preprocessing, size: tuple[int, int]) -> list:
    return [(index, pool.submit(_load, path, preprocessing, size)) for index, path in numbered]


def preprocessing_from_file(path: str | os.PathLike, base: Preprocessing | None = None) -> Preprocessing:
    """The preprocessing that a YAML file describes; its keys are the attributes of `Preprocessing`.

    Args:
        path: the file.
        base: values of the keys that the file leaves out; by default those of `Preprocessing()`.

    Raises:
        InputError: the file cannot be read, is not YAML, has an unknown key, or a value is out of its range; the
            message names the file, and the line of an error in the YAML.
    """
    name = os.fspath(path)
    values = read_yaml(path, "configs/eval_imagenet.yaml")
    known = list((base or Preprocessing()).to_dict())
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise InputError(f"{name}: expected lines 'key: value' with keys among {', '.join(known)}, found {found}")
    for key in values:
        if key not in known:
            raise InputError(f"{name}: unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")
    try:
        return Preprocessing.from_dict({**(base or Preprocessing()).to_dict(), **values})
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
