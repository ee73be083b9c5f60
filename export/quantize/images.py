"""Images to calibrate and to measure on: a folder, prepared images in a `.npy` file, or the digits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.npy import read_npy
from neonext_ms.common.text import format_size, plural, printable
from neonext_ms.images.folder import find_images, match_classes, rule_note
from neonext_ms.images.images import SUFFIXES, image_batches, prepare
from neonext_ms.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from neonext_ms.training.data.image_sets import ImageSet

DIGITS: Final = "digits"


class Images:
    """Images that are read batch by batch, as often as needed.

    Attributes:
        source: folder, file or name that they come from.
        labels: class of each image, or None where it is not known.
        note: remark on them for the user, or "".
    """

    source: str
    labels: Sequence[int] | None = None
    note: str = ""

    def __len__(self) -> int:
        raise NotImplementedError

    def batches(self, size: int, count: int | None = None) -> Iterator[np.ndarray]:
        """Yield prepared images, float32 `(N, 3, H, W)`, all finite.

        Args:
            size: images in a batch; the last one may have fewer.
            count: number of images to use, spread evenly over all of them, as a folder has them class by class; None
                for all.
        """
        return self._chosen(spread(len(self), count), size)

    def _chosen(self, indices: Sequence[int], size: int) -> Iterator[np.ndarray]:
        raise NotImplementedError


class _Files(Images):
    def __init__(self, source: str, paths: Sequence[str], preprocessing: Preprocessing, size: tuple[int, int]):
        self.source, self._paths, self._preprocessing, self._size = source, paths, preprocessing, size

    def __len__(self) -> int:
        return len(self._paths)

    def _chosen(self, indices: Sequence[int], size: int) -> Iterator[np.ndarray]:
        paths = [self._paths[i] for i in indices]
        for batch in image_batches(paths, self._preprocessing, self._size, size):
            yield batch.images


class ArrayImages(Images):
    """Prepared images in memory.

    Args:
        source: name of the images.
        images: `(N, 3, H, W)`.
        labels: class of each image, if known.
    """

    def __init__(self, source: str, images: np.ndarray, labels: Sequence[int] | None = None):
        self.source, self.images, self.labels = source, images, labels

    def __len__(self) -> int:
        return len(self.images)

    def _chosen(self, indices: Sequence[int], size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), size):
            yield np.ascontiguousarray(self.images[indices[start : start + size]], np.float32)


def open_images(
    source: str,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    classes: int,
    labels: Sequence[str] | None = None,
    count: int | None = None,
    validation: bool = False,
) -> Images:
    """Open images.

    Args:
        source: a folder of images or of class folders, a `.npy` file of prepared images `(N, 3, H, W)`, or "digits".
        size: height and width of the network's input.
        preprocessing: transformation of every image.
        classes: number of classes of the network.
        labels: recorded names of the classes, if there are any.
        count: number of images to use, spread evenly over all of them; None for all.
        validation: whether the class of every image must be known; of the digits, the validation part is used.

    Raises:
        InputError: no images, images that are not such, or unknown classes where they must be known.
    """
    if source == DIGITS:
        part, prepared = _digits(size, preprocessing, count, validation)
        prepared.labels, _ = _labels(prepared.labels or (), part.classes, classes, labels, source, validation)
        if os.path.exists(source):
            prepared.note = f"{source} are those of this package. Write ./{source} for the folder here"
        return prepared
    if source.lower().endswith(".npy"):
        if validation:
            raise InputError(f"{source}: a .npy file has no labels. Name a folder with one folder per class.")
        return _npy(source, size, preprocessing, count)
    root = Path(source)
    flat = [] if validation or not root.is_dir() else _images_in(root)
    if flat:
        _check_flat(root, len(flat))
        paths = [flat[i] for i in spread(len(flat), count)]
        return _Files(source, paths, preprocessing, size)
    if not validation and root.is_dir() and not any(path.is_dir() for path in root.iterdir()):
        raise InputError(
            f"{source}: no images in it (expected files with the suffixes {' '.join(SUFFIXES)}, or one folder per "
            "class). Check the path."
        )
    tree = find_images(root).subset(count)
    images = _Files(source, [str(tree.root / file) for file in tree.files], preprocessing, size)
    images.labels, rule = _labels(tree.folders, tree.classes, classes, labels, source, validation)
    if rule:
        images.note = rule_note(source, rule)
    return images


def _labels(
    folders: Sequence[int],
    names: Sequence[str],
    classes: int,
    labels: Sequence[str] | None,
    source: str,
    validation: bool,
) -> tuple[list[int] | None, str]:
    """Return the class of each image from the class folder that it is in, and the rule that applied.

    Where the folders are not the network's classes, these are None and "".
    """
    try:
        numbers, rule = match_classes(names, classes, labels, None, printable(source), None)
    except InputError:
        if validation:
            raise
        return None, ""
    return [numbers[folder] for folder in folders], rule


def _images_in(root: Path) -> list[str]:
    """Return the image files that lie directly in a folder."""
    names = sorted(os.listdir(root))
    return [str(root / name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]


def _check_flat(root: Path, images: int) -> None:
    """Reject a folder with images directly in it and below: a stray one would take the place of all class folders."""
    try:
        below = len(find_images(root).files)
    except InputError:
        return
    raise InputError(
        f"{root}: {plural(images, 'image')} directly in it and {below} in its folders. Name a folder that has images "
        "in one of these ways only."
    )


def spread(total: int, count: int | None) -> list[int]:
    """Return the indices of at most `count` of all images, spread evenly over them; None for all."""
    return list(range(total)) if count is None or count >= total else [i * total // count for i in range(count)]


def _npy(source: str, size: tuple[int, int], preprocessing: Preprocessing, count: int | None) -> Images:
    array = read_npy(source)
    if array.dtype.kind != "f" or array.ndim != 4 or array.shape[1:] != (3, *size):
        raise InputError(
            f"{source}: {array.dtype} of shape {format_size(array.shape)}, expected prepared images in floating point, "
            f"Nx3x{format_size(size)}. Prepare them for this size, or name a folder of images."
        )
    with np.errstate(over="ignore"):
        chosen = spread(len(array), count)
        array = array[chosen].astype(np.float32)
    bad = [i for i, image in zip(chosen, array, strict=True) if not np.isfinite(image).all()]
    if bad:
        raise InputError(
            f"{source}: {plural(len(bad), 'image')} with values that are not finite numbers, the first is image "
            f"{bad[0]}. Prepare the images again."
        )
    images = ArrayImages(source, array)
    images.note = _unlikely(source, array, preprocessing)
    return images


def _unlikely(source: str, array: np.ndarray, preprocessing: Preprocessing) -> str:
    """Return a note on prepared images that no picture gives, such as pixels from 0 to 255; else an empty text."""
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    low, high = float((-mean / std).min()), float(((1 - mean) / std).max())
    margin = 0.01 * (high - low)
    if not array.size or (array.min() >= low - margin and array.max() <= high + margin):
        return ""
    return (
        f"{source}: values from {array.min():.3g} to {array.max():.3g}, but the network's preprocessing makes "
        f"{low:.3g} to {high:.3g} of any picture. The scales are right for such values only"
    )


def _digits(
    size: tuple[int, int], preprocessing: Preprocessing, count: int | None, validation: bool
) -> tuple[ImageSet, Images]:
    """Return a part of the digits, and its images with their classes as labels."""
    from neonext_ms.training.config.schema import DataConfig
    from neonext_ms.training.data.datasets import open_dataset

    part = open_dataset(DataConfig(dataset=DIGITS))[int(validation)]
    chosen = spread(len(part), count)
    images = np.stack([prepare(part.read(i), preprocessing, size, part.name(i)) for i in chosen])
    return part, ArrayImages(DIGITS, images, [part.labels[i] for i in chosen])
