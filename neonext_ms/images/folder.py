"""Labelled images as a tree of folders, one folder per class, read as torchvision's `ImageFolder` reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neonext_ms.common.errors import InputError, listed
from neonext_ms.common.files import explained

from .images import SUFFIXES


@dataclass(frozen=True)
class ImageFolder:
    """Images below `root/<class>/`.

    Attributes:
        root: the folder.
        classes: names of the class folders, sorted.
        files: paths relative to `root`, sorted within each class.
        folders: for each file, the place of its class in `classes`.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    folders: tuple[int, ...]

    def subset(self, limit: int | None) -> ImageFolder:
        """At most `limit` of the images, spread evenly over all of them, so that every class is met."""
        if limit is None or limit >= len(self.files):
            return self
        chosen = [i * len(self.files) // limit for i in range(limit)]
        files, folders = (tuple(values[i] for i in chosen) for values in (self.files, self.folders))
        return ImageFolder(self.root, self.classes, files, folders)


def find_images(root: str | os.PathLike) -> ImageFolder:
    """Walk `root/<class>/**/` for images (by suffix, in any case); hidden files and folders are skipped.

    Raises:
        InputError: no such folder, no class folders in it, or a class without images.
    """
    root = Path(root)
    with explained(root):
        if root.is_file():
            raise InputError(
                f"{root}: this is a file; expected a folder with one folder per class (root/<class>/*.png)"
            )
        entries = sorted(os.listdir(root))
    classes = [name for name in entries if not name.startswith(".") and (root / name).is_dir()]
    if not classes:
        if any(_is_image(name) for name in entries):
            found = "images lie directly in it; put them into one folder per class, or use neonext-predict"
        else:
            found = "it has no folders; check the path" if entries else "it is empty; check the path"
        raise InputError(f"{root}: expected one folder of images per class (root/<class>/*.png), but {found}")
    files: list[str] = []
    folders: list[int] = []
    empty = []
    for i, name in enumerate(classes):
        found = _images_below(root, name)
        files += found
        folders += [i] * len(found)
        if not found:
            empty.append(name)
    if empty:
        raise InputError(
            f"{root}: no images in {len(empty)} of {len(classes)} class folders; expected files with the suffixes "
            f"{' '.join(SUFFIXES)}; fill or remove:\n{listed(empty)}"
        )
    return ImageFolder(root, tuple(classes), tuple(files), tuple(folders))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _images_below(root: Path, name: str) -> list[str]:
    found, seen = [], set()

    def stop(error: OSError):
        raise error

    with explained(root / name):
        for folder, subfolders, names in os.walk(root / name, followlinks=True, onerror=stop):
            # A link to a folder above would be walked without end.
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
            found += [(folder, file) for file in sorted(names) if _is_image(file)]
    return [os.path.relpath(os.path.join(folder, file), root) for folder, file in sorted(found)]


def class_indices(
    folders: Sequence[str], classes: int, labels: Sequence[str] | None = None, source: str = "the folder"
) -> tuple[list[int], str]:
    """The model's class for each class folder.

    By label, if every folder is named by one of the model's labels; else in sorted order, if there are as many folders
    as classes; else by number, if every name is a whole number below `classes`.

    Args:
        folders: names of the class folders, sorted.
        classes: number of the model's classes.
        labels: the model's names of its classes, if it has any.
        source: what an error message calls the folder.

    Returns:
        One class per folder, and which rule applied: "labels", "sorted" or "numbers".

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
        reasons.append("the model has no labels to find them by")
    wrong = next((name for name, number in zip(folders, numbers, strict=True) if number >= classes), None)
    if wrong is not None:
        reasons.append(f"{wrong!r} is not a number from 0 to {classes - 1}")
    else:
        reasons.append("two folders have the same number")
    raise InputError(
        f"{source}: cannot tell which class each folder is: {'; '.join(reasons)}; name the folders by label or by "
        "class number, or give one folder per class"
    )
