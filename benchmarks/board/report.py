"""Reading the report of a board: what compiles, what is right, what is fastest, and how wrong predictions were."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import read_json
from neonext_ms.common.text import format_bytes, format_size, plural, shorten
from neonext_ms.images.folder import CLASS_RULES

FORMAT = 1
# Type of an operator in CANN's profile -> kind of task in the device model; all others work on the vector units.
KINDS = {
    **dict.fromkeys(("Conv2D", "FullyConnection"), "conv"), "DepthwiseConv2D": "depthwise", "NeoCell": "neocell",
    **dict.fromkeys(("MatMul", "MatMulV2", "MatMulV3", "Gemm", "GEMM"), "matmul"),
    **dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), "batched matmul"),
    **dict.fromkeys(("TransData", "Transpose", "TransposeD"), "layout"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One OM file at one batch size.

    Attributes:
        build: name of the file.
        form: name of its form.
        batch: images of a run.
        export: command of neonext-export that makes the file.
        compiled: whether ATC compiled it; None if that was not tried.
        parity: comparison with the original network, or None.
        latency: times and rates, or None.
        predicted_us: microseconds of a run by the device model, or None.
        diverged_at: first layer that diverges, where the file is wrong and the layers were compared.
    """

    build: str
    form: str
    batch: int
    export: str
    compiled: bool | None
    parity: Mapping[str, Any] | None
    latency: Mapping[str, Any] | None
    predicted_us: float | None
    diverged_at: str | None

    @property
    def right(self) -> bool:
        """Return whether its logits agree with the original network's."""
        return self.parity is not None and self.parity["right"] is True

    @property
    def measured_ms(self) -> float | None:
        """Median milliseconds of a run without copies."""
        return None if self.latency is None else self.latency["compute_ms"]["p50"]

    @property
    def ratio(self) -> float | None:
        """Measured time over the predicted one, if there is a number for it."""
        if self.measured_ms is None or not self.predicted_us:
            return None
        ratio = 1e3 * self.measured_ms / self.predicted_us
        return ratio if math.isfinite(ratio) else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "build": self.build,
            "form": self.form,
            "batch": self.batch,
            "compiled": self.compiled,
            "right": self.right if self.parity is not None else None,
            "parity": self.parity,
            "diverged_at": self.diverged_at,
            "latency": self.latency,
            "predicted_ms": self.predicted_us and self.predicted_us / 1e3,
            "measured_over_predicted": self.ratio,
            "export": self.export,
        }


@dataclass(frozen=True)
class Report:
    """The report of a board.

    Attributes:
        path: the file.
        kit: what the kit was packed of.
        finished: whether all steps had their turn.
        machine: what was found on the board.
        rows: files at each of their batch sizes.
        problems: step and message of everything that did not end well.
        profiles: file -> type of operator -> microseconds of a run, as msprof saw them.
        predicted: file -> kind of task -> microseconds of a run by the device model.
        ais_bench: batch size -> file and median milliseconds of a run, as ais_bench measured it.
        training: number of results of the operator that MindSpore computed right, or None.
    """

    path: str
    kit: Mapping[str, Any]
    finished: bool
    machine: Mapping[str, Any]
    rows: tuple[Row, ...]
    problems: tuple[tuple[str, str], ...]
    profiles: Mapping[str, Mapping[str, float]]
    predicted: Mapping[str, Mapping[str, float]]
    ais_bench: Mapping[int, tuple[str, float]]
    training: int | None

    def by_kind(self, build: str) -> dict[str, tuple[float, float]]:
        """Return measured and predicted microseconds of a profiled file by kind of task, largest first."""
        measured: dict[str, float] = {}
        for operator, us in self.profiles[build].items():
            kind = KINDS.get(operator, "vector")
            measured[kind] = measured.get(kind, 0.0) + us
        predicted = self.predicted.get(build, {})
        kinds = {kind: (measured.get(kind, 0.0), predicted.get(kind, 0.0)) for kind in {**measured, **predicted}}
        return dict(sorted(kinds.items(), key=lambda item: -max(item[1])))

    def fastest(self) -> dict[int, Row]:
        """Return the fastest right file for each batch size."""
        best: dict[int, Row] = {}
        for row in self.rows:
            if row.right and row.measured_ms is not None:
                other = best.get(row.batch)
                if other is None or row.measured_ms < (other.measured_ms or 0.0):
                    best[row.batch] = row
        return dict(sorted(best.items()))


