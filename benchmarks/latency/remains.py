"""A table of docs/device-model.md: the time of NeoNeXt-T above the cube's bound on a 310P3, by parts of the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from neonext_ms.ops.soc import MACS_PER_CYCLE

from ..report import table
from .neonext import build
from .network_model import Estimate, TaskEstimate, estimate

SOC, _BATCH, _FORM = "Ascend310P3", 8, "AscendC"
# Name for people -> activation, and whether the file is in 8 bit.
_NETWORKS: Mapping[str, tuple[str, bool]] = {
    "gelu": ("gelu", False),
    "relu": ("relu", False),
    "relu, 8 bit": ("relu", True),
}
_RUN = "a run besides its tasks"


def remains_table() -> str:
    """Return the predicted time of each part of the networks, its bound, and the least time of the cube."""
    estimates = [
        estimate(build("t", 224, _BATCH, _FORM, *chosen[:1], int8=chosen[1]), SOC) for chosen in _NETWORKS.values()
    ]
    parts = list(dict.fromkeys(_part(task) for each in estimates for task in each.tasks))
    body = [[part, f"{_least(estimates[0], part):.1f}", *_cells(estimates, part)] for part in parts]
    runs = (f"{each.predicted_run_us / _BATCH:.1f}" for each in estimates)
    body.append([_RUN, "0.0", *(cell for run in runs for cell in (run, ""))])
    least = sum(_least(estimates[0], part) for part in parts)
    totals = (f"{each.predicted_us / _BATCH:.1f}" for each in estimates)
    body.append(["all", f"{least:.1f}", *(cell for total in totals for cell in (total, ""))])
    head = ["part", "cube at its peak, float16"]
    head += [cell for name in _NETWORKS for cell in (name, "bound by")]
    title = f"NeoNeXt-T at 224, {_FORM}, on a 310P3 at batch {_BATCH}: predicted microseconds for an image"
    return f"{title}\n\n{table(head, body)}"


def _cells(estimates: list[Estimate], part: str) -> list[str]:
    cells = []
    for each in estimates:
        tasks = [task for task in each.tasks if _part(task) == part]
        bounds: dict[str, float] = defaultdict(float)
        for task in tasks:
            bounds[task.predicted_bound] += task.predicted_us
        longest = max(bounds, key=bounds.__getitem__, default="")
        cells += [f"{sum(task.predicted_us for task in tasks) / _BATCH:.1f}", longest]
    return cells


def _least(estimated: Estimate, part: str) -> float:
    """Return the microseconds in which the cubes of all cores do the multiply-adds of a part for one image."""
    macs = sum(task.multiply_adds for task in estimated.tasks if _part(task) == part and task.kind != "neocell")
    return macs / _BATCH / (estimated.soc.ai_cores * estimated.soc.cube_mhz * MACS_PER_CYCLE)


def _part(task: TaskEstimate) -> str:
    """Return the part of the network that a task belongs to."""
    if task.kind == "neocell":
        return "NeoCell"
    if task.kind == "conv":
        named = {".fc_1": "fc_1 and activation", ".fc_2": "fc_2 and residual"}
        return next((part for end, part in named.items() if task.name.endswith(end)), "stem and downsampling")
    if task.op == "AscendQuant":
        return "AscendQuant alone"
    return "casts and layouts" if task.op in ("Cast", "TransData") else "head"
