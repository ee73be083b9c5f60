"""Labelled images that are read one by one, and the count of those that cannot be read."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import list_names, printable

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class ImageSet:
    """Labelled images, the training or the validation part of a data set.

    Attributes:
        classes: names of the classes.
        labels: class index of every image.
        natural_size: height and width in pixels of all images, or None if they vary.
    """

    classes: tuple[str, ...]
    labels: Sequence[int]
    natural_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name of an image for messages: its path, or its place in a file."""
        raise NotImplementedError

    def file(self, index: int) -> str:
        """Return the name that `neonext-validate` gives an image of a folder, `<class>/<file>`; else `name`."""
        return self.name(index)

    def read(self, index: int) -> Image.Image:
        """Read an image in mode RGB.

        Raises:
            BrokenImageError: the image cannot be read; the message names it.
        """
        raise NotImplementedError

    def renumber(self, numbers: Sequence[int]) -> None:
        """Give class i of `classes` the index `numbers[i]`; `classes` and `labels` follow."""
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        self.classes = tuple(self.classes[i] for i in order)
        self.labels = [numbers[label] for label in self.labels]


class FolderSet(ImageSet):
    """Images in one folder per class (`images.folder.find_images`).

    Args:
        root: folder of the class folders.
        cache: whether to keep decoded images in memory.
    """

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
    """Images of one size in memory.

    Args:
        pixels: uint8 (N, H, W, 3).
        labels: class index of every image.
        classes: names of the classes.
        names: name of every image.
    """

    def __init__(self, pixels: np.ndarray, labels: Sequence[int], classes: Sequence[str], names: Sequence[str]):
        self.classes = tuple(classes)
        self.labels = [int(label) for label in labels]
        _, height, width, _ = pixels.shape
        self.natural_size = height, width
        self._pixels, self._names = pixels, names

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(self._pixels[index])


