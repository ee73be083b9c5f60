"""The input that a model wants, derived from its file, and arrays to feed it with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neonext_ms.checkpoint.metadata import KEY
from neonext_ms.common.errors import InputError
from neonext_ms.runtime.base import check_file, one_line

# Where a file leaves the image size open and nobody names one.
DEFAULT_SIZE = (224, 224)


@dataclass(frozen=True)
class ImageInput:
    """The one input of a model of images.

    Attributes:
        name: in the file; empty if the file does not say.
        dtype: NumPy's name: "float32", "float16", "float64", "uint8" or "int8".
        shape: (N, C, H, W), or (N, H, W, C) if `layout` says so; None for what is open.
        batches: batch sizes that the model takes, or None for any.
        layout: "NCHW" or "NHWC".
        image_size: height and width that the file's metadata gives, for a shape that leaves them open.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    batches: tuple[int, ...] | None = None
    layout: str = "NCHW"
    image_size: tuple[int, int] | None = None

    def describe(self) -> str:
        """In one line, for messages."""
        return f"{self.dtype} {'x'.join('?' if d is None else str(d) for d in self.shape)}"

    def size(self, path: str, asked: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the images: the file's own, else what was asked for, its metadata's, or 224x224.

        Raises:
            InputError: the file fixes another size than was asked for.
        """
        first = 2 if self.layout == "NCHW" else 1
        own = self.shape[first : first + 2]
        known = asked or self.image_size or DEFAULT_SIZE
        size = tuple(fixed or chosen for fixed, chosen in zip(own, known, strict=True))
        if asked and size != asked:
            raise InputError(
                f"{path}: its input is {self.describe()}, so images of {asked[0]}x{asked[1]} do not fit; "
                "change --image-size, or export the model for that size"
            )
        return size

    def images(self, batch: int, image_size: tuple[int, int], seed: int = 0) -> np.ndarray:
        """Normally distributed images (noise over the whole range for 8 bit), the same for the same arguments."""
        generator = np.random.default_rng(seed)
        channels = self.shape[1 if self.layout == "NCHW" else 3] or 3
        shape = (batch, channels, *image_size) if self.layout == "NCHW" else (batch, *image_size, channels)
        if self.dtype in ("uint8", "int8"):
            limits = np.iinfo(self.dtype)
            return generator.integers(limits.min, limits.max, shape, self.dtype, endpoint=True)
        return generator.standard_normal(shape, np.float32).astype(self.dtype)


def of_onnx(path: str | os.PathLike) -> ImageInput:
    """The image input of an ONNX file, read without its weights.

    Raises:
        InputError: no such file, not an ONNX file, or not a model with one input (N, C, H, W).
    """
    model = read_onnx(path, weights=False)
    path = os.fspath(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise InputError(f"{path}: expected a model with one input, the images; found {len(inputs)}: {names}")
    tensor = inputs[0].type.tensor_type
    shape = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    dtype = _onnx_dtype(tensor.elem_type)
    size = _metadata_size(model)
    return checked(path, ImageInput(inputs[0].name, dtype, shape, shape[:1] if shape and shape[0] else None), size)


def checked(path: str, found: ImageInput, image_size: tuple[int, int] | None = None) -> ImageInput:
    """The same input, if it is one of images.

    Raises:
        InputError: it is not.
    """
    if len(found.shape) != 4 or found.dtype not in ("float32", "float16", "float64", "uint8", "int8"):
        raise InputError(
            f"{path}: expected one input of images, (N, C, H, W) in floating point or 8 bit; found "
            f"{found.name!r}: {found.describe()}"
        )
    return ImageInput(found.name, found.dtype, found.shape, found.batches, found.layout, image_size)


def read_onnx(path: str | os.PathLike, weights: bool = True):
    """An ONNX file as a `ModelProto`.

    Raises:
        InputError: no such file, or not an ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = os.fspath(path)
    check_file(path)
    try:
        model = onnx.load(path, load_external_data=weights)
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: not a whole ONNX model ({one_line(error)}); export it again") from error
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX model; it has no nodes")
    return model


def check_batches(path: str, found: ImageInput, asked: Sequence[int]) -> list[int]:
    """The batch sizes of `asked` that a model takes.

    Raises:
        InputError: it takes none of them.
    """
    fitting = [batch for batch in asked if found.batches is None or batch in found.batches]
    if not fitting:
        own = ", ".join(map(str, found.batches or ()))
        raise InputError(
            f"{path}: its input is {found.describe()}, so it takes batches of {own} only, not "
            f"{', '.join(map(str, asked))}; pass --batch {own.replace(', ', ',')}, or export it with an open batch"
        )
    return fitting


def _onnx_dtype(code: int) -> str:
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError):
        return onnx.TensorProto.DataType.Name(code).lower() if code else "unknown"


def _metadata_size(model) -> tuple[int, int] | None:
    """The image size that our exporter wrote; whatever else is there counts as nothing."""
    import json

    for entry in model.metadata_props:
        if entry.key == KEY:
            try:
                height, width = json.loads(entry.value)["image_size"]
                return int(height), int(width)
            except (ValueError, TypeError, KeyError):
                return None
    return None
