"""NeoCell coefficients as the AscendC kernel reads them: rows of 16 channels, one row for each tap of each phase.

A block-diagonal product is a periodic filter: output `o = m * k_out + p` of channel `c` reads the inputs
`m * k_in + t` for the taps `t` of phase `p`, with the same weights for every period `m`:

    y[c, m * k_out + p] = sum over t of coef[p, t, c] * x[c, m * k_in + t]

where inputs outside the map count as zero. Channels with different shifts read different taps, so 16 channels that
share a vector instruction read the union of theirs, with zeros where a channel has none. The rows of a side are, in
this order: each block of 16 channels; in it each segment (neighbouring channels whose matrices have the same size);
in it each phase; in it each tap of the union, ascending. Lanes of another segment, and channels beyond the last one,
are zero. A and B are packed alike: A over the rows of the map, B over its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from neonext_ms.common.errors import InputError

from .spec import Axis, NeoCellSpec, first_input

LANES = 16
# The operator's attributes in its order: one number for each run of channels that share matrix sizes and shifts.
RUN_ATTRIBUTES = ("channels", "h_in", "h_out", "w_in", "w_out", "shift_a", "shift_b")


@dataclass(frozen=True)
class Plan:
    """Where each coefficient of a NeoCell comes from, and what the operator has to be told.

    Attributes:
        index_a, index_b: int32 `(V, 16)`: which element of all groups' small matrices, flattened and put one after
            the other, each coefficient is; the number after the last one stands for zero. Every element appears
            exactly once.
        attributes: the operator's attributes but for `output_size`, a list of whole numbers each (`RUN_ATTRIBUTES`).
    """

    index_a: np.ndarray
    index_b: np.ndarray
    attributes: Mapping[str, list[int]]


@dataclass(frozen=True)
class _Segment:
    """Rows of coefficients for neighbouring channels of one block whose matrices have the same size."""

    k_in: int
    k_out: int
    channels: np.ndarray  # which of the NeoCell's
    first: np.ndarray  # (channels, k_out): first tap of each channel in each phase
    start: np.ndarray  # (k_out): first tap of the union
    stop: np.ndarray  # (k_out): behind its last tap

    @property
    def rows(self) -> int:
        return int((self.stop - self.start).sum())


def _segments(sizes: Sequence[tuple[int, int]], first: Sequence[np.ndarray]) -> Iterator[_Segment]:
    """The segments of a side, in order, from `(k_in, k_out)` and first taps of every channel."""
    for block in range(0, len(sizes), LANES):
        lanes = range(block, min(block + LANES, len(sizes)))
        for (k_in, k_out), members in groupby(lanes, key=sizes.__getitem__):
            channels = np.array(list(members))
            taps = np.stack([first[c] for c in channels])
            yield _Segment(k_in, k_out, channels, taps, taps.min(0), taps.max(0) + k_in)


def _side(axes: Sequence[Axis]) -> Iterator[_Segment]:
    sizes, first = [], []
    for axis in axes:
        sizes += [(axis.k_in, axis.k_out)] * axis.channels
        first += list(axis.first_input(np.arange(axis.k_out)))
    return _segments(sizes, first)


def _turned(axis: Axis) -> Axis:
    return Axis(axis.k_out, axis.k_in, axis.shift, axis.channels)


@lru_cache(maxsize=128)
def plan(spec: NeoCellSpec, transposed: bool = False) -> Plan:
    """How the operator's coefficients are taken from the learned matrices.

    Args:
        spec: the geometry, any sizes.
        transposed: with all matrices transposed, as the gradient of the input needs them.
    """
    sides = []
    for side, output_axis in (("a", 0), ("b", 1)):
        axes = [getattr(group, f"axis_{side}") for group in spec.groups]
        shapes = [getattr(group, f"shape_{side}") for group in spec.groups]
        sides.append(
            _index([_turned(a) for a in axes] if transposed else axes, shapes, output_axis ^ int(bool(transposed)))
        )
    return Plan(*sides, _attributes(spec, transposed))


def _index(axes: Sequence[Axis], shapes: Sequence[tuple[int, int, int]], output_axis: int) -> np.ndarray:
    base, start = [], 0
    row_step, tap_step = [], []
    for channels, height, width in shapes:
        base += [start + c * height * width for c in range(channels)]
        start += channels * height * width
        row_step += [width if output_axis == 0 else 1] * channels
        tap_step += [1 if output_axis == 0 else width] * channels
    shifts = np.concatenate([axis.shifts for axis in axes])
    parts = []
    for segment in _side(axes):
        rows = np.full((segment.rows, LANES), start, np.int32)
        at = 0
        for phase in range(segment.k_out):
            for lane_channel, first in zip(segment.channels, segment.first[:, phase], strict=True):
                row = (phase - shifts[lane_channel]) % segment.k_out
                begin = at + first - segment.start[phase]
                origin = base[lane_channel] + row * row_step[lane_channel]
                rows[begin : begin + segment.k_in, lane_channel % LANES] = (
                    origin + np.arange(segment.k_in) * tap_step[lane_channel]
                )
            at += segment.stop[phase] - segment.start[phase]
        parts.append(rows)
    return np.concatenate(parts)


def _attributes(spec: NeoCellSpec, transposed: bool) -> dict[str, list[int]]:
    each = []
    for group in spec.groups:
        a, b = group.axis_a, group.axis_b
        if transposed:
            a, b = _turned(a), _turned(b)
        each += [(a.k_in, a.k_out, b.k_in, b.k_out, int(s), int(t)) for s, t in zip(a.shifts, b.shifts, strict=True)]
    runs = [(len(list(members)), *key) for key, members in groupby(each)]
    return {name: list(column) for name, column in zip(RUN_ATTRIBUTES, zip(*runs, strict=True), strict=True)}


def pack(
    spec: NeoCellSpec, weights_a: Sequence[np.ndarray], weights_b: Sequence[np.ndarray], transposed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Learned matrices as coefficients.

    Args:
        spec: the geometry.
        weights_a: learned A, one `(channels, h_out, h_in)` per group.
        weights_b: learned B, one `(channels, w_in, w_out)` per group.
        transposed: see `plan`.

    Returns:
        `coef_a` `(V_a, 16)` and `coef_b` `(V_b, 16)`, in the dtype of the matrices.

    Raises:
        InputError: the weights are not of this spec.
    """
    spec.check_shapes([w.shape for w in weights_a], [w.shape for w in weights_b])
    made = plan(spec, transposed)
    return tuple(
        np.concatenate([*(w.ravel() for w in weights), np.zeros(1, weights[0].dtype)])[index]
        for weights, index in ((weights_a, made.index_a), (weights_b, made.index_b))
    )


