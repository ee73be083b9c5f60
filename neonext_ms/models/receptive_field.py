"""The receptive field of every stage: the pixels that can change an output, exactly, from the geometry alone.

A position of a map depends on a set of positions of the map before it. A NeoCell reads, in every channel, the block
that the position lies in; blocks of different sizes and shifts overlap, and the linear layers of a block mix all
channels. So a set spreads to the union, over the kinds of channels, of all blocks that it touches. Everything else in
the network works on single positions, except for the stem and the halving between stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from neonext_ms.common.cli import progress
from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size
from neonext_ms.ops.spec import Axis, NeoCellSpec

from .architecture import STAGES, STEM_STRIDE, Architecture

# Outputs that are followed at a time, to bound the memory.
_CHUNK = 512
# Patches of the stem. Time grows with their square: this many, of an image of 512x512, take minutes.
_MOST_PATCHES = 128**2


def receptive_fields(architecture: Architecture, image_size: tuple[int, int], stage: int) -> np.ndarray:
    """Return the patches of the stem that each output of a stage depends on.

    Args:
        architecture: the network; unknown shifts count as 0.
        image_size: height and width in pixels.
        stage: 0 to 3.

    Returns:
        bool `(rows, columns, H / 4, W / 4)`: for every position of the stage's map, the patches of 4x4 pixels.

    Raises:
        InputError: see `Architecture.maps`; or the image is too large to follow every output.
    """
    maps = architecture.maps(image_size)
    if math.prod(maps[0]) > _MOST_PATCHES:
        side = STEM_STRIDE * math.isqrt(_MOST_PATCHES)
        raise InputError(
            f"image size {format_size(image_size)}: too large for receptive fields, at most {side}x{side}. Those of "
            "smaller images are the same but for the edges."
        )
    layers = list(reversed(list(_layers(architecture, maps, stage))))
    height, width = maps[stage]
    count = height * width
    fields = []
    for start in progress(range(0, count, _CHUNK), what=f"receptive field, stage {stage + 1}"):
        outputs = np.eye(min(_CHUNK, count - start), count, start, dtype=np.float32).reshape(-1, height, width)
        fields.append(_spread(outputs, layers))
    return np.concatenate(fields).reshape(height, width, *maps[0])


def _layers(architecture: Architecture, maps: Sequence[tuple[int, int]], last: int) -> Iterator[list[tuple]]:
    """Yield, for every NeoCell up to the end of stage `last`, its pairs of patterns (`_patterns`)."""
    for stage in range(last + 1):
        if stage:
            yield _patterns(architecture.downsample_spec(stage - 1), maps[stage - 1], maps[stage])
        # A NeoCell that keeps the size also keeps the position itself, as the residual connection does.
        block = _patterns(architecture.stage_spec(stage), maps[stage], maps[stage])
        for _ in range(architecture.per_stage_layers[stage]):
            yield block


def _patterns(spec: NeoCellSpec, size_in: tuple[int, int], size_out: tuple[int, int]) -> list[tuple]:
    """Return, for each kind of channel, which outputs read which inputs: rows `(out, in)` and columns `(out, in)`."""
    kinds = {}
    for group in spec.groups:
        axes = group.axis_a, group.axis_b
        rows, columns = (_pattern(axis, *sizes) for axis, *sizes in zip(axes, size_in, size_out, strict=True))
        for shifts in zip(*(axis.shifts.tolist() for axis in axes), strict=True):
            kinds[axes, shifts] = rows[shifts[0]], columns[shifts[1]]
    return list(kinds.values())


def _pattern(axis: Axis, size_in: int, size_out: int) -> dict[int, np.ndarray]:
    """Return float32 `(size_out, size_in)` with ones inside the blocks, by shift."""
    patterns = {}
    for shift, tiles in axis.tiles(size_in, size_out).items():
        patterns[shift] = np.zeros((size_out, size_in), np.float32)
        for first_in, inputs, _, first_out, outputs, _ in tiles.tolist():
            patterns[shift][first_out : first_out + outputs, first_in : first_in + inputs] = 1
    return patterns


def _spread(outputs: np.ndarray, layers: Sequence[Sequence[tuple]]) -> np.ndarray:
    """Follow sets of positions, float32 `(sets, rows, columns)` of 0 and 1, back through the layers."""
    for kinds in layers:
        reached = [(rows.T @ outputs @ columns) > 0 for rows, columns in kinds]
        outputs = np.logical_or.reduce(reached).astype(np.float32)
    return outputs > 0


def describe_fields(architecture: Architecture, image_size: tuple[int, int]) -> list[dict]:
    """Return, per stage, the sizes of the receptive fields over all outputs.

    Returns:
        `stage` (1 to 4), `map`, and `smallest`, `median` and `largest` of the `pixels` in the field, of the `height`
        and `width` of its bounding box in pixels, as well as the `share` of the image in the median field.
    """
    rows = []
    for stage in range(STAGES):
        fields = receptive_fields(architecture, image_size, stage)
        flat = fields.reshape(-1, *fields.shape[2:])
        measures = {
            "pixels": STEM_STRIDE**2 * flat.sum((1, 2)),
            "height": STEM_STRIDE * _extent(flat.any(2)),
            "width": STEM_STRIDE * _extent(flat.any(1)),
        }
        row: dict = {"stage": stage + 1, "map": list(fields.shape[:2])}
        for name, values in measures.items():
            low, middle, high = np.sort(values)[[0, len(values) // 2, -1]].tolist()
            row[name] = {"smallest": low, "median": middle, "largest": high}
        row["share"] = row["pixels"]["median"] / (image_size[0] * image_size[1])
        rows.append(row)
    return rows


def _extent(touched: np.ndarray) -> np.ndarray:
    """Return the distance from the first to the last True of each row, bool `(sets, length)`, both included."""
    length = touched.shape[1]
    return length - touched[:, ::-1].argmax(1) - touched.argmax(1)
