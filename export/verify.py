"""Running what was emitted, whatever its form, for the comparison with the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.runtime.mindspore import load_mindspore
from neonext_ms.runtime.onnx import onnx_session

from .onnx.format import Flavour

# Above this size a comparison saves memory rather than time.
LARGE_BYTES = 1 << 29

if TYPE_CHECKING:
    from .pipeline import Build


def outputs(path: Path, flavour: Flavour, samples: np.ndarray, batch: int | None = None) -> np.ndarray:
    """What an ONNX or MindIR file computes: the first image alone, the others together.

    NeoCell nodes are written back as products from their own coefficients and attributes, since no runtime here has
    the operator; bfloat16 is run in float32 arithmetic with each result rounded, since no runtime here has the type.

    Args:
        path: the file.
        flavour: the form in which it was written.
        samples: float32 `(N, 3, H, W)`.
        batch: fixed batch size of the file, or None for a dynamic one.

    Returns:
        float32 `(N, classes)`, or several outputs flattened and joined, `(N, numbers)`.
    """
    run = _mindir(path, flavour) if path.suffix == ".mindir" else _onnx(path, flavour)
    parts = (samples[:1], samples[1:])
    return np.concatenate([_joined(_chunks(run, part, batch)) for part in parts])


def runnable(path: Path, flavour: Flavour):
    """An ONNX file of ours in a form that onnxruntime has kernels for, or None if it is in one already."""
    if flavour.neocell != "custom" and flavour.precision != "bfloat16":
        return None
    from .onnx import emitter

    return emitter.runnable(emitter.read(path))


def model_outputs(build: Build, samples: np.ndarray) -> np.ndarray:
    """The same of the unfolded network in MindSpore."""
    ms = load_mindspore()
    from neonext_ms.models.neonext import NeoNeXt

    source = build.source
    model = NeoNeXt.from_architecture(source.architecture, source.arrays, build.request.features_only)
    model.set_train(False)
    return np.concatenate([_joined(_numpy(model(ms.Tensor(part)))) for part in (samples[:1], samples[1:])])


def _joined(results: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(r, np.float32).reshape(len(r), -1) for r in results], axis=1)


def _numpy(result) -> list[np.ndarray]:
    return [part.asnumpy() for part in (result if isinstance(result, (tuple, list)) else (result,))]


def _mindir(path: Path, flavour: Flavour):
    ms = load_mindspore()
    try:
        cell = ms.nn.GraphCell(ms.load(str(path)))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path.name}: MindSpore cannot load what it wrote ({str(error).splitlines()[0]})") from error
    dtype = np.float32 if flavour.float32_io else np.dtype(flavour.precision)
    return lambda images: _numpy(cell(ms.Tensor(images.astype(dtype, copy=False))))


def _onnx(path: Path, flavour: Flavour):
    form = runnable(path, flavour)
    model = str(path) if form is None else form.SerializeToString()
    try:
        session = onnx_session(model, lean=path.stat().st_size > LARGE_BYTES)
    except Exception as error:
        raise InputError(f"{path.name}: onnxruntime cannot load it ({' '.join(str(error).split())[:200]})") from error
    given = session.get_inputs()[0]
    dtype = np.float16 if given.type == "tensor(float16)" else np.float32
    return lambda images: session.run(None, {given.name: images.astype(dtype, copy=False)})


def _chunks(run, images: np.ndarray, batch: int | None) -> list[np.ndarray]:
    """Feed a model of fixed batch in chunks, the last one filled up with zeros whose results are cut off."""
    step = batch or len(images)
    chunks = []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        filled = np.concatenate([part, np.zeros((step - len(part), *part.shape[1:]), part.dtype)])
        chunks.append([result[: len(part)] for result in run(np.ascontiguousarray(filled))])
    return [np.concatenate(results) for results in zip(*chunks, strict=True)]
