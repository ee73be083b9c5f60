"""Image files as model input: reading of many formats, and the preprocessing of the official evaluation."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import check_regular, explain
from neonext_ms.common.processors import processors
from neonext_ms.common.text import format_size, one_line, printable

from .preprocessing import Preprocessing

# Pillow reads more formats, but some of them start other programs (EPS), and none holds photographs.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "QOI")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".ico", ".qoi"),
)
MAX_RESIZED_PIXELS = 1 << 27
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
_SCAN = 0xDA
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_KIND = 258, 262, 339
_SIGNED = 2
_MOST_CONVERTED = 1 << 22
_TILE_SIDES = (322, 323)
# A small file may stand for an image of any size. Photographs of many pixels have a byte for a few dozen of them at
# least, tiles not much larger than the image, and up to about a dozen scans, each of which takes the time of an image.
_SMALL, _PIXELS_PER_BYTE = 1 << 25, 100
_SMALL_TILE = 1 << 22
_SCANS, _SCANNED_PIXELS = 16, 1 << 30
_NO_MEMORY = "too large for the memory that is free here. Scale it down."
_MAX_BARE_BYTES = 1 << 28
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class BrokenImageError(InputError):
    """An error for a file that cannot be read or used as an image; the message names the file."""


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as 8-bit RGB with its EXIF orientation applied.

    Alpha is dropped (the stored colours stay), palettes, CMYK and grey become RGB, grey of 12 and 16 bits is scaled to
    8 bits (rounded), and the first of several frames or pages is taken. 32-bit integer pixels count as 8-bit values if
    all are at most 255 and as 16-bit values if all are at most 65535. Floating-point pixels count as fractions if all
    are in [0, 1] and as 8-bit values if all are in [0, 255].

    Returns:
        An image in mode "RGB".

    Raises:
        BrokenImageError: (an `InputError`) the file is missing, not an image, truncated, empty or too large, or its
            pixel values have no known scale; the message names the file.
    """
    name = printable(os.fspath(path))
    try:
        check_regular(path)
        # The file is opened here, so that an OSError is about the file and any other error about its content.
        with open(path, "rb") as file:
            return _decode(file, name)
    except BrokenImageError:
        raise
    except OSError as error:
        raise BrokenImageError(str(explain(error, name))) from error
    except InputError as error:
        raise BrokenImageError(printable(error)) from error


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode the content of an image file like `read_image`; `name` is the name in messages.

    Raises:
        BrokenImageError: see `read_image`.
    """
    return _decode(io.BytesIO(content), printable(name))


def _decode(file: BinaryIO, name: str) -> Image.Image:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise BrokenImageError(f"{name}: the file is empty. Replace or remove it.")
    file.seek(0)
    start = file.read(len(_PNG))
    parsed = size <= _MAX_BARE_BYTES and start.startswith((_PNG, _JPEG))
    content = start + file.read() if parsed else b""
    if problem := _damage(content):
        raise BrokenImageError(f"{name}: broken image ({problem}). Replace or remove it.")
    try:
        return _open(file, name)
    except BrokenImageError:
        # Pillow gives up at long texts and damaged colour profiles, which say nothing about the pixels.
        bare = _without_metadata(content)
        if bare is None:
            raise
    return _open(io.BytesIO(bare), name)


def _damage(content: bytes) -> str:
    """Return what is wrong with the pixels of a PNG or JPEG file that Pillow decodes nevertheless; empty if nothing is.

    Pillow compares no checksums of pixels. Of a file that ends in zeros, as after an interrupted download or a power
    cut, it makes an image.
    """
    if content.startswith(_JPEG):
        *_, (marker, at, _) = _jpeg_segments(content)
        return "" if marker != _SCAN or _JPEG_END in content[at:] else "the end of the image is missing"
    for kind, at, end in _png_chunks(content):
        if kind in (b"IHDR", b"PLTE", b"IDAT") and end <= len(content):
            checksum = zlib.crc32(memoryview(content)[at + 4 : end - 4])
            if checksum != struct.unpack_from(">I", content, end - 4)[0]:
                return "the checksum of its pixels differs"
    return ""


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of every chunk of a PNG file; the last one may end behind the file."""
    at = len(_PNG)
    while at + 12 <= len(content):
        end = at + 12 + struct.unpack_from(">I", content, at)[0]
        yield content[at + 4 : at + 8], at, end
        at = end


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of every segment of a JPEG file; the last one is all from the pixels on (`_SCAN`)."""
    at, marker = len(_JPEG), 0
    while content[at : at + 1] == b"\xff" and at + 4 <= len(content):
        marker = content[at + 1]
        if marker == _SCAN:
            break
        # A marker may follow fill bytes; any other is followed by its size.
        end = at + (1 if marker == 0xFF else 2 + struct.unpack_from(">H", content, at + 2)[0])
        yield marker, at, end
        at, marker = end, 0
    yield marker, at, len(content)


def _without_metadata(content: bytes) -> bytes | None:
    """Return a PNG or JPEG file without what is not needed for its pixels; None if it has nothing of that kind."""
    kept = []
    if content.startswith(_PNG):
        end = len(_PNG)
        for kind, at, end in _png_chunks(content):
            if kind in _PNG_CHUNKS:
                kept.append(content[at:end])
        kept = [_PNG, *kept, content[end:]]
    elif content.startswith(_JPEG):
        kept = [_JPEG]
        for marker, at, end in _jpeg_segments(content):
            segment = content[at:end]
            # APP1 has the orientation, APP14 the colour space. The other APP segments and comments are dropped.
            needed = segment[4:10] == b"Exif\0\0" or (segment[4:9] == b"Adobe" and len(segment) >= 16)
            if needed or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
                kept.append(segment)
    bare = b"".join(kept)
    return bare if len(bare) < len(content) else None


def _open(file: BinaryIO, name: str) -> Image.Image:
    file.seek(0)
    try:
        Image.init()
        with Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            _check_expansion(image, file)
            image.load()
            bits, inverted = _tiff_samples(image)
            upright = _upright(image)
            if upright.mode == "I;16" and bits < 16:
                upright = _scaled(upright, 2**bits - 1)
            rgb = to_rgb(upright)
            return ImageOps.invert(rgb) if inverted else rgb
    except MemoryError as error:
        raise BrokenImageError(f"{name}: {_NO_MEMORY}") from error
    except InputError as error:
        raise BrokenImageError(f"{name}: {error}") from error
    except Image.UnidentifiedImageError:
        raise BrokenImageError(
            f"{name}: not an image, or damaged at its start (expected {', '.join(FORMATS)}). Replace or remove it."
        ) from None
    except Image.DecompressionBombError as error:
        raise BrokenImageError(f"{name}: more pixels than any photograph has ({error}). Scale it down.") from error
    except Exception as error:
        # A damaged file can raise anything in the decoders: OSError, SyntaxError, struct.error, ...
        raise BrokenImageError(f"{name}: broken image ({one_line(error)}). Replace or remove it.") from error


def _check_expansion(image: Image.Image, file: BinaryIO) -> None:
    """Reject a small file that would take the memory or the time of a huge image.

    Raises:
        InputError: it would.
    """
    pixels = image.width * image.height
    # Decoders go on where the file stands.
    at = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    scans = file.read().count(bytes((0xFF, _SCAN))) if pixels * _SCANS > _SMALL and file.read(2) == _JPEG else 1
    file.seek(at)
    tiles = [image.tag_v2.get(tag) or 1 for tag in _TILE_SIDES] if hasattr(image, "tag_v2") else [1]
    if pixels > max(_SMALL, _PIXELS_PER_BYTE * size):
        raise InputError(f"{size:,} bytes expand to {pixels:,} pixels, more than of any photograph. Scale it down.")
    if math.prod(tiles) > max(_SMALL_TILE, 4 * pixels):
        raise InputError(f"its tiles of {format_size(tiles)} are far larger than the image. Save it without tiles.")
    if scans > _SCANS and scans * pixels > _SCANNED_PIXELS:
        raise InputError(f"its pixels are scanned {scans:,} times, as no camera does. Save it again.")


def _tiff_samples(image: Image.Image) -> tuple[int, bool]:
    """Return the bits of a TIFF file's samples, and whether Pillow left white as 0; (16, False) for another format.

    Raises:
        InputError: the samples are signed, so that it is not known which value is black.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16, False
    bits, kind, photometric = (image.tag_v2.get(tag) for tag in (_TIFF_BITS, _TIFF_KIND, _TIFF_PHOTOMETRIC))
    bits = min(bits or (1,))
    if _SIGNED in (kind or ()) and bits < 32:
        raise InputError("signed pixels of unknown scale. Convert it to 8 or 16 bits without sign.")
    return bits, photometric == 0 and image.mode in ("I;16", "I;16B", "F")


