"""A result held against an earlier one: ratios to a common anchor, never times of one machine against another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neonext_ms.common.errors import InputError, nearest

from . import results
from .report import table
from .statistics import Ratio, ratio


@dataclass(frozen=True)
class Move:
    """How a ratio to the anchor moved.

    Attributes:
        label: the model.
        anchor: what it is held against.
        batch: images per call.
        before, after: its ratio in the earlier and in the later result.
    """

    label: str
    anchor: str
    batch: int
    before: Ratio
    after: Ratio

    @property
    def factor(self) -> float:
        """After over before; above 1: it became slower."""
        return self.after.median_ratio / self.before.median_ratio

    @property
    def sure(self) -> bool:
        """Whether both ratios are."""
        return self.before.sure and self.after.sure

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "label": self.label,
            "anchor": self.anchor,
            "batch": self.batch,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "factor": self.factor,
            "sure": self.sure,
        }


def compare(after: Mapping, before: Mapping, anchor: str | None = None) -> list[Move]:
    """The ratios that both results have.

    Args:
        after: the later result.
        before: the earlier one.
        anchor: label of what every model is held against; by default the GEMM of the first model, because then that
            model itself is watched too; without one the first model that both have.

    Raises:
        InputError: the results have nothing to compare in common.
    """
    one, other = _samples(before), _samples(after)
    common = [key for key in other if key in one]
    if not common:
        raise InputError(
            f"the results have no model at the same batch in common: {_names(before)} against {_names(after)}"
        )
    moves = []
    for batch in dict.fromkeys(batch for _, batch in common):
        labels = [label for label, b in common if b == batch]
        held = _anchor(labels, results.base(after), anchor)
        if held is None:
            continue
        for label in labels:
            if label != held and not label.startswith("GEMM of "):
                ratios = [ratio(side[label, batch], side[held, batch]) for side in (one, other)]
                moves.append(Move(label, held, batch, *ratios))
    if not moves:
        raise InputError(
            f"the results have only {', '.join(dict.fromkeys(label for label, _ in common))} in common"
            f"{f' and {anchor!r} to hold it against is not in both' if anchor else ''}"
            f"{nearest(anchor, {label for label, _ in common}) if anchor else ''}; measure with a second model, or "
            "with its GEMM (without --no-gemm)"
        )
    return moves


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


def text(moves: list[Move], limit: float | None) -> str:
    """The moves as a table, with a line for each that is beyond `limit`."""
    body = [
        [
            move.label,
            str(move.batch),
            move.anchor,
            f"{move.before.median_ratio:.3f}",
            f"{move.after.median_ratio:.3f}",
            f"{move.factor:.3f}",
            "" if move.sure else "a run was too noisy to be sure",
        ]
        for move in moves
    ]
    found = table(["model", "batch", "held against", "before", "after", "after / before", ""], body)
    worst = max(abs(move.factor - 1) for move in moves)
    lines = [found, "", f"The ratios differ by at most {100 * worst:.1f} %."]
    if not all(move.sure for move in moves):
        lines.append("Where a run was too noisy to be sure, measure again on a quiet machine, or longer.")
    return "\n".join(lines + [f"moved: {line}" for line in failures(moves, limit)])


def failures(moves: list[Move], limit: float | None) -> list[str]:
    """One line for each move beyond `limit`."""
    return [
        f"{move.label} at batch {move.batch} takes {move.factor:.2f} times as long as before, held against "
        f"{move.anchor} ({move.before.median_ratio:.3f} -> {move.after.median_ratio:.3f}); allowed is {limit:g}"
        + ("" if move.sure else " (a run was too noisy to be sure)")
        for move in moves
        if limit is not None and move.factor > limit
    ]
