"""Refitting the device model with the measured rows of a board's report, and how its errors change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import read_json
from neonext_ms.ops.soc import soc

from ..latency.calibrate import MeasuredRow, error_factors, fit, measured_rows
from ..latency.cost import network_demands
from ..latency.figures import Figure
from ..latency.figures import read as read_figures
from ..latency.parameters import Parameters, fitted
from ..latency.reader import read
from .report import Report
from .weights import join


def refit(report: Report, kit: Path, quiet: bool = True) -> dict[str, Any]:
    """Fit the device model's parameters to the published figures and to what a board measured.

    Args:
        report: report of a board, with forms that are right and measured.
        kit: the kit, whose ONNX files say what was measured.
        quiet: whether to show no progress.

    Returns:
        `parameters` before and after, and `errors` before and after on the measured and on the published rows.

    Raises:
        InputError: a report of stand-ins, or without measured rows, or a folder that is not its kit.
    """
    if report.machine.get("stand_in"):
        raise InputError(f"{report.path}: it ran on stand-ins, whose times must not reach the device model")
    measured = board_rows(report, kit)
    if not measured:
        raise InputError(f"{report.path}: no form is right and measured, so there is nothing to fit")
    published = measured_rows((figure for figure in read_figures() if not figure.uncertain), quiet)
    before, after = fitted(), fit([*published, *measured])
    return {
        "parameters": {"before": asdict(before), "after": asdict(after)},
        "errors": {
            "measured": {"before": _errors(measured, before), "after": _errors(measured, after)},
            "published": {"before": _errors(published, before), "after": _errors(published, after)},
        },
    }


def board_rows(report: Report, kit: Path) -> list[MeasuredRow]:
    """Return the right and measured rows of a report, with the work of their networks.

    Raises:
        InputError: the folder is not the kit of the report.
    """
    content = read_json(kit / "kit.json", "the description of a kit")
    if not isinstance(content, dict) or content.get("name") != report.kit["name"]:
        raise InputError(f"{kit}: not the kit of {report.path}. Name its folder with --kit.")
    builds = {build["name"]: build for build in content["builds"]}
    device = soc(report.machine.get("soc") or report.kit["soc"])
    rows = []
    for row in report.rows:
        build = builds.get(row.build)
        if build is None or not row.right or not row.measured_ms:
            continue
        graph = read(onnx.load_from_string(join(kit, content["models"][build["model"]])), row.batch)
        aipp = build["feed"] == "frames"
        _, demands = network_demands(graph, device, False, aipp)
        name, rate = f"{content['name']} {row.form}", 1e3 * row.batch / row.measured_ms
        size = content["image_size"][0]
        figure = Figure(name, name, size, False, aipp, device.name, row.batch, rate, report.path)
        rows.append(MeasuredRow(figure, device, demands))
    return rows


def _errors(rows: Sequence[MeasuredRow], parameters: Parameters) -> dict[str, float]:
    return error_factors([row.ratio(parameters) for row in rows])


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result of `refit` for a terminal."""
    out = [f"{'rows':<11}{'number':>6}  {'median error (times)':<22}{'worst':<16}"]
    for name, errors in result["errors"].items():
        one, two = errors["before"], errors["after"]
        out.append(
            f"{name:<11}{one['rows']:>6}  {one['median']:<6.2f} now {two['median']:<11.2f}{one['worst']:.2f} now "
            f"{two['worst']:.2f}"
        )
    before, after = (result["parameters"][which] for which in ("before", "after"))
    out += [f"{name:<22}{before[name]:g} now {after[name]:g}" for name in before if before[name] != after[name]]
    return out
