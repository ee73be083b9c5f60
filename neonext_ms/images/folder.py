"""Labelled images as a tree of folders, one folder per class, as torchvision's `ImageFolder` reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained
from neonext_ms.common.text import list_names

from .images import SUFFIXES


@dataclass(frozen=True)
class ImageFolder:
    """The images below `root/<class>/`.

    Attributes:
        root: root folder.
        classes: names of the class folders, sorted.
        files: paths relative to `root`, sorted within each class.
        folders: for each file, the index of its class in `classes`.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    folders: tuple[int, ...]

    def subset(self, limit: int | None) -> ImageFolder:
        """Return at most `limit` of the images, spread evenly over all of them, so that every class occurs."""
        if limit is None or limit >= len(self.files):
            return self
        chosen = [i * len(self.files) // limit for i in range(limit)]
        files, folders = tuple(self.files[i] for i in chosen), tuple(self.folders[i] for i in chosen)
        return ImageFolder(self.root, self.classes, files, folders)


def find_images(root: str | os.PathLike) -> ImageFolder:
    """Find the images in `root/<class>/**/` by their suffixes, in any case; hidden files and folders are skipped.

    Raises:
        InputError: the folder does not exist, has no class folders, or a class has no images.
    """
    root = Path(root)
    with explained(root):
        if root.is_file():
            raise InputError(f"{root}: this is a file (expected one folder per class, root/<class>/*.png)")
        entries = sorted(os.listdir(root))
    classes = [name for name in entries if not name.startswith(".") and (root / name).is_dir()]
    if not classes:
        if any(_is_image(name) for name in entries):
            problem = "images lie directly in it. Put them into one folder per class, or use neonext-predict."
        else:
            problem = "it has no folders. Check the path." if entries else "it is empty. Check the path."
        raise InputError(f"{root}: expected one folder of images per class (root/<class>/*.png), but {problem}")
    images = [_images_below(root, name) for name in classes]
    if empty := [name for name, files in zip(classes, images, strict=True) if not files]:
        raise InputError(
            f"{root}: no images in {len(empty)} of {len(classes)} class folders (expected files with the suffixes "
            f"{' '.join(SUFFIXES)}). Fill or remove:\n{list_names(empty)}"
        )
    files = tuple(file for names in images for file in names)
    folders = tuple(i for i, names in enumerate(images) for _ in names)
    return ImageFolder(root, tuple(classes), files, folders)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _images_below(root: Path, name: str) -> list[str]:
    images, seen = [], set()

    def stop(error: OSError):
        raise error

    with explained(root / name):
        for folder, subfolders, names in os.walk(root / name, followlinks=True, onerror=stop):
            # A link to a folder above would be followed without end.
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
            images += [(folder, file) for file in sorted(names) if _is_image(file)]
    # torchvision sorts by folder first, then by name.
    return [os.path.relpath(os.path.join(folder, file), root) for folder, file in sorted(images)]


def class_indices(
    folders: Sequence[str], classes: int, labels: Sequence[str] | None = None, source: str = "the folder"
) -> tuple[list[int], str]:
    """Return the model's class of each class folder.

    The class is found by label if every folder is named by one of the model's labels. Otherwise it is the position in
    sorted order if there are as many folders as classes, or the number if every name is a whole number below `classes`.

    Args:
        folders: names of the class folders, sorted.
        classes: number of classes of the model.
        labels: names of the model's classes, if it has any.
        source: name of the folder in messages.

    Returns:
        One class per folder, and the rule that applied: "labels", "sorted" or "numbers".

    Raises:
        InputError: none of the rules applies.
    """
    labels = list(labels or ())
    if labels and all(labels.count(name) == 1 for name in folders):
        return [labels.index(name) for name in folders], "labels"
    if len(folders) == classes:
        return list(range(classes)), "sorted"
    numbers = [int(name) if name.isascii() and name.isdigit() else classes for name in folders]
    if max(numbers) < classes and len(set(numbers)) == len(numbers):
        return numbers, "numbers"
    reasons = [f"{len(folders)} class folders, but the model has {classes} classes"]
    if labels:
        unknown = [name for name in folders if labels.count(name) != 1]
        reasons.append(f"{len(unknown)} folders are not named by one of the model's labels, such as {unknown[0]!r}")
    else:
        reasons.append("the model has no labels")
    wrong = [name for name, number in zip(folders, numbers, strict=True) if number >= classes]
    if wrong:
        reasons.append(f"{wrong[0]!r} is not a number from 0 to {classes - 1}")
    else:
        reasons.append("two folders have the same number")
    raise InputError(
        f"{source}: the classes of the folders cannot be determined: {'; '.join(reasons)}. Name the folders by label "
        "or by class number, or provide one folder per class."
    )
