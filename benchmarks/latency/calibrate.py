"""Fits the parameters of the prediction to published throughput, and says what error is left on rows left out.

    python -m neonext_ms.benchmarks.latency.calibrate           fit all rows, write parameters.json
    python -m neonext_ms.benchmarks.latency.calibrate --check   the same without writing; the table of errors

Every network's rows are left out once while the others are fitted (leave one network out), and once all networks of
the second half of the table (fixed split). No parameter belongs to a network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neonext_ms.common.cli import Parser, print_json, progress, run
from neonext_ms.common.files import atomic
from neonext_ms.ops.soc import soc

from .. import networks
from .cost import Demands, demand
from .figures import Figure
from .figures import read as read_figures
from .parameters import FILE, Parameters, as_dict
from .prediction import network_tasks
from .reader import read

# Networks of the table's first part, those that the project was given: the fixed split fits these.
GIVEN = ("ConvNeXt-T", "ResNet-50", "ResNet-18", "ResNet-101", "MobileNet-v1", "ViT-B/16", "ConvMixer-1536/20",
         "RegNetX-1.6GF", "DenseNet-121", "SqueezeNet1.1", "GoogLeNet")  # fmt: skip
# What is fitted, each between bounds outside which it would mean something else.
BOUNDS = {
    "run_us": (1.0, 200.0),
    "launch_us": (0.5, 8.0),
    "cube_share": (0.3, 1.0),
    "depthwise_share": (0.02, 1.0),
    "matrix_start_cycles": (10.0, 3000.0),
    "vector_share": (0.05, 1.0),
    "l2_share": (0.05, 1.0),
    "layout_share": (0.02, 1.0),
    "serial_share": (0.001, 1.0),
    "l2_held": (0.1, 4.0),
    "memory_310p": (0.5, 1.42),
    "memory_310b": (0.5, 2.44),
}
# How far, as a factor, a parameter may move for what one network's error of the same factor costs.
_PRIOR = 4.0
_SOFT = 1.0  # errors beyond this (natural logarithm) weigh less than their square


@dataclass(frozen=True)
class Row:
    """A published figure and what the network needs of its device."""

    figure: Figure
    demands: Demands

    def ratio(self, parameters: Parameters) -> float:
        """Predicted over measured throughput."""
        us = parameters.run_us + self.demands.times(parameters).total.sum()
        return self.figure.batch / us * 1e6 / self.figure.images_per_second


class _Together:
    """Rows of one device with all their tasks in one table: what a fit evaluates thousands of times."""

    def __init__(self, chosen: Sequence[Row]):
        self.places: list[np.ndarray] = []
        self.tables: list[tuple[Demands, np.ndarray]] = []
        devices = dict.fromkeys(row.demands.device.name for row in chosen)
        for name in devices:
            at = [i for i, row in enumerate(chosen) if row.demands.device.name == name]
            parts = [chosen[i].demands for i in at]
            starts = np.cumsum([0, *(len(part.kinds) for part in parts[:-1])])
            self.places.append(np.array(at))
            self.tables.append((Demands.joined(parts), starts))
        self.measured_us = np.array([row.figure.batch / row.figure.images_per_second * 1e6 for row in chosen])

    def errors(self, parameters: Parameters) -> np.ndarray:
        """Natural logarithm of predicted over measured throughput."""
        us = np.empty(len(self.measured_us))
        for at, (table, starts) in zip(self.places, self.tables, strict=True):
            us[at] = parameters.run_us + np.add.reduceat(table.times(parameters).total, starts)
        return np.log(self.measured_us / us)


def rows(figures: Iterable[Figure], quiet: bool = True) -> list[Row]:
    """The figures whose networks can be built, with their demands."""
    known, made = networks.names(), []
    for figure in progress(list(figures), what="networks", quiet=quiet):
        if figure.network not in known:
            continue
        size = (figure.image_size, figure.image_size)
        graph = read(networks.build(figure.network, batch=figure.batch, image_size=size, form="plain", seed=None))
        device = soc(figure.soc)
        tasks = network_tasks(graph, device, figure.int8, figure.aipp)
        made.append(Row(figure, Demands([demand(task, graph, device) for task in tasks], device)))
    return made


def fit(chosen: Sequence[Row], start: Parameters | None = None) -> Parameters:
    """Parameters with the least error of the logarithm of throughput; every network and device weighs the same.

    Args:
        chosen: rows to fit to.
        start: where to begin, and what parameters that the rows say nothing of stay near to.
    """
    from scipy.optimize import least_squares

    start = start or Parameters()
    counts: dict[tuple, int] = {}
    for row in chosen:
        counts[_group(row)] = counts.get(_group(row), 0) + 1
    weights = np.array([counts[_group(row)] ** -0.5 for row in chosen])
    names = list(BOUNDS)
    origin = np.log([getattr(start, name) for name in names])

    together = _Together(chosen)

    def residuals(x: np.ndarray) -> np.ndarray:
        parameters = replace(start, **dict(zip(names, np.exp(x).tolist(), strict=True)))
        errors = together.errors(parameters)
        soft = np.sign(errors) * _SOFT * np.sqrt(2 * (np.sqrt(1 + (errors / _SOFT) ** 2) - 1))
        return np.concatenate([weights * soft, (x - origin) / _PRIOR])

    limits = np.log(np.array([BOUNDS[name] for name in names])).T
    solved = least_squares(residuals, origin, bounds=limits, diff_step=1e-3, xtol=1e-6, ftol=1e-7, max_nfev=60)
    return replace(start, **{name: float(f"{value:.3g}") for name, value in zip(names, np.exp(solved.x), strict=True)})


def _group(row: Row) -> tuple:
    return row.figure.model, row.figure.soc, row.figure.int8


def errors(ratios: Sequence[float]) -> dict[str, float]:
    """Median, nine tenths and worst error of throughput, as factors of at least 1."""
    factors = [max(ratio, 1 / ratio) for ratio in ratios]
    return {
        "rows": len(factors),
        "median": float(np.median(factors)),
        "p90": float(np.quantile(factors, 0.9)),
        "worst": float(max(factors)),
    }


def left_out(all_rows: Sequence[Row], quiet: bool = True) -> list[tuple[Row, float]]:
    """Every row with the ratio that parameters fitted to the other networks predict."""
    result = []
    models = list(dict.fromkeys(row.figure.model for row in all_rows))
    for model in progress(models, what="leaving out", quiet=quiet):
        others = [row for row in all_rows if row.figure.model != model]
        parameters = fit(others)
        result += [(row, row.ratio(parameters)) for row in all_rows if row.figure.model == model]
    return result


def split(all_rows: Sequence[Row], first: Callable[[Row], bool] | None = None) -> tuple[list[Row], list[Row]]:
    """Rows of the given networks, and all others."""
    chosen = first or (lambda row: row.figure.model in GIVEN)
    return [row for row in all_rows if chosen(row)], [row for row in all_rows if not chosen(row)]


def calibrate(quiet: bool = True) -> dict:
    """Fits and errors, as `parameters.json` holds them."""
    figures = read_figures()
    sure = rows((figure for figure in figures if not figure.uncertain), quiet)
    parameters = fit(sure)
    given, others = split(sure)
    from_given = fit(given)
    out = left_out(sure, quiet)
    unsure = rows((figure for figure in figures if figure.uncertain), quiet)
    by_row = [
        {
            "name": row.figure.name,
            "soc": row.figure.soc,
            "batch": row.figure.batch,
            "measured": row.figure.images_per_second,
            "fitted_ratio": round(row.ratio(parameters), 3),
            "left_out_ratio": round(ratio, 3),
        }
        for row, ratio in out
    ]
    apart = [
        {
            "name": row.figure.name,
            "soc": row.figure.soc,
            "batch": row.figure.batch,
            "measured": row.figure.images_per_second,
            "ratio": round(row.ratio(parameters), 3),
            "why": row.figure.uncertain,
        }
        for row in unsure
    ]
    return {
        "parameters": as_dict(parameters),
        "errors": {
            "fitted": errors([row.ratio(parameters) for row in sure]),
            "one network left out": errors([ratio for _, ratio in out]),
            "given networks fitted, the others": errors([row.ratio(from_given) for row in others]),
        },
        "rows": by_row,
        "apart": apart,
    }


def text(result: dict) -> str:
    """The result for a terminal."""
    lines = ["predicted over measured throughput: fitted, with its network left out"]
    for row in result["rows"]:
        at = f"{row['name']} b{row['batch']} {row['soc']}"
        lines.append(f"  {at:48} {row['measured']:8.0f}/s  {row['fitted_ratio']:.2f}  {row['left_out_ratio']:.2f}")
    lines.append("not used:")
    lines += [
        f"  {row['name']} b{row['batch']} {row['soc']} {row['measured']:.0f}/s  {row['ratio']:.2f}  ({row['why']})"
        for row in result["apart"]
    ]
    for name, error in result["errors"].items():
        lines.append(
            f"{name}: {error['rows']} rows, error by a factor of {error['median']:.2f} (median), "
            f"{error['p90']:.2f} (nine of ten), {error['worst']:.2f} (worst)"
        )
    lines += [f"{name} = {value:g}" for name, value in result["parameters"].items()]
    return "\n".join(lines)


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.latency.calibrate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    result = calibrate(quiet=False)
    if not args.check:
        with atomic(FILE) as staged:
            staged.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print_json(result)
    else:
        print(text(result))


if __name__ == "__main__":
    sys.exit(run(_main))
