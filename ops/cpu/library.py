"""The compiled kernels; if they cannot be built, the reason is logged once."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
from pathlib import Path

from neonext_ms.common.errors import NeoNextError
from neonext_ms.common.processors import thread_count

from ..compiled import processor, shared_object

SWITCH = "NEONEXT_CPU_OPS"

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-pthread")
# Compilers prefer 256-bit vectors even where the processor has 512-bit ones.
_X86_FLAGS = ("-mprefer-vector-width=512",)

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def library() -> Path | None:
    """Return the shared object with all kernels, compiled if necessary; if that fails, log one warning, return None."""
    flags = _FLAGS + (_X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ())
    try:
        path = shared_object("cpu", Path(__file__).parent, flags, [processor()])
        # Load it here: the same failure inside MindSpore would print a page of its own.
        ctypes.CDLL(str(path)).neonext_set_threads(thread_count())
    except (NeoNextError, OSError) as error:
        _log.warning(
            "GELU, NeoCell and pointwise layers run as MindSpore operations, several times slower, because their C++ "
            "kernels could not be built (%s). Install g++ (Debian: apt install g++) or set CXX. %s=0 silences this "
            "warning.",
            " ".join(str(error).split()),
            SWITCH,
        )
        return None
    return path


def enabled() -> bool:
    """Return True unless the environment switches the kernels off."""
    return os.environ.get(SWITCH, "1") not in ("0", "off", "false")


@functools.lru_cache(maxsize=1)
def has_products() -> bool:
    """Return True if the kernels find the matrix product of oneDNN, which MindSpore ships."""
    path = library()
    return path is not None and bool(ctypes.CDLL(str(path)).products_available())
