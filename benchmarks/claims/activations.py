"""Activations compared: accuracy from scratch and fine-tuned from GELU, beside the predicted throughput on a device.

Resumable, as the runs of `neoinit`; see `trials`. Without matplotlib there is no figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neonext_ms.common.cli import float_range, non_negative_int
from neonext_ms.common.errors import UsageError
from neonext_ms.models.activations import ACTIVATIONS, GELU
from neonext_ms.ops.soc import soc

from . import trials

_FIGURE = "activations.png"
_FINAL = "final.safetensors"
_TUNED = "-tuned"
_BATCH = 8
# The blend from GELU takes this share of a fine-tuning.
_BLEND = 1 / 3


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this claim."""
    trials.add_choice(parser, "--activations", ACTIVATIONS, "activations")
    parser.add_argument(
        "--tune-epochs",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="also fine-tune every network with GELU to each activation, GELU too, in N epochs (default 0: no)",
    )
    parser.add_argument(
        "--tune-rate",
        type=float_range(1e-6, 1e3),
        default=0.25,
        metavar="R",
        help="learning rate of the fine-tuning, as a share of the configuration's (default 0.25)",
    )
    parser.add_argument(
        "--soc", default="Ascend310P3", help="device of the prediction, as in atc --soc_version (default: %(default)s)"
    )
    trials.add_options(parser, seeds=3, output="runs/activations")


def measure(args: argparse.Namespace) -> dict:
    """Train with every activation and every seed, predict the throughput, and draw both."""
    if args.tune_epochs and GELU not in args.activations:
        raise UsageError("--tune-epochs: starts from the networks with GELU. Add gelu to --activations.")
    device, output = soc(args.soc).name, Path(args.output)

    def runs(config) -> list[dict]:
        def configs(seed: int) -> dict:
            return _configs(config, args.activations, args.tune_epochs, args.tune_rate, output / f"{GELU}-{seed}")

        return trials.run_trials(configs, range(args.seeds), output, "activations")

    summary = trials.summarise(trials.train(args, runs))
    for name, row in summary.items():
        row["predicted"] = _throughput(row["trials"], output, name, device)
    result = {"soc": device, "batch": _BATCH, "summary": summary}
    return {**result, "plot": trials.write_figure(lambda plt: draw(plt, result), output / _FIGURE)}


def _configs(config, activations: Sequence[str], epochs: int, rate: float, gelu: Path) -> dict:
    """Return the configurations of one seed, those that fine-tune the network in the folder `gelu` after all others."""
    # GELU first: the others may start from it.
    names = sorted(activations, key=ACTIVATIONS.index)
    configs = {name: replace(config, model=replace(config.model, activation=name)) for name in names}
    for name in names if epochs else ():
        schedule = replace(
            config.schedule,
            epochs=epochs,
            warmup_epochs=0,
            blend_epochs=0 if name == GELU else epochs * _BLEND,
        )
        model = replace(config.model, activation=name, init=str(gelu / _FINAL))
        optimizer = replace(config.optimizer, lr=config.optimizer.lr * rate)
        configs[name + _TUNED] = replace(config, model=model, schedule=schedule, optimizer=optimizer)
    return configs


def _throughput(done: Sequence[Mapping], output: Path, name: str, device: str) -> dict[str, float] | None:
    """Return predicted images per second by form of NeoCell; None if every run ended with NaN."""
    from neonext_ms.export.source import Source

    from ..latency.neonext import FORMS, build_network
    from ..latency.network_model import estimate

    files = (output / f"{name}-{trial['seed']}" / _FINAL for trial in done)
    file = next((path for path in files if path.exists()), None)
    if file is None:
        return None
    source = Source.from_checkpoint(str(file), None, False)
    (size,) = source.image_sizes([])
    return {
        form: estimate(build_network(source.architecture, size, _BATCH, form), device).predicted_images_per_second
        for form in FORMS
    }


def lines(result: Mapping) -> Iterator[str]:
    """Yield the table as text."""
    forms = next((list(row["predicted"]) for row in result["summary"].values() if row["predicted"]), [])
    titles = "  ".join(f"predicted, {form:8}" for form in forms)
    yield f"activation  start    runs  diverged  mean top-1  deviation  {titles}"
    for name, row in result["summary"].items():
        mean, deviation = ("-" if x is None else f"{100 * x:.2f} %" for x in (row["mean"], row["deviation"]))
        start = "GELU" if name.endswith(_TUNED) else "scratch"
        rates = "  ".join(f"{row['predicted'][form]:<19,.0f}" for form in forms) if row["predicted"] else "-"
        yield (
            f"{name.removesuffix(_TUNED):10}  {start:7}  {row['runs']:<4}  {row['diverged']:<8}  {mean:10}  "
            f"{deviation:9}  {rates}"
        )
    run = f"{result['soc']}, float16, batch {result['batch']}"
    yield f"predicted: images/s of the folded network ({run}); not measured"
    if result["plot"]:
        yield result["plot"]


def draw(plt, result: Mapping):
    """Draw accuracy against predicted throughput: a point for each activation, start and form, with its deviation."""
    figure, axis = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    rows = {name: row for name, row in result["summary"].items() if row["predicted"] and row["mean"] is not None}
    colours = {name: f"C{ACTIVATIONS.index(name)}" for name in ACTIVATIONS}
    forms = list(dict.fromkeys(form for row in rows.values() for form in row["predicted"]))
    for name, row in rows.items():
        plain, tuned = name.removesuffix(_TUNED), name.endswith(_TUNED)
        for form, marker in zip(forms, "os^", strict=False):
            axis.errorbar(
                row["predicted"][form],
                100 * row["mean"],
                yerr=100 * (row["deviation"] or 0),
                marker=marker,
                markersize=8,
                capsize=3,
                color=colours[plain],
                markerfacecolor="white" if tuned else colours[plain],
                linestyle="none",
                label=f"{plain}{' from GELU' if tuned else ''}, {form}",
            )
    axis.set_xlabel(f"images/s, predicted for {result['soc']}, batch {result['batch']}, float16")
    axis.set_ylabel("top-1 of the validation images, %")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend(fontsize="small", ncols=2)
    return figure
