"""The processors and the memory that this process may use."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO, _STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
# Instructions of x86 that add 8-bit products in 32 bits (VNNI, and AMX for 8 bit), by Linux' names.
_EXACT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8"}


@functools.lru_cache(maxsize=1)
def saturates() -> bool:
    """Return whether libraries for 8 bit may compute wrong sums on this processor: x86 without VNNI.

    They multiply with VPMADDUBSW there, which adds two products in 16 bits; 2 * 255 * 127 does not fit, and the sum
    saturates.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _EXACT_PRODUCTS & set(flags)


def processors() -> int:
    """Return how many processors this process may use: its affinity, and the limit of its container, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _limit())))


@contextlib.contextmanager
def limited_memory(reserved: int = 0) -> Iterator[None]:
    """Let allocations of the block fail that are larger than the memory that is free when it begins.

    What a file asks for then ends in an error. Without a limit, the system grants it, and kills a process later.

    Args:
        reserved: bytes that a library allocates but does not fill, such as MindSpore's pool of 1 GB.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    asked = _memory_limit()
    limits = [*([] if asked is None else [asked + reserved]), *(x for x in before if x != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits, default=resource.RLIM_INFINITY), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _memory_limit() -> int | None:
    """Return the bytes that this process has allocated and those that are free, or None if that is not known."""
    try:
        lines = [line for path in (_MEMINFO, _STATUS) for line in path.read_text(encoding="utf-8").splitlines()]
        facts = {line.partition(":")[0]: line.partition(":")[2] for line in lines}
        names = ("MemAvailable", "SwapFree", "VmData", "VmRSS")
        available, swap, allocated, filled = (int(facts[name].split()[0]) << 10 for name in names)
        free = available + swap
        for place in _groups():
            if (place / "memory.max").is_file():
                granted = (place / "memory.max").read_text(encoding="utf-8").strip()
                # What is allocated but not filled does not count there.
                free = free if granted == "max" else min(free, max(0, int(granted) - filled))
    except (OSError, KeyError, ValueError):
        return None
    # Other processes need some, too.
    return allocated + free * 15 // 16


def thread_count(asked: int | None = None) -> int:
    """Return the number of threads to compute with.

    Args:
        asked: number that the user asked for (default: `OMP_NUM_THREADS`, at most `processors()`; without that variable
            `processors()`, shared with the other workers of `msrun` on this machine).
    """
    if asked:
        return asked
    here = processors()
    # A list such as `4,2` has one number for each level of nested loops.
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdecimal() and int(told):
        return min(int(told), here)
    return max(1, here // _local_workers())


def _local_workers() -> int:
    """Return how many workers `msrun` has started on this machine that share the processors of this process."""
    if os.environ.get("MS_ROLE") not in ("MS_WORKER", "MS_SCHED"):
        return 1
    parent = os.getppid()
    try:
        # `msrun --bind_core` gives every worker processors of its own.
        if os.sched_getaffinity(parent) != os.sched_getaffinity(0):
            return 1
        command = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace").replace("\0", "=").split("=")
    except (OSError, AttributeError):
        command = []
    # Only the command line of msrun states the number for this machine; the environment has that of all machines.
    for name in ("--local_worker_num", "--worker_num"):
        value = command[command.index(name) + 1 :][:1] if name in command else []
        if value and value[0].isdecimal() and int(value[0]):
            return int(value[0])
    workers = os.environ.get("MS_WORKER_NUM", "")
    return int(workers) if workers.isdecimal() and int(workers) else 1


def _groups() -> list[Path]:
    """Return the folders of the control group and its ancestors, whose limits hold too."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").split("\n")
    except OSError:
        return []
    unified = _CGROUP / next((line[3:] for line in groups if line.startswith("0::")), "/").lstrip("/")
    return [place for place in (unified, *unified.parents) if place.is_relative_to(_CGROUP)]


def _limit() -> float:
    """Return the processors that the control group grants (version 2, then 1), or infinity."""
    try:
        shares = [
            int(quota) / int(period)
            for place in _groups()
            if (place / "cpu.max").is_file()
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
