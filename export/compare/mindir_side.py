"""Activations of a MindIR file: its logits only, because MindSpore does not expose intermediate values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.runtime.base import open_runtime

from ..graph import LOGITS
from .side import Activations


class MindIRActivations(Activations):
    """A MindIR file in MindSpore.

    Raises:
        InputError: not a MindIR file, or not a classifier.
        UsageError: the size of the images is not known.
    """

    kind = "mindir"

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int] | None = None):
        super().__init__(path)
        self._runtime = open_runtime(path, image_size=image_size)
        self.input_size = self._runtime.input_size
        self.metadata = self._runtime.metadata
        files = self.metadata.get("files") or ()
        # The graph itself hides its dtype behind casts; the manifest of its export names it.
        form = next((file for file in files if file.get("file") == Path(path).name), {})
        self.dtype = str(form.get("dtype") or "float32")
        self.gelu = "tanh" if form.get("gelu") == "tanh" else "auto"
        self.outputs = self.names = (LOGITS,)
        self.notes = [*self._runtime.notes, f"{self.path}: only the logits of a MindIR file can be compared"]

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        images = self._check_images(images)
        for name in self.names if names is None else names:
            if name != LOGITS:
                raise InputError(f"{self.path}: there is no value {name!r}; only logits can be read from a MindIR file")
            yield name, self._runtime.run(images)
