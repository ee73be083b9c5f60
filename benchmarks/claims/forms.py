"""One operator as an ONNX model, in the forms that the claims compare, and the timing of such models side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from neonext_ms.runtime.onnx import onnx_session

from .. import measure, statistics

if TYPE_CHECKING:
    import onnx

OPSET = 17
INPUT, OUTPUT = "x", "y"


def _model(nodes, weights: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return a model whose input and output have the same shape."""
    from onnx import TensorProto, helper, numpy_helper

    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs, **attributes) for op, inputs, outputs, attributes in nodes],
        "form",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def block_diagonal(a: np.ndarray, b: np.ndarray, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Return `A x B` with block-diagonal matrices (equation 2).

    Args:
        a: matrices (C, H, H).
        b: matrices (C, W, W).
        shape: (N, C, H, W) of the map.
    """
    nodes: list[tuple] = [("MatMul", ["a", INPUT], ["ax"], {}), ("MatMul", ["ax", "b"], [OUTPUT], {})]
    return _model(nodes, {"a": a, "b": b}, shape)


def patchwise(a: np.ndarray, b: np.ndarray, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Return equation 1 without loops: patches of the map are multiplied from both sides and put back.

    Args:
        a: small matrices (C, k, k); k divides H and W, and there is no shift.
        b: small matrices (C, k, k).
        shape: (N, C, H, W) of the map.
    """
    n, c, h, w = shape
    k = a.shape[1]
    nodes: list[tuple] = [
        ("Reshape", [INPUT, "cut"], ["rows"], {}),
        ("Transpose", ["rows"], ["patches"], {"perm": [0, 1, 2, 4, 3, 5]}),
        ("MatMul", ["a", "patches"], ["ax"], {}),
        ("MatMul", ["ax", "b"], ["axb"], {}),
        ("Transpose", ["axb"], ["back"], {"perm": [0, 1, 2, 4, 3, 5]}),
        ("Reshape", ["back", "whole"], [OUTPUT], {}),
    ]
    weights = {
        "cut": np.array([n, c, h // k, k, w // k, k], np.int64),
        "whole": np.array(shape, np.int64),
        "a": a[:, None, None],
        "b": b[:, None, None],
    }
    return _model(nodes, weights, shape)


def depthwise(kernels: np.ndarray, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Return a depthwise k x k convolution that keeps the size of the map.

    Args:
        kernels: kernels (C, k, k).
        shape: (N, C, H, W) of the map.
    """
    k = kernels.shape[1]
    before, behind = (k - 1) // 2, k // 2
    attributes = {"group": shape[1], "kernel_shape": [k, k], "pads": [before, before, behind, behind]}
    return _model([("Conv", [INPUT, "w"], [OUTPUT], attributes)], {"w": kernels[:, None]}, shape)


def im2col(kernels: np.ndarray, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Return the same convolution by copies of the map, one for each tap, and a matrix product.

    Args:
        kernels: kernels (C, k, k).
        shape: (N, C, H, W) of the map.
    """
    n, c, h, w = shape
    k = kernels.shape[1]
    before, behind = (k - 1) // 2, k // 2
    nodes: list[tuple] = [("Pad", [INPUT, "pads"], ["padded"], {})]
    weights = {
        "pads": np.array([0, 0, before, before, 0, 0, behind, behind], np.int64),
        "axes": np.array([2, 3], np.int64),
        "columns": np.array([n, c, k * k, h * w], np.int64),
        "whole": np.array(shape, np.int64),
        "w": kernels.reshape(c, 1, k * k),
    }
    for tap in range(k * k):
        top, left = divmod(tap, k)
        weights |= {f"from{tap}": np.array([top, left], np.int64), f"to{tap}": np.array([top + h, left + w], np.int64)}
        nodes.append(("Slice", ["padded", f"from{tap}", f"to{tap}", "axes"], [f"tap{tap}"], {}))
    nodes += [
        ("Concat", [f"tap{tap}" for tap in range(k * k)], ["taps"], {"axis": 2}),
        ("Reshape", ["taps", "columns"], ["split"], {}),
        ("MatMul", ["w", "split"], ["product"], {}),
        ("Reshape", ["product", "whole"], [OUTPUT], {}),
    ]
    return _model(nodes, weights, shape)


def call(model: onnx.ModelProto, x: np.ndarray, threads: int) -> Callable[[], list[np.ndarray]]:
    """Return a function that runs a model on `x` in onnxruntime."""
    session = onnx_session(model.SerializeToString(), threads)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def timed(subjects: Mapping[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict]:
    """Time subjects in turns; return medians in milliseconds, and the samples for `over`.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    measured = measure.interleave(subjects, rounds=rounds)
    if measured.partial:
        raise KeyboardInterrupt
    return {name: 1e3 * statistics.summary(s).p50 for name, s in measured.samples.items()}, measured.samples


def over(samples: Mapping[str, list[float]], slow: str, fast: str) -> dict:
    """Return the time of `slow` relative to `fast`, as plain values."""
    return statistics.ratio(samples[slow], samples[fast]).to_dict()


def shown(ratio: Mapping) -> str:
    """Return a ratio with its interval as text."""
    unsure = "" if ratio["sure"] else ", noisy"
    return f"{ratio['median_ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}{unsure})"
