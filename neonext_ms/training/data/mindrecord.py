"""MindRecord files: a few large files instead of a million small images, with the same batches.

Each part of the data (`train`, `val`) becomes files `<part>.mindrecord<shard>`, each with the index database that
MindSpore writes next to it (`.db`). A row contains the unchanged image file, its name, its class and its position in
the folder, so that `mindspore.dataset.MindDataset` can read it as well. `index.json` contains the class names.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import check_regular, explain, explained, parse_json, read_json, staging
from neonext_ms.common.text import list_names, one_line
from neonext_ms.images.images import BrokenImageError, decode_image

from .image_sets import BrokenImages, FolderSet, ImageSet, open_folders

if TYPE_CHECKING:
    from PIL import Image

_INDEX = "index.json"
_FORMAT = 1
_SCHEMA = {
    "position": {"type": "int64"}, "label": {"type": "int64"}, "name": {"type": "string"}, "image": {"type": "bytes"},
}  # fmt: skip
_ROWS = "SELECT position_0, label_0, name_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES"
_TABLE = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'INDEXES'"
_COMPUTED = re.compile(r"\bAS\b", re.IGNORECASE)
# MindSpore stores the size of a binary field in front of it.
_PREFIX = 8
_BATCH = 64
# The header describes each page in less than 200 bytes, so 1 MiB is enough for 2,000 pages.
_HEADER_BYTES = 1 << 20
_PAGES = 2000
_LEAST_PAGE, _LARGEST_PAGE = 1 << 18, 1 << 28


class RecordSet(ImageSet):
    """One part of a folder of MindRecord files from `write_records`, with random access to its images.

    Args:
        root: folder of the files.
        part: name of the part, such as "train".

    Raises:
        InputError: files are missing, damaged, or not written by `write_records`.
    """

    def __init__(self, root: Path, part: str):
        self.root, self.part = Path(root), part
        index = _read_index(self.root)
        if part not in index["parts"]:
            raise InputError(f"{self.root}: unknown part {part!r} (expected one of {', '.join(index['parts'])})")
        self.classes = tuple(index["classes"])
        entry = index["parts"][part]
        self._files = []
        rows: list[tuple[int, int, str, int, int, int]] = []
        for number, name in enumerate(entry["files"]):
            path = self.root / name
            check_regular(path)
            with explained(path):
                self._files.append(open(path, "rb"))  # noqa: SIM115
            header = _header(self._files[-1], path)
            for position, label, image, page, start, end in _rows(Path(f"{path}.db"), entry["images"]):
                offset = header["header_size"] + header["page_size"] * page + start + _PREFIX
                rows.append((position, label, image, number, offset, end - start - _PREFIX))
        rows.sort()
        if len(rows) != entry["images"] or any(row[0] != position for position, row in enumerate(rows)):
            raise InputError(
                f"{self.root}: incomplete index of {part} (got {len(rows)} images, expected {entry['images']}). "
                "Convert the folder again with neonext-mindrecord."
            )
        self.labels = [row[1] for row in rows]
        if any(type(label) is not int or not 0 <= label < len(self.classes) for label in self.labels):
            raise InputError(f"{self.root}: a class in the index of {part} is unknown. Convert the folder again.")
        self._names = [row[2] for row in rows]
        self._places = np.array([row[3:] for row in rows], np.int64)

    def name(self, index: int) -> str:
        return f"{self._names[index]} of {self.part} in {self._files[self._places[index, 0]].name}"

    def file(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> Image.Image:
        return decode_image(self.content(index), self.name(index))

    def content(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            BrokenImageError: the record is truncated.
        """
        number, offset, size = (int(value) for value in self._places[index])
        descriptor = self._files[number].fileno()
        # pread, because worker processes inherit the descriptor and share its file position.
        content = os.pread(descriptor, size, offset) if offset + size <= os.fstat(descriptor).st_size else b""
        if len(content) != size:
            raise BrokenImageError(f"{self.name(index)}: the record is truncated. Convert the folder again.")
        return content


def _read_index(root: Path) -> dict:
    path = root / _INDEX
    hint = "Expected a folder that neonext-mindrecord wrote."
    if not path.exists():
        with explained(root):
            os.listdir(root)
        raise InputError(f"{root}: has no {_INDEX}. {hint}")
    try:
        index = read_json(path, "an index of MindRecord files")
        if index["format"] != _FORMAT:
            raise InputError(
                f"{path}: unknown format (got {index['format']}, expected {_FORMAT}). Convert the folder again."
            )
        for entry in index["parts"].values():
            # Only names inside of this folder, whatever the file says.
            entry["files"] = [os.path.basename(name) for name in entry["files"]]
            if not _is_place(entry["images"]):
                raise ValueError("images")
        index["classes"] = [str(name) for name in index["classes"]]
        return index
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {one_line(error)}). {hint}") from error


def _is_place(value: object) -> bool:
    """Return whether a value of a file can be a number of images or bytes."""
    return type(value) is int and 0 <= value < 1 << 53