def _upright(image: Image.Image) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:
        # The pixels are loaded already, so damaged EXIF does no harm.
        return image
    upright.format = image.format
    return upright


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB by the rules of `read_image`.

    Raises:
        InputError: the pixel values have no known scale.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = _scaled(image, 65535)
    elif image.mode == "I":
        low, high = _extremes(image)
        if low < 0 or high > 65535:
            raise InputError(
                f"32-bit integer pixels of unknown scale (got {low:.0f} to {high:.0f}, expected 0 to 255 or 0 to "
                "65535). Convert it to 8 or 16 bits."
            )
        # Pillow opens PNG and PNM in this mode only if they have 16 bits, however dark they are.
        sixteen = image.format in ("PNG", "PPM") or high > 255
        image = _scaled(image, 65535 if sixteen else 255)
    elif image.mode == "F":
        low, high = _extremes(image)
        if not 0 <= low <= high <= 255:
            raise InputError(
                f"floating-point pixels of unknown scale (got {low:g} to {high:g}, expected 0 to 1 or 0 to 255). "
                "Convert it to 8 bits."
            )
        image = _scaled(image, 1 if high <= 1 else 255)
    elif "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _extremes(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    return float(values.min()), float(values.max())


def _scaled(image: Image.Image, largest: int) -> Image.Image:
    values = np.asarray(image)
    result = np.empty(values.shape, np.uint8)
    # In parts: in float64, a large image would need eight times its memory.
    for part, scaled in zip(_parts(values), _parts(result), strict=True):
        scaled[...] = np.floor(part.astype(np.float64) * (255 / largest) + 0.5)
    return Image.fromarray(result, "L")


