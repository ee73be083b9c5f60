"""A folded network with its MLPs in 8 bit, quantised as it runs, for onnxruntime on a CPU.

onnxruntime's dynamic quantisation takes MatMul nodes with constant right sides: their weights become int8, one scale
for each output, and the activations uint8 with a scale found at run time. So the MLPs are written as linear layers
over the channels of NHWC. Convolutions, NeoCells and the classifier stay float32. No calibration is needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from neonext_ms.common.files import atomic
from neonext_ms.runtime.onnx import import_onnxruntime

from ..fold import channels_last
from ..graph import DeployGraph
from .emitter import emit
from .format import DEFAULT_OPSET, Flavour, lower


def write(
    graph: DeployGraph,
    path: str | os.PathLike,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping | None = None,
) -> Path:
    """Write a network with its MLPs in 8 bit; the file is there as a whole or not at all.

    Args:
        graph: a folded network.
        path: the file.
        batch: fixed batch size, or None for a dynamic one.
        opset: version of the default domain.
        metadata: as for `onnx_emitter.emit`.

    Raises:
        InputError: as `onnx_emitter.emit`, or the file cannot be written.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    flavour = Flavour(opset=opset)
    model = emit(lower(channels_last(graph), flavour), batch, metadata=metadata, flavour=flavour)
    # Matrices of NeoCells have a channel axis; what the quantiser would make of them is slower than float32.
    shapes = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    kept = [node.name for node in model.graph.node if node.op_type == "MatMul" and shapes.get(node.input[1]) != 2]
    # The quantiser writes a Gemm as MatMul first, under this name.
    kept += [f"{node.name}_MatMul" for node in model.graph.node if node.op_type == "Gemm"]
    with atomic(path) as staged:
        quieter = logging.getLogger()
        level = quieter.level
        # It asks for a preparation that this graph does not need.
        quieter.setLevel(logging.ERROR)
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
            quieter.setLevel(level)
    return Path(path)
