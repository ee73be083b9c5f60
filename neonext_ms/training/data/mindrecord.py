"""Image folders as MindRecord files: a few large files in place of a million small ones, with the same batches.

A part of the data (`train`, `val`) becomes `<part>.mindrecord<shard>` with the index database that MindSpore writes
beside each (`.db`). A row holds the image file as it is, its name, its class and its place in the folder, so that
`mindspore.dataset.MindDataset` can read it, too. `index.json` names the classes.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from neonext_ms.common.errors import InputError, listed
from neonext_ms.common.files import explained, staging
from neonext_ms.images.images import BrokenImageError, decode_image

from ..config.schema import DataConfig
from .broken import BrokenImages
from .datasets import FolderSet, ImageSet, open_folders

if TYPE_CHECKING:
    from PIL import Image

INDEX = "index.json"
_FORMAT = 1
_SCHEMA = {
    "position": {"type": "int64"}, "label": {"type": "int64"}, "name": {"type": "string"}, "image": {"type": "bytes"},
}  # fmt: skip
_ROWS = "SELECT position_0, label_0, name_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES"
# MindSpore stores the size of a field of bytes before it.
_PREFIX = 8
_BATCH = 64
# The header lists the pages, less than 200 bytes each.
_HEADER_BYTES = 1 << 20
_PAGES = 2000
_LEAST_PAGE, _LARGEST_PAGE = 1 << 18, 1 << 28


class RecordSet(ImageSet):
    """One part of a folder of MindRecord files that `write_records` made, read image by image in any order.

    Args:
        root: the folder.
        part: such as "train".

    Raises:
        InputError: files are missing, damaged, or not made by `write_records`.
    """

    def __init__(self, root: Path, part: str):
        self.root, self.part = Path(root), part
        described = _read_index(self.root)
        if part not in described["parts"]:
            raise InputError(f"{self.root}: it has no part {part!r}; it has {', '.join(described['parts'])}")
        self.classes = tuple(described["classes"])
        entry = described["parts"][part]
        self._files = []
        rows: list[tuple[int, int, str, int, int, int]] = []
        for number, name in enumerate(entry["files"]):
            path = self.root / name
            with explained(path):
                self._files.append(open(path, "rb"))  # noqa: SIM115
            header = _header(self._files[-1], path)
            for position, label, image, page, start, end in _rows(Path(f"{path}.db")):
                offset = header["header_size"] + header["page_size"] * page + start + _PREFIX
                rows.append((position, label, image, number, offset, end - start - _PREFIX))
        rows.sort()
        if [row[0] for row in rows] != list(range(entry["images"])):
            raise InputError(
                f"{self.root}: {part} should have {entry['images']} images, but its index has {len(rows)}; convert the "
                "folder again with neonext-mindrecord"
            )
        self.labels = [row[1] for row in rows]
        self._names = [row[2] for row in rows]
        self._places = np.array([row[3:] for row in rows], np.int64)

    def name(self, index: int) -> str:
        return f"{self._names[index]} of {self.part} in {self._files[self._places[index, 0]].name}"

    def file(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> Image.Image:
        return decode_image(self.content(index), self.name(index))

    def content(self, index: int) -> bytes:
        """The image file as it was.

        Raises:
            BrokenImageError: the record ends before it.
        """
        number, offset, size = (int(value) for value in self._places[index])
        # By position, since the file is shared with the processes that read for other batches.
        content = os.pread(self._files[number].fileno(), size, offset)
        if len(content) != size:
            raise BrokenImageError(f"{self.name(index)}: the record is truncated; convert the folder again")
        return content


def open_records(config: DataConfig, root: Path) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images of a folder of records."""
    return RecordSet(root, config.train), RecordSet(root, config.val)


def _read_index(root: Path) -> dict:
    path = root / INDEX
    hint = "expected a folder that neonext-mindrecord wrote"
    if not path.exists():
        with explained(root):
            os.listdir(root)
        raise InputError(f"{root}: it has no {INDEX}; {hint}")
    try:
        with explained(path):
            described = json.loads(path.read_text(encoding="utf-8"))
        if described["format"] != _FORMAT:
            raise InputError(f"{path}: format {described['format']}, expected {_FORMAT}; convert the folder again")
        for entry in described["parts"].values():
            entry["images"], entry["files"] = int(entry["images"]), [os.path.basename(name) for name in entry["files"]]
        described["classes"] = [str(name) for name in described["classes"]]
        return described
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); {hint}") from error


