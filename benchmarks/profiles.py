"""neonext-bench profile: time inside a model by layer kind, and its slowest nodes.

`of_onnxruntime` runs an ONNX model with onnxruntime's own profiler. `of_msprof` and `of_ais_bench` read files that
msprof and ais_bench wrote on a board; both follow the published formats and were not tested with real files.
"""

from __future__ import annotations

import csv
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neonext_ms.common.cli import (
    THREADS_HELP,
    Parser,
    batch_size,
    parse_size,
    positive_int,
    print_json,
    print_text,
    run,
    threads,
)
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import check_regular, explained, parse_json, temporary_folder
from neonext_ms.common.processors import thread_count
from neonext_ms.common.signals import faults_told
from neonext_ms.common.text import one_line, printable, shorten

WARM_UP, RUNS, SLOWEST = 3, 20, 10
UNTESTED = "read by the published format; not tested with a real file of this tool"
# Operators that move values and compute nothing: of ONNX, of onnxruntime's blocked layout, and of CANN.
_LAYOUT = (
    "ReorderInput", "ReorderOutput", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Identity",
    "TransData", "TransposeD", "Concat", "ConcatD", "Slice", "StridedSliceD", "MemcpyAsync",
)  # fmt: skip
_GELU = ("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Erf")
_PRODUCTS = ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "Conv2D", "Conv2DCompress", "MatMulV2", "MatMulV3",
             "BatchMatMul", "BatchMatMulV2", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
             "FullyConnection")  # fmt: skip


@dataclass(frozen=True)
class ProfiledNode:
    """Time of one node in one run of the model, as the median over the runs; its kind is that of `kind_of`."""

    name: str
    op: str
    kind: str
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """Time of a model by node.

    Attributes:
        source: "onnxruntime" or "msprof".
        runs: number of runs behind each median.
        nodes: nodes in the order in which they first ran.
        label: remark for readers of the figures.
    """

    source: str
    runs: int
    nodes: tuple[ProfiledNode, ...]
    label: str = ""

    @property
    def microseconds(self) -> float:
        """Return the sum over the nodes, without the time between them."""
        return sum(node.microseconds for node in self.nodes)

    def kinds(self) -> dict[str, float]:
        """Return microseconds by layer kind, largest first."""
        sums: dict[str, float] = defaultdict(float)
        for node in self.nodes:
            sums[node.kind] += node.microseconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def slowest(self, count: int = SLOWEST) -> list[ProfiledNode]:
        """Return the slowest nodes, slowest first."""
        return sorted(self.nodes, key=lambda node: -node.microseconds)[:count]

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return {
            "source": self.source,
            "label": self.label,
            "runs": self.runs,
            "microseconds": self.microseconds,
            "kinds": self.kinds(),
            "slowest": [asdict(node) for node in self.slowest()],
            "nodes": [asdict(node) for node in self.nodes],
        }

    def lines(self) -> list[str]:
        """Return the lines to print."""
        total = self.microseconds or 1.0
        lines = [f"{self.source}: {self.microseconds:,.0f} us in {len(self.nodes)} nodes, medians of {self.runs} runs"]
        lines += [f"note: {self.label}"] if self.label else []
        counts = Counter(node.kind for node in self.nodes)
        lines += [
            f"{kind:12} {100 * time / total:5.1f} % {time:10,.0f} us  {counts[kind]:4} nodes"
            for kind, time in self.kinds().items()
        ]
        lines.append(f"slowest {min(SLOWEST, len(self.nodes))} nodes")
        lines += [
            f"  {100 * node.microseconds / total:5.1f} % {node.microseconds:10,.0f} us  {node.kind:12} "
            f"{node.op:16} {node.name}"
            for node in self.slowest()
        ]
        return lines


@dataclass(frozen=True)
class AisBench:
    """Summary of a run of ais_bench, which has no time by node.

    Attributes:
        batch: images per call.
        throughput: images per second, as printed.
        milliseconds: `min`, `max`, `mean`, `median` and `percentile(99%)` of "H2D_latency", "NPU_compute_time" and
            "D2H_latency", as far as they were printed.
        label: remark for readers of the figures.
    """

    batch: float
    throughput: float
    milliseconds: Mapping[str, Mapping[str, float]]
    label: str = UNTESTED

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        return {"source": "ais_bench", **asdict(self)}

    def lines(self) -> list[str]:
        """Return the lines to print."""
        lines = [f"ais_bench: batch {self.batch:g}, {self.throughput:.1f} images/s", f"note: {self.label}"]
        for step, values in self.milliseconds.items():
            lines.append(f"{step:17}" + ", ".join(f"{name} {value:.3f}" for name, value in values.items()) + " ms")
        return [*lines, "ais_bench gives no time by node; for that, run msprof and read its op_summary_*.csv"]


