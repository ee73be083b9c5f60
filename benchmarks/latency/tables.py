"""The tables of `docs/predict.md`, in Markdown. Every time in them is predicted, or measured by others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from neonext_ms.common.errors import InputError, nearest

from .. import networks
from .figures import read as read_figures
from .neonext import FORMS, build
from .parameters import Parameters, fitted, stored
from .prediction import NodeTime, Prediction, of_onnx

TABLES = ("parameters", "errors", "rows", "neonext", "answer")
SIZES = ("t", "s", "b", "l", "xl")
IMAGES = (224, 384)
BATCHES = (1, 8)
SOCS = ("Ascend310P3", "Ascend310B4", "Ascend910B3")
LEFT_OUT = "one network left out"
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
    "l2_held": ("of the level-2 cache", "a value of this size is half found by who reads it next"),
    "memory_310p": ("of the configuration's figure", "memory of a 310P"),
    "memory_310b": ("of the configuration's figure", "memory of a 310B"),
    "memory_other": ("of the configuration's figure", "memory of other devices; assumed"),
}


def printed(name: str) -> str:
    """A table by its name.

    Raises:
        InputError: there is no such table.
    """
    if name not in TABLES:
        raise InputError(f"no table {name!r}{nearest(name, TABLES)}; there are {', '.join(TABLES)}")
    return {
        "parameters": parameters_text,
        "errors": errors_text,
        "rows": rows_text,
        "neonext": neonext_text,
        "answer": answer_text,
    }[name]()


def parameters_text() -> str:
    """The fitted parameters with their units and meaning."""
    values = stored()["parameters"]
    body = [[name, f"{values[name]:g}", unit, meaning] for name, (unit, meaning) in _MEANING.items()]
    return table(["parameter", "value", "unit", "meaning"], body)


def errors_text() -> str:
    """Errors of throughput on rows fitted to and left out."""
    body = [
        [name, error["rows"], *(f"{error[which]:.2f}" for which in ("median", "p90", "worst"))]
        for name, error in stored()["errors"].items()
    ]
    return table(["rows", "number", "median error (times)", "nine of ten within", "worst"], body)


def rows_text() -> str:
    """Every published figure with the prediction that its own network had no part in."""
    groups: dict[tuple, dict] = {}
    for row in stored()["rows"]:
        groups.setdefault((row["name"], row["soc"]), {})[row["batch"]] = row
    body = []
    for (name, soc), rows in groups.items():
        cells = (
            f"{b}: {r['measured'] * r['left_out_ratio']:.0f} / {r['measured']:.0f}" for b, r in sorted(rows.items())
        )
        body.append([name, soc.removeprefix("Ascend"), ", ".join(cells)])
    for row in stored()["apart"]:
        cell = f"{row['batch']}: {row['measured'] * row['ratio']:.0f} / {row['measured']:.0f} (not used: {row['why']})"
        body.append([row["name"], row["soc"].removeprefix("Ascend"), cell])
    return table(["network", "device", "batch: predicted / measured by others, images a second"], body)


def band() -> tuple[float, float]:
    """Factors that nine of ten left-out rows lie within: predicted over measured from 1 / the first to the second."""
    ratios = sorted(row["left_out_ratio"] for row in stored()["rows"])
    low, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.05, 0.95))
    return 1 / high, 1 / low


def with_band(images_per_second: float) -> str:
    """A predicted rate with the range in which the measured one would lie, by the rows left out."""
    low, high = band()
    return f"{images_per_second:.0f} ({images_per_second * low:.0f} to {images_per_second * high:.0f})"


@dataclass(frozen=True)
class Case:
    """A NeoNeXt in one form, on a device."""

    size: str
    image_size: int
    batch: int
    form: str
    soc: str


def cases(
    sizes: Iterable[str] = SIZES,
    images: Iterable[int] = IMAGES,
    batches: Iterable[int] = BATCHES,
    socs: Iterable[str] = SOCS,
) -> Iterator[tuple[Case, Prediction]]:
    """Predictions of NeoNeXt in both forms."""
    for size in sizes:
        for image_size in images:
            for batch in batches:
                for form in FORMS:
                    model = build(size, image_size, batch, form)
                    for soc in socs:
                        yield Case(size, image_size, batch, form, soc), of_onnx(model, soc)


def neonext_text(chosen: Iterable[tuple[Case, Prediction]] | None = None) -> str:
    """T to XL on every device, NeoCell in both forms: images a second and what bounds the time."""
    made: dict[tuple, dict[str, Prediction]] = {}
    for case, prediction in cases() if chosen is None else chosen:
        made.setdefault((case.soc, case.size, case.image_size, case.batch), {})[case.form] = prediction
    parts = []
    for soc in dict.fromkeys(key[0] for key in made):
        body = []
        for (name, size, image_size, batch), forms in made.items():
            if name == soc:
                body.append([size.upper(), image_size, batch, *(cell for f in FORMS for cell in _cells(forms[f]))])
        head = ["model", "image", "batch"]
        for form in FORMS:
            head += [f"{form}: images/s", "bound: cube, vector, memory, launch %"]
        parts.append(f"{soc}: predicted images a second of NeoNeXt in float16\n\n{table(head, body)}")
    return "\n\n".join(parts)


def _cells(prediction: Prediction) -> tuple[str, str]:
    shares = prediction.predicted_bounds_us
    bounds = " ".join(f"{100 * us / prediction.predicted_us:.0f}" for us in shares.values())
    return f"{prediction.predicted_images_per_second:.1f}", bounds


def answer_text() -> str:
    """ConvNeXt-T as measured by others and as predicted, and NeoNeXt-T beside it, on a 310P3."""
    lines = []
    measured = {f.batch: f.images_per_second for f in read_figures() if f.model == "ConvNeXt-T"}
    left_out = {
        row["batch"]: row["left_out_ratio"] for row in stored()["rows"] if row["name"].startswith("ConvNeXt-T ")
    }
    for batch in BATCHES:
        plain = networks.build("convnext_t", batch=batch, form="plain", seed=None)
        peer = of_onnx(plain, "Ascend310P3").predicted_images_per_second
        matmul, operator = (
            of_onnx(build("t", 224, batch, form), "Ascend310P3").predicted_images_per_second for form in FORMS
        )
        slow = of_onnx(build("t", 224, batch, "AscendC"), "Ascend310P3", parameters=None)
        lines.append(
            f"- Batch {batch}: ConvNeXt-T, exported as PyTorch does, was measured by others at {measured[batch]:.0f} "
            f"images/s and is predicted at {with_band(peer)}, or {measured[batch] * left_out[batch]:.0f} by parameters "
            f"fitted without it. NeoNeXt-T is predicted at {with_band(matmul)} images/s with MatMuls and at "
            f"{with_band(operator)} with the AscendC operator; at {slower(slow, fitted()):.0f} if the operator reached "
            "only the share of the vector units that other operators do."
        )
    return "\n".join(lines)


def slower(prediction: Prediction, parameters: Parameters) -> float:
    """Images a second if NeoCell kernels had the vector units at the share of all other operators."""

    def us(node: NodeTime) -> float:
        if node.kind != "neocell":
            return node.predicted_us
        units = dict(node.predicted_units_us)
        return node.predicted_us + units["vector"] * (1 / parameters.vector_share - 1)

    longer = replace(prediction, nodes=tuple(replace(node, predicted_us=us(node)) for node in prediction.nodes))
    return longer.predicted_images_per_second


def table(head: Sequence, body: Iterable[Sequence]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, head)) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in body)])
