"""Tables of `neonext-bench estimate --table`, in Markdown. Every time in them is predicted, or measured by others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from neonext_ms.common.errors import UsageError, nearest

from .. import networks
from ..report import table
from .candidates import candidates_table
from .figures import read as read_figures
from .neonext import FORMS, build, build_convnext
from .network_model import Estimate, TaskEstimate, estimate
from .parameters import fitted, stored
from .remains import remains_table

if TYPE_CHECKING:
    import onnx

SIZES = ("t", "s", "b", "l", "xl")
IMAGES = (224, 384)
BATCHES = (1, 8)
SOCS = ("Ascend310P3", "Ascend310B4", "Ascend910B3")
# Activation, form of GELU, and both for people.
_ACTIVATION_FORMS = (
    ("gelu", "erf", "gelu"),
    ("gelu", "fast", "gelu, --gelu fast"),
    ("hardswish", "erf", "hardswish"),
    ("relu", "erf", "relu"),
)
_ACTIVATION_RUNS = ((1, ""), (8, ""), (8, ", int8"))
_INT8_ACTIVATIONS = ("gelu", "leakyrelu", "relu")
_MEANING = {
    "run_us": ("us", "a run besides its tasks"),
    "launch_us": ("us", "from one task to the work of the next"),
    "cube_share": ("of the cube's rate", "convolutions and products in full tiles of 16"),
    "depthwise_share": ("of the cube's rate", "depthwise convolutions in diagonal tiles"),
    "matrix_start_cycles": ("cycles", "a core, for each product of two values"),
    "vector_share": ("of the vector units' rate", "elementwise work and reductions"),
    "l2_share": ("of the level-2 cache's rate", "reading and writing"),
    "layout_share": ("of the rates of L2 and memory", "Transpose, TransData, copies in another order"),
    "serial_share": ("of a task's shorter units", "not hidden behind the longest one"),
    "l2_held": ("of the level-2 cache", "a value of this size is half found there by its next consumer"),
    "memory_310p": ("of the configuration's figure", "memory of a 310P"),
    "memory_310b": ("of the configuration's figure", "memory of a 310B"),
    "memory_other": ("of the configuration's figure", "memory of other devices; assumed"),
}


def printed(name: str) -> str:
    """Return a table by its name.

    Raises:
        UsageError: there is no such table.
    """
    if name not in TABLES:
        raise UsageError(f"table {name!r}: unknown{nearest(name, TABLES)} (expected {', '.join(TABLES)})")
    return TABLES[name]()


def parameters_table() -> str:
    """Return the fitted parameters with their units and meaning."""
    values = stored()["parameters"]
    body = [[name, f"{values[name]:g}", unit, meaning] for name, (unit, meaning) in _MEANING.items()]
    return table(["parameter", "value", "unit", "meaning"], body)


def errors_table() -> str:
    """Return the errors of throughput on rows that were fitted and rows that were left out."""
    body = [
        [name, str(error["rows"]), *(f"{error[which]:.2f}" for which in ("median", "p90", "worst"))]
        for name, error in stored()["errors"].items()
    ]
    return table(["rows", "number", "median error (times)", "nine of ten within", "worst"], body)


def rows_table() -> str:
    """Return every published figure with the prediction that its own network had no part in."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in (*stored()["rows"], *stored()["unused"]):
        groups.setdefault((row["name"], row["soc"], row.get("why", "")), []).append(row)
    body = []
    for (name, soc, why), rows in groups.items():
        rows.sort(key=lambda row: row["batch"])
        predicted = [row["measured"] * row.get("left_out_ratio", row["fitted_ratio"]) for row in rows]
        cells = [[row["batch"] for row in rows], predicted, [row["measured"] for row in rows]]
        *first, last = (", ".join(f"{number:.0f}" for number in cell) for cell in cells)
        body.append([name, soc.removeprefix("Ascend"), *first, f"{last} (not used: {why})" if why else last])
    return table(["network", "device", "batch", "predicted images/s", "measured by others, images/s"], body)


def band() -> tuple[float, float]:
    """Return the factors on a predicted rate between which nine of ten rows left out were measured."""
    ratios = sorted(row["left_out_ratio"] for row in stored()["rows"])
    low, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.05, 0.95))
    return 1 / high, 1 / low


def with_band(images_per_second: float) -> str:
    """Return a predicted rate with the range of `band`."""
    low, high = band()
    return f"{images_per_second:.0f} ({images_per_second * low:.0f} to {images_per_second * high:.0f})"


def neonext_table(sizes: Sequence[str] = SIZES, images: Sequence[int] = IMAGES, socs: Sequence[str] = SOCS) -> str:
    """Return the predicted rates of NeoNeXt in both forms of NeoCell, and the units that bound them."""
    head = ["model", "image", "batch"]
    head += [f"{soc.removeprefix('Ascend')}, {form}" for soc in socs for form in FORMS]
    body = []
    for size in sizes:
        for image_size in images:
            for batch in BATCHES:
                models = [build(size, image_size, batch, form) for form in FORMS]
                estimates = [estimate(model, soc) for soc in socs for model in models]
                body.append([size.upper(), str(image_size), str(batch), *map(_rate_and_bounds, estimates)])
    title = "Predicted images per second of NeoNeXt in float16 (% of the time bound by cube, vector, memory, launch)"
    return f"{title}\n\n{table(head, body)}"


