"""Where the time goes inside a model: per layer kind, and its slowest nodes.

`of_onnxruntime` runs an ONNX model with onnxruntime's own profiler. What msprof and ais_bench wrote on a board is
read by `of_msprof` and `of_ais_bench`; both follow the published formats and have met no real file here.
"""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from neonext_ms.common.cli import Parser, parse_size, positive_int, print_json, run
from neonext_ms.common.errors import InputError
from neonext_ms.common.files import explained
from neonext_ms.common.text import one_line

WARM_UP, RUNS, SLOWEST = 3, 20, 10
NOT_MET = "read by the published format; no real file of this tool has been met here"
# Operators that move numbers and compute nothing: of ONNX, of onnxruntime's blocked layout, and of CANN.
_LAYOUT = (
    "ReorderInput", "ReorderOutput", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Identity",
    "TransData", "TransposeD", "Concat", "ConcatD", "Slice", "StridedSliceD", "MemcpyAsync",
)  # fmt: skip
_GELU = ("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Erf")
_PRODUCTS = ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "Conv2D", "Conv2DCompress", "MatMulV2", "MatMulV3",
             "BatchMatMul", "BatchMatMulV2", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
             "FullyConnection")  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        name: in the profile.
        op: its operator.
        kind: of its layer, as `kind_of` says.
        microseconds: of one run of the model, the median over the runs.
    """

    name: str
    op: str
    kind: str
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """Time by node.

    Attributes:
        source: "onnxruntime" or "msprof".
        runs: of the model, that the figures are medians of.
        nodes: in the order in which they first ran.
        label: what a reader has to know of the figures.
    """

    source: str
    runs: int
    nodes: tuple[Node, ...]
    label: str = ""

    @property
    def microseconds(self) -> float:
        """Sum over the nodes; what passes between them does not count."""
        return sum(node.microseconds for node in self.nodes)

    def kinds(self) -> dict[str, float]:
        """Microseconds by layer kind, the largest first."""
        sums: dict[str, float] = defaultdict(float)
        for node in self.nodes:
            sums[node.kind] += node.microseconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def slowest(self, count: int = SLOWEST) -> list[Node]:
        """The slowest nodes, the slowest first."""
        return sorted(self.nodes, key=lambda node: -node.microseconds)[:count]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
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
        """For a person."""
        total = self.microseconds or 1.0
        lines = [f"{self.source}: {self.microseconds:,.0f} us in {len(self.nodes)} nodes, medians of {self.runs} runs"]
        lines += [f"note: {self.label}"] if self.label else []
        counts = defaultdict(int)
        for node in self.nodes:
            counts[node.kind] += 1
        lines += [
            f"{kind:12} {100 * time / total:5.1f} % {time:10,.0f} us  {counts[kind]:4} nodes"
            for kind, time in self.kinds().items()
        ]
        lines.append(f"slowest {min(SLOWEST, len(self.nodes))} nodes")
        lines += [
            f"  {100 * node.microseconds / total:5.1f} % {node.microseconds:10,.0f} us  {node.kind:12} {node.op:16} "
            f"{node.name}"
            for node in self.slowest()
        ]
        return lines


@dataclass(frozen=True)
class AisBench:
    """Summary of a run of ais_bench: no time by node.

    Attributes:
        batch: images of one call.
        throughput: images per second, as printed.
        milliseconds: for "H2D_latency", "NPU_compute_time" and "D2H_latency", as far as printed: `min`, `max`, `mean`,
            `median`, `percentile(99%)`.
        label: what a reader has to know of the figures.
    """

    batch: float
    throughput: float
    milliseconds: Mapping[str, Mapping[str, float]]
    label: str = NOT_MET

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {"source": "ais_bench", **asdict(self)}

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"ais_bench: batch {self.batch:g}, {self.throughput:.1f} images/s", f"note: {self.label}"]
        for what, values in self.milliseconds.items():
            lines.append(f"{what:17}" + ", ".join(f"{name} {value:.3f}" for name, value in values.items()) + " ms")
        return [*lines, "it has no time by node; for that, run msprof and read its op_summary_*.csv"]


def kind_of(name: str, op: str) -> str:
    """Kind of the layer that a node belongs to, from the names that our exporter gives.

    "NeoCell", "MLP" (with what is fused into it), "GELU", "downsample", "stem", "head", "layout" for what only moves
    numbers, "residual" and "norm"; for a node of another network its operator.
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

    Args:
        path: the file.
        batch: images per call.
        threads: of a single operator.
        runs: calls whose median counts, after a few for warming up.
        image_size: for a file that leaves it open.

    Raises:
        InputError: no such model, an input that does not fit, or a batch, threads or runs below 1.
    """
    from neonext_ms.runtime.onnx import onnx_session, onnx_signature

    from .inputs import DEFAULT_SIZE, check_batches, random_images

    for what, value in (("batch", batch), ("threads", threads), ("runs", runs)):
        if value < 1:
            raise InputError(f"{what} must be at least 1, got {value}")
    path = os.fspath(path)
    signature = onnx_signature(path)
    check_batches(path, signature, [batch])
    images = random_images(signature, batch, signature.size(path, image_size, DEFAULT_SIZE))
    with tempfile.TemporaryDirectory() as folder:
        try:
            session = onnx_session(path, threads, profile=str(Path(folder) / "profile"))
            for _ in range(WARM_UP + runs):
                session.run(None, {signature.name: images})
        except Exception as error:
            raise InputError(f"{path}: onnxruntime cannot run it ({one_line(error, 400)})") from error
        return of_onnxruntime_file(session.end_profiling(), skip=WARM_UP)


def of_onnxruntime_file(path: str | os.PathLike, skip: int = 0) -> Profile:
    """The profile that onnxruntime wrote (`SessionOptions.enable_profiling`).

    Args:
        path: its JSON file.
        skip: runs at the beginning that do not count.

    Raises:
        InputError: it is not such a file.
    """
    try:
        events = json.loads(_text(path))
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(float(event["dur"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{os.fspath(path)}: not a profile of onnxruntime, a JSON list of events") from error
    return _profile(os.fspath(path), "onnxruntime", times, skip)


def of_msprof(path: str | os.PathLike) -> Profile:
    """msprof's `op_summary_*.csv`: one row for every execution of an operator.

    Columns by the documentation of CANN 8.5 and MindStudio 7.0 (op_summary, Operator Details): `Op Name`, `OP Type`
    and `Task Duration(us)` are used. Rows without a duration, such as those of communication, are left out.

    Raises:
        InputError: it is not such a file.
    """
    rows = list(csv.DictReader(_text(path).splitlines(), skipinitialspace=True))
    columns = ("Op Name", "OP Type", "Task Duration(us)")
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise InputError(
            f"{os.fspath(path)}: not msprof's op_summary: it has no column {missing[0]!r} or no rows; take "
            "op_summary_*.csv from the folder mindstudio_profiler_output"
        )
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        try:
            microseconds = float(row[columns[2]])
        except (TypeError, ValueError):
            continue
        times[row[columns[0]], row[columns[1]]].append(microseconds)
    return _profile(os.fspath(path), "msprof", times, 0, NOT_MET)


def _profile(path: str, source: str, times: Mapping[tuple, list[float]], skip: int, label: str = "") -> Profile:
    if not times:
        raise InputError(f"{path}: there is no time of a node in it")
    # A name can stand for several nodes, so a node counts as often as it ran per run of the model.
    runs = max(statistics.multimode(len(values) for values in times.values()))
    nodes = []
    for (name, op), values in times.items():
        per_run = max(1, round(len(values) / runs))
        kept = values[skip * per_run :] or values
        nodes.append(Node(name, op, kind_of(name, op), per_run * statistics.median(kept)))
    return Profile(source, max(1, runs - skip), tuple(nodes), label)


_VALUES = re.compile(r"(min|max|mean|median|percentile\([\d.]+%\)) = ([-+\d.eE]+)")
_TIMES = re.compile(r"(H2D_latency|NPU_compute_time|D2H_latency) \(ms\): (.*)")
_THROUGHPUT = re.compile(
    r"throughput 1000\*batchsize\.mean\(([\d.]+)\)/NPU_compute_time\.mean\([\d.eE+-]+\): ([\d.eE+-]+)"
)


def of_ais_bench(path: str | os.PathLike) -> AisBench:
    """What `ais_bench --model FILE.om ...` printed, or the `*_summary.json` that it wrote.

    Raises:
        InputError: it is neither.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _ais_bench_json(os.fspath(path), text)
    times = {match[1]: {name: float(value) for name, value in _VALUES.findall(match[2])}
             for match in _TIMES.finditer(text)}  # fmt: skip
    throughput = _THROUGHPUT.search(text)
    if not times.get("NPU_compute_time") or throughput is None:
        raise InputError(f"{os.fspath(path)}: not the output of ais_bench: its Performance Summary is not there")
    return AisBench(float(throughput[1]), float(throughput[2]), times)


