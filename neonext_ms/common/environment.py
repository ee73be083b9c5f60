"""Variables of the environment that MindSpore reads once, when it is imported."""

from __future__ import annotations

import os

from .processors import thread_count


def prepare_environment(threads: int | None = None) -> None:
    """Set what MindSpore reads when it is imported; what the user has set is kept.

    Args:
        threads: threads of MindSpore's operators on the CPU (default: see `thread_count`).
    """
    defaults = {
        # MindSpore logs to the terminal, and raises the same errors, which a command prints in one line.
        "GLOG_v": "3" if os.environ.get("NEONEXT_DEBUG") else "4",
        # MindSpore writes `rank_0/om/analyze_fail.ir` below this path, by default the working folder.
        "MS_OM_PATH": os.devnull,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # MindSpore sets an unset variable to 1.
    os.environ["OMP_NUM_THREADS"] = str(thread_count(threads))
