"""The data sets by name: digits, folders of images, MindRecord files, CIFAR."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import check_regular, explained, read_text, staging

from ..config.schema import DataConfig
from .image_sets import ArraySet, ImageSet, PartialSet, open_folders
from .mindrecord import RecordSet

_DIGITS_SIZE = 64
_DIGITS_VALIDATION = 360
_CIFAR_SIZE = 32


def _digits(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Open the 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, enlarged to 64x64."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        grey, labels = np.round(file["pixels"] * (255 / 16)).astype(np.uint8), file["labels"]
    large = [Image.fromarray(g).resize((_DIGITS_SIZE, _DIGITS_SIZE), Image.Resampling.BICUBIC) for g in grey]
    pixels = np.repeat(np.stack([np.asarray(image) for image in large])[..., None], 3, axis=3)
    order = np.random.RandomState(0).permutation(len(labels))

    def part(indices: np.ndarray) -> ArraySet:
        names = [f"{labels[i]}/{i:04d}.png" for i in indices]
        return ArraySet(pixels[indices], labels[indices], [str(digit) for digit in range(10)], names)

    return part(np.sort(order[:-_DIGITS_VALIDATION])), part(np.sort(order[-_DIGITS_VALIDATION:]))


def write_digits(root: Path) -> None:
    """Write the digits as `root/train/<class>/*.png` and `root/val/<class>/*.png`, atomically.

    Raises:
        InputError: the folder has content already, or cannot be written; no partial files are left behind then.
    """
    with explained(root):
        if root.is_symlink() or (root.exists() and (not root.is_dir() or any(root.iterdir()))):
            raise InputError(f"{root}: exists already. Choose another folder, or remove it first.")
    with staging(root.parent) as stage:
        staged = stage / "digits"
        with explained(root):
            for part, images in zip(("train", "val"), _digits(DataConfig()), strict=True):
                for i in range(len(images)):
                    path = staged / part / images.name(i)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    images.read(i).save(path)
            # Replaces an empty folder.
            os.rename(staged, root)


def _folders(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    root = _root(config, "the folder that contains train/<class>/*.jpg and val/<class>/*.jpg")
    return open_folders(root, config.train, config.val, config.cache)


def _records(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    root = _root(config, "the folder that neonext-mindrecord wrote")
    return RecordSet(root, config.train), RecordSet(root, config.val)


def _cifar10(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    files = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]
    return _cifar(config, "cifar-10-batches-bin", files, "batches.meta.txt", 1)


def _cifar100(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    return _cifar(config, "cifar-100-binary", (["train.bin"], ["test.bin"]), "fine_label_names.txt", 2)


def _cifar(
    config: DataConfig, folder: str, files: tuple[list[str], list[str]], names_file: str, label_bytes: int
) -> tuple[ImageSet, ImageSet]:
    root = _root(config, f"the folder of the binary version, {folder}")
    if (root / folder).is_dir():
        root = root / folder
    # A name may have blanks in it.
    classes = [line.strip() for line in read_text(root / names_file).splitlines() if line.strip()]
    return _cifar_part(root, files[0], classes, label_bytes), _cifar_part(root, files[1], classes, label_bytes)


def _cifar_part(root: Path, files: Sequence[str], classes: Sequence[str], label_bytes: int) -> ImageSet:
    record = label_bytes + 3 * _CIFAR_SIZE**2
    parts, names = [], []
    for file in files:
        check_regular(root / file)
        with explained(root / file):
            values = np.fromfile(root / file, np.uint8)
        if not len(values) or len(values) % record:
            raise InputError(
                f"{root / file}: wrong size (got {len(values)} bytes, expected images of {record} bytes each). "
                "Download the binary version of the data set again."
            )
        parts.append(values.reshape(-1, record))
        names += [f"{file} image {i}" for i in range(len(parts[-1]))]
    records = np.concatenate(parts)
    # CIFAR-100 has two labels; the second one is the fine label.
    labels = records[:, label_bytes - 1]
    if labels.max() >= len(classes):
        raise InputError(f"{root}: wrong label (got {labels.max()}, expected one of {len(classes)} classes)")
    pixels = records[:, label_bytes:].reshape(-1, 3, _CIFAR_SIZE, _CIFAR_SIZE).transpose(0, 2, 3, 1)
    return ArraySet(np.ascontiguousarray(pixels), labels.tolist(), classes, names)


def _root(config: DataConfig, what: str) -> Path:
    if config.path is None:
        raise UsageError(f"data.path is not set. Add data.path=FOLDER, {what}.")
    return Path(config.path)


# Name -> function that opens the training and the validation images.
DATASETS: dict[str, Callable[[DataConfig], tuple[ImageSet, ImageSet]]] = {
    "digits": _digits,
    "imagefolder": _folders,
    "mindrecord": _records,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}


def open_dataset(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Open the training and the validation images of a configuration.

    Raises:
        InputError: data is missing or has another form than expected; the message names the file or folder.
        UsageError: `data.path` is missing.
    """
    train, val = DATASETS[config.dataset](config)
    return (train if config.share == 1 else PartialSet(train, config.share)), val
