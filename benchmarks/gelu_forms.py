"""Forms of GELU from a few ordinary vector operations: how many each needs, and how far it is from the exact one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neonext_ms.common.cli import Parser, print_json, run
from neonext_ms.export.evaluate import erf
from neonext_ms.export.fast_gelu import END, ROOT, SCALE, fast_gelu

from .report import table

DESCRIPTION = """\
Forms of GELU from a few ordinary vector operations: how many each needs, and its largest error over all finite float16
inputs, in exact arithmetic and with every operation rounded to float16. `u = k x`: k is in the weights before and after
and costs nothing. `t = relu(p - |u|)`, and `m = min(|u|, e)` where e is the end of the bump.

    python -m neonext_ms.benchmarks.gelu_forms"""


@dataclass(frozen=True)
class GeluForm:
    """A form of GELU.

    Attributes:
        formula: what it computes of u, for people.
        operations: vector operations; min, max, abs, add and multiply count as one each, a clip as two.
        scale: k.
        compute: function that returns `k gelu(u / k)` in the dtype of u.
    """

    formula: str
    operations: int
    scale: float
    compute: Callable[[np.ndarray], np.ndarray]


def _relu(u):
    return np.maximum(u, u.dtype.type(0))


def _cubic(u, end=0.7937):
    s = np.clip(u, -end, end)
    return u * (1 + s * (end**2 + 1 / end - s * s)) / 2


def _quintic(u, end=0.94259, b=-2.1768):
    s = np.clip(u, -end, end)
    w = s * s
    return u * (1 + s * (1 / end - b * end**2 - end**4 + w * (b + w))) / 2


def _quartic_bump(u, end=0.86091):
    m = np.minimum(np.abs(u), u.dtype.type(end))
    t = u.dtype.type(end) - m
    return _relu(u) - m * ((t * t) * (t * t))


def _power_bump(u, p, q, squares):
    # The end of m is where the bump ends, so t is not negative.
    p, q, end = (u.dtype.type(value) for value in (p, q, (np.sqrt(q * q + 4 * p) - q) / 2))
    m = np.minimum(np.abs(u), end)
    t = p - m * (m + q)
    for _ in range(squares):
        t = t * t
    return _relu(u) - m * t


FORMS = (
    GeluForm("u (1 + s (b - s^2)) / 2, s = clip(u)", 7, 0.35207, _cubic),
    GeluForm("relu(u) - m (e - m)^4", 8, 0.2329, _quartic_bump),
    GeluForm("u (1 + s (c + s^2 (b + s^2))) / 2, s = clip(u)", 9, 0.33986, _quintic),
    GeluForm(f"relu(u) - t^4 ({ROOT} - t), p = {END}: --gelu fast", 9, SCALE, fast_gelu),
    GeluForm("relu(u) - m (p - m (q + m))^8", 11, 0.02064**0.5,
             lambda u: _power_bump(u, 0.92183, 0.10741 / 0.02064**0.5, 3)),
    GeluForm("relu(u) - m (p - m (q + m))^16", 12, 0.01695**0.5,
             lambda u: _power_bump(u, 0.95858, 0.05049 / 0.01695**0.5, 4)),
)  # fmt: skip


def rows() -> list[dict]:
    """Return formula, operations, both errors, and the results for NaN, infinity and minus infinity of each form."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = halves[np.isfinite(halves)].astype(np.float64)
    special = np.array([np.nan, np.inf, -np.inf], np.float16)
    found = []
    for form in FORMS:
        rounded = (x * form.scale).astype(np.float16)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            exact = form.compute(x * form.scale) / form.scale
            half = form.compute(rounded).astype(np.float64) / form.scale
            ends = form.compute(special).tolist()
        found.append(
            {
                "form": form.formula,
                "operations": form.operations,
                "error": float(np.abs(exact - _gelu(x)).max()),
                "error_float16": float(np.abs(half - _gelu(rounded.astype(np.float64) / form.scale)).max()),
                "nan_inf_minus_inf": [str(abs(value) if value == 0 else value) for value in ends],
            }
        )
    return found


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.gelu_forms", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if args.json:
        print_json(rows())
        return
    body = [
        [r["form"], str(r["operations"]), f"{r['error']:.1e}", f"{r['error_float16']:.1e}",
         ", ".join(r["nan_inf_minus_inf"])]
        for r in rows()
    ]  # fmt: skip
    print(table(["form", "operations", "error", "error in float16", "of NaN, inf, -inf"], body))


if __name__ == "__main__":
    sys.exit(run(_main))
