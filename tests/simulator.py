"""A mark for tests that compile AscendC kernels for the simulator."""

from __future__ import annotations

import pytest

from neonext_ms.common.errors import ToolchainError
from neonext_ms.ops.twin.build import compiler


def _has_compiler() -> bool:
    try:
        compiler()
    except ToolchainError:
        return False
    return True


needs_simulator = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler for the simulator")
