"""A folded network with its MLPs in 8 bit, quantised as it runs, for onnxruntime on a CPU.

onnxruntime's dynamic quantisation takes MatMul nodes with constant right sides: their weights become int8, one scale
for each output, and the activations uint8 with a scale computed at run time. So the MLPs are written as linear layers
over the channels of NHWC. Convolutions, NeoCells and the classifier stay float32. No calibration is needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neonext_ms.common.files import atomic
from neonext_ms.models.activations import ACTIVATIONS
from neonext_ms.runtime.onnx import import_onnxruntime

from ..fold import is_pointwise
from ..graph import NCHW, NHWC, DeployGraph, Layer
from ..lower import lower
from .emitter import emit
from .format import Format


def channels_last(graph: DeployGraph) -> DeployGraph:
    """Return a folded graph with pairs of 1x1 convolutions around an activation as linear layers over NHWC.

    It reverses `fold.channels_first`.
    """
    changes = []
    for first, activation, second in graph.chains("conv", "|".join(ACTIVATIONS), "conv"):
        if not (is_pointwise(first) and is_pointwise(second)):
            continue
        entry, end = f"{first.name}.nhwc", f"{second.name}.nhwc"
        to_nhwc = Layer("transpose", entry, first.inputs, entry, {}, {"order": NHWC})
        to_nchw = Layer("transpose", f"{second.name}.nchw", (end,), second.output, {}, {"order": NCHW})
        linear = [replace(_linear(first), inputs=(entry,)), activation, replace(_linear(second), output=end)]
        changes.append(([first, activation, second], [to_nhwc, *linear, to_nchw]))
    return graph.replaced(changes)


def _linear(conv: Layer) -> Layer:
    arrays = {**conv.arrays, "weight": conv.arrays["weight"][:, :, 0, 0]}
    return replace(conv, op="linear", arrays=arrays, attributes={})


def write(
    graph: DeployGraph,
    path: str | os.PathLike,
    batch: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network with its MLPs in 8 bit, atomically.

    Args:
        graph: a folded network.
        path: path of the file.
        batch: fixed batch size, or None for a dynamic one.
        metadata: metadata to record, see `emitter.emit`.

    Raises:
        InputError: as for `emitter.emit`, or the file cannot be written.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    format = Format()
    model = emit(lower(channels_last(graph), format), batch, format, metadata)
    # Matrices of NeoCells have a channel axis; what the quantiser would make of them is slower than float32.
    axes = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    kept = [node.name for node in model.graph.node if node.op_type == "MatMul" and axes.get(node.input[1]) != 2]
    # The quantiser first writes a Gemm as MatMul, under this name.
    kept += [f"{node.name}_MatMul" for node in model.graph.node if node.op_type == "Gemm"]
    with atomic(path) as staged:
        logger = logging.getLogger()
        level = logger.level
        # The quantiser warns that the model was not prepared, which this graph does not need.
        logger.setLevel(logging.ERROR)
        try:
            quantize_dynamic(
                model,
                staged,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                nodes_to_exclude=kept,
                weight_type=QuantType.QInt8,
            )
        finally:
            logger.setLevel(level)
    return Path(path)
