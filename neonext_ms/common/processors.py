"""The processors that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def processors() -> int:
    """Return how many processors this process may use: its affinity, and the limit of its container, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _limit())))


def _limit() -> float:
    """Return the processors that the control group grants (version 2, then 1), or infinity."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").split("\n")
        unified = next((line[3:] for line in groups if line.startswith("0::")), "/")
        # A limit of any ancestor holds too.
        places = [_CGROUP / unified.lstrip("/"), *(_CGROUP / unified.lstrip("/")).parents]
        shares = [
            int(quota) / int(period)
            for place in places
            if place.is_relative_to(_CGROUP) and (place / "cpu.max").is_file()
            for quota, period in [(place / "cpu.max").read_text(encoding="utf-8").split()]
            if quota != "max"
        ]
        old = _CGROUP / "cpu"
        if (old / "cpu.cfs_quota_us").is_file():
            quota = int((old / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
            if quota > 0:
                shares.append(quota / int((old / "cpu.cfs_period_us").read_text(encoding="utf-8")))
        return min(shares, default=math.inf)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