def kind_of(name: str, op: str) -> str:
    """Return the kind of the layer that a node belongs to, by the names that our exporter gives.

    Kinds are "NeoCell", "MLP" (with the operators fused into it), "GELU", "downsample", "stem", "head", "residual",
    "norm", and "layout" for operators that only move values. A node of another network has its operator as its kind.
    """
    if op in _LAYOUT:
        return "layout"
    if op in _GELU or re.search(r"\.act(_\d)?(\.|_|$)", name):
        return "GELU"
    if "downsample" in name:
        return "downsample"
    if "neocell" in name.lower() or op == "NeoCell":
        return "NeoCell"
    for part in ("stem", "head"):
        if name.startswith(part):
            return part
    if re.match(r"stage_\d", name):
        if op in _PRODUCTS or ".fc_" in name:
            return "MLP"
        if ".norm" in name:
            return "norm"
        return "scale" if "layer_scale" in name else "residual" if op.startswith("Add") else op
    return "head" if name.startswith("logits") else op


def of_onnxruntime(
    path: str | os.PathLike,
    batch: int,
    threads: int,
    runs: int = RUNS,
    image_size: tuple[int, int] | None = None,
) -> Profile:
    """Run an ONNX model of images under onnxruntime's profiler, on the CPU.

    Raises:
        InputError: no such model, its input does not fit, or `batch`, `threads` or `runs` is below 1.
    """
    from neonext_ms.runtime.onnx import onnx_session, onnx_signature

    from .inputs import DEFAULT_SIZE, check_batches, random_images

    for name, value in (("batch", batch), ("threads", threads), ("runs", runs)):
        if value < 1:
            raise InputError(f"{name} must be at least 1 (got {value})")
    path = os.fspath(path)
    signature = onnx_signature(path)
    check_batches(path, signature, [batch])
    images = random_images(signature, batch, signature.size(path, image_size, DEFAULT_SIZE))
    with temporary_folder() as folder:
        try:
            with faults_told(path):
                session = onnx_session(path, threads, profile=str(folder / "profile"))
                for _ in range(WARM_UP + runs):
                    session.run(None, {signature.name: images})
        except Exception as error:
            raise InputError(f"{path}: onnxruntime cannot run it ({one_line(error, 400)})") from error
        return of_onnxruntime_file(session.end_profiling(), skip=WARM_UP)


def of_onnxruntime_file(path: str | os.PathLike, skip: int = 0) -> Profile:
    """Read a profile of onnxruntime (`SessionOptions.enable_profiling`), without the first `skip` runs.

    Raises:
        InputError: not such a file.
    """
    try:
        events = parse_json(_text(path), os.fspath(path), "a profile of onnxruntime")
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(
                    _finite(event["dur"])
                )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{os.fspath(path)}: not a profile of onnxruntime, a JSON list of events") from error
    return _profile(os.fspath(path), "onnxruntime", times, skip)