def _header(file, path: Path) -> dict[str, int]:
    size = int.from_bytes(file.read(8), "little")
    try:
        header = parse_json(file.read(size), str(path), "a header") if size <= 1 << 28 else {}
        sizes = {key: header[key] for key in ("header_size", "page_size")}
        # Pages are numbered below 2^31, so that no position is beyond 2^63.
        if not all(_is_place(size) and size < 1 << 31 for size in sizes.values()):
            raise ValueError("sizes")
        return sizes
    except (InputError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a MindRecord file, or damaged. Convert the folder again.") from error


def _rows(path: Path, most: int) -> Iterator[tuple]:
    """Yield the rows of an index of at most `most` images."""
    if not path.exists():
        raise InputError(f"{path}: no such file. Keep it next to the MindRecord file that it belongs to.")
    check_regular(path)
    try:
        database = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
        try:
            # A view, or a column that is computed, could yield rows without end.
            (written,) = database.execute(_TABLE).fetchone() or ("",)
            if not str(written).upper().startswith("CREATE TABLE") or _COMPUTED.search(written):
                raise ValueError("its table INDEXES is not one of MindSpore")
            for count, row in enumerate(database.execute(_ROWS)):
                if count == most:
                    raise ValueError(f"more rows than the {most} images")
                position, label, name, page, start, end = row
                if not all(map(_is_place, (position, label, page, start, end))) or end < start + _PREFIX:
                    raise ValueError("a row has other values than places")
                if page >= 1 << 31 or not isinstance(name, str):
                    raise ValueError("a row has no name or a page that no file has")
                yield row
        finally:
            database.close()
    except (sqlite3.Error, ValueError) as error:
        raise InputError(
            f"{path}: not an index of MindSpore, or damaged ({error}). Convert the folder again."
        ) from error


def write_records(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    parts: tuple[str, str] = ("train", "val"),
    shards: int = 8,
    broken_limit: int = 10,
    workers: int = 1,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[Iterable, int, str], Iterable] = lambda items, total, what: items,
) -> dict[str, dict]:
    """Write the images of `folder/<part>/<class>/` to MindRecord files in a new folder, atomically.

    Every image is decoded once. A broken one is skipped and reported.

    Args:
        folder: folder as `data.path` of `imagefolder`.
        output: folder to create; it must not exist yet.
        parts: names of the training and the validation images below `folder`.
        shards: number of files of each part.
        broken_limit: number of broken images to skip before failing.
        workers: number of threads that read and check images.
        note: called with a message for every broken image.
        progress: wrapper of the iteration over the images of a part, called with their number and the part.

    Returns:
        For each part the number of `images`, their `bytes`, the names of the `files`, and a message for each `broken`
        image.

    Raises:
        InputError: the folder is not a training folder, `output` exists, too many images are broken, or the disk is
            full. No partial files are left behind.
    """
    folder, output = Path(folder), Path(output)
    if output.exists() or output.is_symlink():
        raise InputError(f"{output}: exists already. Choose another folder, or remove it first.")
    images = open_folders(folder, *parts)
    broken = BrokenImages(broken_limit, "--broken-limit")
    with staging(output.parent) as stage:
        staged = stage / output.name
        with explained(output):
            staged.mkdir()
        written = {}
        for part, one in zip(parts, images, strict=True):
            written[part] = _write_part(one, staged, part, shards, broken, workers, note, progress)
            if not written[part]["images"]:
                raise InputError(
                    f"{folder / part}: none of its {len(one)} images can be read:\n"
                    f"{list_names(written[part]['broken'])}"
                )
        index = {
            "format": _FORMAT,
            "classes": list(images[0].classes),
            "parts": {part: {key: entry[key] for key in ("images", "files")} for part, entry in written.items()},
        }
        with explained(output):
            (staged / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            _sync(staged)
            os.rename(staged, output)
    return written


def _write_part(
    images: FolderSet, output: Path, part: str, shards: int, broken: BrokenImages, workers: int, note, progress
) -> dict:
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
        raise InputError(f"{large}: too large (got {max(sizes):,} bytes, expected at most {_LARGEST_PAGE // 2:,})")
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
                    note(f"skipped: {text}")
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
        # `output` is in a temporary folder beside its final place.
        raise _explain(error, output, output.parent.parent / output.name) from error
    return {"images": position, "bytes": total, "files": files, "broken": messages}


def _page_size(sizes: Sequence[int], shards: int) -> int:
    """Return the page size: a power of two, large enough for every image and for few enough pages in the header."""
    needed = max(_LEAST_PAGE, 2 * max(sizes), 2 * sum(sizes) // shards // _PAGES)
    return min(_LARGEST_PAGE, 1 << (needed - 1).bit_length())


def _checked(images: FolderSet, workers: int) -> Iterator[tuple[int, bytes, str | None]]:
    """Yield index, content, and None or a message about a broken image, in order."""

    def check(index: int) -> tuple[int, bytes, str | None]:
        path = images.name(index)
        try:
            check_regular(path)
            with explained(path), open(path, "rb") as file:
                content = file.read()
            decode_image(content, path)
            return index, content, None
        except InputError as error:
            return index, b"", str(error)

    indices = iter(range(len(images)))
    pool = ThreadPoolExecutor(workers)
    try:
        while chunk := list(islice(indices, _BATCH)):
            yield from pool.map(check, chunk)
    finally:
        # A thread may wait for a dead network drive; an interrupted command must not wait for the thread.
        pool.shutdown(wait=False, cancel_futures=True)


def _explain(error: RuntimeError, folder: Path, output: Path) -> InputError:
    # MindSpore does not pass on the reason. A page that did not fit is the likely one, or a quota.
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < _LARGEST_PAGE:
        return InputError(f"{output}: the disk is full or almost full. Free some space or choose another place.")
    try:
        (folder / "probe").write_bytes(bytes(1 << 16))
    except OSError as problem:
        return explain(problem, output)
    return InputError(f"{output}: MindSpore cannot write the records ({one_line(error)})")


def _sync(folder: Path) -> None:
    """Give the files the permissions of other files, and flush them to disk."""
    umask = os.umask(0)
    os.umask(umask)
    for path in sorted(folder.iterdir()):
        os.chmod(path, 0o666 & ~umask)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
