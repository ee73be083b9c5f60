"""Generated images of discs, squares and triangles, with the class of every pixel."""

from __future__ import annotations

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size
from neonext_ms.models.architecture import STRIDE

CLASSES = ("background", "disc", "square", "triangle")
_SHAPES = 3
_NOISE = 0.08
# Normalization of the images: mean and deviation of values that are drawn evenly from 0 to 1.
_MEAN, _DEVIATION = 0.5, 0.29


def check_size(size: tuple[int, int]) -> None:
    """Raise an `InputError` for images whose smallest map the decoder cannot double back to the others."""
    if any(side % STRIDE for side in size):
        raise InputError(f"image size {format_size(size)}: both sides must be multiples of {STRIDE}, such as 64.")


def draw_batch(rng: np.random.RandomState, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw images with three shapes each; later ones hide parts of earlier ones, and all colours are random.

    Args:
        rng: source of everything random.
        count: number of images.
        size: height and width in pixels.

    Returns:
        float32 `(N, 3, H, W)`, normalized, and int32 classes `(N, H, W)`.
    """
    images = np.empty((count, 3, *size), np.float32)
    classes = np.zeros((count, *size), np.int32)
    y, x = np.mgrid[: size[0], : size[1]]
    for image, target in zip(images, classes, strict=True):
        image[:] = rng.uniform(size=(3, 1, 1))
        for _ in range(_SHAPES):
            kind = rng.randint(1, len(CLASSES))
            inside = _inside(kind, y, x, rng, min(size))
            image[:, inside] = rng.uniform(size=(3, 1))
            target[inside] = kind
        image += rng.normal(0, _NOISE, image.shape)
    return (images - _MEAN) / _DEVIATION, classes


def _inside(kind: int, y: np.ndarray, x: np.ndarray, rng: np.random.RandomState, side: int) -> np.ndarray:
    """Return which pixels a shape of random place and size covers, bool `(H, W)`."""
    radius = rng.uniform(0.12, 0.25) * side
    y, x = y - rng.uniform(0, y.shape[0]), x - rng.uniform(0, y.shape[1])
    if CLASSES[kind] == "disc":
        return y * y + x * x < radius * radius
    if CLASSES[kind] == "square":
        return (np.abs(y) < radius) & (np.abs(x) < radius)
    return (y < radius) & (np.abs(x) < (y + radius) / 2)


def mean_iou(predicted: np.ndarray, classes: np.ndarray) -> float:
    """Return the mean over the classes of intersection over union of all pixels."""
    ratios = []
    for number in range(len(CLASSES)):
        ours, theirs = predicted == number, classes == number
        if union := np.count_nonzero(ours | theirs):
            ratios.append(np.count_nonzero(ours & theirs) / union)
    return float(np.mean(ratios))
