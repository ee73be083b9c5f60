"""The signature of an OM file, from what pyACL or the file itself says of it and from its manifest."""

from __future__ import annotations

from collections.abc import Sequence

from neonext_ms.common.errors import InputError

from .base import Signature, exported_names
from .manifest import read_manifest


def om_signature(
    path: str, name: str, dtype: str, dims: Sequence[int], batches: Sequence[int], outputs: int
) -> Signature:
    """Return the signature of an OM file with one input, the images.

    Args:
        path: path of the file.
        name, dtype, dims: name, NumPy's type and shape of the input; sizes that are not fixed are below 1.
        batches: batch sizes of a file with several, else empty.
        outputs: number of outputs.

    Raises:
        InputError: a size is not fixed and not one of several batch sizes.
    """
    shape = tuple(size if size > 0 else None for size in dims)
    batches = tuple(batches) or tuple(size for size in shape[:1] if size)
    if None in shape[1:] or not all(batches) or not batches:
        raise InputError(f"{path}: its input is {shape}; build it with static sizes or --dynamic_batch_size")
    metadata = read_manifest(path)[0]
    return Signature(
        name, dtype, shape, batches, _layout_of(dtype, shape), exported_names(outputs, metadata), metadata=metadata,
        source="its manifest",
    ).checked(path)  # fmt: skip


def _layout_of(dtype: str, shape: Sequence[int | None]) -> str:
    """Return the layout of images in an OM file, NCHW or NHWC: AIPP takes uint8 with the channels last."""
    channels = (1, 3, 4)
    last = len(shape) == 4 and shape[3] in channels and shape[1] not in channels
    return "NHWC" if dtype == "uint8" and last else "NCHW"
