"""Comparison of a result with an earlier one, by ratios to a common anchor, since times differ between machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from neonext_ms.common.errors import InputError, nearest

from . import results
from .report import table
from .statistics import Ratio, ratio


@dataclass(frozen=True)
class Change:
    """Change of a model's ratio to an anchor, another model or a GEMM, from the earlier result to the later one."""

    label: str
    anchor: str
    batch: int
    before: Ratio
    after: Ratio

    @property
    def factor(self) -> float:
        """Return after over before; above 1 the model became slower."""
        return self.after.median_ratio / self.before.median_ratio

    @property
    def sure(self) -> bool:
        """Return whether both ratios are."""
        return self.before.sure and self.after.sure

    def to_dict(self) -> dict:
        """Return plain values for JSON."""
        ratios = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        return {**asdict(self), **ratios, "factor": self.factor, "sure": self.sure}


def compare(after: Mapping, before: Mapping, anchor: str | None = None) -> list[Change]:
    """Compare the ratios that two results have in common.

    `anchor` is the label that every model is compared with (default: the GEMM of the first model, so that this model is
    covered too; without a GEMM, the first model that both results have).

    Raises:
        InputError: the results have nothing to compare in common.
    """
    earlier, later = _samples(before), _samples(after)
    common = [key for key in later if key in earlier]
    if not common:
        raise InputError(
            f"the results have no model at the same batch in common: {_names(before)} against {_names(after)}"
        )
    changes = []
    for batch in dict.fromkeys(batch for _, batch in common):
        labels = [label for label, b in common if b == batch]
        reference = _anchor(labels, results.base(after), anchor)
        if reference is None:
            continue
        for label in labels:
            if label != reference and not label.startswith("GEMM of "):
                ratios = [ratio(side[label, batch], side[reference, batch]) for side in (earlier, later)]
                changes.append(Change(label, reference, batch, *ratios))
    if not changes:
        raise InputError(
            f"the results have only {', '.join(dict.fromkeys(label for label, _ in common))} in common"
            f"{f' and the anchor {anchor!r} is not in both' if anchor else ''}"
            f"{nearest(anchor, {label for label, _ in common}) if anchor else ''}. Measure with a second model, or "
            "with its GEMM (without --no-gemm)."
        )
    return changes


def _samples(result: Mapping) -> dict[tuple[str, int], list[float]]:
    return {(row["label"], group["batch"]): row["samples"] for group in result["batches"] for row in group["rows"]}


def _names(result: Mapping) -> str:
    return ", ".join(f"{label} at batch {batch}" for label, batch in _samples(result))


def _anchor(labels: list[str], base: str, asked: str | None) -> str | None:
    if asked is not None:
        return asked if asked in labels else None
    products = [label for label in labels if label.startswith("GEMM of ")]
    own = [label for label in products if label == f"GEMM of {base}"]
    return (own or products or ([base] if base in labels else []) or labels)[0]


def text(changes: list[Change], limit: float | None) -> str:
    """Return the changes as a table, with a line for each that exceeds `limit`."""
    body = [
        [
            change.label,
            str(change.batch),
            change.anchor,
            f"{change.before.median_ratio:.3f}",
            f"{change.after.median_ratio:.3f}",
            f"{change.factor:.3f}",
            "" if change.sure else "a run was too noisy to be sure",
        ]
        for change in changes
    ]
    lines = [table(["model", "batch", "relative to", "before", "after", "after / before", ""], body)]
    worst = max(abs(change.factor - 1) for change in changes)
    lines += ["", f"The ratios differ by at most {100 * worst:.1f} %."]
    if not all(change.sure for change in changes):
        lines.append("Where a run was too noisy to be sure, measure again on a quiet machine, or longer.")
    return "\n".join(lines + [f"moved: {line}" for line in failures(changes, limit)])


def failures(changes: list[Change], limit: float | None) -> list[str]:
    """Return one line for each change that exceeds `limit`."""
    return [
        f"{change.label} at batch {change.batch} takes {change.factor:.2f} times as long as before, relative to "
        f"{change.anchor} ({change.before.median_ratio:.3f} -> {change.after.median_ratio:.3f}; allowed is {limit:g})"
        + ("" if change.sure else " (a run was too noisy to be sure)")
        for change in changes
        if limit is not None and change.factor > limit
    ]
