"""The NeoCell operator: its geometry (`spec`), its float64 reference, NeoInit, and the MindSpore operator."""

from __future__ import annotations

_HOME = {
    "NeoCellGroup": "spec",
    "NeoCellSpec": "spec",
    "neo_cell": "neocell",
    "neo_init": "init",
    "skewed_identity": "init",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    # MindSpore is imported with `neocell` only.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