def _rate_and_bounds(estimated: Estimate) -> str:
    shares = (f"{100 * us / estimated.predicted_us:.0f}" for us in estimated.predicted_bounds_us.values())
    return f"{estimated.predicted_images_per_second:.1f} ({' '.join(shares)})"


def answer_text() -> str:
    """Return ConvNeXt-T as measured by others and as predicted, and NeoNeXt-T beside it, on a 310P3."""
    measured = {f.batch: f.images_per_second for f in read_figures() if f.model == "ConvNeXt-T"}
    left_out = {
        row["batch"]: row["left_out_ratio"] for row in stored()["rows"] if row["name"].startswith("ConvNeXt-T ")
    }
    lines = []
    for batch in BATCHES:
        plain = networks.build("convnext_t", batch=batch, form="plain", seed=None)
        peer, matmul, operator = (
            estimate(model, SOCS[0]) for model in (plain, *(build("t", 224, batch, form) for form in FORMS))
        )
        rates = [with_band(each.predicted_images_per_second) for each in (peer, matmul, operator)]
        lines.append(
            f"- Batch {batch}: ConvNeXt-T, exported as PyTorch does, was measured by others at {measured[batch]:.0f} "
            f"images/s. It is predicted at {rates[0]}, or at {measured[batch] * left_out[batch]:.0f} by parameters "
            f"fitted without it. NeoNeXt-T is predicted at {rates[1]} images/s with MatMuls and at {rates[2]} with the "
            f"AscendC operator; at {slower(operator):.0f} if the operator reached only the share of the vector units "
            "that other operators do."
        )
    return "\n".join(lines)


def activations_table() -> str:
    """Return predicted throughput of NeoNeXt-T by activation, and of ConvNeXt-T, on a 310P3."""
    head = ["network", "activation", *(f"batch {b}{suffix}" for b, suffix in _ACTIVATION_RUNS)]
    body = []
    for form in FORMS:
        for activation, gelu, name in _ACTIVATION_FORMS:
            models = {b: build("t", 224, b, form, activation, gelu) for b in BATCHES}
            body.append([f"NeoNeXt-T, {form}", name, *_rates(models)])
    for activation in ("gelu", "relu"):
        models = {b: build_convnext(b, activation) for b in BATCHES}
        body.append(["ConvNeXt-T, folded alike", activation, *_rates(models)])
    return f"Predicted images per second on a 310P3\n\n{table(head, body)}"


def _rates(models: Mapping[int, onnx.ModelProto]) -> list[str]:
    """Return the predicted images per second in `_ACTIVATION_RUNS`."""
    runs = ((models[batch], "int8" if suffix else "float16") for batch, suffix in _ACTIVATION_RUNS)
    return [f"{estimate(model, SOCS[0], dtype=dtype).predicted_images_per_second:.0f}" for model, dtype in runs]


def int8_table() -> str:
    """Return predicted throughput in float16 and in 8 bit of ResNet-50, ConvNeXt-T and NeoNeXt-T, on a 310P3."""

    def resnet(batch: int, int8: bool) -> Estimate:
        model = networks.build("resnet50", batch=batch, form="plain", seed=None)
        return estimate(model, SOCS[0], dtype="int8" if int8 else "float16", aipp=True)

    def convnext(batch: int, int8: bool, activation: str) -> Estimate:
        return estimate(build_convnext(batch, activation, int8), SOCS[0])

    def neonext(batch: int, int8: bool, form: str, activation: str) -> Estimate:
        return estimate(build("t", 224, batch, form, activation, int8=int8), SOCS[0])

    made: dict[str, Callable[[int, bool], Estimate]] = {
        "ResNet-50": resnet,
        **{
            f"ConvNeXt-T, folded alike, {activation}": partial(convnext, activation=activation)
            for activation in _INT8_ACTIVATIONS
        },
        **{
            f"NeoNeXt-T, {form}, {activation}": partial(neonext, form=form, activation=activation)
            for form in FORMS
            for activation in _INT8_ACTIVATIONS
        },
    }
    body = []
    for name, make in made.items():
        cells = [name]
        for batch in BATCHES:
            half, eight = (make(batch, int8).predicted_images_per_second for int8 in (False, True))
            cells += [f"{half:.0f}", f"{eight:.0f}", f"{eight / half:.2f}"]
        body.append(cells)
    head = ["network"] + [f"batch {b}{what}" for b in BATCHES for what in (", float16", ", 8 bit", ", ratio")]
    return f"Predicted images per second on a 310P3\n\n{table(head, body)}"


def slower(estimated: Estimate) -> float:
    """Return the images per second if NeoCell kernels reached the vector units' share of all other operators."""

    def us(task: TaskEstimate) -> float:
        more = task.predicted_units_us["vector"] * (1 / fitted().vector_share - 1)
        return task.predicted_us + (more if task.kind == "neocell" else 0.0)

    tasks = tuple(replace(task, predicted_us=us(task)) for task in estimated.tasks)
    return replace(estimated, tasks=tasks).predicted_images_per_second


TABLES: dict[str, Callable[[], str]] = {
    "parameters": parameters_table,
    "errors": errors_table,
    "rows": rows_table,
    "neonext": neonext_table,
    "answer": answer_text,
    "activations": activations_table,
    "candidates": candidates_table,
    "int8": int8_table,
    "remains": remains_table,
}
