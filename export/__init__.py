"""Export: from a checkpoint or a model to a deployment graph, and from that to files verified against the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neonext_ms.common.lazy import lazy

if TYPE_CHECKING:
    from .graph import DeployGraph, Layer, original_graph
    from .pipeline import export, export_checkpoint
    from .report import Report
    from .request import Request
    from .source import Source

__all__ = ["DeployGraph", "Layer", "Report", "Request", "Source", "export", "export_checkpoint", "original_graph"]

__getattr__ = lazy(
    __name__,
    {
        "DeployGraph": "graph",
        "Layer": "graph",
        "Report": "report",
        "Request": "request",
        "Source": "source",
        "export": "pipeline",
        "export_checkpoint": "pipeline",
        "original_graph": "graph",
    },
)
