"""Nodes of 8-bit layers in the two forms of file.

    QDQ     QuantizeLinear, DequantizeLinear, Conv or Gemm on dequantized int8 weights and int32 bias. Runtimes fuse
            this into 8-bit kernels; read literally, it is float arithmetic on the same numbers.
    ascend  AscendQuant, Conv with int8 weights and int32 bias, AscendDequant: the form that CANN's ONNX parser takes.

Hosts store activations as uint8, devices as int8: the numbers of the first are those of the second plus 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from neonext_ms.common.errors import InputError

from ..graph import NCHW, NHWC, Layer, conv_margins, conv_strides
from .format import Format

_UINT8 = 128


class Nodes(Protocol):
    """The nodes of a graph under construction, as `emitter.Emitter` has them."""

    format: Format
    dtype: np.dtype
    shapes: dict[str, tuple[int, ...]]

    def node(self, op: str, inputs: Sequence[str], output: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output."""

    def tensor(self, name: str, array: np.ndarray) -> str:
        """Add a constant and return its name."""


def emit(emitter: Nodes, layer: Layer) -> None:
    """Emit an 8-bit layer in the form of the emitter's format."""
    (_ascend if emitter.format.int8 == "ascend" else _qdq)(emitter, layer)


def _qdq(e: Nodes, layer: Layer) -> None:
    name, quantizer = layer.name, layer.attributes["quantizer"]
    scale = e.tensor(f"{name}.input.scale", np.array(quantizer.scale, np.float32))
    zero = e.tensor(f"{name}.input.zero", np.array(quantizer.offset + _UINT8, np.uint8))
    x = e.node("QuantizeLinear", [*layer.inputs, scale, zero], f"{name}.codes")
    inputs = [e.node("DequantizeLinear", [x, scale, zero], f"{name}.input")]
    inputs += [_dequantized(e, layer, key) for key in ("weight", "bias")]
    if layer.op == "conv_int8":
        e.node("Conv", inputs, layer.output, name, **conv_attributes(layer))
    elif len(e.shapes[layer.inputs[0]]) == 1:
        e.node("Gemm", inputs, layer.output, name, transB=1)
    else:
        raise InputError(f"{name}: an 8-bit linear layer over maps has no form for hosts. Fold the network first.")


def emit_rows(e: Nodes, layer: Layer) -> None:
    """Emit the patches of a map as rows, `(N H / p W / q, C p q)`.

    They are quantized afterwards: OpenVINO fuses a quantization into the product behind it, not across other nodes.
    """
    (x,), (c, h, w), (p, q), name = layer.inputs, e.shapes[layer.inputs[0]], layer.attributes["patch"], layer.name
    if (p, q) == (1, 1):
        x = e.node("Transpose", [x], f"{name}.pixels", perm=list(NHWC))
    else:
        rows, columns = h // p, w // q
        if (rows * p, columns * q) != (h, w):
            bounds = {"starts": [0, 0], "ends": [rows * p, columns * q], "axes": [2, 3]}
            constants = [e.tensor(f"{name}.crop.{key}", np.array(value, np.int64)) for key, value in bounds.items()]
            x = e.node("Slice", [x, *constants], f"{name}.crop")
        split = e.tensor(f"{name}.split.shape", np.array([-1, c, rows, p, columns, q], np.int64))
        x = e.node("Reshape", [x, split], f"{name}.split")
        x = e.node("Transpose", [x], f"{name}.ordered", perm=[0, 2, 4, 1, 3, 5])
    e.node("Reshape", [x, e.tensor(f"{name}.shape", np.array([-1, c * p * q], np.int64))], layer.output, name)


def emit_map(e: Nodes, layer: Layer) -> None:
    """Emit rows, one for each pixel, as a map."""
    name, channels = layer.name, e.shapes[layer.output][0]
    shape = e.tensor(f"{name}.shape", np.array([-1, *layer.attributes["size"], channels], np.int64))
    x = e.node("Reshape", [*layer.inputs, shape], f"{name}.nhwc")
    e.node("Transpose", [x], layer.output, name, perm=list(NCHW))


def _dequantized(e: Nodes, layer: Layer, key: str) -> str:
    """Emit the weight or the bias of a layer as a dequantized constant and return its name."""
    name, array = f"{layer.name}.{key}", layer.arrays[key]
    step = layer.arrays["weight_step" if key == "weight" else "step"]
    scale, zero = e.tensor(f"{name}.scale", step), e.tensor(f"{name}.zero", np.zeros(len(step), array.dtype))
    return e.node("DequantizeLinear", [e.tensor(name, array), scale, zero], f"{name}.float", axis=0)


def _ascend(e: Nodes, layer: Layer) -> None:
    name, quantizer, (x,) = layer.name, layer.attributes["quantizer"], layer.inputs
    weight, output, attributes = layer.arrays["weight"], layer.output, {}
    if layer.op == "conv_int8":
        attributes = conv_attributes(layer)
    elif len(e.shapes[x]) == 1:
        # Only a Conv has one scale for each output channel, so the classifier is one on a map of one pixel.
        shape = e.tensor(f"{name}.map_shape", np.array([-1, weight.shape[1], 1, 1], np.int64))
        x = e.node("Reshape", [x, shape], f"{name}.map")
        weight, output = weight[:, :, None, None], f"{name}.scores"
        attributes = {"kernel_shape": [1, 1], "strides": [1, 1], "group": 1}
    else:
        raise InputError(f"{name}: an 8-bit linear layer over maps has no form for CANN. Fold the network first.")
    x = e.node(
        *("AscendQuant", [x], f"{name}.codes", f"{name}.quant"),
        scale=quantizer.reciprocal,
        offset=float(quantizer.offset),
        dst_type="INT8",
    )
    inputs = [x, e.tensor(f"{name}.weight", weight), e.tensor(f"{name}.bias", layer.arrays["bias"])]
    x = e.node("Conv", inputs, f"{name}.accumulated", name, **attributes)
    steps = e.tensor(f"{name}.steps", packed_steps(layer.arrays["step"]))
    # 1 is float16, 0 float32.
    e.node("AscendDequant", [x, steps], output, f"{name}.dequant", dtype=int(e.dtype == np.float16))
    if output != layer.output:
        e.node("Flatten", [output], layer.output, f"{name}.flatten")


def packed_steps(steps: np.ndarray) -> np.ndarray:
    """Return float32 steps as AscendDequant reads them: in the low half of uint64, with shift and offset 0 above."""
    return np.ascontiguousarray(steps, np.float32).view(np.uint32).astype(np.uint64)


def conv_attributes(layer: Layer) -> dict:
    """Return the attributes of the Conv node of a layer."""
    before, after = conv_margins(layer)
    attributes = {
        "kernel_shape": list(layer.arrays["weight"].shape[2:]),
        "strides": list(conv_strides(layer)),
        "group": layer.attributes["groups"],
    }
    return {**attributes, **({"pads": [*before, *after]} if any(after) else {})}