def _header(file, path: Path) -> dict[str, int]:
    size = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(size)) if size <= 1 << 28 else {}
        return {key: int(header[key]) for key in ("header_size", "page_size")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a MindRecord file, or damaged; convert the folder again") from error


def _rows(path: Path) -> Iterator[tuple]:
    if not path.exists():
        raise InputError(f"{path}: no such file; it belongs to the MindRecord file of that name, keep both together")
    try:
        database = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
        try:
            yield from database.execute(_ROWS)
        finally:
            database.close()
    except sqlite3.Error as error:
        raise InputError(
            f"{path}: not an index of MindSpore, or damaged ({error}); convert the folder again"
        ) from error


@dataclass(frozen=True)
class Written:
    """What was written of one part.

    Attributes:
        images: rows.
        bytes: of all image files.
        files: names of the MindRecord files.
        broken: one message for each image that was left out.
    """

    images: int
    bytes: int
    files: list[str]
    broken: list[str]


def write_records(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    parts: tuple[str, str] = ("train", "val"),
    shards: int = 8,
    broken_limit: int = 10,
    workers: int = 1,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[Iterable, int, str], Iterable] = lambda items, total, what: items,
) -> dict[str, Written]:
    """Write the images of `folder/<part>/<class>/` to MindRecord files in a new folder, whole or not at all.

    Every image is decoded once; a broken one is left out and noted.

    Args:
        folder: what `data.path` is for `imagefolder`.
        output: must not exist yet.
        parts: names of the training and the validation images below `folder`.
        shards: files of each part.
        broken_limit: broken images that are left out before it ends with an error.
        workers: threads that read and check.
        note: told of every broken image.
        progress: wraps the iteration over a part's images; given their number and the part.

    Raises:
        InputError: the folder is not as training needs it, `output` exists, too many images are broken, or the disk
            is full; nothing is left behind.
    """
    folder, output = Path(folder), Path(output)
    if output.exists() or output.is_symlink():
        raise InputError(f"{output}: exists already; choose another folder, or remove it first")
    images = open_folders(folder, *parts)
    broken = BrokenImages(broken_limit, "--broken-limit")
    with staging(output.parent) as stage:
        whole = stage / output.name
        with explained(output):
            whole.mkdir()
        written = {
            part: _write_part(one, folder, whole, part, shards, broken, workers, note, progress)
            for part, one in zip(parts, images, strict=True)
        }
        described = {
            "format": _FORMAT,
            "classes": list(images[0].classes),
            "parts": {part: {"images": one.images, "files": one.files} for part, one in written.items()},
        }
        with explained(output):
            (whole / INDEX).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            _settle(whole)
            os.rename(whole, output)
    return written


def _write_part(
    images: FolderSet, folder: Path, output: Path, part: str, shards: int, broken: BrokenImages, workers: int, note,
    progress,
) -> Written:  # fmt: skip
    from mindspore.mindrecord import FileWriter

    shards = min(shards, len(images))
    first = output / f"{part}.mindrecord"
    files = [first.name if shards == 1 else f"{first.name}{i}" for i in range(shards)]
    sizes = []
    for i in range(len(images)):
        with explained(images.name(i)):
            sizes.append(os.stat(images.name(i)).st_size)
    if max(sizes) > _LARGEST_PAGE // 2:
        large = images.name(sizes.index(max(sizes)))
        raise InputError(f"{large}: {max(sizes):,} bytes; a MindRecord file takes at most {_LARGEST_PAGE // 2:,}")
    writer = FileWriter(str(first), shards)
    messages: list[str] = []
    total = position = 0
    try:
        writer.set_header_size(_HEADER_BYTES)
        writer.set_page_size(_page_size(sizes, shards))
        writer.add_schema(_SCHEMA, "images in one folder per class")
        writer.add_index(["position", "label", "name"])
        rows = []
        for index, content, message in progress(_checked(images, workers), len(images), part):
            if message is not None:
                for text in broken.add([message]):
                    note(f"left out: {text}")
                    messages.append(text)
                continue
            name, label = images.file(index).encode("utf-8", "replace").decode(), int(images.labels[index])
            rows.append({"position": position, "label": label, "name": name, "image": content})
            position, total = position + 1, total + len(content)
            if len(rows) == _BATCH:
                writer.write_raw_data(rows)
                rows = []
        if rows:
            writer.write_raw_data(rows)
        if position:
            writer.commit()
    except RuntimeError as error:
        raise _failed(error, output) from error
    if not position:
        raise InputError(f"{folder / part}: none of its {len(images)} images can be read:\n{listed(messages)}")
    return Written(position, total, files, messages)


def _page_size(sizes: Sequence[int], shards: int) -> int:
    """A power of two that holds every image, and makes few enough pages for the header to list."""
    needed = max(_LEAST_PAGE, 2 * max(sizes), 2 * sum(sizes) // shards // _PAGES)
    return min(_LARGEST_PAGE, 1 << (needed - 1).bit_length())


def _checked(images: FolderSet, workers: int) -> Iterator[tuple[int, bytes, str | None]]:
    """Place, content, and a message instead if it is no image, in order."""

    def check(index: int) -> tuple[int, bytes, str | None]:
        path = images.name(index)
        try:
            with explained(path), open(path, "rb") as file:
                content = file.read()
            decode_image(content, path)
            return index, content, None
        except InputError as error:
            return index, b"", str(error)

    indices = iter(range(len(images)))
    with ThreadPoolExecutor(workers) as pool:
        while chunk := list(islice(indices, _BATCH)):
            yield from pool.map(check, chunk)


def _failed(error: RuntimeError, output: Path) -> InputError:
    # MindSpore does not pass on the reason.
    space = os.statvfs(output)
    if space.f_bavail * space.f_frsize < _LARGEST_PAGE:
        return InputError(f"{output.name}: the disk is full or nearly so; free some space or choose another place")
    return InputError(f"{output.name}: MindSpore cannot write the records ({' '.join(str(error).split())[:200]})")


def _settle(folder: Path) -> None:
    """Give the files the permissions of other files, and bring them to disk."""
    umask = os.umask(0)
    os.umask(umask)
    for path in sorted(folder.iterdir()):
        os.chmod(path, 0o666 & ~umask)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
