"""The JSON result of a run (machine, versions, commit, command, every sample), and the figures computed from it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from neonext_ms.common.errors import InputError, NeoNextError
from neonext_ms.common.files import atomic, read_json
from neonext_ms.common.text import one_line, printable, shorten

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
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic(path) as staged:
        # A file name that is not UTF-8 becomes an escape of JSON.
        staged.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


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
            f"{path}: unknown version of the format (got {shorten(result.get('version'))}, expected {VERSION}). "
            "Measure again."
        )
    try:
        _check(result, _RESULT, "")
        if not entries(result):
            raise ValueError("there are no samples")
        return _escaped(result)
    except (KeyError, ValueError, IndexError, RecursionError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else printable(one_line(error))
        raise InputError(f"{path}: a damaged result ({problem}). Measure again.") from error


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


def _escaped(value: Any) -> Any:
    """Return a value of a file with all texts safe to print."""
    if isinstance(value, dict):
        return {printable(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _check(value: Any, form: Any, name: str) -> None:
    """Compare a value of a file with a form: a test, a dict of forms, or a list with the form of its items.

    Raises:
        ValueError: the value has another form; the message has its name.
    """
    if isinstance(form, dict) and isinstance(value, dict):
        for key, inner in form.items():
            if not key.endswith("?"):
                _check(value.get(key), inner, f"{name}.{key}".lstrip("."))
            elif value.get(key[:-1]) is not None:
                _check(value[key[:-1]], inner, f"{name}.{key[:-1]}".lstrip("."))
    elif isinstance(form, list) and isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, form[0], f"{name}[{index}]")
    elif not callable(form) or not form(value):
        raise ValueError(f"{name} is {shorten(value)}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e18


def _positive(value: Any) -> bool:
    return _number(value) and value > 1e-18


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _times(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_positive, value))


def _copies(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, list) and v and all(map(_number, v)) for v in value.values())


def _size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole, value))


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


# What is read of a result; a name with a question mark may be missing or null.
_RESULT = {
    "command": [_text],
    "started?": _text,
    "versions": _texts,
    "git?": {"commit?": _text, "changed?": _flag},
    "machine": {"cpu?": _text, "flags?": [_text], "memory_bytes?": _number, "load?": [_number]},
    "partial": _flag,
    "settings": {"threads": _whole, "cores": [_whole]},
    "subjects": [
        {"label": _text, "model": _text, "form": _text, "runtime": _text, "image_size": _size, "notes": [_text]}
        | {"input": {"dtype": _text}, "relative_l2?": _number}
    ],
    "batches": [
        {
            "batch": _positive,
            "rounds": _whole,
            "warm_up_rounds": _whole,
            "rows": [
                {"label": _text, "kind": _text, "stable": _flag, "samples": _times, "parts": _copies}
                | {"multiply_adds?": _number, "gemm_multiply_adds?": _number, "model?": _text, "runtime?": _text}
            ],
        }
    ],
    "preprocessing": [{"photo": _size, "image_size": _size, "samples": _times}],
    "notes": [_text],
    "profiles?": [
        {"model": _text, "batch": _whole, "runs": _whole, "microseconds": _number, "kinds": _numbers}
        | {"slowest": [{"name": _text, "op": _text, "microseconds": _number}]}
    ],
}


@dataclass(frozen=True)
class Entry:
    """Figures of one subject, or of its matrix products, at one batch size.

    Attributes:
        label, model, form, runtime: as in `subjects.Subject`; the form of matrix products is "gemm".
        batch: images per call.
        latency: seconds of a call, without copies.
        images_per_second: batch size over mean latency.
        ratio: latency over the latency of the first subject; None for the first subject itself.
        gemm_share: time of the model's matrix products alone over the time of the model; None if they were not timed.
        copies: mean seconds of each copy.
        stable: whether its time had settled when warm-up ended.
        multiply_adds_per_second: None if they were not counted.
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
    gemm_share: Ratio | None
    copies: Mapping[str, float]
    stable: bool
    multiply_adds_per_second: float | None
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
        ratio, share = (value and value.to_dict() for value in (self.ratio, self.gemm_share))
        return {**asdict(self), "ratio": ratio, "gemm_share": share, "noisy": self.noisy}


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
        gemm_share=None if is_gemm or reach is None else ratio(reach, values),
        copies={name: sum(times) / len(times) for name, times in row["parts"].items()},
        stable=row["stable"],
        multiply_adds_per_second=work / latency.p50 if work else None,
        notes=() if is_gemm else tuple(subject["notes"]),
    )
