"""The twin: a vector kernel's own AscendC source, compiled by the system's C++ compiler and run on the host.

It is not a device and simulates no time. It checks every rule of the device that docs/twin.md lists, and counts the
work of each unit.
"""

from __future__ import annotations

from neonext_ms.common.lazy import lazy

_HOME = {
    "Finding": "kernel",
    "Kernel": "kernel",
    "TwinError": "kernel",
    "compile": "kernel",
    "rules": "rules",
}

__all__ = sorted(_HOME)
__getattr__ = lazy(__name__, _HOME)
