"""The JSON result of a run (machine, versions, commit, command, every sample), and the figures computed from it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from neonext_ms.common.cli import MAX_SECONDS
from neonext_ms.common.errors import InputError, NeoNextError
from neonext_ms.common.files import atomic, read_json
from neonext_ms.common.text import one_line, shorten

from .statistics import Ratio, Summary, ratio, summary

FORMAT = "neonext-bench"
VERSION = 1
_PACKAGES = ("onnx", "onnxruntime", "onnxruntime-cann", "openvino", "onnxslim", "ml_dtypes")


def environment(command: Sequence[str]) -> dict:
    """Return command, time, versions, commit and machine of this process, as plain values."""
    from neonext_ms.training.runlog import describe_run

    values = describe_run(command)
    del values["folder"]
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            values["versions"][name] = metadata.version(name)
    values["versions"] = {name: version for name, version in values["versions"].items() if version}
    values["machine"] |= _machine()
    return {"format": FORMAT, "version": VERSION, **values}


def _machine() -> dict:
    """Return CPU, its instruction sets that matter to a model, memory and load; None where the system hides them."""
    cpu: dict[str, str] = {}
    flags: set[str] = set()
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    for word in (cpu.get("flags") or cpu.get("Features") or "").split():
        if word.startswith(("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "bf16", "i8mm")):
            flags.add(word)
    memory = next(
        (int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), None
    )
    governor = _lines("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    numbers = {key: int(cpu[key]) for key in ("cpu family", "model", "stepping") if cpu.get(key, "").isdigit()}
    return {
        "cpu": cpu.get("model name"),
        **{key.replace(" ", "_"): number for key, number in numbers.items()},
        "flags": sorted(flags),
        "hypervisor": "hypervisor" in cpu.get("flags", "").split(),
        "memory_bytes": memory,
        "governor": governor[0] if governor else None,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def write(path: str | os.PathLike, result: Mapping) -> None:
    """Write a result atomically.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic(path) as staged:
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # A name that is not UTF-8 stays one that JSON can hold.
        staged.write_text(text, encoding="utf-8", errors="backslashreplace")


def read(path: str | os.PathLike) -> dict:
    """Read a result.

    Raises:
        InputError: no such file, or not a result of neonext-bench.
    """
    path = os.fspath(path)
    result = read_json(path, "a JSON file of neonext-bench --output")
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise InputError(f"{path}: not a result of neonext-bench; expected a file of neonext-bench --output")
    if result.get("version") != VERSION:
        raise InputError(
            f"{path}: version {shorten(result.get('version'))} of the format; this program reads version {VERSION}"
        )
    with undamaged(path):
        if not entries(result):
            raise ValueError("there are no samples")
    return result


@contextlib.contextmanager
def undamaged(*paths: str) -> Iterator[None]:
    """Report values that a result should have and has not as an `InputError` that names the files."""
    try:
        yield
    except NeoNextError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{', '.join(paths)}: a damaged result ({type(error).__name__}: {one_line(error)}); measure again"
        ) from error


@dataclass(frozen=True)
class Entry:
    """Figures of one subject, or of its matrix products, at one batch size.

    Attributes:
        label, model, form, runtime: as in `subjects.Subject`; the form of matrix products is "gemm".
        batch: images per call.
        latency: seconds of a call, without copies.
        images_per_second: batch size over mean latency.
        ratio: latency over the latency of the first subject; None for the first subject itself.
        share: time of the model's matrix products alone over the time of the model; None if they were not timed.
        copies: mean seconds of each copy.
        stable: whether its time had settled when warm-up ended.
        rate: multiply-adds per second, or None if they were not counted.
        notes: remarks for readers, such as "not run on a device".
    """

    label: str
    model: str
    form: str
    runtime: str
    batch: int
    latency: Summary
    images_per_second: float
    ratio: Ratio | None
    share: Ratio | None
    copies: Mapping[str, float]
    stable: bool
    rate: float | None
    notes: tuple[str, ...] = ()

    @property
    def is_gemm(self) -> bool:
        """Return whether these are a model's matrix products alone."""
        return self.form == "gemm"

    @property
    def noisy(self) -> bool:
        """Return whether the samples are far apart, drift, or were taken before the time had settled."""
        return self.latency.spread > 0.1 or abs(self.latency.drift) > 0.1 or not self.stable

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return {
            "label": self.label,
            "model": self.model,
            "form": self.form,
            "runtime": self.runtime,
            "batch": self.batch,
            "latency": self.latency.to_dict(),
            "images_per_second": self.images_per_second,
            "ratio": self.ratio and self.ratio.to_dict(),
            "gemm_share": self.share and self.share.to_dict(),
            "copies": dict(self.copies),
            "stable": self.stable,
            "noisy": self.noisy,
            "multiply_adds_per_second": self.rate,
            "notes": list(self.notes),
        }


def base(result: Mapping) -> str:
    """Return the label of the subject that all are compared with, the first."""
    return result["subjects"][0]["label"]


def entries(result: Mapping) -> list[Entry]:
    """Compute an entry for each subject and GEMM at each batch from the samples, in the order measured."""
    subjects = {subject["label"]: subject for subject in result["subjects"]}
    computed = []
    for group in result["batches"]:
        samples = {row["label"]: row["samples"] for row in group["rows"]}
        gemms = {(row["model"], row["runtime"]): row["label"] for row in group["rows"] if row["kind"] == "gemm"}
        first = samples.get(base(result))
        for row in group["rows"]:
            subject = row if row["kind"] == "gemm" else subjects[row["label"]]
            key = (subject["model"], subject["runtime"])
            # The official PyTorch model is compared with the products in the default runtime of its ONNX file.
            reach = gemms.get(key) or gemms.get((subject["model"], "onnxruntime"))
            computed.append(_entry(row, subject, group["batch"], first, samples.get(reach), base(result)))
    return computed


def _entry(row: Mapping, subject: Mapping, batch: int, first, reach, base_label: str) -> Entry:
    values = row["samples"]
    if not all(type(value) in (int, float) and 0 < value < MAX_SECONDS for value in values):
        raise ValueError("a sample is not a time")
    latency = summary(values)
    is_gemm = row["kind"] == "gemm"
    work = row.get("multiply_adds")
    return Entry(
        label=row["label"],
        model=subject["model"],
        form="gemm" if is_gemm else subject["form"],
        runtime=subject["runtime"],
        batch=batch,
        latency=latency,
        images_per_second=batch / latency.mean,
        ratio=None if first is None or row["label"] == base_label else ratio(values, first),
        share=None if is_gemm or reach is None else ratio(reach, values),
        copies={name: sum(times) / len(times) for name, times in row["parts"].items()},
        stable=row["stable"],
        rate=work / latency.p50 if work else None,
        notes=() if is_gemm else tuple(subject["notes"]),
    )
