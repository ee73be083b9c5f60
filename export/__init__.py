"""Export: from a checkpoint or a model to a deployment graph, and from that to files verified against the original.

Names are imported on first use, so that a command that needs none of them starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neonext_ms.common.lazy import lazy

if TYPE_CHECKING:
    from .pipeline import export, export_checkpoint
    from .report import Report
    from .request import Request
    from .source import Source

__all__ = ["Report", "Request", "Source", "export", "export_checkpoint"]
_HOME = {"Report": "report", "Request": "request", "Source": "source"}
__getattr__ = lazy(__name__, {**_HOME, "export": "pipeline", "export_checkpoint": "pipeline"})
