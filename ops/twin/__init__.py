"""The simulator: it compiles a vector kernel's own AscendC source with the system's C++ compiler and runs it here.

The simulator is a header-only stand-in for AscendC (`include/`). It checks the rules of the device that
docs/operator.md lists and counts the work of each unit. It is not a device and measures no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neonext_ms.common.lazy import lazy

if TYPE_CHECKING:
    from .kernel import Finding, Kernel, SimulatorError, compile

_HOME = {"Finding": "kernel", "Kernel": "kernel", "SimulatorError": "kernel", "compile": "kernel"}

__all__ = ["Finding", "Kernel", "SimulatorError", "compile"]
__getattr__ = lazy(__name__, _HOME)
