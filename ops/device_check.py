"""The AscendC operator on this host's device, compared with the float64 reference. It has not run on a device yet."""

from __future__ import annotations

import json
import sys
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from neonext_ms.common.errors import NeoNextError, ParityError, ToolchainError
from neonext_ms.common.text import one_line

from . import ascend, reference
from .spec import NeoCellSpec

# Largest accepted difference from the reference, relative to the largest value.
DEVICE_TOLERANCE = {"float32": 1e-4, "float16": 1e-2}
# Shifts and mixed sizes as in the released models, partial blocks at the edges, a NeoCell that halves its map.
CASES = {
    "stage 2 of T, 224": (
        [{"kernel": 4, "channels": 96, "shift": 1}, {"kernel": 7, "channels": 96, "shift": 1}],
        28,
        28,
    ),
    "ragged": ([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 7, "channels": 21, "shift": 1}], 14, 13),
    "2 to 1": ([{"h_in": 2, "h_out": 1, "w_in": 2, "w_out": 1, "channels": 40}], 14, 14),
}


def run_on_device() -> list[dict[str, Any]]:
    """Run the operator, output and every gradient, for every case and dtype.

    Returns:
        one row per result with "case", "dtype", "of", "difference" and "tolerance".

    Raises:
        ToolchainError: MindSpore has no device here, or does not find the package.
    """
    try:
        ms.set_device("Ascend")
    except (RuntimeError, ValueError) as error:
        raise ToolchainError(
            "the files are good, but the operator did not run because MindSpore finds no Ascend device here "
            f"({one_line(error, 120)}). Run `neonext-ops check` on an Ascend host."
        ) from error
    results = []
    for case, (groups, height, width) in CASES.items():
        spec = NeoCellSpec(groups)
        for name, tolerance in DEVICE_TOLERANCE.items():
            dtype = getattr(ms, name)
            if not ascend.operator_available(spec, dtype):
                raise ToolchainError("MindSpore does not find the package; set ASCEND_CUSTOM_OPP_PATH, or install it")
            for of, difference in compare_with_reference(spec, height, width, dtype).items():
                results.append(
                    {"case": case, "dtype": name, "of": of, "difference": difference, "tolerance": tolerance}
                )
    return results


def compare_with_reference(
    spec: NeoCellSpec, height: int, width: int, dtype: ms.Type, images: int = 2, seed: int = 0
) -> dict[str, float]:
    """Return the largest differences of the operator from `reference.py` on random inputs.

    Each difference is relative to the largest reference value.

    Returns:
        "y" (output) and "x", "a", "b", "bias" (gradients) -> difference.
    """
    random = np.random.default_rng(seed)

    def draw(*shape):
        return random.standard_normal(shape).astype(np.float32)

    x = draw(images, spec.channels, height, width)
    a, b = [draw(*shape) for shape in spec.shapes_a], [draw(*shape) for shape in spec.shapes_b]
    bias = draw(spec.channels)
    dy = draw(images, spec.channels, *spec.output_size(height, width))
    arguments = [Tensor(value).astype(dtype) for value in (x, *a, *b, bias)]
    groups = len(a)

    def run(x, *rest):
        return ascend.neo_cell(x, rest[:groups], rest[groups : 2 * groups], spec, rest[-1])

    def as_float64(tensor):
        return tensor.astype(ms.float32).asnumpy().astype(np.float64)

    y = as_float64(run(*arguments))
    scale = Tensor(dy).astype(dtype)
    grads = ms.grad(lambda *args: (run(*args) * scale).sum(), tuple(range(len(arguments))))(*arguments)
    # The reference gets the rounded inputs, so that the difference is the error of the operator alone.
    rounded = [as_float64(value) for value in arguments]
    x, a, b = rounded[0], rounded[1 : 1 + groups], rounded[1 + groups : -1]
    d_x, d_a, d_b, d_bias = reference.backward(x, a, b, spec, as_float64(scale))
    pairs = {
        "y": ([y], [reference.forward(x, a, b, spec, rounded[-1])]),
        "x": ([as_float64(grads[0])], [d_x]),
        "a": ([as_float64(g) for g in grads[1 : 1 + groups]], d_a),
        "b": ([as_float64(g) for g in grads[1 + groups : -1]], d_b),
        "bias": ([as_float64(grads[-1])], [d_bias]),
    }
    return {
        name: max(float(np.abs(o - e).max() / np.abs(e).max()) for o, e in zip(own, expected, strict=True))
        for name, (own, expected) in pairs.items()
    }


if __name__ == "__main__":
    # A kit for boards runs this file without the commands of the package.
    try:
        rows = run_on_device()
        for row in rows:
            print(json.dumps(row))
        wrong = [row for row in rows if not row["difference"] <= row["tolerance"]]
        if wrong:
            names = ", ".join("{of} of {case} in {dtype}".format(**row) for row in wrong[:5])
            raise ParityError(f"these differ from float64: {names}")
    except NeoNextError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
