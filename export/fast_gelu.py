"""`--gelu fast`: GELU of ordinary vector instructions, without Exp, Erf, Tanh or Div.

`gelu(x) = relu(x) - a phi(-a)` with `a = |x|`, where `a phi(-a)` is a bump that ends at about 3.7. With `u = SCALE x`
and `t = relu(END - |u|)`, the bump is `t^4 (ROOT - t) / SCALE`:

    SCALE gelu(x) = relu(u) - t^4 (ROOT - t)

Nine operations. SCALE needs none: `lower` moves it into the convolutions before and after. Since t is 0 from END on,
infinity stays infinity, and minus infinity becomes 0, which the exact form does not achieve. The three numbers are
those of least maximum error, found by the search that `python -m neonext_ms.benchmarks.gelu_forms` prints the table of.
"""

from __future__ import annotations

import numpy as np

SCALE, END, ROOT = 0.23584, 0.86526, 0.86397
# Name of a constant by which a file with this form is recognised.
CONSTANT = "gelu_end"


def fast_gelu(u: np.ndarray) -> np.ndarray:
    """Return `SCALE gelu(u / SCALE)`, computed in the dtype of `u`, each operation rounded to it."""
    end, root, zero = (u.dtype.type(value) for value in (END, ROOT, 0))
    t = np.maximum(end - np.abs(u), zero)
    square = t * t
    return np.maximum(u, zero) - square * square * (root - t)
