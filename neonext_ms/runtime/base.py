"""The protocol of a runtime, and what a model file says of itself. No runtime is imported here."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from neonext_ms.checkpoint.checkpoint import SUFFIXES as CHECKPOINT_SUFFIXES
from neonext_ms.checkpoint.checkpoint import format_of
from neonext_ms.common.cli import MAX_BATCH, MAX_SIDE
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import check_regular, explained
from neonext_ms.common.text import format_size
from neonext_ms.models.architecture import STAGE_OUTPUTS

_EXPORTED_SUFFIXES = (".onnx", ".mindir", ".om", ".ms", ".json", ".xml")
NOT_RUN_ON_A_DEVICE = "not run on a device"


@dataclass(frozen=True)
class Settings:
    """Options of one loaded model.

    Attributes:
        batch: images per call, or None for any number, where the model takes any.
        image_size: height and width in pixels.
        threads: intra-op threads on a CPU (default: see `processors.thread_count`).
        device: number of the accelerator.
        shifts: shifts of the four stages, for a checkpoint that does not record them.
        ema: whether to use the moving average of a checkpoint's weights.
        key: key or prefix of the weights in a checkpoint of several models.
        activation: activation, for a checkpoint that records none and is not of a network with GELU.
    """

    batch: int | None = None
    image_size: tuple[int, int] | None = None
    threads: int | None = None
    device: int = 0
    shifts: Sequence[int] | None = None
    ema: bool = False
    key: str | None = None
    activation: str | None = None


@dataclass(frozen=True)
class Signature:
    """Input, outputs and metadata of a model of images, as its file states them.

    Attributes:
        name: name of the input; empty if the file has none.
        dtype: NumPy's name of the input's type: "float32", "float16", "float64", "uint8" or "int8".
        shape: (N, C, H, W), or (N, H, W, C) if `layout` is "NHWC"; None for an open dimension.
        batches: batch sizes that the model takes, or None for any.
        layout: "NCHW" or "NHWC".
        outputs: names of the outputs; empty if the file has none.
        output_types: type and shape of each output, as `describe` has them; empty if the file does not state them.
        classes: number of logits per image, or None if the file does not state it.
        weights: dtype of the weights, if the file states it.
        metadata: checked metadata of the file or its manifest (see `checkpoint.metadata`).
        source: name of the metadata's place, for messages.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    batches: tuple[int, ...] | None = None
    layout: str = "NCHW"
    outputs: tuple[str, ...] = ()
    output_types: tuple[str, ...] = ()
    classes: int | None = None
    weights: str = ""
    metadata: Mapping = field(default_factory=dict)
    source: str = "its metadata"

    def describe(self) -> str:
        """Return type and shape of the input, such as `float32 Nx3x224x224`."""
        open_axes = self.layout if len(self.layout) == len(self.shape) else "?" * len(self.shape)
        sizes = [name if size is None else str(size) for name, size in zip(open_axes, self.shape, strict=True)]
        return f"{self.dtype} {'x'.join(sizes)}"

    @property
    def fixed_size(self) -> tuple[int | None, ...]:
        """Height and width of the input; None for an open dimension."""
        return self.shape[1:3] if self.layout == "NHWC" else self.shape[2:4]

    @property
    def channels(self) -> int:
        """Number of input channels; 3 if the file leaves it open."""
        return self.shape[3 if self.layout == "NHWC" else 1] or 3

    def shape_of(self, batch: int, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of an input array."""
        return (batch, *image_size, self.channels) if self.layout == "NHWC" else (batch, self.channels, *image_size)

    def size(self, path: str, asked: tuple[int, int] | None, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return height and width of the images: those of the graph, else `asked`, the metadata's, or `default`.

        Raises:
            InputError: the graph and the metadata contradict each other.
            UsageError: the file fixes another size than `asked`, or nothing states a size.
        """
        recorded = self.metadata.get("image_size")
        for fixed, pixels in zip(self.fixed_size, recorded or (), strict=False):
            if fixed not in (None, pixels):
                raise InputError(f"{path}: the graph has images of {fixed} pixels, {self.source} says {pixels}")
        known = asked or recorded or default
        if known is None and None in self.fixed_size:
            raise UsageError(
                f"{path}: {self.source} does not record the image size. Pass --image-size, such as 224 or 256x320."
            )
        size = tuple(fixed or pixels for fixed, pixels in zip(self.fixed_size, known or (0, 0), strict=True))
        if asked and size != tuple(asked):
            raise UsageError(
                f"{path}: its input is {self.describe()}, so images of {asked[0]}x{asked[1]} do not fit. "
                "Change --image-size, or export the model for that size."
            )
        return size[0], size[1]

    def checked(self, path: str) -> Signature:
        """Return this signature if its input is a batch of images.

        Raises:
            InputError: the input is something else, or larger than any batch of images.
        """
        largest = (MAX_BATCH, *[MAX_SIDE] * 3)
        if any(side is not None and side > most for side, most in zip(self.shape, largest, strict=False)):
            raise InputError(
                f"{path}: its input is too large (got {format_size(self.shape)}, expected a batch of at most "
                f"{MAX_BATCH} and sides of at most {MAX_SIDE}). Export it again."
            )
        if len(self.shape) != 4 or self.dtype not in ("float32", "float16", "float64", "uint8", "int8"):
            raise InputError(
                f"{path}: expected one input of images, (N, C, H, W) in floating point or 8 bit; found "
                f"{self.name!r}: {self.describe()}"
            )
        return self


class Runtime(ABC):
    """A way to run a model file: `load` it, `run` it (or `copy_in`, `execute`, `copy_out`), and always `close` it.

    Attributes:
        name: name on the command line.
        suffixes: suffixes of the files that it takes.
        label: remark for readers of its results; `NOT_RUN_ON_A_DEVICE` if it was only tested with a stand-in.
        versions: packages whose versions belong to a result.
        largest_batch: images per call at most, for a model that takes any number; None for no limit.
        notes: messages to show to the user, known after `describe`.
    """

    name: str
    suffixes: tuple[str, ...]
    label: str = ""
    versions: tuple[str, ...] = ()
    largest_batch: int | None = None
    notes: Sequence[str] = ()

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Return why this runtime cannot be used here and what to install, or None if it can."""

    @abstractmethod
    def describe(self, path: str, settings: Settings) -> Signature:
        """Read the signature of a model; `batch` and `image_size` of `settings` are not used.

        Raises:
            InputError: the file is not a model of images that this runtime takes.
        """

    @abstractmethod
    def load(self, path: str, settings: Settings) -> None:
        """Load and compile a model.

        Raises:
            InputError: the model cannot be loaded.
        """

    @abstractmethod
    def copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy the inputs, in the order of the model's, to where the model reads them."""

    @abstractmethod
    def execute(self) -> None:
        """Compute, and return when the outputs are complete."""

    @abstractmethod
    def copy_out(self) -> list[np.ndarray]:
        """Return the outputs as arrays on the host."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; allowed at any time, and more than once."""

    @classmethod  # noqa: B027
    def shutdown(cls) -> None:
        """Free what all models of the process share; to be called after the last is closed."""

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of one call.

        Raises:
            InputError: the model fails.
        """
        self.copy_in(arrays)
        self.execute()
        return self.copy_out()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def exported_names(count: int, metadata: Mapping) -> tuple[str, ...]:
    """Return names for the outputs of a file that has none: those that its export gave them, as its manifest says."""
    if metadata.get("outputs") == "stages" and count == len(STAGE_OUTPUTS):
        return STAGE_OUTPUTS
    return ("logits",) if count == 1 else tuple(f"output_{i}" for i in range(count))


def describe_type(dtype: str, shape: Sequence[int | None]) -> str:
    """Return type and shape of an output, such as `float32 Nx10`."""
    return f"{dtype} {format_size(['N' if size is None or size < 0 else size for size in shape]) or 'scalar'}"


def chunks(images: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut images into chunks of equal size for a model of fixed batch.

    Args:
        images: array (N, ...); N may be 0.
        size: images per chunk.

    Yields:
        Contiguous array (size, ...), the last one filled up with zeros, and the number of images in it.
    """
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padding = np.zeros((size - len(part), *images.shape[1:]), images.dtype)
        yield np.ascontiguousarray(np.concatenate([part, padding]) if len(padding) else part), len(part)


def run_in_chunks(
    run: Callable[[np.ndarray], Sequence[np.ndarray]], images: np.ndarray, batch: int | None
) -> list[np.ndarray]:
    """Run a model on any number of images, at least one, and join its outputs.

    Args:
        run: a function that returns the outputs of one batch, each with the batch axis first.
        images: array (N, ...).
        batch: images per call, or None for all at once.
    """
    outputs = [[out[:count] for out in run(chunk)] for chunk, count in chunks(images, batch or len(images))]
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def model_suffix(path: str | os.PathLike) -> str:
    """Return the suffix in lower case that tells what a model file is.

    The content decides for files of other names, such as `model_best.pth.tar` and `pytorch_model.bin`: a checkpoint has
    `.pt` here.

    Raises:
        InputError: a file of an unknown suffix cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in CHECKPOINT_SUFFIXES or suffix in _EXPORTED_SUFFIXES or not os.path.isfile(path):
        return suffix
    return ".pt" if format_of(path) else suffix


def check_file(path: str | os.PathLike) -> None:
    """Raise this package's error for a file that cannot be read, before a library raises its own."""
    check_regular(path)
    with explained(path), open(path, "rb"):
        pass
