"""Verification: every exported file is run and compared with the original network before it is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from neonext_ms.common.errors import InputError, ParityError
from neonext_ms.common.text import one_line
from neonext_ms.runtime.base import Settings, run_in_chunks
from neonext_ms.runtime.lite import Lite
from neonext_ms.runtime.mindspore import load_mindspore
from neonext_ms.runtime.onnx import onnx_session

from .compare import parity
from .compare.compare import compare_activations
from .compare.open import open_activations
from .graph import DeployGraph
from .lower import lower, neocell_to_matmul
from .onnx import emitter
from .onnx.format import Format
from .onnx.runnable import runnable_model
from .onnx.save import write_model
from .tolerances import tolerance

if TYPE_CHECKING:
    from mindspore import nn

# Above this size a comparison saves memory rather than time.
LARGE_BYTES = 1 << 29


def verify(
    path: Path, format: Format, batch: int | None, samples: np.ndarray, expected: np.ndarray, limit: float | None = None
) -> parity.Parity:
    """Compare the outputs of an exported file with those of the original network.

    Args:
        path: path of the ONNX, MindIR or MindSpore Lite file.
        format: format that it was written in.
        batch: fixed batch size of the file, or None for a dynamic one.
        samples: float32 images `(N, 3, H, W)`.
        expected: outputs of the original network, as `file_outputs` returns them.
        limit: largest relative deviation that passes; None for the tolerance of the format.

    Raises:
        ParityError: the file deviates by more than that.
        InputError: the file cannot be run.
    """
    return check(path.name, format, file_outputs(path, format, samples, batch), expected, limit)


def check(
    name: str, format: Format, outputs: np.ndarray, expected: np.ndarray, limit: float | None = None
) -> parity.Parity:
    """Compare outputs of what is called `name` with those of the original network; the rest as `verify`.

    Raises:
        ParityError: they deviate by more than the tolerance.
    """
    limit = tolerance(format.dtype, format.gelu) if limit is None else limit
    result = parity.compare(expected, outputs, limit)
    if not result.agrees():
        raise ParityError(
            f"{name}: outputs differ from the original network (relative L2 {result.relative_l2:.1e}, tolerance "
            f"{result.tolerance:.1e}; largest difference {result.max_abs:.1e} of {result.max_logit:.1e}, top-1 agrees "
            f"on {result.top1_agree} of {result.samples}). Nothing was written."
        )
    return result


def original_outputs(network: DeployGraph, samples: np.ndarray, folder: Path) -> np.ndarray:
    """Return the outputs of the original graph, written node by node and run in onnxruntime.

    Args:
        network: a graph that `graph.original_graph` made.
        samples: float32 images `(N, 3, H, W)`.
        folder: folder for the temporary file.
    """
    path = folder / "reference.onnx"
    files = emitter.save(neocell_to_matmul(network), path)
    outputs = file_outputs(path, Format(), samples)
    for file in files:
        file.unlink()
    return outputs


def mindspore_outputs(model: nn.Cell, samples: np.ndarray) -> np.ndarray:
    """Return the outputs of the original network in MindSpore."""
    ms = load_mindspore()
    model.set_train(False)
    return _in_two_batches(lambda images: _numpy(model(ms.Tensor(images))), samples, None)


def file_outputs(path: Path, format: Format, samples: np.ndarray, batch: int | None = None) -> np.ndarray:
    """Return the outputs of an ONNX, MindIR or MindSpore Lite file.

    NeoCell and NPUGeluV2 nodes are run as other nodes made from their own inputs and attributes, since no runtime
    here has these operators; bfloat16 is run in float32 arithmetic with each result rounded, since no runtime here has
    the dtype.

    Args:
        path: path of the file.
        format: format that it was written in.
        samples: float32 images `(N, 3, H, W)`.
        batch: fixed batch size of the file, or None for a dynamic one.

    Returns:
        float32 `(N, classes)`, or several outputs flattened and joined, `(N, numbers)`.

    Raises:
        InputError: the file cannot be loaded.
    """
    if path.suffix == ".ms":
        with Lite() as runtime:
            runtime.load(str(path), Settings())
            return _in_two_batches(lambda images: runtime.run([images]), samples, batch)
    run = _load_mindir(path, format) if path.suffix == ".mindir" else _load_onnx(path, format)
    return _in_two_batches(run, samples, batch)


def layer_deviations(path: Path, format: Format, folded: DeployGraph, samples: np.ndarray, folder: Path) -> list[dict]:
    """Return how far each layer of an ONNX file in half precision is from the same file in float32.

    Args:
        path: path of the file.
        format: format that it was written in.
        folded: the graph that it was written from, before lowering.
        samples: float32 images `(N, 3, H, W)`.
        folder: folder for temporary files.
    """
    exact, rounded = folder / "float32.onnx", path
    plain = Format(gelu=format.gelu.replace("npu", "auto"), neocell=format.neocell.replace("custom", "matmul"))
    emitter.save(lower(folded, plain), exact)
    if not _runs_as_it_is(format):
        rounded = folder / "runnable.onnx"
        write_model(runnable_model(onnx.load(path)), rounded)
    result = compare_activations(open_activations(exact), open_activations(rounded), samples, layers=True)
    keys = ("name", "relative_l2", "max_abs", "added")
    return [{key: getattr(layer, key) for key in keys} for layer in result.layers]


Run = Callable[[np.ndarray], Sequence[np.ndarray]]


def _in_two_batches(run: Run, samples: np.ndarray, batch: int | None) -> np.ndarray:
    """Return all outputs joined; the first image runs alone, the others together, so a dynamic batch is exercised."""
    rows = []
    for part in (samples[:1], samples[1:]):
        results = run_in_chunks(run, part, batch)
        rows.append(np.concatenate([np.asarray(r, np.float32).reshape(len(r), -1) for r in results], axis=1))
    return np.concatenate(rows)


def _numpy(result) -> list[np.ndarray]:
    return [part.asnumpy() for part in (result if isinstance(result, (tuple, list)) else (result,))]


def _load_mindir(path: Path, format: Format) -> Run:
    ms = load_mindspore()
    try:
        cell = ms.nn.GraphCell(ms.load(str(path)))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path.name}: MindSpore cannot load the file it wrote ({one_line(error)})") from error
    dtype = np.float32 if format.float32_io else np.dtype(format.dtype)
    return lambda images: _numpy(cell(ms.Tensor(images.astype(dtype, copy=False))))


def _load_onnx(path: Path, format: Format) -> Run:
    model = str(path) if _runs_as_it_is(format) else runnable_model(onnx.load(path)).SerializeToString()
    try:
        session = onnx_session(model, lean=path.stat().st_size > LARGE_BYTES)
    except Exception as error:
        raise InputError(f"{path.name}: onnxruntime cannot load it ({one_line(error)})") from error
    (model_input,) = session.get_inputs()
    dtype = np.float16 if model_input.type == "tensor(float16)" else np.float32
    return lambda images: session.run(None, {model_input.name: images.astype(dtype, copy=False)})


def _runs_as_it_is(format: Format) -> bool:
    """Return whether onnxruntime's CPU has kernels for all of a file."""
    return not format.for_cann_only and format.dtype != "bfloat16" and format.int8 == "qdq"
