"""The deviations that count as equal, in one table: an exported file against the float32 network that it was made from.

Verification of an export, `neonext-compare` and the regression check of `neonext-bench` all read it, so a file that
one of them accepts is not rejected by another.
"""

from __future__ import annotations

from neonext_ms.common.cli import MAX_TOLERANCE
from neonext_ms.common.errors import InputError, UsageError

# Noise images that files are compared on.
NOISE_SAMPLES = 4
# Relative L2 of the logits by the dtype of a file; docs/export.md lists measured values.
#   float32   measured deviations are around 1e-6, and a wrong epsilon already makes 4e-5.
#   halves    a value is off by up to 2^-11 (float16) or 2^-8 (bfloat16) of itself, and about a hundred roundings lie
#             between an image and its logits: 10 of these if they are independent, 20 with a margin.
TOLERANCES = {"float32": 2e-5, "float16": 20 * 2.0**-11, "bfloat16": 20 * 2.0**-8}
# Text for the help of a command.
DEFAULTS = ", ".join(f"{limit:.2g} for {dtype}" for dtype, limit in TOLERANCES.items())
# Approximate forms of GELU. At one value, the tanh form is off by up to 4.8e-4 and the fast one by up to 3.1e-3. Logits
# of noise are small and most off: on the CIFAR-10 network by 1.6e-3 and 1.5e-2, and on its images by 8e-4 and 4e-3.
APPROXIMATE_GELUS = {"tanh": 4e-3, "fast": 2e-2}

# An 8-bit file in a runtime against the same file in exact integers. A value that float32 rounding moves across the
# middle between two numbers is off by one step; one in 10^5 is. Behind it every value is slightly off, and more of them
# cross a middle: in a deep network the two round independently in the end, so they may be as far apart as 8 bit is from
# float32 on these inputs, up to `INT8_LOSS`. Measured: 0 to 5e-3 with 5 blocks; with 9 blocks 2e-2 on noise, where 8
# bit costs 9e-2, and nothing on photographs. That the integers are right is proved exactly (`quantize.prove`).
INT8 = 2e-2
# An 8-bit file against a float32 one on images like those of its calibration; measured: 2e-2 to 6e-2.
INT8_LOSS = MAX_TOLERANCE


def tolerance(dtype: str, gelu: str = "auto") -> float:
    """Return the largest relative deviation from the float32 network that passes.

    Args:
        dtype: dtype of weights and arithmetic, a key of `TOLERANCES`.
        gelu: form of GELU in the file; an approximation adds its entry of `APPROXIMATE_GELUS`.

    Raises:
        InputError: an unknown dtype.
    """
    if dtype not in TOLERANCES:
        raise InputError(f"dtype must be one of {', '.join(TOLERANCES)}, got {dtype!r}")
    return TOLERANCES[dtype] + APPROXIMATE_GELUS.get(gelu, 0.0)


def check_tolerance(value: float) -> None:
    """Reject a tolerance that no file could fail.

    Raises:
        UsageError: a value outside of 0 to `MAX_TOLERANCE`.
    """
    if not 0 <= value <= MAX_TOLERANCE:
        raise UsageError(
            f"tolerance {value}: expected a relative deviation from 0 to {MAX_TOLERANCE:g}. A larger one verifies "
            "nothing."
        )
