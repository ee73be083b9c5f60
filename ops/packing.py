"""NeoCell coefficients as the AscendC kernel reads them: rows of 16 channels, one row per tap of each phase.

A block-diagonal product is a periodic filter. Output `o = m * k_out + p` of channel `c` reads the inputs
`m * k_in + t` for the taps `t` of phase `p`, with the same weights in every period `m`:

    y[c, m * k_out + p] = sum over t of coef[p, t, c] * x[c, m * k_in + t]

where inputs outside the map count as zero. The vector unit multiplies 16 channels (32 bytes of float16) at a time, so
the coefficients are stored with the channels innermost, and one instruction can reuse a row for all periods of a map.
Channels with different shifts read different taps. The 16 channels of a block therefore read the union of their taps,
and a coefficient is zero where a channel does not use a tap.

The rows of one side come in this order: block of 16 channels, segment (neighbouring channels of the block whose
matrices have the same size), phase, tap of the union in ascending order. Lanes of other segments and lanes beyond the
last channel are zero. A and B are packed alike: A over the rows of the map, B over its columns.
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
# Attributes of the operator in their order. Each holds one number per run: consecutive channels that share matrix
# sizes and shifts.
RUN_ATTRIBUTES = ("channels", "h_in", "h_out", "w_in", "w_out", "shift_a", "shift_b")


@dataclass(frozen=True)
class CoefficientPlan:
    """The source of each coefficient of a NeoCell, and the attributes of the operator.

    Attributes:
        index_a, index_b: int32 `(V, 16)`: for each coefficient, its index among the small matrices of all groups,
            flattened and concatenated. The index after the last element stands for zero. Every element appears
            exactly once.
        attributes: attributes of the operator except `output_size`, one list of integers each (`RUN_ATTRIBUTES`).
    """

    index_a: np.ndarray
    index_b: np.ndarray
    attributes: Mapping[str, list[int]]


@dataclass(frozen=True)
class _Segment:
    """Rows of coefficients for neighbouring channels of one block whose matrices have the same size."""

    k_in: int
    k_out: int
    channels: np.ndarray  # indices in the NeoCell
    first: np.ndarray  # (channels, k_out): first tap of each channel in each phase
    start: np.ndarray  # (k_out): first tap of the union
    stop: np.ndarray  # (k_out): one past the last tap of the union

    @property
    def rows(self) -> int:
        return int((self.stop - self.start).sum())


def _segments(sizes: Sequence[tuple[int, int]], first: Sequence[np.ndarray]) -> Iterator[_Segment]:
    """Yield the segments of a side in order, from `(k_in, k_out)` and the first taps of every channel."""
    for block in range(0, len(sizes), LANES):
        lanes = range(block, min(block + LANES, len(sizes)))
        for (k_in, k_out), members in groupby(lanes, key=sizes.__getitem__):
            channels = np.array(list(members))
            taps = np.stack([first[c] for c in channels])
            yield _Segment(k_in, k_out, channels, taps, taps.min(0), taps.max(0) + k_in)


def _transposed(axis: Axis) -> Axis:
    return Axis(axis.k_out, axis.k_in, axis.shift, axis.channels)


@lru_cache(maxsize=128)
def plan(spec: NeoCellSpec, transposed: bool = False) -> CoefficientPlan:
    """Return how the coefficients of the operator are gathered from the learned matrices.

    Args:
        spec: geometry, of any sizes.
        transposed: True for the transposed matrices, which the gradient of the input uses.
    """
    axes_a, axes_b = [group.axis_a for group in spec.groups], [group.axis_b for group in spec.groups]
    if transposed:
        axes_a, axes_b = [_transposed(a) for a in axes_a], [_transposed(b) for b in axes_b]
    # A is stored (outputs, inputs) and B (inputs, outputs); transposition swaps the two.
    return CoefficientPlan(
        _index(axes_a, spec.shapes_a, outputs_first=not transposed),
        _index(axes_b, spec.shapes_b, outputs_first=transposed),
        _attributes(axes_a, axes_b),
    )


def _index(axes: Sequence[Axis], shapes: Sequence[tuple[int, int, int]], outputs_first: bool) -> np.ndarray:
    sizes: list[tuple[int, int]] = []
    first: list[np.ndarray] = []
    base: list[int] = []
    output_step: list[int] = []
    tap_step: list[int] = []
    start = 0
    for axis, (channels, height, width) in zip(axes, shapes, strict=True):
        sizes += [(axis.k_in, axis.k_out)] * channels
        first += list(axis.first_input(np.arange(axis.k_out)))
        base += range(start, start + channels * height * width, height * width)
        output_step += [width if outputs_first else 1] * channels
        tap_step += [1 if outputs_first else width] * channels
        start += channels * height * width
    shifts = np.concatenate([axis.shifts for axis in axes])
    parts = []
    for segment in _segments(sizes, first):
        rows = np.full((segment.rows, LANES), start, np.int32)
        at = 0
        for phase in range(segment.k_out):
            for channel, first_tap in zip(segment.channels, segment.first[:, phase], strict=True):
                # A shifted block starts `shift` outputs later, so this phase is an earlier output of the matrix.
                output = (phase - shifts[channel]) % segment.k_out
                begin = at + first_tap - segment.start[phase]
                rows[begin : begin + segment.k_in, channel % LANES] = (
                    base[channel] + output * output_step[channel] + np.arange(segment.k_in) * tap_step[channel]
                )
            at += segment.stop[phase] - segment.start[phase]
        parts.append(rows)
    return np.concatenate(parts)


def _attributes(axes_a: Sequence[Axis], axes_b: Sequence[Axis]) -> dict[str, list[int]]:
    channels = [
        (a.k_in, a.k_out, b.k_in, b.k_out, int(shift_a), int(shift_b))
        for a, b in zip(axes_a, axes_b, strict=True)
        for shift_a, shift_b in zip(a.shifts, b.shifts, strict=True)
    ]
    runs = [(len(list(members)), *key) for key, members in groupby(channels)]
    return {name: list(column) for name, column in zip(RUN_ATTRIBUTES, zip(*runs, strict=True), strict=True)}


def pack(
    spec: NeoCellSpec, weights_a: Sequence[np.ndarray], weights_b: Sequence[np.ndarray], transposed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return learned matrices as coefficients.

    Args:
        spec: geometry.
        weights_a: learned A, one `(channels, h_out, h_in)` per group.
        weights_b: learned B, one `(channels, w_in, w_out)` per group.
        transposed: whether to pack the transposed matrices, see `plan`.

    Returns:
        `coef_a` `(V_a, 16)` and `coef_b` `(V_b, 16)`, in the dtype of the matrices.

    Raises:
        InputError: the weights do not match the spec.
    """
    spec.check_shapes([w.shape for w in weights_a], [w.shape for w in weights_b])
    coefficients = plan(spec, transposed)

    def gather(weights: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
        return np.concatenate([*(w.ravel() for w in weights), np.zeros(1, weights[0].dtype)])[index]

    return gather(weights_a, coefficients.index_a), gather(weights_b, coefficients.index_b)


def unpack_gradients(
    spec: NeoCellSpec, grad_a: np.ndarray, grad_b: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the gradients of the learned matrices from those of the coefficients: the transpose of `pack`.

    Args:
        spec: geometry.
        grad_a: gradient of coef_a, `(V_a, 16)`. Values where a coefficient is zero by construction are ignored.
        grad_b: gradient of coef_b, `(V_b, 16)`, likewise.
    """
    coefficients = plan(spec)

    def scatter(index: np.ndarray, grad: np.ndarray, shapes: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        flat = np.zeros(sum(sizes) + 1, grad.dtype)
        # No sum is needed: every element is packed once, and the last place takes whatever belongs to zeros.
        flat[index.ravel()] = grad.ravel()
        pieces = np.split(flat[:-1], np.cumsum(sizes)[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    return (
        scatter(coefficients.index_a, grad_a, spec.shapes_a),
        scatter(coefficients.index_b, grad_b, spec.shapes_b),
    )


def pack_channels(vector: np.ndarray) -> np.ndarray:
    """Pad a vector with one number per channel, such as a bias, with zeros to a multiple of 16."""
    return np.pad(vector, (0, -len(vector) % LANES))


def unpack(
    coefficients: np.ndarray, runs: Mapping[str, Sequence[int]], side: str, size_in: int, size_out: int
) -> np.ndarray:
    """Return the full matrices that coefficients stand for.

    Args:
        coefficients: `(V, 16)`, as `pack` returns them.
        runs: attributes of the operator (`RUN_ATTRIBUTES`).
        side: "a" or "b".
        size_in: inputs: the rows (A) or columns (B) of the map.
        size_out: outputs.

    Returns:
        `(C, size_out, size_in)` in the same dtype, with the outputs along axis 1 for both A and B.

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
    full = np.zeros((len(sizes), size_out, size_in), coefficients.dtype)
    row = 0
    for segment in segments:
        for phase in range(segment.k_out):
            for tap in range(segment.start[phase], segment.stop[phase]):
                outputs = np.arange(phase, size_out, segment.k_out)
                inputs = np.arange(len(outputs)) * segment.k_in + tap
                inside = (inputs >= 0) & (inputs < size_in)
                lanes = coefficients[row, segment.channels % LANES]
                full[segment.channels[:, None], outputs[inside], inputs[inside]] = lanes[:, None]
                row += 1
    return full


def _check_runs(runs: Mapping[str, Sequence[int]]) -> None:
    missing = [name for name in RUN_ATTRIBUTES if name not in runs]
    if missing:
        raise InputError(f"NeoCell: the attribute {missing[0]} is missing; expected {', '.join(RUN_ATTRIBUTES)}")
    lengths = {len(runs[name]) for name in RUN_ATTRIBUTES}
    if len(lengths) != 1 or not lengths - {0}:
        raise InputError(
            f"NeoCell: the attributes {', '.join(RUN_ATTRIBUTES)} must have one number for each run of channels, "
            f"got {', '.join(str(len(runs[name])) for name in RUN_ATTRIBUTES)}"
        )
    for name in RUN_ATTRIBUTES:
        least = 0 if name.startswith("shift") else 1
        if min(runs[name]) < least:
            raise InputError(f"NeoCell: {name} must hold whole numbers of at least {least}, got {list(runs[name])}")
