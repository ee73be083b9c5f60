"""The values that a board has to compute: inputs, float32 logits of the original network, every layer of one input."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neonext_ms.common.text import printable
from neonext_ms.export import verify
from neonext_ms.export.compare.compare import ancestors
from neonext_ms.export.compare.dump_side import mangled
from neonext_ms.export.compare.onnx_side import OnnxActivations
from neonext_ms.export.graph import original_graph
from neonext_ms.export.om import aipp
from neonext_ms.export.source import Source
from neonext_ms.images.folder import find_images, match_classes
from neonext_ms.images.images import read_image
from neonext_ms.images.preprocessing import Preprocessing

from .kit import run
from .weights import compressed

NOISE = 4


@dataclass(frozen=True)
class Images:
    """The inputs of a kit. Each is a frame, as the host feeds a model with AIPP; a crop of it is the network's image.

    Attributes:
        description: what `kit.json` says of them, by which `run.py` makes the network's inputs.
        frames: uint8 (N, height, width, 3) of AIPP's source size; the first NOISE are noise.
    """

    description: dict[str, Any]
    frames: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """Return float32 (N, 3, H, W): the same images normalized, as `run.py` does."""
        return run.normalized(self.frames, self.description)

    def packed(self) -> bytes:
        """Return the frames that are no noise as `run.py` reads them: differences compress better."""
        steps = self.frames[NOISE:]
        for axis in (1, 2, 3):
            steps = np.diff(steps, axis=axis, prepend=np.uint8(0))
        return compressed(np.ascontiguousarray(steps).tobytes())

    def within(self, size: int) -> Images:
        """Return as many of the images as take so many bytes, and the noise."""
        sizes = itertools.accumulate(
            len(Images(self.description, self.frames[[*range(NOISE), place]]).packed())
            for place in range(NOISE, len(self.frames))
        )
        return self.first(sum(total <= size for total in sizes))

    def first(self, count: int) -> Images:
        """Return the first images, and the noise."""
        known = self.description
        kept = {name: known[name][:count] for name in ("files", "expected")}
        frames = self.frames[: NOISE + count]
        return Images({**known, **kept, "all": len(frames), "shape": list(frames.shape)}, frames)


def read_images(
    folder: str | None, limit: int, source: Source, preprocessing: Preprocessing, size: tuple[int, int]
) -> Images:
    """Return noise, and up to `limit` labelled images spread over all classes.

    Args:
        folder: folder of class folders, or None.
        limit: largest number of images.
        source: network, whose classes the folders have.
        preprocessing: preprocessing of the network.
        size: height and width of the network's input.

    Raises:
        InputError: an image cannot be read, or the folders do not match the classes.
    """
    shape = aipp.default_source_size(preprocessing, size)
    frames: list[np.ndarray] = []
    names: list[str] = []
    expected: list[int] = []
    rule: str | None = None
    if folder is not None:
        tree = find_images(folder)
        labels = source.metadata.get("labels")
        indices, rule = match_classes(
            tree.classes, source.architecture.num_classes, labels, None, printable(folder), None
        )
        chosen = tree.subset(limit)
        for file, place in zip(chosen.files, chosen.folders, strict=True):
            frames.append(aipp.host_pixels(read_image(tree.root / file), preprocessing, size))
            names.append(file)
            expected.append(int(indices[place]))
    description = {
        "files": names,
        "noise": NOISE,
        "all": NOISE + len(names),
        "shape": [NOISE + len(names), *shape, 3],
        "expected": expected,
        "classes_by": rule,
        "crop": [*aipp.crop_offsets(size, shape), *size],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    return Images(description, np.concatenate([run.noise_frames(description), *frames]))


def logits(source: Source, images: Images, size: tuple[int, int], folder: Path) -> np.ndarray:
    """Return the logits of the original network, float32 (N, classes), computed in onnxruntime."""
    network = original_graph(source.architecture, source.arrays, size)
    return verify.original_outputs(network, images.inputs, folder).astype(np.float32)


# Relative L2 up to which two values of a layer are the same: float32 arithmetic in another order makes 1e-6.
_SAME = 1e-4


class Values:
    """Values of layers in one array, for all ONNX files of a kit: what several compute alike is stored once.

    Args:
        most: largest number of values that are kept of a layer, spread evenly over it.
    """

    def __init__(self, most: int):
        self.most = most
        self._parts: list[np.ndarray] = []
        self._known: dict[str, list[tuple[int, np.ndarray]]] = {}

    def add(self, name: str, value: np.ndarray) -> tuple[int, int]:
        """Add the values of a layer for one image; return where they start, and the step between them."""
        flat = np.ascontiguousarray(value, np.float32).ravel()
        step = max(1, -(-flat.size // self.most))
        kept = flat[::step]
        for start, other in self._known.get(name, []):
            if other.size == kept.size and np.linalg.norm(kept - other) <= _SAME * np.linalg.norm(other):
                return start, step
        start = sum(part.size for part in self._parts)
        self._known.setdefault(name, []).append((start, kept))
        self._parts.append(kept)
        return start, step

    def joined(self, dtype: type) -> np.ndarray:
        """Return all values, (N,), in float32 if they do not fit into the dtype."""
        values = np.concatenate(self._parts)
        with np.errstate(over="ignore"):
            rounded = values.astype(dtype)
        return rounded if np.isfinite(rounded).all() else values


def layers(path: Path, size: tuple[int, int], image: np.ndarray, values: Values) -> list[dict]:
    """Compute the values of every operator of an ONNX file for one image, in float32.

    Args:
        path: ONNX file.
        size: height and width of its input.
        image: float32 (1, 3, H, W).
        values: receives the values.

    Returns:
        for each operator its name and output as a dump spells them, its type, its shape without the batch axis, where
        its values start, the step between them, and the numbers of the operators that it reads.
    """
    side = OnnxActivations(path, size)
    makers = {node.outputs[0]: node for node in side.nodes if node.outputs}
    names = [*side.names, *(name for name in side.outputs if name not in side.names)]
    before = ancestors(side.nodes, names)
    rows: list[dict] = []
    index = {name: place for place, name in enumerate(names)}
    for name, value in side.values(image, names):
        node = makers.get(name)
        start, step = values.add(name, value[0])
        rows.append(
            {
                "name": name,
                "nodes": sorted({mangled(node.name), mangled(name)} if node else {mangled(name)}),
                "op": node.op if node else "",
                "shape": list(value.shape[1:]),
                "step": step,
                "start": start,
                "sources": sorted(index[source] for source in before.get(name, ())),
            }
        )
    return rows


def save(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file in little-endian order."""
    np.save(path, np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
