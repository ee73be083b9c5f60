"""NeoNeXt as ATC gets it, without the values of its weights: folded, at opset 13, in either form of NeoCell."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx

from neonext_ms.export.fold import fold
from neonext_ms.export.graph import DeployGraph, original_graph
from neonext_ms.export.lower import lower
from neonext_ms.export.onnx.emitter import skeleton
from neonext_ms.export.onnx.format import CANN
from neonext_ms.models.registry import model_config

FORMS = {"MatMul": "matmul", "AscendC": "custom"}


@lru_cache(maxsize=2)
def _folded(name: str, image_size: int) -> DeployGraph:
    architecture = model_config(name).architecture
    # Ones with a stride of 0: arrays that are not folded take no memory.
    arrays = {key: np.broadcast_to(np.float32(1), shape) for key, shape in architecture.tensors().items()}
    return fold(original_graph(architecture, arrays, (image_size, image_size)))[0]


def build(size: str, image_size: int, batch: int, form: str) -> onnx.ModelProto:
    """Return a released NeoNeXt (t to xl, at 224 or 384) as ONNX for ATC.

    `form` is "MatMul" (two block-diagonal products for a NeoCell) or "AscendC" (our operator).
    """
    format = CANN.with_(neocell=FORMS[form])
    graph = lower(_folded(f"neonext_{size}.released_{image_size}", image_size), format)
    return skeleton(graph, batch, format)
