"""A roofline picture: the tasks of networks by how much they compute for each byte, under the limits of a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from neonext_ms.common.figures import pyplot, save_figure
from neonext_ms.ops.soc import MACS_PER_CYCLE

from .network_model import Estimate
from .parameters import fitted

_MARKS = {"conv": "o", "depthwise": "s", "matmul": "o", "batched matmul": "D", "neocell": "^"}


def draw(estimates: Mapping[str, Estimate], path: Path) -> None:
    """Draw the tasks of networks on one device that have multiply-adds, as a PNG.

    Raises:
        ToolchainError: matplotlib is not installed.
    """
    plt = pyplot()
    device, parameters = next(iter(estimates.values())).soc, fitted()
    peak = device.ai_cores * device.cube_mhz * 1e6 * MACS_PER_CYCLE / 1e12
    figure, axes = plt.subplots(figsize=(9, 5.5))
    x = np.geomspace(0.1, 3000, 400)
    for name, rate, style in (
        ("memory", parameters.memory_bytes_per_second(device), "-"),
        ("level-2 cache", device.l2_read_bytes_per_second * parameters.l2_share, "--"),
    ):
        reach = np.minimum(x * rate / 1e12, peak * parameters.cube_share)
        axes.plot(x, reach, style, color="0.35", lw=1.2, label=f"limit, from the {name} (fitted)")
    axes.axhline(peak, color="0.6", lw=0.8, ls=":", label="peak of the cube, float16")
    colours = plt.get_cmap("tab10").colors
    for (name, estimate), colour in zip(estimates.items(), colours, strict=False):
        for kind, mark in _MARKS.items():
            tasks = [task for task in estimate.tasks if task.kind == kind and task.multiply_adds and task.bytes]
            if not tasks:
                continue
            axes.scatter(
                [task.multiply_adds / task.bytes for task in tasks],
                [task.multiply_adds / task.predicted_us / 1e6 for task in tasks],
                s=[8 + 500 * task.predicted_us / estimate.predicted_us for task in tasks],
                marker=mark, color=colour, alpha=0.55, lw=0, label=f"{name}: {kind}",
            )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="multiply-adds for each byte read and written", ylim=(1e-3, 2 * peak),
        ylabel="predicted 10$^{12}$ multiply-adds a second", xlim=(x[0], x[-1]),
        title=f"{device.name}: predicted, not measured; area: share of the network's time",
    )  # fmt: skip
    legend = axes.legend(fontsize=7, loc="lower right", ncol=2)
    for handle in legend.legend_handles[3:]:
        handle.set_sizes([30])
    axes.grid(True, which="major", lw=0.3)
    figure.tight_layout()
    save_figure(figure, path)
    plt.close(figure)
