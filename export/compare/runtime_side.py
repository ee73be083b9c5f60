"""Activations of a compiled model file: its logits only, because its runtime does not expose intermediate values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.runtime.open import open_runtime

from ..graph import LOGITS
from ..tolerances import APPROXIMATE_GELUS
from .side import Activations


class RuntimeActivations(Activations):
    """A MindIR, OM or MindSpore Lite file in its runtime.

    Raises:
        InputError: not a file of that kind, or not a classifier.
        UsageError: the size of the images is not known.
        ToolchainError: the runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int] | None = None):
        super().__init__(path)
        self.kind = Path(path).suffix.lower().removeprefix(".")
        self._runtime = open_runtime(path, image_size=image_size)
        self.input_size = self._runtime.input_size
        self.metadata = self._runtime.metadata
        files = self.metadata.get("files") or ()
        # The graph hides its dtype behind casts at both ends; the manifest of its export names it.
        form: dict = next((file for file in files if file.get("file") == Path(path).name), {})
        self.dtype = form.get("dtype") or ("float16" if self.kind == "om" else "float32")
        self.gelu = form["gelu"] if form.get("gelu") in APPROXIMATE_GELUS else "auto"
        self.outputs = self.names = (LOGITS,)
        self.notes = [*self._runtime.notes, f"{self.path}: only the logits of a {self.kind} file can be compared"]

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        images = self._check_images(images)
        for name in self.names if names is None else names:
            if name != LOGITS:
                raise InputError(f"{self.path}: there is no value {name!r}; only its logits can be compared")
            yield name, self._runtime.run(images)

    def close(self) -> None:
        self._runtime.close()
