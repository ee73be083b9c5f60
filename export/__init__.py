"""From a checkpoint or a model to a deployment graph, and from that to files that are proven equal to the network."""

from __future__ import annotations

from neonext_ms.common.lazy import lazy

_HOME = {
    "DeployGraph": "graph",
    "Layer": "graph",
    "export": "pipeline",
    "unfolded": "graph",
}

__all__ = sorted(_HOME)
__getattr__ = lazy(__name__, _HOME)