class PartialSet(ImageSet):
    """Evenly spaced images of each class of another set, at least one of each.

    Args:
        images: the whole set.
        share: fraction of the images of each class.
    """

    def __init__(self, images: ImageSet, share: float):
        positions: dict[int, list[int]] = {}
        for index, label in enumerate(images.labels):
            positions.setdefault(int(label), []).append(index)
        self._indices = sorted(
            own[i * len(own) // count]
            for own in positions.values()
            for count in [max(1, round(share * len(own)))]
            for i in range(count)
        )
        self._images = images
        self.classes, self.natural_size = images.classes, images.natural_size
        self.labels = [int(images.labels[i]) for i in self._indices]

    def name(self, index: int) -> str:
        return self._images.name(self._indices[index])

    def file(self, index: int) -> str:
        return self._images.file(self._indices[index])

    def read(self, index: int) -> Image.Image:
        return self._images.read(self._indices[index])


def open_folders(
    root: Path, train_name: str = "train", val_name: str = "val", cache: bool = False
) -> tuple[FolderSet, FolderSet]:
    """Open the images of `root/<train_name>/<class>/` and `root/<val_name>/<class>/`.

    Raises:
        InputError: a folder or class is missing or empty, or the two parts have different classes.
    """
    train, val = FolderSet(root / train_name, cache), FolderSet(root / val_name, cache)
    if train.classes != val.classes:
        only_train = [f"{train_name}/{printable(name)}" for name in train.classes if name not in val.classes]
        only_val = [f"{val_name}/{printable(name)}" for name in val.classes if name not in train.classes]
        raise InputError(
            f"{root}: {train_name} and {val_name} have different class folders; {len(only_train)} exist only in the "
            f"first and {len(only_val)} only in the second. Rename, add or remove:\n{list_names(only_train + only_val)}"
        )
    return train, val


def describe_data(train: ImageSet, val: ImageSet) -> dict:
    """Return the classes, and the number and names (as a digest) of their images, as plain values for a checkpoint."""
    parts = {"train": train, "val": val}
    counts = {name: Counter(int(label) for label in images.labels) for name, images in parts.items()}
    numbers = {name: [count[i] for i in range(len(train.classes))] for name, count in counts.items()}
    names = {f"{name}_names": _name_digests(images) for name, images in parts.items()}
    return {"classes": list(train.classes), **numbers, **names}


def _name_digests(images: ImageSet) -> list[str]:
    """Return a digest of the names of the images of each class, below its folder, in their order."""
    digests = [hashlib.blake2b(digest_size=8) for _ in images.classes]
    for index, label in enumerate(images.labels):
        name = images.file(index).removeprefix(f"{images.classes[label]}/")
        digests[label].update(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape") + b"\0")
    return [digest.hexdigest() for digest in digests]


def is_description(data: object) -> bool:
    """Return whether plain values have the form of `describe_data`, or are empty; parts may be missing."""
    if not isinstance(data, dict):
        return False
    names = data.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return not data
    counts = [data[part] for part in ("train", "val") if part in data]
    digests = [data[part] for part in ("train_names", "val_names") if part in data]
    return all(isinstance(part, list) and len(part) == len(names) for part in (*counts, *digests)) and all(
        type(n) is int and n >= 0 for part in counts for n in part
    )


def check_data(recorded: Mapping, data: Mapping, source: str) -> None:
    """Check that a run is resumed with its own images.

    Args:
        recorded: `describe_data` of the checkpoint; parts of it may be missing in one of an earlier version.
        data: `describe_data` now; the order of the classes does not matter.
        source: name of the checkpoint.

    Raises:
        InputError: classes or numbers of images differ; the message lists them.
    """
    before, now = recorded.get("classes", data["classes"]), data["classes"]
    changes = [f"class {printable(name)!r} is gone" for name in before if name not in now]
    changes += [f"class {printable(name)!r} is new" for name in now if name not in before]
    for part in ("train", "val"):
        counts, old = (dict(zip(d["classes"], d[part], strict=True)) if part in d else {} for d in (data, recorded))
        changes += [
            f"class {printable(name)!r} had {old[name]} images in {part}, now {count}"
            for name, count in counts.items()
            if old.get(name, count) != count
        ]
        changes += [] if changes else _other_names(recorded, data, part)
    if changes:
        raise InputError(
            f"{source}: the run was started with other images. Restore them, or start a new run from its weights with "
            f"--init. These differ:\n{list_names(changes)}"
        )


def _other_names(recorded: Mapping, data: Mapping, part: str) -> list[str]:
    """Return the changes of the names of the images of one part, whose classes and numbers of images are the same."""
    key = f"{part}_names"
    now, old = (dict(zip(d["classes"], d[key], strict=True)) if key in d else {} for d in (data, recorded))
    changes = []
    for name, digest in now.items():
        if old.get(name, digest) != digest:
            other = next((printable(repr(other)) for other, names in old.items() if names == digest), None)
            what = f"has those of class {other}" if other else "has others now, by their names"
            changes.append(f"the images in {part} differ: class {printable(repr(name))} {what}")
    return changes


class BrokenImages:
    """Count of the broken images of a run, each counted once.

    Args:
        limit: largest number that may be skipped.
        option: option that sets the limit, for the message.
    """

    def __init__(self, limit: int, option: str = "data.broken_limit"):
        self.limit, self.option = limit, option
        self.messages: dict[str, None] = {}

    def add(self, messages: Sequence[str]) -> list[str]:
        """Record messages, one per broken image, and return the new ones.

        Raises:
            InputError: the limit is exceeded.
        """
        new = [text for text in dict.fromkeys(messages) if text not in self.messages]
        self.messages.update(dict.fromkeys(new))
        if len(self.messages) > self.limit:
            raise InputError(
                f"{len(self.messages)} images cannot be read, more than {self.option}={self.limit}. Repair or remove "
                f"them, or raise the limit:\n{list_names(self.messages)}"
            )
        return new
