"""Changes from one configuration to another."""

from __future__ import annotations

from collections.abc import Mapping

from .schema import Config

# Parts and keys that may change when a run is resumed without changing the weights (but for run.seed).
_FREE = (
    "run", "data.path", "data.workers", "data.processes", "data.cache", "data.val_batch_size", "data.broken_limit",
    "data.classes",
)  # fmt: skip


def changes(before: Mapping, after: Mapping) -> list[str]:
    """Return the keys whose values differ, with both values, without keys that do not affect the weights.

    Args:
        before, after: `Config.to_dict`. A key that `before`, of an earlier version, lacks had its default.
    """
    defaults, found = Config().to_dict(), []
    for part, values in after.items():
        for leaf, value in values.items():
            key = f"{part}.{leaf}"
            old = before.get(part, {}).get(leaf, defaults[part][leaf])
            if old != value and key not in _FREE and (part not in _FREE or leaf == "seed"):
                found.append(f"{key}: {old} -> {value}")
    return found
