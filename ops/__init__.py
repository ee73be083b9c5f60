"""The NeoCell operator: its geometry (`spec`), its float64 reference, NeoInit, and the MindSpore operator."""

from __future__ import annotations

from neonext_ms.common.lazy import lazy

_HOME = {
    "NeoCellGroup": "spec",
    "NeoCellSpec": "spec",
    "neo_cell": "neocell",
    "neo_init": "init",
    "skewed_identity": "init",
}

__all__ = sorted(_HOME)
__getattr__ = lazy(__name__, _HOME)
