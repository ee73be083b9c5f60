"""The graphs and models that calibration and measurement run in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import one_line
from neonext_ms.models.activations import ACTIVATIONS
from neonext_ms.runtime.onnx import onnx_session

from ..graph import INPUT, DeployGraph
from ..lower import lower
from ..onnx import emitter
from ..onnx.format import Format
from ..onnx.int8 import channels_last

# Bytes of values that one run may return.
_GROUP_BYTES = 1 << 28
_MOST = 16


def host_graph(quantized: DeployGraph) -> DeployGraph:
    """Return a quantized graph as it is written for hosts.

    The layers around a GELU become linear layers over channels last: a MatMul between 8-bit inputs and a float output
    has a kernel in onnxruntime, a Conv has one only between 8-bit inputs and an 8-bit output.
    """
    pairs = [chain for chain in quantized.chains("conv|conv_int8", "|".join(ACTIVATIONS), "conv|conv_int8")]
    if not any(layer.op == "conv_int8" for chain in pairs for layer in chain):
        return quantized
    return channels_last(quantized)


class Session:
    """A graph in onnxruntime.

    Args:
        graph: graph to run, with NeoCells as NeoCells.
        outputs: values to return; None for the graph's own outputs.
        gelu: form of GELU, see `Format`.
    """

    def __init__(self, graph: DeployGraph, outputs: Sequence[str] | None = None, gelu: str = "auto"):
        outputs = tuple(graph.outputs if outputs is None else outputs)
        shapes = graph.shapes()
        bytes_each = 4 * sum(int(np.prod(shapes[name])) for name in outputs)
        self.batch = int(min(max(_GROUP_BYTES // max(bytes_each, 1), 1), _MOST))
        # A graph input cannot be an output too.
        self.names = [name for name in outputs if name != INPUT]
        format = Format(gelu=gelu)
        self._open(emitter.emit(lower(replace(graph, outputs=tuple(self.names)), format), None, format))

    def _open(self, model: onnx.ModelProto) -> None:
        try:
            self._session = onnx_session(model.SerializeToString())
        except Exception as error:
            raise InputError(f"onnxruntime cannot load the network ({one_line(error, 300)})") from error

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of some images by name."""
        return dict(zip(self.names, self._session.run(self.names, {INPUT: images}), strict=True))


class NoiseSession(Session):
    """A graph in onnxruntime that returns sums of squares: of one value, and of its difference from another one.

    Args:
        graph: graph to run.
        pairs: names of the value and of its approximation.
    """

    def __init__(self, graph: DeployGraph, pairs: Sequence[tuple[str, str]]):
        self.batch = 4
        format = Format()
        names = tuple(dict.fromkeys(name for pair in pairs for name in pair))
        model = emitter.emit(lower(replace(graph, outputs=names), format), None, format)
        del model.graph.output[:]
        self.names = [name for signal, noisy in pairs for name in (f"{noisy}.signal", f"{noisy}.noise")]
        for signal, noisy in pairs:
            model.graph.node.extend(
                [
                    helper.make_node("Sub", [signal, noisy], [f"{noisy}.difference"]),
                    helper.make_node("ReduceSumSquare", [signal], [f"{noisy}.signal"], keepdims=0),
                    helper.make_node("ReduceSumSquare", [f"{noisy}.difference"], [f"{noisy}.noise"], keepdims=0),
                ]
            )
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in self.names)
        self._open(model)


def stacked(session: Session, batches: Iterator[np.ndarray], name: str) -> np.ndarray:
    """Return one value of all images, float32 `(N, ...)`."""
    return np.concatenate([session.run(images)[name] for images in batches])