_AIS_BENCH = re.compile(r"ais_bench/([1-9][0-9]{0,8})")
_Kind = type | tuple[type, ...]
# Of every number in a report: times, rates, counts, bytes.
_LARGEST = 1e18


class _Reader:
    """Checked access to plain values; a wrong type is an error that names its place."""

    def __init__(self, path: str):
        self.path = path

    def get(self, values: Any, kind: _Kind, *keys: Any, default: Any = None) -> Any:
        """Return the value at `keys`, or the default where one is missing or null."""
        place = ""
        for key in keys:
            if not isinstance(values, dict):
                raise InputError(f"{self.path}: {place or 'the file'}: expected an object, got {shorten(values)}")
            place = f"{place}.{key}" if place else str(key)
            values = values.get(key)
            if values is None:
                return default
        wrong_bool = isinstance(values, bool) and kind is not bool
        if not isinstance(values, kind) or wrong_bool:
            expected = kind.__name__ if isinstance(kind, type) else "a number"
            raise InputError(f"{self.path}: {place}: expected {expected}, got {shorten(values)}")
        if isinstance(values, (int, float)) and not 0 <= values < _LARGEST:
            raise InputError(f"{self.path}: {place}: expected a number from 0 to {_LARGEST:g}, got {shorten(values)}")
        return values


_NUMBER: _Kind = (int, float)
_PARITY: dict[str, _Kind] = {
    "right": bool, "relative_l2": _NUMBER, "tolerance": _NUMBER, "top1_agree": int, "samples": int, "correct": int,
    "images": int, "correct_in_float32": int, "not_finite": int,
}  # fmt: skip
_LATENCY: dict[str, _Kind] = {
    "images_per_second": _NUMBER, "images_per_second_with_copies": _NUMBER, "device_memory_bytes": _NUMBER, "runs": int,
}  # fmt: skip
_MACHINE: dict[str, _Kind] = {
    "soc": str, "cann": str, "driver": str, "python": str, "machine": str, "memory_gb": _NUMBER, "processors": int,
    "note": str, "stand_in": bool,
}  # fmt: skip


def read_report(path: str | os.PathLike) -> Report:
    """Read a board_report.json.

    Raises:
        InputError: the file cannot be read, or is no such report.
    """
    name = os.fspath(path)
    values = read_json(path, "the report of a board")
    reader = _Reader(name)
    if not isinstance(values, dict) or values.get("board_report") != FORMAT:
        raise InputError(f"{name}: not the report of a board. run.py of a kit writes board_report.json.")
    steps = reader.get(values, dict, "steps", default={})
    builds = reader.get(values, list, "builds", default=[])
    rows = [row for build in builds for row in _rows(reader, build, steps)]
    problems = [
        (step, reader.get(entry, str, "problem", default="no reason was recorded"))
        for step, entry in steps.items()
        if reader.get(entry, str, "status", default="") != "done"
    ]
    machine = reader.get(steps, dict, "machine", "result", default={})
    return Report(
        path=name,
        kit={
            key: reader.get(values, str, "kit", key, default="")
            for key in ("name", "soc", "level", "neonext_ms", "activation", "digest")
        },
        finished=reader.get(values, bool, "finished", default=False),
        machine={key: found for key, kind in _MACHINE.items() if (found := reader.get(machine, kind, key)) is not None},
        rows=tuple(rows),
        problems=tuple(problems),
        profiles=dict(_profiles(reader, steps)),
        predicted={reader.get(build, str, "name", default=""): _kinds(reader, build) for build in builds},
        ais_bench=dict(_ais_bench(reader, steps)),
        training=reader.get(steps, int, "mindspore", "result", "compared"),
    )


