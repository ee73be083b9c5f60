"""Activations of a network, whatever it is stored in: named values that can be read and compared.

Maps are (N, C, H, W): a value that its graph holds channels last is transposed. Names are those of `graph.DeployGraph`;
files of other programs have names of their own.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size


class Node(NamedTuple):
    """An operator of a graph: its name, its type, and the values that it reads and writes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Activations(ABC):
    """A network whose activations can be read and compared.

    Attributes:
        path: file or folder.
        kind: "checkpoint", "onnx", "mindir" or "dump".
        dtype: dtype of the computation, as far as the file tells: "float32", "float16" or "bfloat16".
        int8: whether it has layers in 8 bit.
        factors: factor of each channel of a value, for values that the network holds divided by it
            (`quantize.apply.equalize`); `values` gives them without.
        gelu: "tanh" or "fast" if the network holds that approximation of GELU, else "auto".
        input_size: height and width of the images, or None if the file does not record it (a dump).
        outputs: names of the final values.
        names: names of all values that can be read, in order of computation.
        nodes: operators, if there is a graph.
        aliases: operator name -> value of the graph that would be deployed, for a network in another form.
        metadata: what the file records (`labels`, `preprocessing`, `shifts`).
        notes: messages to show to the user.
        inputs: raw float32 images that a dump was computed from, if it has them.
    """

    path: str
    kind: str
    dtype: str = "float32"
    int8: bool = False
    factors: Mapping[str, np.ndarray] = {}
    gelu: str = "auto"
    input_size: tuple[int, int] | None = None
    outputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    aliases: Mapping[str, str] = {}
    metadata: Mapping = {}
    inputs: Path | None = None

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.notes: list[str] = []

    @abstractmethod
    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Yield values by name, with only a few of them in memory at a time.

        Args:
            images: float32 (N, 3, H, W).
            names: names of the values to read, in their order; None for `self.names`.

        Yields:
            name and float array, batch axis first, maps as (N, C, H, W).

        Raises:
            InputError: images of another shape, or a file that cannot be run.
        """

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a value without its batch axis, or None if it is not known."""
        return None

    def close(self) -> None:  # noqa: B027  (most sides hold nothing)
        """Free what a runtime holds; nothing can be read afterwards."""

    def _unscaled(self, name: str, value: np.ndarray) -> np.ndarray:
        """Return a value, channels on axis 1, without the scaling of its channels."""
        factor = self.factors.get(name)
        if factor is None or value.ndim < 2 or value.shape[1] != len(factor):
            return value
        return value * factor.reshape(-1, *[1] * (value.ndim - 2)).astype(value.dtype)

    def _check_images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        height, width = self.input_size or images.shape[2:]
        if images.ndim != 4 or images.shape[1:] != (3, height, width) or not len(images):
            raise InputError(f"{self.path}: expected images of shape (N, 3, {height}, {width}), got {images.shape}")
        return images.astype(np.float32, copy=False)


def aligned(value: np.ndarray, shape: tuple[int, ...] | None, source: str) -> np.ndarray:
    """Return a dumped array with its batch axis first and maps as (N, C, H, W).

    Args:
        value: dumped array: of this shape, channels last, NC1HWC0, or flat.
        shape: expected shape without the batch axis; None returns the array as it is.
        source: name of the array in messages.

    Raises:
        InputError: an array that cannot be brought to that shape.
    """
    if shape is None or value.shape[1:] == tuple(shape):
        return value
    if len(shape) == 3 and value.ndim == 4 and value.shape[1:] == (*shape[1:], shape[0]):
        return value.transpose(0, 3, 1, 2)
    if len(shape) == 3 and value.ndim == 5:
        n, c1, h, w, c0 = value.shape
        if (h, w) == tuple(shape[1:]) and c1 * c0 >= shape[0] > (c1 - 1) * c0:
            return value.transpose(0, 1, 4, 2, 3).reshape(n, c1 * c0, h, w)[:, : shape[0]]
    image = math.prod(shape)
    same = [side for side in value.shape[1:] if side != 1] == [side for side in shape if side != 1]
    if image and value.size and value.size % image == 0 and (same or value.ndim == 1):
        return value.reshape(-1, *shape)
    raise InputError(
        f"{source}: shape {format_size(value.shape)} cannot be read as Nx{format_size(shape)}. Convert it to NCHW "
        "(msaccucmp.py convert -f NCHW)."
    )
