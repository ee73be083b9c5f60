"""Fig. 2 to 4 of the paper: patches, up- and down-sampling, and shifts, drawn from the geometry of any NeoCell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from neonext_ms.common.errors import UsageError, usage_errors
from neonext_ms.common.text import format_size, shorten
from neonext_ms.ops.spec import NeoCellGroup, NeoCellSpec

# Figure of the paper -> the NeoCells that it shows, in the keys of `NeoCellGroup.from_dict`, and the side of the map.
FIGURES: dict[str, tuple[tuple[str, ...], int]] = {
    "2": (("kernel=4",), 8),
    "3": (
        (
            "h_in=2,h_out=1,w_in=2,w_out=1",
            "h_in=1,h_out=2,w_in=1,w_out=2",
            "h_in=3,h_out=2,w_in=3,w_out=2",
            "h_in=2,h_out=3,w_in=2,w_out=3",
        ),
        6,
    ),
    "4": (("kernel=4,shift=1",), 8),
}
_MOST_ROWS = 12
_LARGEST_MAP = 64
_NUMBER = re.compile("[0-9]{1,6}")


def parse_spec(text: str) -> NeoCellGroup:
    """Return the channels of a text such as `kernel=4,shift=1`: one channel for each shift, if not told otherwise.

    Raises:
        UsageError: the text is not of this form, or is no NeoCell.
    """
    values: dict[str, int] = {}
    for part in text.split(","):
        key, sign, number = part.partition("=")
        if not sign or not _NUMBER.fullmatch(number.strip()):
            raise UsageError(f"--spec: not a NeoCell (got {shorten(text)}, expected such as kernel=4,shift=1)")
        if key.strip() in values:
            raise UsageError(f"--spec: the key {shorten(key.strip())} is given twice")
        values[key.strip()] = int(number)
    with usage_errors():
        if "channels" not in values:
            group = NeoCellGroup.from_dict({**values, "channels": 1})
            counts = [(axis.k_out - 1) // axis.shift + 1 if axis.shift else 1 for axis in (group.axis_a, group.axis_b)]
            values["channels"] = max(counts)
        return NeoCellGroup.from_dict(values)


def draw(plt, args):
    """Draw, for every kind of channel, A, the map X, B and the output Y, with one colour for each block."""
    specs, side = FIGURES[args.figure]
    groups = [parse_spec(text) for text in args.spec or specs]
    size = args.map or (side, side)
    if max(size) > _LARGEST_MAP:
        raise UsageError(f"--map: too large to draw (got {format_size(size)}, at most {_LARGEST_MAP})")
    rows = [row for group in groups for row in _rows(group, size)]
    if len(rows) > _MOST_ROWS:
        raise UsageError(f"--spec: too many kinds of channels to draw (got {len(rows)}, at most {_MOST_ROWS})")
    figure, axes = plt.subplots(len(rows), 4, figsize=(9.5, 0.4 + 2.3 * len(rows)), layout="constrained", squeeze=False)
    for panels, row in zip(axes, rows, strict=True):
        for panel, name in zip(panels, "AXBY", strict=True):
            _draw_blocks(panel, row[name], row["titles"][name])
    facts = [{key: row[key] for key in ("spec", "shifts", "output")} for row in rows]
    return figure, {"map": list(size), "channels": facts}


def _rows(group: NeoCellGroup, size: tuple[int, int]) -> list[dict]:
    """Return what to draw for each pair of shifts of a group: block numbers of A, X, B and Y, -1 for none."""
    with usage_errors():
        height, width = NeoCellSpec(group).output_size(*size)
    if max(height, width) > _LARGEST_MAP:
        raise UsageError(
            f"--spec: the output is too large to draw (got {format_size((height, width))}, at most {_LARGEST_MAP})"
        )
    rows = []
    pairs = zip(group.axis_a.shifts.tolist(), group.axis_b.shifts.tolist(), strict=True)
    for shift_a, shift_b in dict.fromkeys(pairs):
        tiles = [
            axis.tiles(inputs, outputs)[shift]
            for axis, shift, inputs, outputs in (
                (group.axis_a, shift_a, size[0], height), (group.axis_b, shift_b, size[1], width),
            )
        ]  # fmt: skip
        a, b = _matrix(tiles[0], height, size[0]), _matrix(tiles[1], width, size[1]).T
        shifted = f", shift {shift_a}" * bool(group.shift_a or group.shift_b)
        rows.append(
            {
                "spec": {key: getattr(group, key) for key in ("h_in", "h_out", "w_in", "w_out", "shift_a", "shift_b")},
                "shifts": [shift_a, shift_b],
                "output": [height, width],
                "A": a,
                "B": b,
                "X": _patches(tiles, size, 0),
                "Y": _patches(tiles, (height, width), 3),
                "titles": {
                    "A": f"A {height}x{size[0]}: blocks {group.h_out}x{group.h_in}{shifted}",
                    "X": f"X {size[0]}x{size[1]}",
                    "B": f"B {size[1]}x{width}: blocks {group.w_in}x{group.w_out}",
                    "Y": f"Y = A X B {height}x{width}",
                },
            }
        )
    return rows


def _matrix(tiles: np.ndarray, outputs: int, inputs: int) -> np.ndarray:
    """Return the number of the block at each element of a full matrix, `(outputs, inputs)`, -1 outside."""
    numbers = np.full((outputs, inputs), -1)
    for number, (first_in, count_in, _, first_out, count_out, _) in enumerate(tiles.tolist()):
        numbers[first_out : first_out + count_out, first_in : first_in + count_in] = number
    return numbers


def _patches(tiles: Sequence[np.ndarray], size: tuple[int, int], first: int) -> np.ndarray:
    """Return the number of the patch at each position of the map (`first` 0: inputs, 3: outputs), -1 for none."""
    numbers = np.full(size, -1)
    for i, row in enumerate(tiles[0].tolist()):
        for j, column in enumerate(tiles[1].tolist()):
            (top, height), (left, width) = row[first : first + 2], column[first : first + 2]
            numbers[top : top + height, left : left + width] = i * len(tiles[1]) + j
    return numbers


def _draw_blocks(panel, numbers: np.ndarray, title: str) -> None:
    """Fill each block with its colour; elements outside of all blocks stay white."""
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([f"C{i}" for i in range(10)])
    shown = np.ma.masked_where(numbers < 0, numbers % 10)
    height, width = numbers.shape
    panel.imshow(shown, cmap=colours, vmin=-0.5, vmax=9.5, alpha=0.55, extent=(0, width, height, 0))
    # Not the grid of ticks: the layout measures every tick, which takes a minute for many.
    panel.vlines(range(width + 1), 0, height, color="0.6", linewidth=0.5)
    panel.hlines(range(height + 1), 0, width, color="0.6", linewidth=0.5)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_title(title, fontsize=8)


def describe(facts: Mapping) -> list[str]:
    """Return the facts of `draw` as lines."""
    return [
        f"{row['spec']['h_out']}x{row['spec']['h_in']}, shifts {row['shifts'][0]} and {row['shifts'][1]}: "
        f"{format_size(facts['map'])} to {format_size(row['output'])}"
        for row in facts["channels"]
    ]