def _profiles(reader: _Reader, steps: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    for step in steps:
        if step.startswith("profile/"):
            found = reader.get(steps, dict, step, "result", "us_by_type", default={})
            yield step.partition("/")[2], {kind: float(reader.get(found, _NUMBER, kind, default=0)) for kind in found}


def _ais_bench(reader: _Reader, steps: Mapping[str, Any]) -> Iterator[tuple[int, tuple[str, float]]]:
    for step in steps:
        match = _AIS_BENCH.fullmatch(step)
        times = reader.get(steps, dict, step, "result") if match else None
        if match and times is not None:
            yield (
                int(match[1]),
                (reader.get(times, str, "file", default=""), float(reader.get(times, _NUMBER, "p50_ms", default=0))),
            )


def _kinds(reader: _Reader, build: Any) -> dict[str, float]:
    """Return the predicted microseconds of a run by kind of task, of a file with one batch size; else nothing."""
    batches = reader.get(build, list, "batches", default=[])
    kinds = reader.get(build, dict, "predicted", str(batches[0]), "kinds", default={}) if len(batches) == 1 else {}
    return {kind: float(reader.get(kinds, _NUMBER, kind, default=0)) for kind in kinds}


def _rows(reader: _Reader, build: Any, steps: Mapping[str, Any]) -> Iterator[Row]:
    name = reader.get(build, str, "name", default="")
    status = reader.get(steps, str, f"compile/{name}", "status")
    for batch in reader.get(build, list, "batches", default=[]):
        if type(batch) is not int or batch < 1:
            raise InputError(f"{reader.path}: batches of {name}: expected whole numbers above 0, got {shorten(batch)}")
        parity = reader.get(steps, dict, f"parity/{name}", "result", str(batch))
        latency = reader.get(steps, dict, f"latency/{batch}", "result", name)
        if latency is not None:
            times = {
                group: {
                    key: float(reader.get(latency, _NUMBER, group, key, default=0)) for key in ("p50", "p90", "p99")
                }
                for group in ("compute_ms", "with_copies_ms")
            }
            latency = {**{key: reader.get(latency, kind, key) for key, kind in _LATENCY.items()}, **times}
        yield Row(
            build=name,
            form=reader.get(build, str, "form", default=""),
            batch=batch,
            export=reader.get(build, str, "export", default=""),
            compiled=None if status is None else status == "done",
            parity=parity and {key: reader.get(parity, kind, key) for key, kind in _PARITY.items()},
            latency=latency,
            predicted_us=reader.get(build, _NUMBER, "predicted", str(batch), "us"),
            diverged_at=reader.get(steps, str, f"layers/{name}", "result", "diverged_at"),
        )


def summary(report: Report) -> dict[str, Any]:
    """Return a report as plain values for JSON."""
    return {
        "report": report.path,
        "kit": dict(report.kit),
        "finished": report.finished,
        "machine": dict(report.machine),
        "rows": [row.to_dict() for row in report.rows],
        "fastest": {str(batch): row.build for batch, row in report.fastest().items()},
        "ais_bench": {str(batch): {"build": build, "p50_ms": ms} for batch, (build, ms) in report.ais_bench.items()},
        "training": report.training,
        "problems": dict(report.problems),
        "profiles": {build: dict(types) for build, types in report.profiles.items()},
        "by_kind": {
            build: {
                kind: {"measured_us": measured, "predicted_us": predicted}
                for kind, (measured, predicted) in report.by_kind(build).items()
            }
            for build in report.profiles
        },
    }


def lines(report: Report) -> list[str]:
    """Return a report for a terminal."""
    machine, kit = report.machine, report.kit
    facts = [machine.get("soc", "no device"), f"CANN {machine['cann']}" if "cann" in machine else "no CANN"]
    facts += [f"driver {machine['driver']}"] if "driver" in machine else []
    # Kits of earlier releases do not say.
    network = f"{kit['name']} (activation {kit['activation']})" if kit["activation"] else kit["name"]
    out = [
        f"board     {', '.join(facts)}",
        f"kit       {network} for {kit['soc']}, {kit['level']}, of neonext_ms {kit['neonext_ms']}"
        + ("" if report.finished else "; the run has not finished"),
    ]
    if machine.get("stand_in"):
        out.append("note      this ran on stand-ins; no device was measured, and the times say nothing about one")
    if "note" in machine:
        out.append(f"note      {machine['note']}")
    head = f"{'file':<16}{'batch':>5}  {'compiled':<9}{'right':<7}{'relative L2':>11}  {'top-1':<7}{'measured ms':>11}"
    out += ["", f"{head}{'images/s':>10}{'predicted ms':>14}{'ratio':>9}"]
    out += [_line(row) for row in report.rows]
    for row in report.rows:
        if row.parity is not None and not row.right:
            where = (
                f"the first layer that diverges is {row.diverged_at}" if row.diverged_at else "no layer was compared"
            )
            out.append(f"wrong     {row.build} at batch {row.batch}: {where}")
    out.append("")
    for batch, row in report.fastest().items():
        out.append(f"fastest   batch {batch}: {row.form}, {row.measured_ms:.2f} ms\n          {row.export}")
    for batch, (build, ms) in report.ais_bench.items():
        ours = next((row.measured_ms for row in report.rows if (row.build, row.batch) == (build, batch)), None)
        ratio = f", {ms / ours:.2f} times the time above" if ours else ""
        out.append(f"ais_bench batch {batch}: {build}, {ms:.2f} ms{ratio}")
    if report.training is not None:
        out.append(f"training  the operator in MindSpore: {plural(report.training, 'result')} as in float64")
    for build, types in report.profiles.items():
        largest = ", ".join(f"{kind} {us:.0f}" for kind, us in list(types.items())[:8])
        out.append(f"profile   {build}, microseconds of a run by type of operator: {largest}")
        for kind, (measured, predicted) in report.by_kind(build).items():
            ratio = f"ratio {measured / predicted:.2f}" if predicted else "not predicted"
            out.append(f"          {kind:<15}{measured:>10.0f} us, predicted {predicted:>8.0f}: {ratio}")
    out += [f"problem   {step}: {problem}" for step, problem in report.problems]
    return out


def _line(row: Row) -> str:
    parity = row.parity or {}
    images = parity.get("images")
    top1 = f"{parity['top1_agree']}/{parity['samples']}" if parity.get("samples") is not None else "-"
    relative = parity.get("relative_l2")
    rate = row.latency["images_per_second"] if row.latency else None
    cells = (
        f"{row.build:<16}{row.batch:>5}  {_yes(row.compiled):<9}{_yes(row.right if row.parity else None):<7}"
        f"{'-' if relative is None else f'{relative:.1e}':>11}  {top1:<7}{_number(row.measured_ms, 2):>11}"
        f"{_number(rate, 0):>10}{_number(row.predicted_us and row.predicted_us / 1e3, 2):>14}{_number(row.ratio, 2):>9}"
    )
    return cells + (f"  {parity['correct']} of {plural(images, 'image')} correct" if images else "")


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def compared(one: Report, two: Report) -> list[str]:
    """Return two reports side by side for a terminal."""
    rows = {(row.build, row.batch): row for row in two.rows}
    out = [f"A         {one.path}: {one.machine.get('soc', '')}, CANN {one.machine.get('cann', '?')}"]
    out.append(f"B         {two.path}: {two.machine.get('soc', '')}, CANN {two.machine.get('cann', '?')}")
    out += ["", f"{'file':<16}{'batch':>5}  {'right A':<8}{'right B':<8}{'ms A':>9}{'ms B':>9}{'B / A':>7}"]
    for row in one.rows:
        other = rows.pop((row.build, row.batch), None)
        a, b = row.measured_ms, other.measured_ms if other else None
        ratio = b / a if a and b else None
        out.append(
            f"{row.build:<16}{row.batch:>5}  {_yes(row.right if row.parity else None):<8}"
            f"{_yes(other.right if other and other.parity else None):<8}{_number(a, 2):>9}{_number(b, 2):>9}"
            f"{_number(ratio, 2):>7}"
        )
    out += [f"{build:<16}{batch:>5}  only in B" for build, batch in rows]
    return out


def packed_lines(folder: Path, content: Mapping[str, Any], size: int, archive: Path | None) -> list[str]:
    """Return what was packed, for a terminal."""
    images = content["images"]
    rule = f" (classes {CLASS_RULES[images['classes_by']]})" if images["classes_by"] else ""
    forms: dict[str, list[str]] = {}
    for build in content["builds"]:
        forms.setdefault(build["form"], []).append("/".join(map(str, build["batches"])))
    out = [
        f"kit       {folder} ({format_bytes(size)}) for {content['soc']}, level {content['level']}",
        f"network   {content['name']}, {format_size(content['image_size'])}, {content['classes']} classes, "
        f"activation {content['activation']}",
        f"inputs    {plural(images['noise'], 'noise image')}, {plural(len(images['files']), 'labelled image')}{rule}",
        "forms     " + ", ".join(f"{form} (batch {', '.join(batches)})" for form, batches in forms.items()),
    ]
    out += [f"archive   {archive}"] if archive else []
    return [*out, "run       on the board, in the kit: python3 run.py"]