def of_msprof(path: str | os.PathLike) -> Profile:
    """Read msprof's `op_summary_*.csv`, which has one row for every execution of an operator.

    The columns `Op Name`, `OP Type` and `Task Duration(us)` are used, as documented for CANN 8.5 and MindStudio 7.0
    (op_summary, Operator Details). Rows without a duration, such as those of communication, are ignored.

    Raises:
        InputError: not such a file.
    """
    try:
        rows = list(csv.DictReader(_text(path).splitlines(), skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"{os.fspath(path)}: not msprof's op_summary ({one_line(error)})") from error
    columns = ("Op Name", "OP Type", "Task Duration(us)")
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise InputError(
            f"{os.fspath(path)}: not msprof's op_summary: it has no column {missing[0]!r} or no rows. Use "
            "op_summary_*.csv of the folder mindstudio_profiler_output."
        )
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        try:
            microseconds = _finite(row[columns[2]])
        except (TypeError, ValueError):
            continue
        times[row[columns[0]], row[columns[1]]].append(microseconds)
    return _profile(os.fspath(path), "msprof", times, 0, UNTESTED)


def _profile(path: str, source: str, times: Mapping[tuple, list[float]], skip: int, label: str = "") -> Profile:
    if not times:
        raise InputError(f"{path}: it has no time of any node")
    # Several nodes may share a name, so a name counts as often as it ran per run of the model.
    runs = max(statistics.multimode(len(values) for values in times.values()))
    nodes = []
    for (name, op), values in times.items():
        per_run = max(1, round(len(values) / runs))
        kept = values[skip * per_run :] or values
        name, op = printable(name), printable(op)
        nodes.append(ProfiledNode(name, op, kind_of(name, op), per_run * statistics.median(kept)))
    return Profile(source, max(1, runs - skip), tuple(nodes), label)


_VALUES = re.compile(r"(min|max|mean|median|percentile\([\d.]+%\)) = ([-+\d.eE]+)")
_TIMES = re.compile(r"(H2D_latency|NPU_compute_time|D2H_latency) \(ms\): (.*)")
_THROUGHPUT = re.compile(
    r"throughput 1000\*batchsize\.mean\(([\d.]+)\)/NPU_compute_time\.mean\([\d.eE+-]+\): ([\d.eE+-]+)"
)


def of_ais_bench(path: str | os.PathLike) -> AisBench:
    """Read the output of `ais_bench --model FILE.om ...`, or its `*_summary.json`.

    Raises:
        InputError: neither of them.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _ais_bench_json(os.fspath(path), text)
    throughput = _THROUGHPUT.search(text)
    try:
        times = {match[1]: {name: _finite(value) for name, value in _VALUES.findall(match[2])}
                 for match in _TIMES.finditer(text)}  # fmt: skip
        if not times.get("NPU_compute_time") or throughput is None:
            raise InputError(f"{os.fspath(path)}: not the output of ais_bench: it has no Performance Summary")
        return AisBench(_finite(throughput[1]), _finite(throughput[2]), times)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{os.fspath(path)}: a damaged output of ais_bench ({one_line(error)})") from error


def _ais_bench_json(path: str, text: str) -> AisBench:
    try:
        summary = parse_json(text, path, "a summary of ais_bench")
        times = {
            step: {name: _finite(value) for name, value in summary[step].items() if name != "count"}
            for step in ("H2D_latency", "NPU_compute_time", "D2H_latency")
            if step in summary
        }
        throughput = _finite(summary["throughput"])
        batch = throughput * times["NPU_compute_time"]["mean"] / 1e3
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a summary of ais_bench; it has no throughput and NPU_compute_time") from error
    return AisBench(round(batch, 3), throughput, times)


def _finite(value: Any) -> float:
    """Return a number or its text as a float.

    Raises:
        ValueError: no number, or none that a time can be.
    """
    number = float(value)
    if not 0 <= number < 1e18:
        raise ValueError(f"{shorten(value)} is not a time")
    return number


def read(path: str | os.PathLike) -> Profile | AisBench:
    """Read a file of any of the three tools, recognised by its content.

    Raises:
        InputError: not a file of these tools.
    """
    text = _text(path).lstrip()
    if text.startswith("["):
        if not text.startswith("[INFO]"):
            return of_onnxruntime_file(path)
    elif "Task Duration(us)" in text.partition("\n")[0]:
        return of_msprof(path)
    if "NPU_compute_time" in text:
        return of_ais_bench(path)
    raise InputError(
        f"{os.fspath(path)}: unknown kind of profile; expected an .onnx model, onnxruntime's JSON, msprof's "
        "op_summary_*.csv, or the output of ais_bench"
    )


def _text(path: str | os.PathLike) -> str:
    check_regular(path)
    try:
        with explained(path), open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{os.fspath(path)}: not a text file ({error.reason} at byte {error.start})") from error


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="neonext-bench profile",
        description="Print time by layer kind and the ten slowest nodes, of an ONNX model that is run in onnxruntime, "
        "or from a file of onnxruntime's profiler, msprof (op_summary_*.csv) or ais_bench.\n\nexamples:\n"
        "  neonext-bench profile neonext_t.onnx --batch 8\n  neonext-bench profile op_summary_0_1.csv",
    )
    parser.add_argument("file", metavar="FILE", help="MODEL.onnx, or a profile")
    parser.add_argument("--batch", type=batch_size, default=1, help="batch size (default 1)")
    parser.add_argument("--threads", type=threads, default=thread_count(), help=THREADS_HELP)
    parser.add_argument("--rounds", type=positive_int, default=RUNS, help=f"timed runs of a model (default {RUNS})")
    parser.add_argument("--image-size", type=parse_size, help="height x width, for a model that leaves it open")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    profile: Profile | AisBench
    if Path(args.file).suffix.lower() == ".onnx":
        profile = of_onnxruntime(args.file, args.batch, args.threads, args.rounds, args.image_size)
    else:
        profile = read(args.file)
    if args.json:
        print_json(profile.to_dict())
    else:
        print_text("\n".join(profile.lines()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run neonext-bench profile; return the exit code."""
    return run(_main, argv)
