"""Block sizes and shifts (future work of the paper): the same training with each, several seeds.

Resumable, as the runs of `neoinit`; see `trials`.
"""

from __future__ import annotations

import argparse
import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from neonext_ms.common.cli import comma_list, some_of
from neonext_ms.common.errors import UsageError
from neonext_ms.models.architecture import STAGES, make_architecture
from neonext_ms.models.registry import model_config

from . import trials

KERNELS = ("2", "4", "7", "4+7")
SHIFTS = ("on", "off")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim."""
    parser.add_argument(
        "--kernels",
        type=comma_list(),
        default=KERNELS,
        metavar="SPECS",
        help=f"block sizes of all stages (default {','.join(KERNELS)})",
    )
    parser.add_argument(
        "--shifts",
        type=some_of(SHIFTS),
        default=SHIFTS,
        metavar="on,off",
        help="with the shifts of the configuration, without any, or both (default)",
    )
    trials.add_options(parser, seeds=3, output="runs/kernels")


def measure(args: argparse.Namespace) -> dict:
    """Train with every block size and with and without shifts."""
    output = Path(args.output)

    def runs(config) -> tuple[list[dict], dict[str, dict]]:
        configs = {
            _name(kernels, shifts): _changed(config, kernels, shifts)
            for kernels in args.kernels
            for shifts in args.shifts
        }
        costs = {name: _cost(one) for name, one in configs.items()}
        return trials.run_trials(lambda seed: configs, range(args.seeds), output, "kernels"), costs

    done, costs = trials.train(args, runs)
    summary = trials.summarise(done)
    return {"summary": {name: {**costs[name], **row} for name, row in summary.items()}}


def _name(kernels: str, shifts: str) -> str:
    return f"{kernels}-{'shifted' if shifts == 'on' else 'unshifted'}"


def _changed(config, kernels: str, shifts: str):
    model = replace(config.model, kernel_spec=kernels)
    if shifts == "off":
        model = replace(model, shifts=(0,) * STAGES)
    elif not any(model.shifts or ()):
        raise UsageError(
            "--shifts on: the configuration has no shifts. Set model.shifts, such as model.shifts=1,1,1,0."
        )
    return replace(config, model=model)


def _cost(config) -> dict:
    """Return the number of values in the matrices of the blocks.

    Raises:
        InputError: a shift that a block size does not allow, before any training.
    """
    keys = ("per_stage_layers", "dims", "kernel_spec", "shifts")
    given = {key: getattr(config.model, key) for key in keys if getattr(config.model, key) is not None}
    name = config.model.name
    architecture = model_config(name, **given).architecture if name else make_architecture(**given)
    cells = [architecture.stage_spec(stage).parameters() for stage in range(STAGES)]
    return {"matrices": sum(map(operator.mul, architecture.per_stage_layers, cells))}


def lines(result: Mapping) -> Iterator[str]:
    """Yield the table as text."""
    yield "blocks  shifts  matrices  runs  diverged  mean top-1  deviation  mean loss"
    for name, row in result["summary"].items():
        kernels, _, shifts = name.rpartition("-")
        mean, deviation = ("-" if x is None else f"{100 * x:.2f} %" for x in (row["mean"], row["deviation"]))
        loss = "-" if row["loss_mean"] is None else f"{row['loss_mean']:.3f}"
        on = "on" if shifts == "shifted" else "off"
        yield (
            f"{kernels:6}  {on:6}  {row['matrices']:<8,}  {row['runs']:<4}  {row['diverged']:<8}  {mean:10}  "
            f"{deviation:9}  {loss}"
        )
