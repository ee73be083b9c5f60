"""Training: configuration, data, step, state and loop; names load on first use."""

from __future__ import annotations

from neonext_ms.common.lazy import lazy

_HOME = {
    "Config": "config.schema",
    "TrainStep": "step",
    "Trainer": "trainer",
    "load_config": "config.load",
    "make_config": "config.load",
}

__all__ = sorted(_HOME)
__getattr__ = lazy(__name__, _HOME)
