"""The NeoCell operator: its geometry (`spec`), its float64 reference, NeoInit, and the MindSpore operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neonext_ms.common.lazy import lazy

if TYPE_CHECKING:
    from .init import neo_init, skewed_identity
    from .neocell import neo_cell
    from .spec import NeoCellGroup, NeoCellSpec

_HOME = {
    "NeoCellGroup": "spec",
    "NeoCellSpec": "spec",
    "neo_cell": "neocell",
    "neo_init": "init",
    "skewed_identity": "init",
}

__all__ = ["NeoCellGroup", "NeoCellSpec", "neo_cell", "neo_init", "skewed_identity"]
__getattr__ = lazy(__name__, _HOME)
