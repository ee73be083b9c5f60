"""Fit the device model's parameters to published throughput, and measure the error on networks left out of the fit."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from neonext_ms.common.cli import Parser, progress, run
from neonext_ms.common.files import atomic
from neonext_ms.ops.soc import Soc, soc

from .. import networks
from .cost import Demand, Demands, network_demands
from .figures import Figure
from .figures import read as read_figures
from .parameters import BOUNDS, FILE, LEFT_OUT, Parameters
from .reader import read

DESCRIPTION = """\
Fit the device model's parameters to published throughput, and measure the error on networks left out of the fit.

    python -m neonext_ms.benchmarks.latency.calibrate

It writes parameters.json, from which `neonext-bench estimate --table` prints the fit and its errors.
Every network's rows are left out once while the others are fitted (leave one network out). Once all networks of the
second half of the table are left out (fixed split). No parameter belongs to a network."""

# Networks of the table's first part, which the project was given: the fixed split fits these.
GIVEN = ("ConvNeXt-T", "ResNet-50", "ResNet-18", "ResNet-101", "MobileNet-v1", "ViT-B/16", "ConvMixer-1536/20",
         "RegNetX-1.6GF", "DenseNet-121", "SqueezeNet1.1", "GoogLeNet")  # fmt: skip
# The factor that a parameter may move by for the price of the same factor in one network's error.
_PRIOR = 4.0
_SOFT = 1.0  # errors beyond this (natural logarithm) weigh less than their square


@dataclass(frozen=True)
class MeasuredRow:
    """A published figure and the work of its network on its device."""

    figure: Figure
    device: Soc
    demands: Sequence[Demand]

    @property
    def measured_us(self) -> float:
        """Measured microseconds of a run."""
        return self.figure.batch / self.figure.images_per_second * 1e6

    def ratio(self, parameters: Parameters) -> float:
        """Return predicted over measured throughput."""
        us = parameters.run_us + Demands(self.demands, self.device).times(parameters)[1].sum()
        return self.figure.batch / us * 1e6 / self.figure.images_per_second


def measured_rows(figures: Iterable[Figure], quiet: bool = True) -> list[MeasuredRow]:
    """Return the figures with the work of their networks."""
    rows = []
    for figure in progress(list(figures), what="networks", quiet=quiet):
        size = (figure.image_size, figure.image_size)
        graph = read(networks.build(figure.network, batch=figure.batch, image_size=size, form="plain", seed=None))
        device = soc(figure.soc)
        _, demands = network_demands(graph, device, figure.int8, figure.aipp)
        rows.append(MeasuredRow(figure, device, demands))
    return rows


def fit(rows: Sequence[MeasuredRow]) -> Parameters:
    """Return the parameters with the least error of the logarithm of throughput.

    Every network on every device weighs the same. Parameters that the rows hardly determine stay near their defaults.
    """
    from scipy.optimize import least_squares  # a dependency of MindSpore

    groups = [(row.figure.model, row.figure.soc, row.figure.int8) for row in rows]
    counts = Counter(groups)
    weights = np.array([counts[group] ** -0.5 for group in groups])
    measured = np.array([row.measured_us for row in rows])
    # All tasks of a device in one table, because a fit evaluates them thousands of times.
    tables = []
    for device in dict.fromkeys(row.device for row in rows):
        places = [i for i, row in enumerate(rows) if row.device == device]
        starts = np.cumsum([0, *(len(rows[i].demands) for i in places[:-1])])
        tables.append((places, starts, Demands([demand for i in places for demand in rows[i].demands], device)))
    origin = np.log([getattr(Parameters(), name) for name in BOUNDS])

    def at(x: np.ndarray) -> Parameters:
        return Parameters(**dict(zip(BOUNDS, x.tolist(), strict=True)))

    def residuals(x: np.ndarray) -> np.ndarray:
        parameters, us = at(np.exp(x)), np.empty(len(rows))
        for places, starts, demands in tables:
            us[places] = parameters.run_us + np.add.reduceat(demands.times(parameters)[1], starts)
        errors = np.log(measured / us)
        soft = np.sign(errors) * _SOFT * np.sqrt(2 * (np.sqrt(1 + (errors / _SOFT) ** 2) - 1))
        return np.concatenate([weights * soft, (x - origin) / _PRIOR])

    limits = np.log(np.array(list(BOUNDS.values()))).T
    solved = least_squares(residuals, origin, bounds=limits, diff_step=1e-3, xtol=1e-6, ftol=1e-7, max_nfev=60)
    return at(np.array([float(f"{value:.3g}") for value in np.exp(solved.x)]))


def error_factors(ratios: Sequence[float]) -> dict[str, float]:
    """Return the median, nine-in-ten and worst error of throughput, as factors of at least 1."""
    factors = [max(ratio, 1 / ratio) for ratio in ratios]
    return {
        "rows": len(factors),
        "median": float(np.median(factors)),
        "p90": float(np.quantile(factors, 0.9)),
        "worst": float(max(factors)),
    }


def fixed_split(rows: Sequence[MeasuredRow]) -> tuple[list[MeasuredRow], list[MeasuredRow]]:
    """Return the rows of the networks that the project was given, and all others."""
    first = [row for row in rows if row.figure.model in GIVEN]
    return first, [row for row in rows if row.figure.model not in GIVEN]


def calibrate(quiet: bool = True) -> dict:
    """Return the fit and its errors as `parameters.json` stores them."""
    figures = read_figures()
    rows = measured_rows((figure for figure in figures if not figure.uncertain), quiet)
    parameters = fit(rows)
    first, others = fixed_split(rows)
    from_first = fit(first)
    left_out = []
    for model in progress(list(dict.fromkeys(row.figure.model for row in rows)), what="leaving out", quiet=quiet):
        without = fit([row for row in rows if row.figure.model != model])
        left_out += [(row, row.ratio(without)) for row in rows if row.figure.model == model]
    unused = measured_rows((figure for figure in figures if figure.uncertain), quiet)

    def entry(row: MeasuredRow, **fields) -> dict:
        figure, fitted_ratio = row.figure, round(row.ratio(parameters), 3)
        first = {"name": figure.name, "soc": figure.soc, "batch": figure.batch, "measured": figure.images_per_second}
        return {**first, "fitted_ratio": fitted_ratio, **fields}

    return {
        "parameters": asdict(parameters),
        "errors": {
            "fitted": error_factors([row.ratio(parameters) for row in rows]),
            LEFT_OUT: error_factors([ratio for _, ratio in left_out]),
            "given networks fitted, the others": error_factors([row.ratio(from_first) for row in others]),
        },
        "rows": [entry(row, left_out_ratio=round(ratio, 3)) for row, ratio in left_out],
        "unused": [entry(row, why=row.figure.uncertain) for row in unused],
    }


def _main(argv: Sequence[str] | None = None) -> None:
    Parser(prog="python -m neonext_ms.benchmarks.latency.calibrate", description=DESCRIPTION).parse_args(argv)
    with atomic(FILE) as staged:
        staged.write_text(json.dumps(calibrate(quiet=False), indent=1) + "\n", encoding="utf-8")
    print(f"{FILE}: written; neonext-bench estimate --table errors shows the errors, --table parameters the fit")


if __name__ == "__main__":
    sys.exit(run(_main))
