"""What every runtime is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neonext_ms.common.errors import InputError

from ..inputs import ImageInput
from ..measure import EXECUTE, Parts

NOT_RUN_ON_A_DEVICE = "not run on a device"


@dataclass(frozen=True)
class Settings:
    """How a model is to be run.

    Attributes:
        batch: images per call.
        image_size: height and width in pixels.
        threads: to compute with, on a CPU.
        device: number of the accelerator.
    """

    batch: int
    image_size: tuple[int, int]
    threads: int = 1
    device: int = 0


class Runtime(ABC):
    """A way to run a model file: `load` it, `run` it or `feed` and `timed`, and `close` it, always.

    Attributes:
        name: on the command line.
        suffixes: of the files that it takes.
        label: what a reader of its figures has to know; `NOT_RUN_ON_A_DEVICE` for what was only tried on a stand-in.
        versions: packages whose versions belong to a result.
    """

    name: str
    suffixes: tuple[str, ...]
    label: str = ""
    versions: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Why it cannot be used here and what to install, or None if it can."""

    @abstractmethod
    def describe(self, path: str, settings: Settings) -> ImageInput:
        """The input of a model; of `settings` only threads and device count.

        Raises:
            InputError: the file is not a model of images that this runtime takes.
        """

    @abstractmethod
    def load(self, path: str, settings: Settings) -> None:
        """Load and compile a model.

        Raises:
            InputError: it cannot be loaded.
        """

    @abstractmethod
    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        """Bring the inputs, in the order of the model's, to where the model reads them."""

    @abstractmethod
    def execute(self) -> None:
        """Compute, and come back when the outputs are there."""

    @abstractmethod
    def copy_out(self) -> list[np.ndarray]:
        """The outputs as arrays of the host."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; allowed at any time, and more than once."""

    @classmethod  # noqa: B027
    def shutdown(cls) -> None:
        """Give back what all models of a process share; to be called when the last is closed."""

    def feed(self, arrays: Sequence[np.ndarray]) -> None:
        """Keep the inputs of the next calls of `timed`."""
        self._arrays = arrays

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs of one call.

        Raises:
            InputError: the model fails.
        """
        self.feed(arrays)
        self.copy_in(arrays)
        self.execute()
        return self.copy_out()

    def timed(self) -> Parts:
        """One call on what was fed: seconds of "copy_in", "execute" and "copy_out"."""
        start = time.perf_counter()
        self.copy_in(self._arrays)
        copied = time.perf_counter()
        self.execute()
        executed = time.perf_counter()
        self.copy_out()
        end = time.perf_counter()
        return Parts({"copy_in": copied - start, EXECUTE: executed - copied, "copy_out": end - executed})

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def check_finite(path: str, outputs: Sequence[np.ndarray]) -> None:
    """Raises:
    InputError: an output has values that are not finite numbers.
    """
    for output in outputs:
        if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
            kind = "NaN" if np.isnan(output).any() else "infinite"
            raise InputError(
                f"{path}: it returns {kind} values for random images, so its time says nothing about a working model; "
                "check its weights"
            )
