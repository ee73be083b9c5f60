"""Training: configuration, data, step, state and loop; names load on first use."""

from __future__ import annotations

from ..lazy import lazy

_HOME = {
    "Config": "config",
    "TrainStep": "step",
    "Trainer": "trainer",
    "load_config": "config",
    "make_config": "config",
}

__all__ = sorted(_HOME)
__getattr__ = lazy(__name__, _HOME)
