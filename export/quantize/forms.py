"""The graphs and models that calibration and measurement run in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from neonext_ms.common.errors import InputError, NeoNextError
from neonext_ms.common.files import private_folder
from neonext_ms.common.text import one_line
from neonext_ms.models.activations import ACTIVATIONS
from neonext_ms.runtime.onnx import onnx_session

from ..fold import is_pointwise
from ..graph import INPUT, DeployGraph, Layer
from ..lower import lower
from ..onnx import emitter
from ..onnx.format import Format
from ..onnx.save import write_model

# Bytes of values that one run may return.
_GROUP_BYTES = 1 << 27
_MOST = 16


def host_graph(quantized: DeployGraph) -> DeployGraph:
    """Return a quantized graph as it is written for hosts: convolutions in 8 bit as linear layers over rows of patches.

    A Gemm between 8-bit inputs and a float output has a kernel in onnxruntime, which adds the bias too; a Conv has one
    only between 8-bit inputs and an 8-bit output. What lies between the two layers of an MLP stays in rows.
    """
    shapes = quantized.shapes()
    inner = {
        layer.name: chain
        for chain in quantized.chains("conv_int8", "|".join(ACTIVATIONS), "conv_int8")
        if is_pointwise(chain[2])
        for layer in (chain[0], chain[2])
    }
    changes = []
    for layer in quantized.layers:
        if layer.op != "conv_int8":
            continue
        chain, weight = inner.get(layer.name, []), layer.arrays["weight"]
        arrays = {**layer.arrays, "weight": weight.reshape(len(weight), -1)}
        linear = replace(layer, op="linear_int8", arrays=arrays, attributes=_quantizer(layer))
        before, after = [], []
        if not chain or layer is chain[0]:
            rows = f"{layer.name}.rows"
            before = [Layer("to_rows", rows, layer.inputs, rows, {}, {"patch": weight.shape[2:]})]
            linear = replace(linear, inputs=(rows,))
        if not chain or layer is chain[2]:
            end, size = f"{layer.name}.outputs", shapes[layer.output][1:]
            after = [Layer("to_map", f"{layer.name}.map", (end,), layer.output, {}, {"size": size})]
            linear = replace(linear, output=end)
        changes.append(([layer], [*before, linear, *after]))
    return quantized.replaced(changes)


def _quantizer(layer: Layer) -> dict:
    return {"quantizer": layer.attributes["quantizer"]}


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
        graph = lower(replace(graph, outputs=tuple(self.names)), format)
        if self.names:
            self._open(lambda path: emitter.save(graph, path, None, format))

    def _open(self, write: Callable[[Path], object]) -> None:
        """Open a model that a function writes; from a file, so that its weights are in memory only once."""
        path = private_folder() / "model.onnx"
        try:
            write(path)
            # Without an arena, memory of one batch is free for the next step.
            self._session = onnx_session(str(path), arena=False)
        except NeoNextError:
            raise
        except Exception as error:
            raise InputError(f"onnxruntime cannot load the network ({one_line(error, 300)})") from error
        finally:
            for file in path.parent.glob(f"{path.name}*"):
                file.unlink()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of some images by name; nothing if the input alone was asked for."""
        if not self.names:
            return {}
        return dict(zip(self.names, self._session.run(self.names, {INPUT: images}), strict=True))


class NoiseSession(Session):
    """A graph in onnxruntime that returns sums of squares: of one value, and of its difference from another one.

    Args:
        graph: graph to run.
        pairs: names of the value and of its approximation.
        gelu: form of GELU, see `Format`.
    """

    def __init__(self, graph: DeployGraph, pairs: Sequence[tuple[str, str]], gelu: str = "auto"):
        self.batch = 1
        self.names = [name for _, noisy in pairs for name in (f"{noisy}.signal", f"{noisy}.noise")]
        format = Format(gelu=gelu)
        names = tuple(dict.fromkeys(name for pair in pairs for name in pair))
        model = emitter.emit(lower(replace(graph, outputs=names), format), None, format)
        del model.graph.output[:]
        for signal, noisy in pairs:
            model.graph.node.extend(
                [
                    helper.make_node("Sub", [signal, noisy], [f"{noisy}.difference"]),
                    helper.make_node("ReduceSumSquare", [signal], [f"{noisy}.signal"], keepdims=0),
                    helper.make_node("ReduceSumSquare", [f"{noisy}.difference"], [f"{noisy}.noise"], keepdims=0),
                ]
            )
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in self.names)
        self._open(lambda path: write_model(model, path))


def stacked(session: Session, batches: Iterator[np.ndarray], name: str) -> np.ndarray:
    """Return one value of all images, float32 `(N, ...)`."""
    return np.concatenate([session.run(images)[name] for images in batches])
