"""Run the kernels in the simulator on random NeoCells, with every dtype, device, buffer size and number of cores.

python tests/fuzz_kernel.py [MINUTES [SEED]]     (make fuzz-kernel)
"""

from __future__ import annotations

import sys
import time

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.ops import NeoCellSpec, reference
from neonext_ms.ops.soc import soc as soc_of
from neonext_ms.ops.twin import neo_cell

SOCS = ("Ascend310P3", "Ascend310B4", "Ascend910B3")


def problem(rng: np.random.RandomState):
    """Return a random spec, batch and map size."""
    groups = []
    square = rng.rand() < 0.8
    ratio = {
        "h_in": rng.randint(1, 5),
        "h_out": rng.randint(1, 5),
        "w_in": rng.randint(1, 5),
        "w_out": rng.randint(1, 5),
    }
    for _ in range(rng.randint(1, 4)):
        if square:
            h, w = rng.randint(1, 15, 2)
            sizes = {"h_in": h, "h_out": h, "w_in": w, "w_out": w, "shift_a": rng.randint(h), "shift_b": rng.randint(w)}
        else:
            sizes = dict(ratio)
        groups.append({key: int(value) for key, value in (*sizes.items(), ("channels", rng.randint(1, 70)))})
    size = (int(rng.randint(4, 70)), int(rng.randint(4, 140)))
    return NeoCellSpec(groups), int(rng.randint(1, 4)), size


def check(seed: int) -> str:
    """Run one problem and return "run", or why it was not run.

    Raises:
        AssertionError: a result differs from the reference.
        SimulatorError: a kernel breaks a rule of the device.
    """
    rng = np.random.RandomState(seed)
    spec, n, (h, w) = problem(rng)
    soc = soc_of(SOCS[rng.randint(len(SOCS))])
    dtype = ("float16", "float32", "bfloat16")[rng.randint(3 if soc.bf16 else 2)]
    wide = bool(rng.rand() < 0.5)
    number = neo_cell.DTYPES[dtype][0]
    options = {
        "soc": soc.name,
        "dtype": dtype,
        "blocks": int(rng.randint(1, soc.vector_units + soc.vector_cores_beside + 1)),
        "ub_bytes": int(rng.choice([soc.ub_bytes, 128 << 10, 64 << 10])),
        "c0": 8 if dtype == "float32" and rng.rand() < 0.3 else 16,
    }
    try:
        out = spec.output_size(h, w)
    except InputError:
        return "an empty output"
    x = rng.standard_normal((n, spec.channels, h, w)).astype(number)
    a = [(rng.standard_normal(s) / s[2] ** 0.5).astype(number) for s in spec.shapes_a]
    b = [(rng.standard_normal(s) / s[1] ** 0.5).astype(number) for s in spec.shapes_b]
    bias = rng.standard_normal(spec.channels).astype(number) if rng.rand() < 0.5 else None
    dy = rng.standard_normal((n, spec.channels, *out)).astype(number)
    exact = [np.asarray(v, np.float64) for v in (x, *a, *b)]
    exact_a, exact_b = exact[1 : 1 + len(a)], exact[1 + len(a) :]
    what = f"{soc.name} {dtype} {options} {spec} {(n, h, w)}"
    narrow = dtype == "float16" and not wide
    taps = max(max(g.h_in + g.w_in, g.h_out + g.w_out) for g in spec.groups)
    limit = {"float32": 1e-5, "float16": taps * 2.0**-11 if narrow else 2.0**-10, "bfloat16": 2.0**-7}[dtype]

    def near(value, expected, limit):
        scale = max(1e-3, np.abs(expected).max())
        worst = np.abs(np.asarray(value, np.float64) - expected).max() / scale
        assert worst <= limit, f"{worst:.2g} > {limit:.2g}: {what}"

    dx, grad_a, grad_b, _ = reference.backward(exact[0], exact_a, exact_b, spec, np.asarray(dy, np.float64))
    try:
        run = neo_cell.forward(x, a, b, spec, bias, accumulate_fp32=wide, **options)
        near(run.outputs[0], reference.forward(exact[0], exact_a, exact_b, spec, bias), limit)
        run = neo_cell.forward(dy, a, b, spec, accumulate_fp32=wide, transposed=True, output_size=(h, w), **options)
        near(run.outputs[0], dx, limit)
        run = neo_cell.gradients(x, dy, a, b, spec, **options)
    except InputError as error:
        if "unified buffer" not in str(error) and "64 runs" not in str(error):
            raise
        return "does not fit"
    for grad, expected in zip((*run.outputs[0], *run.outputs[1]), (*grad_a, *grad_b), strict=True):
        near(grad, expected, 1e-5)
    return "run"


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 2
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    end, counts = time.time() + 60 * minutes, {}
    first = seed
    while time.time() < end:
        try:
            result = check(seed)
        except Exception:
            print(f"seed {seed}", file=sys.stderr)
            raise
        counts[result] = counts.get(result, 0) + 1
        seed += 1
    print(f"seeds {first} to {seed - 1}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