def _ais_bench_json(path: str, text: str) -> AisBench:
    try:
        found = json.loads(text)
        times = {
            what: {name: float(value) for name, value in found[what].items() if name != "count"}
            for what in ("H2D_latency", "NPU_compute_time", "D2H_latency")
            if what in found
        }
        throughput = float(found["throughput"])
        batch = throughput * times["NPU_compute_time"]["mean"] / 1e3
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a summary of ais_bench; it has no throughput and NPU_compute_time") from error
    return AisBench(round(batch, 3), throughput, times)


def read(path: str | os.PathLike) -> Profile | AisBench:
    """A file of any of the three tools, told apart by what is in it.

    Raises:
        InputError: it is none of theirs.
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
        f"{os.fspath(path)}: not a profile that is known; expected an .onnx model, onnxruntime's JSON, msprof's "
        "op_summary_*.csv, or what ais_bench printed"
    )


def _text(path: str | os.PathLike) -> str:
    try:
        with explained(path), open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{os.fspath(path)}: not a text file ({error.reason} at byte {error.start})") from error


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="neonext-bench profile",
        description="Time per layer kind and the ten slowest nodes: of an ONNX model, which is run in onnxruntime, or "
        "from a file of onnxruntime's profiler, msprof (op_summary_*.csv) or ais_bench.",
    )
    parser.add_argument("file", metavar="FILE", help="MODEL.onnx, or a profile")
    parser.add_argument("--batch", type=positive_int, default=1)
    parser.add_argument("--threads", type=positive_int, default=2)
    parser.add_argument("--rounds", type=positive_int, default=RUNS, help=f"runs of a model (default {RUNS})")
    parser.add_argument("--image-size", type=parse_size, help="for a model that leaves it open")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if Path(args.file).suffix.lower() == ".onnx":
        found = of_onnxruntime(args.file, args.batch, args.threads, args.rounds, args.image_size)
    else:
        found = read(args.file)
    if args.json:
        print_json(found.to_dict())
    else:
        _print(found.lines())


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """`neonext-bench profile FILE`; returns the exit code."""
    return run(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
