"""A result as Markdown: tables, the order of the models as far as the run allows to tell, noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from neonext_ms.common.external_tools import quoted
from neonext_ms.common.text import format_size, printable

from . import results
from .results import Entry
from .statistics import ALLOWED_HALVES, ALLOWED_INTERVAL, FEWEST_ROUNDS, TOLERANCE, Ratio, ratio

MILLI = 1e3


def markdown(result: Mapping, pictures: Sequence[str] = (), title: str | None = None) -> str:
    """Return the report of a result.

    Args:
        result: result as `results.read` returns it.
        pictures: names of image files beside the report.
        title: heading of the report, or None for none.
    """
    rows = results.entries(result)
    parts = [f"# {title}"] if title else []
    parts += [_environment(result)]
    if result["partial"]:
        parts.append("**Partial: the run was interrupted, and the figures were measured before that.**")
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
    """Return a Markdown table whose columns are aligned in a terminal too."""
    lines = [list(head), *([printable(cell) for cell in row] for row in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _environment(result: Mapping) -> str:
    machine, settings, versions = result["machine"], result["settings"], result["versions"]
    commit = result.get("git") or {}
    changed = ", with uncommitted changes" if commit.get("changed") else ""
    numbers = [f"{key} {machine[key]}" for key in ("cpu_family", "model", "stepping") if machine.get(key) is not None]
    cpu = machine.get("cpu") or "unknown CPU"
    features = ", ".join(flag for flag in machine.get("flags", ()) if flag in _FEATURES) or "none of interest"
    virtual = ", a virtual machine" if machine.get("hypervisor") else ""
    lines = [
        f"Measured on: {cpu} ({', '.join(numbers)}){virtual}, {machine.get('processors')} cores, "
        f"{(machine.get('memory_bytes') or 0) / 2**30:.0f} GiB, {machine.get('system')}; instruction sets: {features}.",
        f"Threads: {settings['threads']}, bound to cores {', '.join(map(str, settings['cores'])) or '(all)'}; "
        f"governor: {machine.get('governor') or 'unknown'}; load before: {(machine.get('load') or [0])[0]:.1f}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"commit {(commit.get('commit') or 'unknown')[:12]}{changed}; {result.get('started')}.",
        f"Command: `{quoted(result['command'])}`",
    ]
    return "  \n".join(lines)


_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve",
             "i8mm")  # fmt: skip


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
                _share(row.gemm_share),
                f"{100 * latency.spread:.1f} %",
                f"{100 * latency.drift:+.1f} %",
            ]
        )
    return table(head, body)


def _share(share: Ratio | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share.median_ratio:.0f} %{'' if share.sure else ', unsure'}"


def _interval(value: Ratio) -> str:
    text = f"{value.median_ratio:.3f} ({value.low:.3f} to {value.high:.3f})"
    return text if value.sure else f"{text}, unsure"


def _verdict(rows: Sequence[Entry], group: Mapping) -> str:
    """Return the models from fast to slow, as far as the run allows to rank them."""
    samples = {row["label"]: row["samples"] for row in group["rows"]}
    models = sorted((row for row in rows if not row.is_gemm), key=lambda row: row.latency.p50)
    if len(models) < 2:
        return _noise(rows)
    ranked, unsure = [models[0].label], []
    for fast, slow in pairwise(models):
        step = ratio(samples[slow.label], samples[fast.label])
        ranked.append(f"{'<' if step.order > 0 else '~' if step.sure else '?'} {slow.label}")
        if not step.sure:
            unsure.append(f"{slow.label} / {fast.label} = {_interval(step)}")
    order = " ".join(ranked)
    if unsure:
        return (
            f"Too noisy to rank all: {order}, but unsure is {'; '.join(unsure)}. A ratio is unsure after fewer than "
            f"{FEWEST_ROUNDS} rounds, with an interval wider than {100 * ALLOWED_INTERVAL:.1f} %, or if the halves of "
            f"the run differ by more than {100 * ALLOWED_HALVES:.1f} %; another run may then differ by more than "
            f"{100 * TOLERANCE:.0f} %. Measure again on a quiet machine, or longer (--rounds, --seconds). "
            f"{_noise(rows)}".strip()
        )
    return f"By median time; `~` means level (closer than {100 * TOLERANCE:.0f} %): {order}. {_noise(rows)}".strip()


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
    """Return the times besides execution: copies and preprocessing."""
    lines = []
    for row in result["preprocessing"]:
        values = sorted(row["samples"])
        lines.append(
            f"- Preprocessing of a {format_size(row['photo'])} JPEG to {format_size(row['image_size'])}, one thread: "
            f"{MILLI * values[len(values) // 2]:.3g} ms per image, not included above."
        )
    slow = [row for row in rows if not row.is_gemm and sum(row.copies.values()) > 0.01 * row.latency.mean]
    for entry in slow:
        steps = ", ".join(f"{name} {MILLI * seconds:.3g} ms" for name, seconds in entry.copies.items())
        lines.append(f"- {entry.label}, batch {entry.batch}: {steps}, not included above.")
    if not slow:
        lines.append("- Copies of inputs and outputs take less than 1 % everywhere; they are not included above.")
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
        deviation = subject.get("relative_l2")
        body.append(
            [
                subject["label"],
                subject["form"],
                ", ".join([subject["runtime"], *subject["notes"]]),
                format_size(subject["image_size"]),
                subject["input"]["dtype"],
                f"{total / 1e9:.3f}" if total else "-",
                f"{products / 1e9:.3f}" if products else "-",
                f"{deviation:.1e}" if deviation is not None else "-",
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
