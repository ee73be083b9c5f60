"""Fig. 1 of the paper: published accuracy on ImageNet-1k against parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from neonext_ms.models.published import ACCURACIES, accuracy_lines


def draw(plt, args):
    """Draw published top-1 against parameters and against multiply-adds; a line for each family and image size."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    panels = (("parameters", "parameters, millions"), ("multiply_adds", "multiply-adds of an image, billions"))
    families = list(dict.fromkeys(row.family for row in ACCURACIES))
    for panel, (quantity, label) in zip(axes, panels, strict=True):
        for family, size in dict.fromkeys((row.family, row.image_size) for row in ACCURACIES):
            rows = [row for row in ACCURACIES if (row.family, row.image_size) == (family, size)]
            points = [(getattr(row, quantity), row.top1, row.name) for row in rows if getattr(row, quantity)]
            style = {"linestyle": "-" if size == 224 else "--", "marker": "o" if size == 224 else "s"}
            colour = f"C{families.index(family)}"
            panel.plot(
                [x for x, _, _ in points], [y for _, y, _ in points], label=f"{family}, {size} pixels", color=colour,
                markersize=5, **style,
            )  # fmt: skip
            for x, y, name in points:
                panel.annotate(
                    name.rpartition("-")[2], (x, y), textcoords="offset points", xytext=(5, -9), fontsize="small",
                    color=colour,
                )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("published top-1 on ImageNet-1k, %")
    axes[1].legend(fontsize="small", loc="lower right")
    figure.suptitle("Published by the authors of each network; not measured here", fontsize="medium")
    return figure, {"published": [asdict(row) for row in ACCURACIES]}


def describe(facts: Mapping) -> list[str]:
    """Return the published figures as lines."""
    return list(accuracy_lines())
