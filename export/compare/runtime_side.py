"""Activations of a compiled model file: its outputs only, because its runtime does not expose intermediate values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.runtime.open import open_image_model

from ..tolerances import APPROXIMATE_GELUS
from .side import Activations


class RuntimeActivations(Activations):
    """A MindIR, OM or MindSpore Lite file in its runtime.

    Raises:
        InputError: not a file of that kind, or not a model of images.
        UsageError: the size of the images is not known.
        ToolchainError: the runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int] | None = None):
        super().__init__(path)
        self.kind = Path(path).suffix.lower().removeprefix(".")
        self._model = open_image_model(path, image_size)
        self.input_size = self._model.input_size
        self.metadata = self._model.metadata
        files = self.metadata.get("files") or ()
        # The graph hides its dtype behind casts at both ends; the manifest of its export names it.
        form: dict = next((file for file in files if file.get("file") == Path(path).name), {})
        self.dtype = form.get("dtype") or self._model.weights or ("float16" if self.kind == "om" else "float32")
        self.gelu = form["gelu"] if form.get("gelu") in APPROXIMATE_GELUS else "auto"
        self.outputs = self.names = self._model.outputs
        self.notes = [*self._model.notes, f"{self.path}: only the outputs of a {self.kind} file can be compared"]

    def values(self, images: np.ndarray, names: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        names = self.names if names is None else names
        if unknown := [name for name in names if name not in self.names]:
            raise InputError(f"{self.path}: there is no value {unknown[0]!r}; only its outputs can be compared")
        values = dict(zip(self.names, self._model.outputs_of(self._check_images(images)), strict=True))
        yield from ((name, values[name]) for name in names)

    def close(self) -> None:
        self._model.close()
