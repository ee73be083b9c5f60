"""Tables of `neonext-bench estimate blocks`: rows for JSON, and the same rows in Markdown. All times are predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from neonext_ms.models.architecture import Architecture
from neonext_ms.models.registry import model_config
from neonext_ms.ops.soc import Soc
from neonext_ms.ops.spec import NeoCellSpec

from ..report import table
from .block_model import FUSIONS, block_buffers, block_times
from .kernel_model import block_diagonal_matmuls, depthwise, kernel_counts, kernel_time, memory_bound
from .unit_costs import Costs

Rows = list[dict]


@dataclass(frozen=True)
class BlockCases:
    """Combinations that a table has rows for; `models` are sizes of released models, such as "t"."""

    socs: tuple[Soc, ...]
    models: tuple[str, ...]
    images: tuple[int, ...]
    batches: tuple[int, ...]

    def architectures(self) -> Iterator[tuple[str, int, Architecture]]:
        """Yield size, image size and architecture of every model."""
        for size in self.models:
            for image in self.images:
                yield size, image, model_config(f"neonext_{size}.released_{image}").architecture

    def all(self) -> Iterator[tuple[dict, Architecture, tuple[int, int], int, Soc]]:
        """Yield the first fields of a row, architecture, image size, batch and device of every combination."""
        for device in self.socs:
            for size, image, architecture in self.architectures():
                for batch in self.batches:
                    start = {"soc": device.name, "model": size, "image_size": image, "batch": batch}
                    yield start, architecture, (image, image), batch, device


def neocell_rows(cases: BlockCases) -> Rows:
    """Predict one NeoCell of every stage, and all NeoCells of a model, beside the alternatives."""
    costs = Costs()
    rows = []
    for start, architecture, size, batch, device in cases.all():
        totals: dict[str, float] = {}
        for stage, (height, width) in enumerate(architecture.maps(size)):
            blocks, spec = architecture.per_stage_layers[stage], architecture.stage_spec(stage)
            at: tuple[NeoCellSpec, int, int, int, Soc] = (spec, height, width, batch, device)
            counts = kernel_counts(*at)
            documented = kernel_time(counts, device, costs)
            times = {
                # What the documentation leaves open of vector instructions, from the worst reading to the best.
                "NeoCell, as documented": documented.predicted_us,
                "starts overlap": kernel_time(counts, device, costs.overlapping()).predicted_us,
                "and broadcast free": kernel_time(counts, device, costs.hopeful()).predicted_us,
                "AI cores alone": kernel_time(kernel_counts(*at, vector_cores=False), device, costs).predicted_us,
                "memory bound": memory_bound(*at),
                "two BatchMatMuls": block_diagonal_matmuls(*at).predicted_us,
                "with TransData": block_diagonal_matmuls(*at, transposed=True).predicted_us,
                "depthwise 7x7, vector": depthwise(*at, "V").predicted_us,
                "depthwise 7x7, cube": depthwise(*at, "cube").predicted_us,
            }
            for name, us in times.items():
                totals[name] = totals.get(name, 0.0) + blocks * us
            about = {"stage": stage + 1, "blocks": blocks, "predicted_bound": documented.predicted_bound}
            rows.append({**start, **about, "predicted_us": times})
        about = {"stage": "all", "blocks": sum(architecture.per_stage_layers), "predicted_bound": ""}
        rows.append({**start, **about, "predicted_us": totals})
    return rows


def neocell_text(rows: Rows) -> str:
    """Return those rows in Markdown, a table for each device."""
    parts = []
    for title, group in _grouped(rows, ("soc",)):
        parts.append(f"{title}: predicted microseconds of one NeoCell in float16 (`all`: of all NeoCells of the model)")
        about = ("model", "image_size", "batch", "stage", "predicted_bound")
        body = [[*(row[key] for key in about), *row["predicted_us"].values()] for row in group]
        head = ["model", "image", "batch", "stage", "bound by", *group[0]["predicted_us"]]
        parts.append(_table(head, body))
    return "\n\n".join(parts)


def fusions_rows(cases: BlockCases) -> Rows:
    """Predict one block of every stage, and all blocks of a model: the work of each unit, and every fusion."""
    rows = []
    for start, architecture, size, batch, device in cases.all():
        stages = block_times(architecture, size, batch, device)
        for stage, (units, predicted) in enumerate(stages):
            rows.append(
                {
                    **start,
                    "stage": stage + 1,
                    "blocks": architecture.per_stage_layers[stage],
                    "predicted_units_us": units,
                    "predicted_us": {name: time.predicted_us for name, time in predicted.items()},
                    "predicted_bound": {name: time.predicted_bound for name, time in predicted.items()},
                    "predicted_launches": {name: time.launches for name, time in predicted.items()},
                }
            )
        totals = {
            key: {name: sum(row["blocks"] * row[key][name] for row in rows[-len(stages) :]) for name in rows[-1][key]}
            for key in ("predicted_units_us", "predicted_us", "predicted_launches")
        }
        blocks = sum(architecture.per_stage_layers)
        rows.append(
            {**start, "stage": "all", "blocks": blocks, "predicted_bound": dict.fromkeys(FUSIONS, ""), **totals}
        )
    return rows


def fusions_text(rows: Rows) -> str:
    """Return those rows in Markdown: first the work of each unit, then the fusions."""
    parts = []
    for title, group in _grouped(rows, ("soc", "model", "image_size")):
        units = list(group[0]["predicted_units_us"])
        parts.append(f"{title}: predicted microseconds that each unit works for one block (`all`: for all blocks)")
        body = [[row["batch"], row["stage"], row["blocks"], *row["predicted_units_us"].values()] for row in group]
        parts.append(_table(["batch", "stage", "blocks", *units], body))
        parts.append(f"{title}: predicted microseconds of one block with launches (`all`: of all blocks), bound")
        body = []
        for row in group:
            remarks = row["predicted_bound"]
            if row["stage"] == "all":
                remarks = {name: f"({launches} tasks)" for name, launches in row["predicted_launches"].items()}
            body.append([row["batch"], row["stage"]] + [f"{row['predicted_us'][n]:.1f} {remarks[n]}" for n in FUSIONS])
        parts.append(_table(["batch", "stage", *FUSIONS], body))
    return "\n\n".join(parts)


def buffers_rows(cases: BlockCases) -> Rows:
    """Fill the buffers of one core with a whole block, for every stage."""
    rows = []
    for device in cases.socs:
        for model, image, architecture in cases.architectures():
            for stage, size in enumerate(architecture.maps((image, image))):
                start = {"soc": device.name, "model": model, "image_size": image, "stage": stage + 1}
                buffers = {name: getattr(device, f"{name}_bytes") for name in ("l0a", "l0b", "l0c", "l1", "ub")}
                tiles = block_buffers(architecture, stage, size, device)
                rows.append({**start, "buffer_bytes": buffers, "predicted_tiles": tiles})
    return rows


def buffers_text(rows: Rows) -> str:
    """Return those rows in Markdown, in KiB."""
    parts = []
    for title, group in _grouped(rows, ("soc", "model", "image_size")):
        kib = {name: size // 1024 for name, size in group[0]["buffer_bytes"].items()}
        parts.append(f"{title}: KiB of one core's buffers for a whole block, predicted tiles")
        head = ["stage", "positions", "hidden", "strip rows"]
        head += [f"L0A of {kib['l0a']}", f"L0B of {kib['l0b']}", f"L0C of {kib['l0c']}"]
        head += [f"L1 of {kib['l1']}: weights", "L1: tiles", f"UB of {kib['ub']}: NeoCell", "UB: GELU"]
        body = []
        for row in group:
            positions, hidden, strip, *sizes = row["predicted_tiles"].values()
            body.append([row["stage"], positions, hidden, strip, *(size / 1024 for size in sizes)])
        parts.append(_table(head, body))
    return "\n\n".join(parts)


TABLES: dict[str, tuple[Callable[[BlockCases], Rows], Callable[[Rows], str]]] = {
    "neocell": (neocell_rows, neocell_text),
    "fusions": (fusions_rows, fusions_text),
    "buffers": (buffers_rows, buffers_text),
}


def _grouped(rows: Rows, keys: Sequence[str]) -> Iterator[tuple[str, Rows]]:
    """Yield a title and the rows that have the same values of these keys."""
    groups: dict[tuple, Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for (device, *model), group in groups.items():
        yield (f"{device}, NeoNeXt-{model[0].upper()} at {model[1]}" if model else device), group


def _table(head: Sequence[str], body: Iterable[Sequence]) -> str:
    return table(head, [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in body])
