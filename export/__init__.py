"""From a checkpoint or a model to a deployment graph, and from that to files that are proven equal to the network."""

from __future__ import annotations

_HOME = {
    "DeployGraph": "graph",
    "Layer": "graph",
    "export": "pipeline",
    "fold": "fold",
    "unfolded": "graph",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
