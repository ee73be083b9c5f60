"""The NeoCell kernels in the simulator, compared with the float64 reference on random inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neonext_ms.common.errors import UsageError

from .. import reference
from ..spec import NeoCellSpec
from . import neo_cell

# Unit roundoff. In float16 arithmetic every product and sum is rounded, in float32 arithmetic only the result is.
_EPSILON = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_FLOAT32_TOLERANCE = 1e-5
# The simulator runs about a million numbers in a second.
_MOST_NUMBERS = 1 << 25


def check_kernels(
    spec: NeoCellSpec,
    size: tuple[int, int],
    *,
    batch: int = 1,
    soc: str = "Ascend310P3",
    dtype: str = "float16",
    accumulate_fp32: bool = False,
    with_bias: bool = False,
    with_gradients: bool = False,
    blocks: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Run the kernels on random inputs and compare every output with the reference of the same rounded inputs.

    Args:
        spec: geometry.
        size: rows and columns of the map.
        batch: number of images.
        soc: name of a device.
        dtype: "float16", "float32" or "bfloat16".
        accumulate_fp32: True to compute float16 maps in float32.
        with_bias: True to add a bias.
        with_gradients: True to compute dx, dA and dB too.
        blocks: number of cores; None for all cores of the device.
        seed: random seed of the inputs.

    Returns:
        the inputs and results by name, and one dict per launch with its operator, outputs (with their largest
        difference relative to the largest reference value, and its tolerance), tiling and counts.

    Raises:
        UsageError: too many numbers for the simulator, or the device does not support the dtype.
        InputError: the kernels do not support the NeoCell.
        SimulatorError: a kernel breaks a rule of the device.
        ToolchainError: there is no C++ compiler.
    """
    sizes = [batch * spec.channels * size[0] * size[1], *map(math.prod, (*spec.shapes_a, *spec.shapes_b))]
    if max(sizes) > _MOST_NUMBERS:
        raise UsageError(
            f"the map or a matrix has {max(sizes):,} numbers, too many for the simulator (at most {_MOST_NUMBERS:,}). "
            "Use a smaller map, fewer channels or fewer images."
        )
    number = neo_cell.DTYPES[dtype][0]
    rng = np.random.RandomState(seed % 2**32)

    def draw(shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(number)

    x = draw((batch, spec.channels, *size))
    # Matrices of this scale keep the deviation of the maps, so that float16 neither overflows nor underflows.
    a = [draw(shape, shape[2] ** -0.5) for shape in spec.shapes_a]
    b = [draw(shape, shape[1] ** -0.5) for shape in spec.shapes_b]
    bias = draw((spec.channels,)) if with_bias else None
    exact_x, exact_a, exact_b = (
        x.astype(np.float64),
        [w.astype(np.float64) for w in a],
        [w.astype(np.float64) for w in b],
    )
    # A crash or an endless loop in a kernel must not take this process with it.
    options: dict[str, Any] = {"soc": soc, "dtype": dtype, "blocks": blocks, "isolated": True}
    forward_run = neo_cell.forward(x, a, b, spec, bias, accumulate_fp32=accumulate_fp32, **options)
    (y,) = forward_run.outputs
    arrays = {"x": x, "y": y, **{f"weight_a.{i}": w for i, w in enumerate(a)}}
    arrays |= {f"weight_b.{i}": w for i, w in enumerate(b)} | ({} if bias is None else {"bias": bias})
    wide = accumulate_fp32 or dtype != "float16"
    taps = 1 if wide else max(g.h_in + g.w_in for g in spec.groups)
    tolerance = max(_EPSILON[dtype] * taps, _FLOAT32_TOLERANCE)
    exact_y = reference.forward(exact_x, exact_a, exact_b, spec, bias)
    results = [_result("NeoCell", forward_run, {"y": (y, exact_y, tolerance)})]
    if with_gradients:
        dy = draw(y.shape)
        dx, grad_a, grad_b, _ = reference.backward(exact_x, exact_a, exact_b, spec, dy.astype(np.float64))
        back_run = neo_cell.forward(
            dy, a, b, spec, accumulate_fp32=accumulate_fp32, transposed=True, output_size=size, **options
        )
        (own_dx,) = back_run.outputs
        results.append(_result("NeoCell with transposed matrices", back_run, {"dx": (own_dx, dx, tolerance)}))
        grad_run = neo_cell.gradients(x, dy, a, b, spec, **options)
        outputs = {
            f"grad/weight_{side}.{i}": (own, exact, _FLOAT32_TOLERANCE)
            for side, own_grads, grads in zip("ab", grad_run.outputs, (grad_a, grad_b), strict=True)
            for i, (own, exact) in enumerate(zip(own_grads, grads, strict=True))
        }
        arrays |= {"dy": dy, "dx": own_dx, **{name: own for name, (own, _, _) in outputs.items()}}
        results.append(_result("NeoCellGrad", grad_run, outputs))
    return arrays, results


def _result(operator: str, run: neo_cell.KernelRun, outputs: dict[str, tuple[np.ndarray, np.ndarray, float]]) -> dict:
    described = {}
    for name, (own, exact, tolerance) in outputs.items():
        values = own.astype(np.float64)
        largest = float(np.abs(exact).max())
        worst = float(np.abs(values - exact).max())
        described[name] = {
            "shape": list(own.shape),
            "mean": float(values.mean()),
            "largest": float(np.abs(values).max()),
            "first": [float(value) for value in own.ravel()[:4]],
            "difference": worst / largest if largest else worst,
            "tolerance": tolerance,
        }
    counts = {key: value for key, value in run.counts.items() if key not in ("hazards", "notes")}
    tiling = {
        "cores": run.tiling.cores,
        "vector_cores": sum(core["vector_core"] for core in counts["cores"]),
        "strip_rows": run.tiling.strip,
        "strip_columns": run.tiling.columns,
        "strip_images": run.tiling.group,
    }
    return {"operator": operator, "outputs": described, "tiling": tiling, "counts": counts}