def _parts(values: np.ndarray) -> list[np.ndarray]:
    """Return views of an array of pixels that are small enough to convert."""
    return np.array_split(values, -(-values.size // _MOST_CONVERTED) or 1, axis=int(values.shape[1] > values.shape[0]))


def resized_size(original: tuple[int, int], size: tuple[int, int], crop: float) -> tuple[int, int]:
    """Return the height and width to which an image is resized before the centre crop.

    Both sides are at least `round(side / crop)`, and one of the two is exactly that. For a square target this is
    torchvision's `Resize(int(round(side / crop)))`.

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
    """Return whether an image of this height and width is resized and cropped instead of used unchanged."""
    return preprocessing.mode == "resize" or (preprocessing.mode == "auto" and tuple(original) != tuple(size))


def prepare(
    image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int], name: str | os.PathLike = "image"
) -> np.ndarray:
    """Resize, crop and normalize an image into the input of a model.

    Args:
        image: Pillow image of any mode.
        preprocessing: transformation to apply.
        size: height and width of the model's input.
        name: name of the image in messages.

    Returns:
        float32 (3, H, W), channels R, G, B: `(value - 255 mean) / (255 std)`.

    Raises:
        InputError: the mode is "as-is" and the image has another size, or the image is too elongated to be resized.
    """
    name = printable(os.fspath(name))
    try:
        image = to_rgb(image)
    except InputError as error:
        raise BrokenImageError(f"{name}: {error}") from error
    original = image.height, image.width
    if needs_resize(original, preprocessing, size):
        image = _resize_and_crop(image, preprocessing, size, name)
    elif original != tuple(size):
        raise InputError(
            f"{name}: {format_size(original)} pixels (height x width), but preprocessing 'as-is' expects exactly "
            f"{format_size(size)}. Resize the image or use --preprocess auto."
        )
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    mean, std = (np.array([255 * v for v in values], np.float32) for values in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray((pixels - mean[:, None, None]) / std[:, None, None])


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int], name: str) -> Image.Image:
    new_h, new_w = resized_size((image.height, image.width), size, preprocessing.crop)
    if new_h * new_w > MAX_RESIZED_PIXELS:
        raise BrokenImageError(
            f"{name}: too elongated; {image.height}x{image.width} pixels (height x width) would become {new_h}x{new_w} "
            f"for an input of {format_size(size)} with crop {preprocessing.crop:g}. Cut the image first, or use a "
            "larger crop."
        )
    try:
        image = image.resize((new_w, new_h), _RESAMPLING[preprocessing.interpolation])
    except MemoryError as error:
        raise BrokenImageError(f"{name}: {_NO_MEMORY}") from error
    top, left = round((new_h - size[0]) / 2.0), round((new_w - size[1]) / 2.0)
    return image.crop((left, top, left + size[1], top + size[0]))


def _load(path, preprocessing: Preprocessing, size: tuple[int, int]) -> tuple[np.ndarray, bool]:
    image = read_image(path)
    resized = needs_resize((image.height, image.width), preprocessing, size)
    return prepare(image, preprocessing, size, path), resized


def load_images(paths: Sequence[str | os.PathLike], preprocessing: Preprocessing, size: tuple[int, int]) -> np.ndarray:
    """Read and prepare image files.

    Args:
        paths: image files.
        preprocessing: transformation of every image.
        size: height and width of the model's input.

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
    """A batch of prepared images from a list.

    Attributes:
        indices: positions of the images in the list.
        images: float32 (N, 3, H, W).
        resized: whether each image was resized and cropped.
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
    """Read and prepare image files in batches, in order, one batch ahead of the consumer.

    Args:
        paths: image files.
        preprocessing: transformation of every image.
        size: height and width of the model's input.
        batch_size: images in a batch; the last batch and one with broken images may have fewer.
        workers: decoding threads (default: `processors()`, at most 8).
        on_broken: function that receives position and error of an image that cannot be read, which is then left out;
            the error is raised if None.

    Raises:
        InputError: a file cannot be read (unless `on_broken` is set) or prepared; the message names it.
    """
    pool = ThreadPoolExecutor(workers or min(8, processors()))
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
        # A thread may wait for a dead network drive; an interrupted command must not wait for the thread.
        pool.shutdown(wait=False, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, numbered, preprocessing: Preprocessing, size: tuple[int, int]) -> list:
    return [(index, pool.submit(_load, path, preprocessing, size)) for index, path in numbered]
