"""Data augmentation; the caller seeds a random generator for each image and each batch.

RandAugment follows torchvision; random erasing and mixing follow timm, as in the official code. The operations are
those of Pillow and NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..config.schema import AugmentationConfig

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_CROP_ATTEMPTS = 10
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_RATIO = (0.3, 1 / 0.3)
_MAGNITUDES = 30


def augment(
    image: Image.Image,
    rng: np.random.Generator,
    config: AugmentationConfig,
    size: tuple[int, int],
    mean: np.ndarray,
    std: np.ndarray,
) -> np.ndarray:
    """Crop, flip, apply RandAugment, normalise and erase, in this order.

    Args:
        image: image in mode RGB.
        rng: random generator of this image.
        config: operations and their probabilities.
        size: height and width of the result.
        mean, std: mean and standard deviation of the channels on the scale 0 to 255, float32 (3, 1, 1).

    Returns:
        float32 (3, H, W).
    """
    if config.crop == "resized":
        image = random_resized_crop(image, rng, size, config.scale, config.ratio, _RESAMPLING[config.interpolation])
    else:
        if image.size != size[::-1]:
            image = image.resize(size[::-1], _RESAMPLING[config.interpolation])
        if config.crop == "pad" and config.pad:
            left, top = (int(rng.integers(-config.pad, config.pad + 1)) for _ in range(2))
            image = image.transform(image.size, Image.Transform.AFFINE, (1, 0, left, 0, 1, top))
    if config.flip and rng.random() < config.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.randaugment_ops:
        image = rand_augment(image, rng, config.randaugment_ops, config.randaugment_magnitude)
    pixels = (np.asarray(image, np.float32).transpose(2, 0, 1) - mean) / std
    # After normalisation as in timm; the official code erases before it.
    if config.erasing and rng.random() < config.erasing:
        erase(pixels, rng)
    return pixels


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Scale a random part of the image to `size`; the part is central if no random one fits in ten attempts.

    Args:
        image: image of any size.
        rng: random generator.
        size: height and width of the result.
        scale: smallest and largest fraction of the area.
        ratio: smallest and largest aspect ratio, width over height.
        resampling: interpolation.
    """
    width, height = image.size
    area = width * height
    for _ in range(_CROP_ATTEMPTS):
        target = area * rng.uniform(*scale)
        # Uniform in the logarithm, so that 3:4 is as likely as 4:3.
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            break
    else:
        w, h = width, height
        if width / height < ratio[0]:
            h = min(height, round(width / ratio[0]))
        elif width / height > ratio[1]:
            w = min(width, round(height * ratio[1]))
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h)).resize(size[::-1], resampling)


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)


# Name -> (largest magnitude, whether its sign is random, operation on image and magnitude). Translations are relative
# to the width or height. Shears keep the middle of the image in place, as in torchvision.
_OPERATIONS: dict[str, tuple[float, bool, Callable[[Image.Image, float], Image.Image]]] = {
    "identity": (0, False, lambda image, m: image),
    "shear_x": (0.3, True, lambda image, m: _affine(image, 1, m, -m * image.height / 2, 0, 1, 0)),
    "shear_y": (0.3, True, lambda image, m: _affine(image, 1, 0, 0, m, 1, -m * image.width / 2)),
    "translate_x": (150 / 331, True, lambda image, m: _affine(image, 1, 0, -int(m * image.width), 0, 1, 0)),
    "translate_y": (150 / 331, True, lambda image, m: _affine(image, 1, 0, 0, 0, 1, -int(m * image.height))),
    "rotate": (30, True, lambda image, m: image.rotate(m, Image.Resampling.NEAREST)),
    "brightness": (0.9, True, lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m)),
    "color": (0.9, True, lambda image, m: ImageEnhance.Color(image).enhance(1 + m)),
    "contrast": (0.9, True, lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m)),
    "sharpness": (0.9, True, lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m)),
    "posterize": (4, False, lambda image, m: ImageOps.posterize(image, 8 - round(m))),
    "solarize": (255, False, lambda image, m: ImageOps.solarize(image, math.ceil(255 - m))),
    "auto_contrast": (0, False, lambda image, m: ImageOps.autocontrast(image)),
    "equalize": (0, False, lambda image, m: ImageOps.equalize(image)),
}
OPERATIONS = tuple(_OPERATIONS)


def apply_operation(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """Apply one operation of RandAugment; `magnitude` is signed, in the unit of the operation."""
    return _OPERATIONS[name][2](image, magnitude)


def rand_augment(image: Image.Image, rng: np.random.Generator, operations: int, magnitude: int) -> Image.Image:
    """Apply `operations` random operations out of fourteen, each at `magnitude` on a scale of 0 to 30."""
    for _ in range(operations):
        name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        largest, signed, _ = _OPERATIONS[name]
        value = largest * magnitude / _MAGNITUDES
        if signed and rng.random() < 0.5:
            value = -value
        image = apply_operation(image, name, value)
    return image


def erase(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a random rectangle of a normalised image, float32 (3, H, W), with normal noise, in place."""
    _, height, width = pixels.shape
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(*_ERASE_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(_ERASE_RATIO[0]), math.log(_ERASE_RATIO[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            pixels[:, top : top + h, left : left + w] = rng.standard_normal((len(pixels), h, w), np.float32)
            return


def soft_targets(labels: np.ndarray, classes: int, smoothing: float) -> np.ndarray:
    """Return one-hot targets smoothed over all classes: float32 (N, classes)."""
    targets = np.full((len(labels), classes), smoothing / classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


def mix(
    images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, config: AugmentationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Mix a batch with itself in reverse order, by mixup or CutMix.

    Args:
        images: float32 (N, 3, H, W), not modified.
        targets: float32 (N, classes).
        rng: random generator of this batch.
        config: `mixup`, `cutmix`, `switch` and `mix_probability`.

    Returns:
        Images and targets of the same shapes.
    """
    if not (config.mixup or config.cutmix) or rng.random() >= config.mix_probability:
        return images, targets
    cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < config.switch)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))
    other = images[::-1]
    if cut:
        top, bottom, left, right = _box(images.shape[2:], share, rng)
        mixed = images.copy()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        # The box may be cut off at the edge, so the share is that of the real area.
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        mixed = images * np.float32(share) + other * np.float32(1 - share)
    return mixed, targets * np.float32(share) + targets[::-1] * np.float32(1 - share)


def _box(size: Sequence[int], share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a random box whose area is 1 - share of the image."""

    def edges(length: int) -> tuple[int, int]:
        half = int(length * math.sqrt(1 - share)) // 2
        centre = int(rng.integers(length))
        return max(0, centre - half), min(length, centre + half)

    return *edges(size[0]), *edges(size[1])


def drop_path_factors(rates: Sequence[float], count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the drop-path factor of every block and image, 0 or 1 / (1 - rate): float32 (blocks, count)."""
    kept = 1 - np.asarray(rates, np.float64)[:, None]
    return ((rng.random((len(rates), count)) < kept) / kept).astype(np.float32)
