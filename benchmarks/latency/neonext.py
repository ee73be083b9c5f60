"""NeoNeXt as ATC gets it, without the values of its weights: folded, at opset 13, in either form of NeoCell."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import onnx

from neonext_ms.export.fold import fold
from neonext_ms.export.graph import DeployGraph, original_graph
from neonext_ms.export.lower import lower
from neonext_ms.export.onnx.emitter import skeleton
from neonext_ms.export.onnx.format import CANN
from neonext_ms.export.quantize.apply import quantizable, quantize
from neonext_ms.models.activations import GELU
from neonext_ms.models.architecture import Architecture
from neonext_ms.models.quantizer import Quantizer
from neonext_ms.models.registry import model_config
from neonext_ms.models.scales import LayerScale, Scales

from ..networks import deploy_graph

FORMS = {"MatMul": "matmul", "AscendC": "custom"}


@lru_cache(maxsize=2)
def _folded(architecture: Architecture, image_size: tuple[int, int]) -> DeployGraph:
    # Ones with a stride of 0: arrays that are not folded take no memory.
    arrays = {key: np.broadcast_to(np.float32(1), shape) for key, shape in architecture.tensors().items()}
    return fold(original_graph(architecture, arrays, image_size))[0]


@lru_cache(maxsize=2)
def _folded_in_8_bit(architecture: Architecture, image_size: tuple[int, int]) -> DeployGraph:
    return _in_8_bit(_folded(architecture, image_size))


@lru_cache(maxsize=1)
def _folded_convnext() -> DeployGraph:
    return deploy_graph("convnext_t")


def _convnext(activation: str) -> DeployGraph:
    return with_activation(_folded_convnext(), activation)


@lru_cache(maxsize=2)
def _convnext_in_8_bit(activation: str) -> DeployGraph:
    return _in_8_bit(_convnext(activation))


def build(
    size: str,
    image_size: int,
    batch: int,
    form: str,
    activation: str = GELU,
    gelu: str = CANN.gelu,
    int8: bool = False,
) -> onnx.ModelProto:
    """Return a released NeoNeXt (t to xl, at 224 or 384), or one with another activation, as ONNX for ATC.

    Args:
        size, image_size, batch: size of the network, side of its images, and images of a run.
        form: "MatMul" (two block-diagonal products for a NeoCell) or "AscendC" (our operator).
        activation: activation of the network.
        gelu: form of GELU, see `Format`.
        int8: the form of `--quantize int8`.
    """
    architecture = replace(model_config(f"neonext_{size}.released_{image_size}").architecture, activation=activation)
    return build_network(architecture, (image_size, image_size), batch, form, gelu, int8)


def build_network(
    architecture: Architecture,
    image_size: tuple[int, int],
    batch: int,
    form: str,
    gelu: str = CANN.gelu,
    int8: bool = False,
) -> onnx.ModelProto:
    """Return any NeoNeXt as ONNX for ATC.

    Args:
        architecture: network.
        image_size: height and width of its images.
        batch, form, gelu, int8: see `build`.
    """
    format = CANN.with_(neocell=FORMS[form], gelu=gelu)
    graph = (_folded_in_8_bit if int8 else _folded)(architecture, image_size)
    return skeleton(lower(graph, format), batch, format)


def build_convnext(batch: int, activation: str = GELU, int8: bool = False) -> onnx.ModelProto:
    """Return ConvNeXt-T at 224, folded like NeoNeXt, as ONNX for ATC; with another activation for a fair comparison.

    Args:
        batch: images of a run.
        activation: activation of the network.
        int8: the form of `--quantize int8`, by the same rule.
    """
    return skeleton(lower((_convnext_in_8_bit if int8 else _convnext)(activation), CANN), batch, CANN)


def _in_8_bit(graph: DeployGraph) -> DeployGraph:
    """Return the quantized graph, with scales that do not matter here."""
    return quantize(graph, Scales("", {layer.name: LayerScale(Quantizer.near(1.0, 0)) for layer in quantizable(graph)}))


def with_activation(graph: DeployGraph, activation: str) -> DeployGraph:
    """Return a graph with another activation in place of GELU."""
    layers = (replace(layer, op=activation) if layer.op == GELU else layer for layer in graph.layers)
    return replace(graph, layers=tuple(layers))