def unpack_gradients(
    spec: NeoCellSpec, grad_a: np.ndarray, grad_b: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Gradients of the learned matrices from those of the coefficients: the transpose of `pack`.

    Args:
        spec: the geometry.
        grad_a: `(V_a, 16)`; `grad_b`: `(V_b, 16)`. What stands where the coefficients are zero is left out.
    """
    made = plan(spec)
    results = []
    for index, grad, shapes in ((made.index_a, grad_a, spec.shapes_a), (made.index_b, grad_b, spec.shapes_b)):
        sizes = [int(np.prod(shape)) for shape in shapes]
        flat = np.zeros(sum(sizes) + 1, grad.dtype)
        flat[index.ravel()] = grad.ravel()
        pieces = np.split(flat[:-1], np.cumsum(sizes)[:-1])
        results.append([piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)])
    return results[0], results[1]


def pack_channels(vector: np.ndarray) -> np.ndarray:
    """A vector of one number for each channel, such as a bias, padded with zeros to whole blocks of 16."""
    return np.pad(vector, (0, -len(vector) % LANES))


def unpack(
    coefficients: np.ndarray, runs: Mapping[str, Sequence[int]], side: str, size_in: int, size_out: int
) -> np.ndarray:
    """The whole matrices that coefficients stand for.

    Args:
        coefficients: `(V, 16)`, as `pack` makes them.
        runs: the operator's attributes (`RUN_ATTRIBUTES`).
        side: "a" or "b".
        size_in: inputs: rows (A) or columns (B) of the map.
        size_out: outputs.

    Returns:
        `(C, size_out, size_in)` in the same dtype, with outputs along axis 1, for A and B alike.

    Raises:
        InputError: the arguments contradict each other.
    """
    coefficients = np.asarray(coefficients)
    _check_runs(runs)
    letter = "h" if side == "a" else "w"
    sizes, first = [], []
    for count, k_in, k_out, shift in zip(
        runs["channels"], runs[f"{letter}_in"], runs[f"{letter}_out"], runs[f"shift_{side}"], strict=True
    ):
        sizes += [(k_in, k_out)] * count
        first += [first_input(np.arange(k_out), k_in, k_out, shift)] * count
    segments = list(_segments(sizes, first))
    expected = (sum(segment.rows for segment in segments), LANES)
    if coefficients.shape != expected:
        raise InputError(
            f"NeoCell: coefficients {coefficients.shape} of {side.upper()} do not belong to the attributes "
            f"{dict(runs)}; expected {expected}"
        )
    whole = np.zeros((len(sizes), size_out, size_in), coefficients.dtype)
    at = 0
    for segment in segments:
        for phase in range(segment.k_out):
            for tap in range(segment.start[phase], segment.stop[phase]):
                outputs = np.arange(phase, size_out, segment.k_out)
                inputs = np.arange(len(outputs)) * segment.k_in + tap
                inside = (inputs >= 0) & (inputs < size_in)
                lanes = coefficients[at, segment.channels % LANES]
                whole[segment.channels[:, None], outputs[inside], inputs[inside]] = lanes[:, None]
                at += 1
    return whole


def _check_runs(runs: Mapping[str, Sequence[int]]) -> None:
    missing = [name for name in RUN_ATTRIBUTES if name not in runs]
    if missing:
        raise InputError(f"NeoCell: the attribute {missing[0]} is missing; expected {', '.join(RUN_ATTRIBUTES)}")
    lengths = {len(runs[name]) for name in RUN_ATTRIBUTES}
    if len(lengths) != 1 or not lengths - {0}:
        raise InputError(
            f"NeoCell: the attributes {', '.join(RUN_ATTRIBUTES)} must have one number for each run of channels, "
            f"found {', '.join(str(len(runs[name])) for name in RUN_ATTRIBUTES)}"
        )
    for name in RUN_ATTRIBUTES:
        least = 0 if name.startswith("shift") else 1
        if min(runs[name]) < least:
            raise InputError(f"NeoCell: {name} must hold whole numbers of at least {least}, got {list(runs[name])}")
