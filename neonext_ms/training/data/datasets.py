"""The one table of data sets: labelled images with names, split into training and validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neonext_ms.common.errors import InputError, UsageError, listed
from neonext_ms.common.files import explained

from ..config.schema import DataConfig

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class ImageSet:
    """Labelled images that are read one by one.

    Attributes:
        classes: names of the classes.
        labels: class of every image.
        natural_size: height and width in pixels that all images have, or None.
    """

    classes: tuple[str, ...]
    labels: Sequence[int]
    natural_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What messages call an image: its file, or its place in a file."""
        raise NotImplementedError

    def file(self, index: int) -> str:
        """What `neonext-validate` calls an image of a folder: `<class>/<file>`; else as `name`."""
        return self.name(index)

    def read(self, index: int) -> Image.Image:
        """An image in mode RGB.

        Raises:
            BrokenImageError: it cannot be read; the message names it.
        """
        raise NotImplementedError


class FolderSet(ImageSet):
    """Images in one folder per class (`imagefolder.find_images`)."""

    def __init__(self, root: Path, cache: bool = False):
        from neonext_ms.images.folder import find_images

        tree = find_images(root)
        self.classes = tree.classes
        self.labels = tree.folders
        self._files = tree.files
        self._paths = [str(tree.root / file) for file in tree.files]
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    def name(self, index: int) -> str:
        return self._paths[index]

    def file(self, index: int) -> str:
        return self._files[index]

    def read(self, index: int) -> Image.Image:
        from neonext_ms.images.images import read_image

        if self._cache is None:
            return read_image(self._paths[index])
        if index not in self._cache:
            self._cache[index] = read_image(self._paths[index])
        return self._cache[index]


class ArraySet(ImageSet):
    """Images of one size in memory: uint8 (N, H, W, 3)."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int], classes: Sequence[str], names: Sequence[str]):
        self.classes = tuple(classes)
        self.labels = [int(label) for label in labels]
        self.natural_size = pixels.shape[1:3]
        self._pixels, self._names = pixels, names

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(self._pixels[index])


DIGITS_SIZE = 64
DIGITS_VALIDATION = 360


def _digits(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, enlarged to 64x64."""
    import numpy as np
    from PIL import Image

    with np.load(Path(__file__).with_name("digits.npz")) as file:
        grey, labels = np.round(file["pixels"] * (255 / 16)).astype(np.uint8), file["labels"]
    large = [Image.fromarray(g).resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC) for g in grey]
    pixels = np.repeat(np.stack([np.asarray(image) for image in large])[..., None], 3, axis=3)
    order = np.random.RandomState(0).permutation(len(labels))
    parts = np.sort(order[:-DIGITS_VALIDATION]), np.sort(order[-DIGITS_VALIDATION:])
    classes = [str(digit) for digit in range(10)]
    train, val = (ArraySet(pixels[p], labels[p], classes, [f"{labels[i]}/{i:04d}.png" for i in p]) for p in parts)
    return train, val


def write_digits(root: Path) -> None:
    """Write the digits as `root/train/<class>/*.png` and `root/val/<class>/*.png`.

    Raises:
        InputError: a file cannot be written.
    """
    for part, images in zip(("train", "val"), _digits(DataConfig()), strict=True):
        for i in range(len(images)):
            path = root / part / images.name(i)
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                images.read(i).save(path)


def _folders(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    root = _root(config, "the folder that holds train/<class>/*.jpg and val/<class>/*.jpg")
    return open_folders(root, config.train, config.val, config.cache)


def open_folders(
    root: Path, train_name: str = "train", val_name: str = "val", cache: bool = False
) -> tuple[FolderSet, FolderSet]:
    """The images of `root/<train_name>/<class>/` and `root/<val_name>/<class>/`.

    Raises:
        InputError: a folder or class is missing or empty, or the two have different classes.
    """
    train, val = FolderSet(root / train_name, cache), FolderSet(root / val_name, cache)
    if train.classes != val.classes:
        only_train = [f"{train_name}/{name}" for name in train.classes if name not in val.classes]
        only_val = [f"{val_name}/{name}" for name in val.classes if name not in train.classes]
        raise InputError(
            f"{root}: {train_name} and {val_name} must have the same class folders; {len(only_train)} are only in "
            f"the first and {len(only_val)} only in the second; rename, add or remove:\n{listed(only_train + only_val)}"
        )
    return train, val


CIFAR_SIZE = 32


def _cifar(config: DataConfig, folder: str, files, names_file: str, label_bytes: int) -> tuple[ImageSet, ImageSet]:
    root = _root(config, f"the folder of the binary version, {folder}")
    if (root / folder).is_dir():
        root = root / folder
    with explained(root / names_file):
        classes = (root / names_file).read_text(encoding="utf-8").split()
    return tuple(_cifar_part(root, names, classes, label_bytes) for names in files)


def _cifar_part(root: Path, names: Sequence[str], classes: Sequence[str], label_bytes: int) -> ImageSet:
    import numpy as np

    record = label_bytes + 3 * CIFAR_SIZE**2
    records, places = [], []
    for name in names:
        with explained(root / name):
            values = np.fromfile(root / name, np.uint8)
        if not len(values) or len(values) % record:
            raise InputError(
                f"{root / name}: {len(values)} bytes; expected images of {record} bytes each; get the binary "
                "version of the data set again"
            )
        records.append(values.reshape(-1, record))
        places += [f"{name} image {i}" for i in range(len(records[-1]))]
    whole = np.concatenate(records)
    # Of CIFAR-100's two labels the second is the fine one.
    labels = whole[:, label_bytes - 1]
    if labels.max() >= len(classes):
        raise InputError(f"{root}: an image has the label {labels.max()}, but there are {len(classes)} classes")
    pixels = whole[:, label_bytes:].reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE).transpose(0, 2, 3, 1)
    return ArraySet(np.ascontiguousarray(pixels), labels, classes, places)


def _cifar10(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    files = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]
    return _cifar(config, "cifar-10-batches-bin", files, "batches.meta.txt", 1)


def _cifar100(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    return _cifar(config, "cifar-100-binary", (["train.bin"], ["test.bin"]), "fine_label_names.txt", 2)


def _root(config: DataConfig, what: str) -> Path:
    if config.path is None:
        raise UsageError(f"data.path is not set; add data.path=FOLDER, {what}")
    return Path(config.path)


def _records(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    from .mindrecord import open_records

    return open_records(config, _root(config, "the folder that neonext-mindrecord wrote"))


# Name -> the training and the validation images.
DATASETS: dict[str, Callable[[DataConfig], tuple[ImageSet, ImageSet]]] = {
    "digits": _digits,
    "imagefolder": _folders,
    "mindrecord": _records,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}


def open_dataset(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images of a configuration.

    Raises:
        InputError: the data is not there or not as expected; the message names the file or folder.
        UsageError: `data.path` is missing.
    """
    return DATASETS[config.dataset](config)
