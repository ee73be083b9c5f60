"""Metadata that an export leaves for a runtime: inside an ONNX file, or in the manifest beside any other file."""

from __future__ import annotations

import os
from pathlib import Path

from neonext_ms.checkpoint.metadata import check
from neonext_ms.common.cli import MAX_BATCH
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained, parse_json, read_text, sha256
from neonext_ms.common.text import shorten


def read_manifest(path: str | os.PathLike) -> tuple[dict, Path]:
    """Find the manifest of an exported file: `<same name>.json`, or one in the same folder that lists the file.

    Returns:
        Metadata of the file, with the `image_size` of its entry in the manifest, and the path of the manifest; an empty
        dict and the first path that was tried if there is none.

    Raises:
        InputError: the manifest is damaged.
    """
    path = Path(path)
    own = path.with_suffix(".json")
    for candidate in (own, *sorted(path.parent.glob("*.json"))):
        # A folder may hold large JSON files of other programs; a manifest names this package in its first lines.
        if not candidate.is_file() or (candidate != own and b"neonext_ms" not in _start(candidate)):
            continue
        metadata = read_metadata(read_text(candidate), str(candidate))
        files = metadata.get("files")
        entries = [e for e in files if isinstance(e, dict)] if isinstance(files, list) else []
        entry = next((e for e in entries if e.get("file") == path.name), None)
        if entry is not None and "image_size" in entry:
            return check({**metadata, "image_size": entry["image_size"]}, str(candidate)), candidate
        if candidate == own:
            return metadata, candidate
    return {}, own


def _start(path: Path) -> bytes:
    with explained(path), open(path, "rb") as file:
        return file.read(200)


def is_recorded(path: str | os.PathLike) -> bool:
    """Return whether a manifest records the digest of a file, which then was verified by its export.

    Raises:
        InputError: the file has another digest, the manifest is damaged, or the file cannot be read.
    """
    metadata, manifest = read_manifest(path)
    files = metadata.get("files")
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    digest = next((entry.get("sha256") for entry in entries if entry.get("file") == Path(path).name), None)
    if digest is not None and digest != sha256(path):
        raise InputError(
            f"{os.fspath(path)}: not the file that {manifest} describes; its sha256 differs. It was damaged or "
            "replaced. Export the model again, or remove the manifest."
        )
    return digest is not None


def read_metadata(text: str | bytes, source: str) -> dict:
    """Parse metadata in JSON and check the keys that this package uses.

    Raises:
        InputError: it is not a JSON object, or one of these keys has another value.
    """
    values = parse_json(text, source, "the metadata of an export in JSON")
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected a JSON object, found {type(values).__name__}; export the model again")
    batch = values.get("batch")
    if batch is not None and (type(batch) is not int or not 1 <= batch <= MAX_BATCH):
        raise InputError(
            f"{source}: batch must be a positive whole number up to {MAX_BATCH} or null, got {shorten(batch)}"
        )
    return check(values, source)
