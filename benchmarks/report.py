"""A result as Markdown: tables, what is faster than what, and what the machine did not allow to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from neonext_ms.common.external_tools import quoted

from . import results
from .results import Entry
from .statistics import ALLOWED_HALVES, ALLOWED_INTERVAL, FEWEST_ROUNDS, TOLERANCE, Ratio, ratio

MILLI = 1e3


def markdown(result: Mapping, pictures: Sequence[str] = (), title: str | None = None) -> str:
    """The whole report of a result.

    Args:
        result: as `results.read` gives it.
        pictures: names of image files beside the report.
        title: a heading, or None for a report without.
    """
    rows = results.entries(result)
    parts = [f"# {title}"] if title else []
    parts += [_circumstances(result)]
    if result["partial"]:
        parts.append("**Partial: the run was interrupted; what is here was measured before that.**")
    for group in result["batches"]:
        own = [row for row in rows if row.batch == group["batch"]]
        parts += [_heading(group), _latency(own, results.base(result)), _verdict(own, group)]
    parts += [_offline(rows), _beside(result, rows), _subjects(result)]
    parts += [_profile(profile) for profile in result.get("profiles", ())]
    if result["notes"]:
        parts.append("\n".join(f"- {note}" for note in result["notes"]))
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    lines = [list(head), *map(list, body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _circumstances(result: Mapping) -> str:
    machine, settings, versions = result["machine"], result["settings"], result["versions"]
    commit = result.get("git") or {}
    changed = ", with changes on top" if commit.get("changed") else ""
    numbers = [f"{key} {machine[key]}" for key in ("cpu_family", "model", "stepping") if machine.get(key) is not None]
    cpu = machine.get("cpu") or "CPU of unknown name"
    features = ", ".join(flag for flag in machine.get("flags", ()) if flag in _TOLD) or "none that matter here"
    virtual = ", a virtual machine" if machine.get("hypervisor") else ""
    lines = [
        f"Measured on: {cpu} ({', '.join(numbers)}){virtual}, {machine.get('processors')} cores, "
        f"{(machine.get('memory_bytes') or 0) / 2**30:.0f} GiB, {machine.get('system')}; instruction sets: {features}.",
        f"Threads: {settings['threads']}, bound to cores {', '.join(map(str, settings['cores'])) or 'of any number'}; "
        f"governor: {machine.get('governor') or 'not told'}; load before: {(machine.get('load') or [0])[0]:.1f}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"commit {(commit.get('commit') or 'unknown')[:12]}{changed}; {result.get('started')}.",
        f"Command: `{quoted(result['command'])}`",
    ]
    return "  \n".join(lines)


_TOLD = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve", "i8mm")


def _heading(group: Mapping) -> str:
    batch = group["batch"]
    name = "SingleStream (batch 1)" if batch == 1 else f"Batch {batch}"
    return f"## {name}: {group['rounds']} rounds after {group['warm_up_rounds']} of warm-up"


def _latency(rows: Sequence[Entry], base: str) -> str:
    head = ["ms per call", "mean", "min", "p50", "p90", "p99", f"/ {base}", "of GEMM rate", "spread", "drift"]
    body = []
    for row in rows:
        latency = row.latency
        times = (latency.mean, latency.min, latency.p50, latency.p90, latency.p99)
        body.append(
            [
                f"{row.label}{' (not stable)' if not row.stable else ''}",
                *(f"{MILLI * seconds:.4g}" for seconds in times),
                _interval(row.ratio) if row.ratio else ("1" if row.label == base else "-"),
                _share(row.share),
                f"{100 * latency.spread:.1f} %",
                f"{100 * latency.drift:+.1f} %",
            ]
        )
    return table(head, body)


def _share(found: Ratio | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found.median_ratio:.0f} %{'' if found.sure else ', unsure'}"


def _interval(found: Ratio) -> str:
    text = f"{found.median_ratio:.3f} ({found.low:.3f} to {found.high:.3f})"
    return text if found.sure else f"{text}, unsure"


def _verdict(rows: Sequence[Entry], group: Mapping) -> str:
    """The models from fast to slow, as far as the run allows to say so."""
    samples = {row["label"]: row["samples"] for row in group["rows"]}
    models = sorted((row for row in rows if not row.is_gemm), key=lambda row: row.latency.p50)
    if len(models) < 2:
        return _noise(rows)
    told, unsure = [models[0].label], []
    for fast, slow in pairwise(models):
        found = ratio(samples[slow.label], samples[fast.label])
        told.append(f"{'<' if found.order > 0 else '~' if found.sure else '?'} {slow.label}")
        if not found.sure:
            unsure.append(f"{slow.label} / {fast.label} = {_interval(found)}")
    order = " ".join(told)
    if unsure:
        return (
            f"Too noisy to rank all: {order}, but unsure is {'; '.join(unsure)}. Unsure: fewer than {FEWEST_ROUNDS} "
            f"rounds, an interval wider than {100 * ALLOWED_INTERVAL:.1f} %, or halves of the run that differ by more "
            f"than {100 * ALLOWED_HALVES:.1f} %, so that another run may differ by more than {100 * TOLERANCE:.0f} %. "
            f"Measure again on a quiet machine, or longer (--rounds, --seconds). {_noise(rows)}".strip()
        )
    return f"By median time, `~` for level (closer than {100 * TOLERANCE:.0f} %): {order}. {_noise(rows)}".strip()


def _noise(rows: Sequence[Entry]) -> str:
    noisy = [row.label for row in rows if row.noisy]
    return f"Noisy (spread or drift above 10 %, or not settled in warm-up): {', '.join(noisy)}." if noisy else ""


def _offline(rows: Sequence[Entry]) -> str:
    models = [row for row in rows if not row.is_gemm]
    batches = sorted({row.batch for row in models})
    speed = {(row.label, row.batch): row.images_per_second for row in models}
    body = [
        [label, *(f"{speed[label, b]:.4g}" if (label, b) in speed else "-" for b in batches)]
        for label in dict.fromkeys(row.label for row in models)
    ]
    return "## Offline: images per second\n\n" + table(["model", *(f"batch {b}" for b in batches)], body)


def _beside(result: Mapping, rows: Sequence[Entry]) -> str:
    """What is not execution: copies and preprocessing."""
    lines = []
    for found in result["preprocessing"]:
        values = sorted(found["samples"])
        height, width = found["image_size"]
        photo = "x".join(map(str, found["photo"]))
        lines.append(
            f"- Preprocessing of a {photo} JPEG to {height}x{width}, one thread: "
            f"{MILLI * values[len(values) // 2]:.3g} ms per image, not in the times above."
        )
    slow = [row for row in rows if not row.is_gemm and sum(row.copies.values()) > 0.01 * row.latency.mean]
    for row in slow:
        steps = ", ".join(f"{name} {MILLI * seconds:.3g} ms" for name, seconds in row.copies.items())
        lines.append(f"- {row.label}, batch {row.batch}: {steps}, not in the times above.")
    if not slow:
        lines.append("- Copies of inputs and outputs take less than 1 % everywhere; they are not in the times above.")
    return "\n".join(lines)


def _subjects(result: Mapping) -> str:
    work = {
        row["label"]: (row["multiply_adds"] / g["batch"], row["gemm_multiply_adds"] / g["batch"])
        for g in result["batches"]
        for row in g["rows"]
        if row.get("multiply_adds")
    }
    body = []
    for subject in result["subjects"]:
        total, products = work.get(subject["label"], (None, None))
        same = subject.get("relative_l2")
        body.append(
            [
                subject["label"],
                subject["form"],
                ", ".join([subject["runtime"], *subject["notes"]]),
                "x".join(map(str, subject["image_size"])),
                subject["input"]["dtype"],
                f"{total / 1e9:.3f}" if total else "-",
                f"{products / 1e9:.3f}" if products else "-",
                f"{same:.1e}" if same is not None else "-",
            ]
        )
    head = ["model", "form", "runtime", "images", "input", "10^9 multiply-adds", "in GEMMs", "relative L2"]
    return "## Models\n\n" + table(head, body)


def _profile(profile: Mapping) -> str:
    total = profile["microseconds"] or 1.0

    def line(name: str, microseconds: float) -> list[str]:
        return [name, f"{microseconds / 1e3:.4g}", f"{100 * microseconds / total:.1f} %"]

    kinds = [line(kind, microseconds) for kind, microseconds in profile["kinds"].items()]
    slowest = [line(f"{node['name']} ({node['op']})", node["microseconds"]) for node in profile["slowest"]]
    title = f"## Profile: {profile['model']}, batch {profile['batch']}, median of {profile['runs']} runs"
    return "\n\n".join(
        [title, table(["layer kind", "ms", "share"], kinds), table(["slowest nodes", "ms", "share"], slowest)]
    )
