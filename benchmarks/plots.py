"""Pictures of a result: latency by batch size, and share of the GEMM rate. They need the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from neonext_ms.common.figures import literal, pyplot, save_figure

from . import results


def draw(result: Mapping, folder: Path, stem: str) -> list[Path]:
    """Write the pictures of a result and return their paths.

    Raises:
        ToolchainError: matplotlib is not installed.
    """
    plt = pyplot()
    written = []
    for name, figure in (("latency", _latency(plt, result)), ("share", _shares(plt, result))):
        if figure is not None:
            path = folder / f"{stem}_{name}.png"
            save_figure(figure, path)
            plt.close(figure)
            written.append(path)
    return written


def _machine(result: Mapping) -> str:
    machine = result["machine"]
    return literal(f"{machine.get('cpu') or 'unknown CPU'}, {result['settings']['threads']} threads")


def _latency(plt, result: Mapping):
    """Draw time per image by batch size, one line for each model."""
    rows = [row for row in results.entries(result) if not row.is_gemm]
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    batches = sorted({row.batch for row in rows})
    labels = list(dict.fromkeys(row.label for row in rows))
    colours = plt.get_cmap("tab20" if len(labels) > 10 else "tab10").colors
    for index, label in enumerate(labels):
        own = sorted((row for row in rows if row.label == label), key=lambda row: row.batch)
        middle = [1e3 * row.latency.p50 / row.batch for row in own]
        up = [1e3 * (row.latency.p90 - row.latency.p50) / row.batch for row in own]
        down = [1e3 * (row.latency.p50 - row.latency.min) / row.batch for row in own]
        # Shifted, so that the whiskers of one batch size do not cover each other.
        shift = 1 + 0.012 * (index - (len(labels) - 1) / 2)
        axis.errorbar(
            [row.batch * shift for row in own],
            middle,
            yerr=[down, up],
            label=literal(label),
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.3,
            color=colours[index % len(colours)],
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("batch")
    axis.set_ylabel("ms per image (median; whiskers: minimum to p90)")
    axis.set_title(f"Time per image\n{_machine(result)}", fontsize="medium")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _shares(plt, result: Mapping):
    """Draw the share of the GEMM rate by model and batch size; return None if none was measured."""
    rows = [row for row in results.entries(result) if row.gemm_share is not None]
    if not rows:
        return None
    labels = list(dict.fromkeys(row.label for row in rows))
    batches = sorted({row.batch for row in rows})
    height = 0.8 / len(batches)
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.45 * len(labels)), layout="constrained")
    for index, batch in enumerate(batches):
        own = {row.label: row.gemm_share for row in rows if row.batch == batch and row.gemm_share}
        places = [labels.index(label) + (index - (len(batches) - 1) / 2) * height for label in own]
        middle = [100 * share.median_ratio for share in own.values()]
        error = [
            [100 * (share.median_ratio - share.low) for share in own.values()],
            [100 * (share.high - share.median_ratio) for share in own.values()],
        ]
        bars = axis.barh(places, middle, height, xerr=error, label=f"batch {batch}", error_kw={"linewidth": 1})
        axis.bar_label(bars, [f"{value:.0f} %" for value in middle], padding=6, fontsize="small")
    axis.set_yticks(range(len(labels)), list(map(literal, labels)))
    axis.invert_yaxis()
    axis.set_xlim(0, max(110, axis.get_xlim()[1] + 8))
    axis.axvline(100, color="grey", linewidth=1, linestyle="--")
    axis.set_xlabel("time of the model's matrix products alone / time of the model, %")
    axis.set_title(f"Share of the GEMM rate of the same run\n{_machine(result)}", fontsize="medium")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
