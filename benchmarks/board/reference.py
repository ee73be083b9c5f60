"""The values that a board has to compute: inputs, float32 logits of the original network, every layer of one input."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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

NOISE = 4


@dataclass(frozen=True)
class Images:
    """The inputs of a kit. Each is a frame, as the host feeds a model with AIPP; a crop of it is the network's image.

    Attributes:
        frames: uint8 (N, height, width, 3) of AIPP's source size; the first `noise` are noise.
        inputs: float32 (N, 3, H, W), the same images normalized.
        names: name of each labelled image.
        expected: class of each labelled image.
        noise: number of noise images.
    """

    frames: np.ndarray
    inputs: np.ndarray
    names: list[str] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)
    noise: int = NOISE


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
    rng = np.random.RandomState(0)
    shape = aipp.default_source_size(preprocessing, size)
    frames = [rng.randint(0, 256, (NOISE, *shape, 3)).astype(np.uint8)]
    names: list[str] = []
    expected: list[int] = []
    if folder is not None:
        tree = find_images(folder)
        labels = source.metadata.get("labels")
        indices, _ = match_classes(tree.classes, source.architecture.num_classes, labels, None, folder)
        chosen = tree.subset(limit)
        for file, place in zip(chosen.files, chosen.folders, strict=True):
            frames.append(aipp.host_pixels(read_image(tree.root / file), preprocessing, size))
            names.append(file)
            expected.append(int(indices[place]))
    joined = np.concatenate(frames)
    return Images(joined, normalized(joined, preprocessing, size), names, expected)


def normalized(frames: np.ndarray, preprocessing: Preprocessing, size: tuple[int, int]) -> np.ndarray:
    """Return float32 (N, 3, H, W): the centre crop of frames, normalized as `images.prepare` does."""
    top, left = aipp.crop_offsets(size, (frames.shape[1], frames.shape[2]))
    pixels = frames[:, top : top + size[0], left : left + size[1]].astype(np.float32)
    mean, std = (255 * np.asarray(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))


def logits(source: Source, images: Images, size: tuple[int, int], folder: Path) -> np.ndarray:
    """Return the logits of the original network, float32 (N, classes), computed in onnxruntime."""
    network = original_graph(source.architecture, source.arrays, size)
    return verify.original_outputs(network, images.inputs, folder).astype(np.float32)


def layers(path: Path, size: tuple[int, int], image: np.ndarray, most: int) -> tuple[np.ndarray, list[dict]]:
    """Return the values of every operator of an ONNX file for one image, in float32.

    Args:
        path: ONNX file.
        size: height and width of its input.
        image: float32 (1, 3, H, W).
        most: largest number of values that are kept of each operator, spread evenly.

    Returns:
        all values in one array, and for each operator its name and output as a dump spells them, its type, its shape
        without the batch axis, the step between the values that are kept, their place in the array, and the numbers
        of the operators that it reads.
    """
    side = OnnxActivations(path, size)
    makers = {node.outputs[0]: node for node in side.nodes if node.outputs}
    names = [*side.names, *(name for name in side.outputs if name not in side.names)]
    before = ancestors(side.nodes, names)
    numbers: list[np.ndarray] = []
    rows: list[dict] = []
    index = {name: place for place, name in enumerate(names)}
    start = 0
    for name, value in side.values(image, names):
        flat = np.ascontiguousarray(value[0], np.float32).ravel()
        step = max(1, -(-flat.size // most))
        kept = flat[::step]
        node = makers.get(name)
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
        numbers.append(kept)
        start += kept.size
    return np.concatenate(numbers), rows


def save(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file in little-endian order."""
    np.save(path, np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
