"""Refitting the device model with the measured rows of a board's report, and how its errors change."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import atomic, check_regular, read_json, sha256
from neonext_ms.common.text import one_line
from neonext_ms.ops.soc import soc
from neonext_ms.runtime.onnx_file import MALFORMED

from ..latency.calibrate import MeasuredRow, error_factors, fit, measured_rows
from ..latency.cost import Demand, network_demands
from ..latency.figures import Figure
from ..latency.figures import read as read_figures
from ..latency.parameters import Parameters, fitted
from ..latency.reader import Graph, read
from .kit.run import Problem
from .pack import DESCRIPTION, SUMS, read_sums
from .report import Report, Row
from .weights import join


def refit(report: Report, kit: Path, earlier: Sequence[MeasuredRow] = (), quiet: bool = True) -> dict[str, Any]:
    """Fit the device model's parameters to the published figures and to what boards measured.

    Args:
        report: report of a board, with forms that are right and measured.
        kit: the kit, whose ONNX files say what was measured.
        earlier: rows of other boards, from `read_rows`; the report's replace those of the same network and device.
        quiet: whether to show no progress.

    Returns:
        `parameters` before and after, `errors` before and after on the measured and on the published rows, and the
        measured `rows`, for `store`.

    Raises:
        InputError: a report of stand-ins, or without measured rows, or a folder that is not its kit.
    """
    if report.machine.get("stand_in"):
        raise InputError(f"{report.path}: it ran on stand-ins, whose times must not reach the device model")
    measured = board_rows(report, kit)
    if not measured:
        raise InputError(f"{report.path}: no form is right and measured, so there is nothing to fit")
    new = {_key(row) for row in measured}
    measured = [*(row for row in earlier if _key(row) not in new), *measured]
    published = measured_rows((figure for figure in read_figures() if not figure.uncertain), quiet)
    before, after = fitted(), fit([*published, *measured])
    return {
        "parameters": {"before": asdict(before), "after": asdict(after)},
        "errors": {
            "measured": {"before": _errors(measured, before), "after": _errors(measured, after)},
            "published": {"before": _errors(published, before), "after": _errors(published, after)},
        },
        "rows": [{**asdict(row.figure), "demands": [asdict(demand) for demand in row.demands]} for row in measured],
    }


def _key(row: MeasuredRow) -> tuple:
    figure = row.figure
    return figure.model, figure.image_size, figure.int8, figure.aipp, figure.soc, figure.batch


def store(result: dict[str, Any], path: Path) -> None:
    """Write the result of `refit`: `neonext-bench estimate --fitted` reads the parameters, and `read_rows` the rows.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"parameters": result["parameters"]["after"], "errors": result["errors"], "rows": result["rows"]}
    with atomic(path) as staged:
        staged.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[MeasuredRow]:
    """Return the measured rows of a file of `store`.

    Raises:
        InputError: the file cannot be read, or is no such file.
    """
    values = read_json(path, "a fitted device model")
    try:
        rows = []
        for entry in values["rows"]:
            demands = [Demand(**{**work, **_tuples(work)}) for work in entry["demands"]]
            figure = Figure(**{name: value for name, value in entry.items() if name != "demands"})
            rows.append(MeasuredRow(figure, soc(figure.soc), demands))
            # What is no number fails here.
            if not 0 < rows[-1].ratio(fitted()) < math.inf:
                raise ValueError("a time that is none")
    except (TypeError, ValueError, KeyError, UsageError) as error:
        raise InputError(f"{path}: not a file of neonext-board report --fit --output ({one_line(error)})") from error
    return rows


def _tuples(work: dict[str, Any]) -> dict[str, tuple]:
    return {name: tuple(work[name]) for name in ("tensors", "between")}


def board_rows(report: Report, kit: Path) -> list[MeasuredRow]:
    """Return the right and measured rows of a report, with the work of their networks.

    Raises:
        InputError: the folder is not the kit of the report, or is damaged.
    """
    content = _read_kit(report, kit)
    device = soc(report.machine.get("soc") or report.kit["soc"])
    rows = []
    for row in report.rows:
        if not row.right or not row.measured_ms:
            continue
        described = _describe_build(kit, content, row)
        if described is None:
            continue
        name, size, int8, aipp, graph = described
        _, demands = network_demands(graph, device, int8, aipp)
        rate = 1e3 * row.batch / row.measured_ms
        figure = Figure(name, name, size, int8, aipp, device.name, row.batch, rate, report.path)
        rows.append(MeasuredRow(figure, device, demands))
        if not 0 < rows[-1].ratio(fitted()) < math.inf:
            raise InputError(
                f"{report.path}: {row.build} cannot have taken {row.measured_ms:g} ms at batch {row.batch}"
            )
    return rows


def _describe_build(kit: Path, content: dict[str, Any], row: Row) -> tuple[str, int, bool, bool, Graph] | None:
    """Return name, image size, whether it is in 8 bit and takes frames, and graph of a row's file.

    Returns:
        None if the kit has no such file.

    Raises:
        InputError: the description of the kit is not what `pack` writes, although its checksums are right.
    """
    try:
        build = next((build for build in content["builds"] if build["name"] == row.build), None)
        if build is None:
            return None
        model = onnx.load_from_string(join(kit, content["models"], build["model"]))
        name, size = f"{content['name']} {row.form}", content["image_size"][0]
        return name, size, build.get("form") == "int8", build["feed"] == "frames", read(model, row.batch)
    except (*MALFORMED, Problem, zlib.error, DecodeError) as error:
        raise InputError(
            f"{kit / DESCRIPTION}: not the description of a kit ({one_line(error)}). Pack it again."
        ) from error


def _read_kit(report: Report, kit: Path) -> dict[str, Any]:
    """Return the description of a report's kit, all of whose files are as they were packed.

    Raises:
        InputError: the folder is another kit, also one of the same network, or none, or a file is damaged.
    """
    sums = kit / SUMS
    check_regular(sums)
    if sha256(sums)[:16] != report.kit["digest"]:
        raise InputError(f"{kit}: not the kit of {report.path}. Name its folder with --kit.")
    for name, digest in read_sums(kit):
        check_regular(kit / name)
        if sha256(kit / name) != digest:
            raise InputError(f"{kit / name}: damaged, its checksum is wrong. Copy the kit again.")
    return read_json(kit / DESCRIPTION, "the description of a kit")


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
