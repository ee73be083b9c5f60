"""The tables that `python -m neonext_ms.benchmarks.latency.block_model` prints, in Markdown. All times are predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from neonext_ms.common.errors import InputError
from neonext_ms.models.architecture import Architecture
from neonext_ms.models.registry import model_config
from neonext_ms.ops.lanes import best_order, lane_multiply_adds
from neonext_ms.ops.soc import Soc, soc
from neonext_ms.ops.spec import NeoCellSpec

from .block_counts import evened, full_strips, ideal_repeats, twin_counts
from .block_model import block_diagonal_matmuls, depthwise_cube, depthwise_vector, kernel_time, memory_bound
from .blocks import FUSIONS, block_budget, block_predictions
from .unit_costs import Costs

SIZES = ("t", "s", "b", "l", "xl")
IMAGES = ("224", "384")
TABLES = ("kernels", "aims", "blocks", "ideal", "budgets", "schedules", "lanes")
SUMMED = ("kernels", "aims", "blocks")  # those with sums over a model
_MOST_IMAGES = 64


@dataclass(frozen=True)
class Choice:
    """What to predict for.

    Attributes:
        socs: devices.
        models: sizes of released models.
        images: image sizes, as the name of the release.
        batches: batch sizes.
    """

    socs: tuple[Soc, ...]
    models: tuple[str, ...]
    images: tuple[str, ...]
    batches: tuple[int, ...]

    @classmethod
    def parse(cls, socs: str, models: str, images: str, batches: str) -> Choice:
        """From lists with commas.

        Raises:
            InputError: a part that is not known.
        """
        numbers = []
        for part in batches.split(","):
            if not part.isdecimal() or not 1 <= int(part) <= _MOST_IMAGES:
                raise InputError(f"batch {part!r}: expected whole numbers from 1 to {_MOST_IMAGES}, such as 1,8")
            numbers.append(int(part))
        return cls(
            tuple(soc(name) for name in socs.split(",")),
            _known(models, SIZES, "model"),
            _known(images, IMAGES, "image size"),
            tuple(numbers),
        )

    def architectures(self) -> Iterator[tuple[str, str, Architecture]]:
        """Size, image size and architecture of every model."""
        for size in self.models:
            for image in self.images:
                yield size, image, model_config(f"neonext_{size}.released_{image}").architecture

    def cases(self) -> Iterator[tuple[dict, Architecture, tuple[int, int], int, Soc]]:
        """What a row starts with, architecture, image size, batch and device, for every combination."""
        for device in self.socs:
            for size, image, architecture in self.architectures():
                for batch in self.batches:
                    start = {"soc": device.name, "model": size, "image_size": int(image), "batch": batch}
                    yield start, architecture, (int(image), int(image)), batch, device


def _known(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    for part in parts:
        if part not in known:
            raise InputError(f"{what} {part!r}: expected one of {', '.join(known)}, or several with commas")
    return parts


def _stages(architecture: Architecture, size: tuple[int, int]) -> Iterator[tuple[int, int, NeoCellSpec, int, int]]:
    """Stage from 1, blocks, NeoCell, height and width."""
    for stage, (height, width) in enumerate(architecture.maps(size)):
        yield stage + 1, architecture.per_stage_layers[stage], architecture.stage_spec(stage), height, width


def _readings() -> dict[str, Costs]:
    """What is not certain of the costs of vector instructions, from the worst to the best."""
    costs = Costs()
    return {
        "as documented": costs,
        "starts overlap": costs.overlapping(),
        "and broadcast free": costs.hopeful(),
    }


def kernels_rows(choice: Choice) -> list[dict]:
    """One NeoCell of every stage, and all NeoCells of a model, against the alternatives."""
    rows = []
    for start, architecture, size, batch, device in choice.cases():
        sums: dict[str, float] = {}
        for stage, blocks, spec, height, width in _stages(architecture, size):
            at = (spec, height, width, batch, device)
            counts = twin_counts(*at)
            neocell = [kernel_time(counts, device, costs=costs) for costs in _readings().values()]
            names = ("NeoCell, as documented", "starts overlap", "and broadcast free")
            times = {
                **{name: each.predicted_us for name, each in zip(names, neocell, strict=True)},
                "memory bound": memory_bound(*at),
                "two BatchMatMuls": block_diagonal_matmuls(*at).predicted_us,
                "with TransData": block_diagonal_matmuls(*at, transposed=True).predicted_us,
                "depthwise 7x7, vector": depthwise_vector(*at).predicted_us,
                "depthwise 7x7, cube": depthwise_cube(*at).predicted_us,
            }
            for name, us in times.items():
                sums[name] = sums.get(name, 0.0) + blocks * us
            bound = neocell[0].predicted_bound
            rows.append({**start, "stage": stage, "blocks": blocks, "predicted_bound": bound, "predicted_us": times})
        blocks = sum(architecture.per_stage_layers)
        rows.append({**start, "stage": "all", "blocks": blocks, "predicted_bound": "", "predicted_us": sums})
    return rows


def kernels_text(rows: list[dict]) -> str:
    """Those rows in Markdown."""
    parts = []
    for title, group in _grouped(rows, ("soc",)):
        parts.append(f"{title}: predicted microseconds of one NeoCell in float16 (`all`: of all NeoCells of the model)")
        names = list(group[0]["predicted_us"])
        head = ["model", "image", "batch", "stage", "bound by", *names]
        parts.append(
            _table(
                head,
                [
                    [row["model"], row["image_size"], row["batch"], row["stage"], row["predicted_bound"]]
                    + [row["predicted_us"][name] for name in names]
                    for row in group
                ],
            )
        )
    return "\n\n".join(parts)


def aims_rows(choice: Choice) -> list[dict]:
    """Repeats of the kernel over ideal ones, and its time over the memory bound where its maps come from memory."""
    rows = []
    for start, architecture, size, batch, device in choice.cases():
        sums = {"repeats": 0.0, "ideal": 0.0, "bound": 0.0}
        times = {(launch, name): 0.0 for launch in (0.0, Costs().launch_us) for name in _readings()}
        for stage, blocks, spec, height, width in _stages(architecture, size):
            at = (spec, height, width, batch, device)
            counts = twin_counts(*at)
            made = {
                "repeats": counts["totals"]["V"]["repeats"],
                "ideal": ideal_repeats(*at[:-1]),
                "bound": memory_bound(*at),
            }
            took = {
                (launch, name): kernel_time(counts, device, launch, costs, False).predicted_us
                for launch, name in times
                for costs in [_readings()[name]]
            }
            rows.append({**start, "stage": stage, "blocks": blocks, **_over(made, took)})
            sums = {name: total + blocks * made[name] for name, total in sums.items()}
            times = {name: total + blocks * took[name] for name, total in times.items()}
        blocks = sum(architecture.per_stage_layers)
        rows.append({**start, "stage": "all", "blocks": blocks, **_over(sums, times)})
    return rows


def _over(made: dict[str, float], times: dict[tuple[float, str], float]) -> dict:
    return {
        "predicted_repeats_over_ideal": made["repeats"] / made["ideal"],
        "predicted_time_over_memory_bound": {
            f"{name}, launched" if launch else name: us / made["bound"] for (launch, name), us in times.items()
        },
    }


def aims_text(rows: list[dict]) -> str:
    """Those rows in Markdown."""
    parts = []
    for title, group in _grouped(rows, ("soc",)):
        parts.append(
            f"{title}: vector repeats over ideal ones, and predicted time of NeoCell (maps from memory) over the "
            "predicted memory bound"
        )
        names = list(group[0]["predicted_time_over_memory_bound"])
        body = []
        for row in group:
            ratios = [row["predicted_repeats_over_ideal"], *(row["predicted_time_over_memory_bound"][n] for n in names)]
            at = [row["model"], row["image_size"], row["batch"], row["stage"]]
            body.append([*at, *(f"{ratio:.2f}" for ratio in ratios)])
        parts.append(_table(["model", "image", "batch", "stage", "repeats", *names], body))
    return "\n\n".join(parts)


def schedules_rows(choice: Choice) -> list[dict]:
    """The kernel as it is built, and what another arrangement of the same multiply-adds could gain at most."""
    rows = []
    for start, architecture, size, batch, device in choice.cases():
        for stage, blocks, spec, height, width in _stages(architecture, size):
            at = (spec, height, width, batch, device)
            built = twin_counts(*at)
            made = {"as built": built, "cores even": evened(built), "full strips": full_strips(built, *at)}
            times = {name: kernel_time(counts, device, 0.0).predicted_us for name, counts in made.items()}
            for name in made:
                times[f"{name}, starts overlap"] = kernel_time(
                    made[name], device, 0.0, Costs().overlapping()
                ).predicted_us
            rows.append(
                {
                    **start,
                    "stage": stage,
                    "blocks": blocks,
                    "predicted_instructions": {
                        name: round(made[name]["totals"]["V"]["instructions"]) for name in ("as built", "full strips")
                    },
                    "predicted_us": {**times, "memory bound": memory_bound(*at)},
                }
            )
    return rows


def schedules_text(rows: list[dict]) -> str:
    """Those rows in Markdown."""
    parts = []
    for title, group in _grouped(rows, ("soc", "model", "image_size")):
        parts.append(f"{title}: predicted microseconds of one NeoCell without its launch, and (vector instructions)")
        names = list(group[0]["predicted_us"])
        body = []
        for row in group:
            instructions = row["predicted_instructions"]
            cells = [
                f"{us:.1f}" + (f" ({instructions[name]})" if name in instructions else "")
                for name, us in row["predicted_us"].items()
            ]
            body.append([row["batch"], row["stage"], *cells])
        parts.append(_table(["batch", "stage", *names], body))
    return "\n\n".join(parts)


def blocks_rows(choice: Choice) -> list[dict]:
    """One block of every stage, and all blocks of a model: what each unit has to do, and fusions."""
    rows = []
    for start, architecture, size, batch, device in choice.cases():
        stages = block_predictions(architecture, size, batch, device)
        for stage in stages:
            rows.append(
                {
                    **start,
                    "stage": stage.stage,
                    "blocks": stage.blocks,
                    "predicted_units_us": stage.predicted_units_us,
                    "predicted_us": {name: made.predicted_us for name, made in stage.predicted.items()},
                    "predicted_bound": {name: made.predicted_bound for name, made in stage.predicted.items()},
                    "predicted_launches": {name: made.launches for name, made in stage.predicted.items()},
                }
            )
        rows.append(
            {
                **start,
                "stage": "all",
                "blocks": sum(stage.blocks for stage in stages),
                "predicted_units_us": {
                    name: sum(stage.blocks * stage.predicted_units_us[name] for stage in stages)
                    for name in stages[0].predicted_units_us
                },
                "predicted_us": {
                    name: sum(stage.blocks * stage.predicted[name].predicted_us for stage in stages) for name in FUSIONS
                },
                "predicted_bound": dict.fromkeys(FUSIONS, ""),
                "predicted_launches": {
                    name: sum(stage.blocks * stage.predicted[name].launches for stage in stages) for name in FUSIONS
                },
            }
        )
    return rows


def blocks_text(rows: list[dict]) -> str:
    """Those rows in Markdown: first what each unit has to do, then the fusions."""
    parts = []
    for title, group in _grouped(rows, ("soc", "model", "image_size")):
        names = list(group[0]["predicted_units_us"])
        parts.append(f"{title}: predicted microseconds that each unit works for one block (`all`: for all blocks)")
        parts.append(
            _table(
                ["batch", "stage", "blocks", *names],
                [
                    [row["batch"], row["stage"], row["blocks"], *(row["predicted_units_us"][n] for n in names)]
                    for row in group
                ],
            )
        )
        parts.append(f"{title}: predicted microseconds of one block with launches (`all`: of all blocks), bound")
        body = []
        for row in group:
            notes = row["predicted_bound"]
            if row["stage"] == "all":
                notes = {n: f"({row['predicted_launches'][n]} tasks)" for n in FUSIONS}
            cells = [f"{row['predicted_us'][n]:.1f} {notes[n]}" for n in FUSIONS]
            body.append([row["batch"], row["stage"], *cells])
        parts.append(_table(["batch", "stage", *FUSIONS], body))
    return "\n\n".join(parts)


def budgets_rows(choice: Choice) -> list[dict]:
    """How a whole block would fill the buffers of one core."""
    rows = []
    for device in choice.socs:
        for size, image, architecture in choice.architectures():
            for stage, _, _, height, width in _stages(architecture, (int(image), int(image))):
                made = asdict(block_budget(architecture, stage - 1, (height, width), device))
                start = {"soc": device.name, "model": size, "image_size": int(image), "stage": made.pop("stage")}
                buffers = {name: getattr(device, f"{name}_bytes") for name in ("l0a", "l0b", "l0c", "l1", "ub")}
                rows.append({**start, "buffer_bytes": buffers, "predicted_tiles": made})
    return rows


def budgets_text(rows: list[dict]) -> str:
    """Those rows in Markdown."""
    parts = []
    for title, group in _grouped(rows, ("soc", "model", "image_size")):
        sizes = {name: size // 1024 for name, size in group[0]["buffer_bytes"].items()}
        parts.append(f"{title}: KiB of one core's buffers for a whole block, predicted tiles")
        head = ["stage", "positions", "hidden", "strip rows"]
        head += [f"L0A of {sizes['l0a']}", f"L0B of {sizes['l0b']}", f"L0C of {sizes['l0c']}"]
        head += [f"L1 of {sizes['l1']}: weights", "L1: tiles", f"UB of {sizes['ub']}: NeoCell", "UB: GELU"]
        names = ("l0a", "l0b", "l0c", "l1_weights", "l1_tiles", "ub_neocell", "ub_gelu")
        body = []
        for row in group:
            tiles = row["predicted_tiles"]
            sizes = [tiles[name] / 1024 for name in names]
            body.append([row["stage"], tiles["positions"], tiles["hidden"], tiles["strip"], *sizes])
        parts.append(_table(head, body))
    return "\n\n".join(parts)


def ideal_rows(choice: Choice) -> list[dict]:
    """All blocks of a model where instructions cost one cycle a repeat and nothing else, GELU 13 of them."""
    rows = []
    for start, architecture, size, batch, device in choice.cases():
        stages = block_predictions(architecture, size, batch, device, Costs().ideal(), "cann")
        sums = {name: sum(s.blocks * s.predicted[name].predicted_us for s in stages) for name in FUSIONS}
        rows.append({**start, "predicted_us": sums})
    return rows


def ideal_text(rows: list[dict]) -> str:
    """Those rows in Markdown."""
    parts = []
    for title, group in _grouped(rows, ("soc", "model", "image_size")):
        parts.append(f"{title}: predicted microseconds of all blocks, ideal: no launches, no starts of instructions")
        body = [[row["batch"], *(row["predicted_us"][name] for name in FUSIONS)] for row in group]
        parts.append(_table(["batch", *FUSIONS], body))
    return "\n\n".join(parts)


def lanes_rows(choice: Choice) -> list[dict]:
    """Multiply-adds of full lanes over those needed, in the given order of the channels and in the best one."""
    rows = []
    for size, image, architecture in choice.architectures():
        for bits, lanes in ((16, 16), (32, 8)):
            sums = [0, 0, 0]
            stages = []
            for _, blocks, spec, height, width in _stages(architecture, (int(image), int(image))):
                order = best_order(spec, height, width, lanes)
                numbers = (
                    lane_multiply_adds(spec, height, width, lanes),
                    lane_multiply_adds(spec, height, width, lanes, order),
                    spec.multiply_adds(height, width),
                )
                stages.append([numbers[0] / numbers[2], numbers[1] / numbers[2]])
                sums = [total + blocks * number for total, number in zip(sums, numbers, strict=True)]
            rows.append(
                {
                    "model": size,
                    "image_size": int(image),
                    "float": bits,
                    "predicted_ratio": [stage[0] for stage in stages] + [sums[0] / sums[2]],
                    "predicted_best_order": [stage[1] for stage in stages] + [sums[1] / sums[2]],
                }
            )
    return rows


def lanes_text(rows: list[dict]) -> str:
    """Those rows in Markdown."""
    body = []
    for row in rows:
        cells = [f"{a:.3f} / {b:.3f}" for a, b in zip(row["predicted_ratio"], row["predicted_best_order"], strict=True)]
        body.append([row["model"], row["image_size"], f"float{row['float']}", *cells])
    return (
        "Predicted multiply-adds of full lanes over those needed: channels in their order / in the best order\n\n"
        + _table(["model", "image", "type", "stage 1", "stage 2", "stage 3", "stage 4", "all NeoCells"], body)
    )


def _grouped(rows: list[dict], keys: Sequence[str]) -> Iterator[tuple[str, list[dict]]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for values, group in groups.items():
        named = dict(zip(keys, values, strict=True))
        parts = [named["soc"]]
        if "model" in named:
            parts.append(f"NeoNeXt-{named['model'].upper()} at {named['image_size']}")
        yield ", ".join(parts), group


def _table(head: Sequence[str], body: Iterable[Sequence]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in body:
        lines.append("| " + " | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in row) + " |")
    return "\n".join(lines)
