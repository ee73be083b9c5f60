"""The compiled kernels, or the reason why there are none, logged once."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
from pathlib import Path

from neonext_ms.common.errors import NeoNextError

from ..compiled import processor, shared_object

SWITCH = "NEONEXT_CPU_OPS"

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-pthread")
# Compilers prefer shorter vectors than the machine has.
_X86_FLAGS = ("-mprefer-vector-width=512",)

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def library() -> Path | None:
    """The shared object with all kernels, compiled if need be; None without a compiler, and one line of the log."""
    flags = _FLAGS + (_X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ())
    try:
        path = shared_object("cpu", Path(__file__).parent, flags, [processor()])
        # What cannot be loaded here would fail inside MindSpore with a page of its own.
        ctypes.CDLL(str(path))
    except (NeoNextError, OSError) as error:
        _log.warning(
            "GELU, NeoCell and linear layers run as MindSpore operations, several times slower: their C++ kernels "
            "could not be made (%s). Install g++ (Debian: apt install g++), or set CXX; %s=0 silences this",
            " ".join(str(error).split()),
            SWITCH,
        )
        return None
    return path


def wanted() -> bool:
    """Whether the environment leaves the kernels switched on."""
    return os.environ.get(SWITCH, "1") not in ("0", "off", "false")


@functools.lru_cache(maxsize=1)
def has_products() -> bool:
    """Whether the kernels find the matrix product of oneDNN, which MindSpore brings along."""
    path = library()
    return path is not None and bool(ctypes.CDLL(str(path)).pointwise_available())
