"""Evaluation of a `DeployGraph` in float64 NumPy: slow, plain, and independent of every runtime."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from neonext_ms.models.activations import LEAKY_SLOPE
from neonext_ms.ops import reference

from .fast_gelu import SCALE, fast_gelu
from .graph import INPUT, NCHW, DeployGraph, Layer, as_map, conv_margins, conv_strides, neocell_bias, neocell_weights

# erf is expanded around the nearest of these many points to 1; beyond 6 it is 1.
_GRID, _END = 4096, 6
_PIECE = 1 << 15


@functools.cache
def _erf_table() -> list[np.ndarray]:
    """Return the first five Taylor coefficients of erf around each point of the grid."""
    x = np.arange(_END * _GRID + 1) / _GRID
    slope = 2 / math.sqrt(math.pi) * np.exp(-(x**2))
    value = np.array([math.erf(point) for point in x])
    return [value, slope, -slope * x, slope * (4 * x**2 - 2) / 6, slope * (12 * x - 8 * x**3) / 24]


def erf(x: np.ndarray) -> np.ndarray:
    """Return erf of float64 values, within 2e-16; nine times as fast as `math.erf` on each."""
    x = np.asarray(x, np.float64)
    flat, out = np.ascontiguousarray(x).reshape(-1), np.empty(x.size)
    table = _erf_table()
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        size = np.minimum(np.abs(piece), float(_END))
        place = np.rint(size * _GRID).astype(np.intp)
        rest, y = size - place / _GRID, np.zeros(len(piece))
        for coefficients in reversed(table):
            y = y * rest + coefficients.take(place)
        out[start : start + _PIECE] = np.copysign(y, piece)
    return out.reshape(x.shape)


def evaluate(graph: DeployGraph, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return every value of a graph, float64 by name.

    Args:
        graph: any graph, folded or not.
        images: input, `(N, 3, H, W)`.
    """
    values = {INPUT: np.asarray(images, np.float64)}
    for layer in graph.layers:
        values[layer.output] = _LAYERS[layer.op](layer, *(values[name] for name in layer.inputs))
    return values


def _arrays(layer: Layer) -> dict[str, np.ndarray]:
    return {key: array.astype(np.float64) for key, array in layer.arrays.items()}


def _space_to_depth(layer, x):
    n, c, h, w = x.shape
    p = layer.attributes["block"]
    x = x.reshape(n, c, h // p, p, w // p, p).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(n, c * p * p, h // p, w // p)


def _conv(layer, x):
    a = _arrays(layer)
    weight, groups = a["weight"], layer.attributes["groups"]
    outputs, inputs, kh, kw = weight.shape
    (above, left), (below, right) = conv_margins(layer)
    x = windows(np.pad(x, ((0, 0), (0, 0), (above, below), (left, right))), (kh, kw), conv_strides(layer))
    n, _, h, w = x.shape[:4]
    x = x.reshape(n, groups, inputs, h, w, kh, kw)
    y = np.einsum("ngihwyx,goiyx->ngohw", x, weight.reshape(groups, outputs // groups, inputs, kh, kw), optimize=True)
    return y.reshape(n, outputs, h, w) + _column(a.get("bias"))


def windows(x: np.ndarray, kernel: tuple[int, int], strides: tuple[int, int]) -> np.ndarray:
    """Return the windows `(N, C, rows, columns, height, width)` of a map `(N, C, H, W)`."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))  # type: ignore[call-overload]
    return windows[:, :, :: strides[0], :: strides[1]]


def _max_pool(layer, x):
    kernel, stride, padding = (layer.attributes[key] for key in ("kernel", "stride", "padding"))
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=-np.inf)
    return windows(x, (kernel, kernel), (stride, stride)).max((4, 5))


def _neocell(layer, x):
    a, b = neocell_weights(layer)
    return reference.forward(x, a, b, layer.attributes["spec"], neocell_bias(layer))


def _batch_norm(layer, x):
    a = _arrays(layer)
    x = (x - _column(a["running_mean"])) / np.sqrt(_column(a["running_var"]) + layer.attributes["eps"])
    return x * _column(a["weight"]) + _column(a["bias"])


def _int8(evaluate: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Return the 8-bit form of a layer: its products are sums of whole numbers, which float64 holds exactly."""

    def evaluate_int8(layer, x):
        quantizer = layer.attributes["quantizer"]
        x = quantizer.codes(x.astype(np.float32)).astype(np.float64) - quantizer.offset
        accumulated = evaluate(layer, x)
        step = layer.arrays["step"].astype(np.float64)
        return accumulated * (step if layer.op == "linear_int8" else _column(step))

    return evaluate_int8


def _to_rows(layer, x):
    patch = layer.attributes["patch"]
    return windows(x, patch, patch).transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * math.prod(patch))


def _to_map(layer, x):
    return x.reshape(-1, *layer.attributes["size"], x.shape[1]).transpose(NCHW)


def _linear(layer, x):
    a = _arrays(layer)
    return x @ a["weight"].T + a.get("bias", 0.0)


def _gelu(layer, x):
    if layer.attributes.get("approximate") == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if layer.attributes.get("approximate") == "fast":
        return fast_gelu(x) if "scaled" in layer.attributes else fast_gelu(x * SCALE) / SCALE
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def _crop(x, size):
    return x if size is None else x[:, :, : size[0], : size[1]]


def _scale(layer, x):
    gamma = _arrays(layer)["gamma"]
    return x * (gamma if layer.attributes["axis"] == -1 else _column(gamma))


def _layer_norm(layer, x):
    a, axis = _arrays(layer), layer.attributes.get("axis", -1)
    x = x - x.mean(axis, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis, keepdims=True) + layer.attributes["eps"])
    if not a:
        return x
    weight, bias = (a[key] if axis == -1 else _column(a[key]) for key in ("weight", "bias"))
    return x * weight + bias


def _column(values):
    return 0.0 if values is None else values[:, None, None]


_LAYERS: dict[str, Callable[..., np.ndarray]] = {
    "space_to_depth": _space_to_depth,
    "conv": _conv,
    "neocell": _neocell,
    "left": lambda layer, x: _arrays(layer)["matrix"] @ x,
    "right": lambda layer, x: x @ _arrays(layer)["matrix"],
    "shift": lambda layer, x: x + as_map(_arrays(layer)["bias"]),
    "batch_norm": _batch_norm,
    "transpose": lambda layer, x: x.transpose(layer.attributes["order"]),
    "linear": _linear,
    "conv_int8": _int8(_conv),
    "linear_int8": _int8(_linear),
    "to_rows": _to_rows,
    "to_map": _to_map,
    "gelu": _gelu,
    "relu": lambda layer, x: np.maximum(x, 0.0),
    "leakyrelu": lambda layer, x: np.where(x < 0, x * LEAKY_SLOPE, x),
    "hardswish": lambda layer, x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "max_pool": _max_pool,
    "scale": _scale,
    "add": lambda layer, x, y: x + y,
    "global_mean": lambda layer, x: _crop(x, layer.attributes.get("size")).mean((2, 3)),
    "crop": lambda layer, x: _crop(x, layer.attributes["size"]),
    "layer_norm": _layer_norm,
}
