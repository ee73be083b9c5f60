"""Geometry of a NeoCell: matrix sizes, channel groups, shifts, partial blocks at the edges, output sizes.

A NeoCell learns one small matrix A and one small matrix B per channel and multiplies every map X of a channel as
`A_full @ X @ B_full`, where the full matrices repeat the small ones along their diagonal. This module alone decides
where an element of a small matrix goes in a full one, and every implementation of the operator asks it.

The rule fits on one line. For blocks of `k_out` rows and `k_in` columns and a shift `s`, element (i, j) of the full
matrix is `small[(i - s) mod k_out, (j - s) mod k_in]` where `floor((i - s) / k_out) == floor((j - s) / k_in)`, and
zero elsewhere. It follows that a shifted grid starts with the lower right part of a block, that a map which is not a
multiple of the block ends with the upper left part of one, and that a map smaller than the block needs no special case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from neonext_ms.common.errors import InputError, nearest
from neonext_ms.common.text import shorten

_KEYS = (
    "kernel",
    "kernel_a",
    "kernel_b",
    "h_in",
    "h_out",
    "w_in",
    "w_out",
    "channels",
    "shift",
    "shift_a",
    "shift_b",
)


def first_input(outputs: np.ndarray, k_in: int, k_out: int, shift: np.ndarray | int) -> np.ndarray:
    """Return the first input of the `k_out x k_in` block that each output lies in; it may lie before the map."""
    return (outputs - shift) // k_out * k_in + shift


@dataclass(frozen=True)
class Axis:
    """One side of a group: the matrices that act on the rows (A) or on the columns (B) of a map.

    Attributes:
        k_in: inputs of a small matrix.
        k_out: outputs of a small matrix.
        shift: step of the shift from one channel sub-group to the next, 0 for none.
        channels: number of channels in the group.
    """

    k_in: int
    k_out: int
    shift: int
    channels: int

    @property
    def square(self) -> bool:
        """Return True if the matrices keep the size of the map."""
        return self.k_in == self.k_out

    def output_size(self, size: int) -> int:
        """Return the outputs for `size` inputs: `size` for square matrices, floor(size * k_out / k_in) otherwise."""
        # In integers: 49 / 3.0 * 15 in floating point falls below 245.
        return size if self.square else size * self.k_out // self.k_in

    @cached_property
    def shifts(self) -> np.ndarray:
        """Return the shift of every channel, int64 `(channels,)`.

        The channels split into (k - 1) // step + 1 sub-groups of equal size; the last one takes the remainder.
        """
        if not self.shift:
            return np.zeros(self.channels, np.int64)
        count = (self.k_out - 1) // self.shift + 1
        group = self.channels // count
        if not group:
            # Fewer channels than shifts: the official code puts all of them into the last sub-group.
            return np.full(self.channels, (count - 1) * self.shift, np.int64)
        return np.minimum(np.arange(self.channels) // group, count - 1) * self.shift

    def first_input(self, outputs: np.ndarray) -> np.ndarray:
        """Return the first input of the block that each output lies in, int64 `(channels, len(outputs))`.

        A block reads the `k_in` inputs from there on. The pattern is periodic: `k_out` outputs later, the first input
        is larger by `k_in`.
        """
        return first_input(np.asarray(outputs), self.k_in, self.k_out, self.shifts[:, None])

    def blocks(self, size: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the block number and the position inside the block of every index, two int64 `(channels, size)`."""
        offset = np.arange(size)[None, :] - self.shifts[:, None]
        return offset // k, offset % k

    def placement(self, size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return constants `(U_out, U_in, mask)` with `U_out @ small @ U_in * mask` equal to the full matrix.

        Args:
            size_in: inputs of the full matrix.
            size_out: outputs of the full matrix.

        Returns:
            float32 arrays of zeros and ones: `(channels, size_out, k_out)`, `(channels, k_in, size_in)` and
            `(channels, size_out, size_in)`.
        """
        block_out, row = self.blocks(size_out, self.k_out)
        block_in, column = self.blocks(size_in, self.k_in)
        # The two products copy the small matrix into every pair of blocks; the mask keeps the pairs on the diagonal.
        u_out = row[:, :, None] == np.arange(self.k_out)
        u_in = column[:, None, :] == np.arange(self.k_in)[:, None]
        mask = block_out[:, :, None] == block_in[:, None, :]
        return u_out.astype(np.float32), u_in.astype(np.float32), mask.astype(np.float32)

    def repetition(self, size_in: int, size_out: int) -> np.ndarray:
        """Return float32 `(channels, size_out, k_out)` with a one where an output has this position in its block.

        Outputs that the axis does not reach, because another group of the NeoCell has more of them, have no one.
        """
        _, position = self.blocks(size_out, self.k_out)
        ones = position[:, :, None] == np.arange(self.k_out)
        ones[:, self.output_size(size_in) :] = False
        return ones.astype(np.float32)

    def tiles(self, size_in: int, size_out: int) -> dict[int, np.ndarray]:
        """Return the blocks of a full matrix for each shift in use, clipped to the map.

        Returns:
            shift -> int64 `(blocks, 6)`: first input, number of inputs, position of the first input in the small
            matrix, then the same three numbers for the outputs.
        """
        result = {}
        for shift in np.unique(self.shifts).tolist():
            rows = []
            # Block -1 is the one that a shift cuts off at the start of the map.
            block = -1 if shift else 0
            while block * self.k_in + shift < size_in and block * self.k_out + shift < size_out:
                row: list[int] = []
                for k, size in ((self.k_in, size_in), (self.k_out, size_out)):
                    start = block * k + shift
                    first, last = max(start, 0), min(start + k, size)
                    row += [first, last - first, first - start]
                rows.append(row)
                block += 1
            result[shift] = np.array(rows, np.int64).reshape(-1, 6)
        return result

    def nonzeros(self, size_in: int, size_out: int) -> int:
        """Return the number of elements inside the blocks of the full matrices of all channels."""
        tiles = self.tiles(size_in, size_out)
        shifts, counts = np.unique(self.shifts, return_counts=True)
        return sum(
            count * int((tiles[shift][:, 1] * tiles[shift][:, 4]).sum())
            for shift, count in zip(shifts.tolist(), counts.tolist(), strict=True)
        )

    def block_diagonal(self, small: np.ndarray, size_in: int, size_out: int) -> np.ndarray:
        """Expand small matrices `(channels, k_out, k_in)` to full ones `(channels, size_out, size_in)`, same dtype."""
        block_out, row = self.blocks(size_out, self.k_out)
        block_in, column = self.blocks(size_in, self.k_in)
        channel = np.arange(self.channels)[:, None, None]
        values = small[channel, row[:, :, None], column[:, None, :]]
        values[block_out[:, :, None] != block_in[:, None, :]] = 0
        return values

    def block_sum(self, full: np.ndarray) -> np.ndarray:
        """Sum `(channels, size_out, size_in)` into `(channels, k_out, k_in)`: the transpose of `block_diagonal`."""
        _, size_out, size_in = full.shape
        block_out, row = self.blocks(size_out, self.k_out)
        block_in, column = self.blocks(size_in, self.k_in)
        channel, i, j = np.nonzero(block_out[:, :, None] == block_in[:, None, :])
        small = np.zeros((self.channels, self.k_out, self.k_in), full.dtype)
        # `small[...] += ...` would keep only one of the blocks that share an element; `add.at` sums them all.
        np.add.at(small, (channel, row[channel, i], column[channel, j]), full[channel, i, j])
        return small


# Far beyond any network, and small enough that no size of an array overflows.
_MOST_CHANNELS = 1 << 20
_MOST_WEIGHTS = 1 << 34


@dataclass(frozen=True)
class NeoCellGroup:
    """Channels that share matrix sizes: A is `(h_out, h_in)`, B is `(w_in, w_out)` for each of `channels` channels.

    Raises:
        InputError: a size or the number of channels is below 1 or beyond any network, a shift is negative, a matrix
            with a shift is not square, or a shift is not smaller than its matrix.
    """

    h_in: int
    h_out: int
    w_in: int
    w_out: int
    channels: int
    shift_a: int = 0
    shift_b: int = 0

    def __post_init__(self):
        for name in ("h_in", "h_out", "w_in", "w_out", "channels"):
            value = getattr(self, name)
            if not _is_integer(value) or not 1 <= value <= _MOST_CHANNELS:
                raise InputError(
                    f"NeoCell: {name} must be a whole number of at least 1, and at most {_MOST_CHANNELS}, got "
                    f"{shorten(value)}"
                )
        numbers = self.channels * max(self.h_in * self.h_out, self.w_in * self.w_out)
        if numbers > _MOST_WEIGHTS:
            raise InputError(
                f"NeoCell: {self.channels} matrices of {self.h_out}x{self.h_in} and {self.w_in}x{self.w_out} have "
                f"{numbers:,} numbers, more than {_MOST_WEIGHTS:,}. Use smaller ones."
            )
        for side, axis in (("a", self.axis_a), ("b", self.axis_b)):
            if not _is_integer(axis.shift) or axis.shift < 0:
                raise InputError(
                    f"NeoCell: shift_{side} must be a whole number of at least 0, got {shorten(axis.shift)}"
                )
            if axis.shift and not axis.square:
                raise InputError(
                    f"NeoCell: shift_{side}={axis.shift} on a {axis.k_out}x{axis.k_in} matrix. "
                    "Only square matrices can be shifted; use 0."
                )
            if axis.shift and axis.shift >= axis.k_out:
                raise InputError(
                    f"NeoCell: shift_{side}={axis.shift} must be smaller than its matrix, which is "
                    f"{axis.k_out}x{axis.k_in}"
                )

    @classmethod
    def from_dict(cls, spec: Mapping[str, int]) -> NeoCellGroup:
        """Create a group from the keys of the official code.

        The sizes are `kernel`, or `kernel_a` and `kernel_b`, or `h_in`, `h_out`, `w_in` and `w_out`. `channels` is
        required. The shift is `shift`, or `shift_a` and `shift_b`, which take precedence and default to 0.

        Raises:
            InputError: a key is unknown or missing, keys contradict each other, or `NeoCellGroup` rejects a value.
        """
        unknown = [key for key in spec if key not in _KEYS]
        if unknown:
            raise InputError(
                f"NeoCell: unknown key {shorten(unknown[0])} in {shorten(dict(spec))}; known keys: {', '.join(_KEYS)}"
                + nearest(unknown[0], _KEYS)
            )
        forms = (("h_in", "h_out", "w_in", "w_out"), ("kernel_a", "kernel_b"), ("kernel",))
        used = [form for form in forms if any(key in spec for key in form)]
        if len(used) != 1 or not all(key in spec for key in used[0]):
            raise InputError(
                f"NeoCell: {shorten(dict(spec))} must give its matrix sizes in exactly one form: kernel, or "
                "kernel_a and kernel_b, or h_in, h_out, w_in and w_out"
            )
        if "channels" not in spec:
            raise InputError(f"NeoCell: {shorten(dict(spec))} has no channels")
        if used[0] == forms[0]:
            h_in, h_out, w_in, w_out = (spec[key] for key in forms[0])
        else:
            h_in = h_out = spec[used[0][0]]
            w_in = w_out = spec[used[0][-1]]
        if "shift_a" in spec or "shift_b" in spec:
            shift_a, shift_b = spec.get("shift_a", 0), spec.get("shift_b", 0)
        else:
            shift_a = shift_b = spec.get("shift", 0)
        return cls(h_in, h_out, w_in, w_out, spec["channels"], shift_a, shift_b)

    @cached_property
    def axis_a(self) -> Axis:
        """Return the axis of A, which acts on the rows of the map."""
        return Axis(self.h_in, self.h_out, self.shift_a, self.channels)

    @cached_property
    def axis_b(self) -> Axis:
        """Return the axis of B, which acts on the columns; an `Axis` describes B transposed, `(w_out, w_in)`."""
        return Axis(self.w_in, self.w_out, self.shift_b, self.channels)

    @property
    def shape_a(self) -> tuple[int, int, int]:
        """Return the shape of the learned A of the group, `(channels, h_out, h_in)`."""
        return self.channels, self.h_out, self.h_in

    @property
    def shape_bias(self) -> tuple[int, int, int]:
        """Return the shape of a bias for each value of an output patch, `(channels, h_out, w_out)`."""
        return self.channels, self.h_out, self.w_out

    @property
    def shape_b(self) -> tuple[int, int, int]:
        """Return the shape of the learned B of the group, `(channels, w_in, w_out)`."""
        return self.channels, self.w_in, self.w_out


@dataclass(frozen=True)
class NeoCellSpec:
    """A NeoCell: one or more groups of channels, in channel order.

    Args:
        groups: a dict with the official keys (see `NeoCellGroup.from_dict`), a `NeoCellGroup`, or a sequence of them.

    Raises:
        InputError: there is no group, or a group is invalid.

    Example:
        >>> spec = NeoCellSpec([{"kernel": 4, "channels": 48, "shift": 1}, {"kernel": 7, "channels": 48, "shift": 1}])
        >>> spec.output_size(56, 56)
        (56, 56)
    """

    groups: tuple[NeoCellGroup, ...] = field(default=())

    def __init__(self, groups: Mapping | NeoCellGroup | Iterable[Mapping | NeoCellGroup]):
        if isinstance(groups, (Mapping, NeoCellGroup)):
            groups = [groups]
        parsed = tuple(g if isinstance(g, NeoCellGroup) else NeoCellGroup.from_dict(g) for g in groups)
        if not parsed:
            raise InputError("NeoCell: a spec needs at least one group of channels")
        object.__setattr__(self, "groups", parsed)

    @classmethod
    def resampling(cls, channels: int, inputs: int, outputs: int) -> NeoCellSpec:
        """Create the NeoCell that makes `outputs` rows and columns of every `inputs` of a map.

        2 and 1 halve a map, 1 and 2 double it, 3 and 2 make two thirds of it, 2 and 3 one and a half times as much.
        Rows and columns that do not fill a block make the share of its outputs that `output_size` says.

        Args:
            channels: number of channels.
            inputs: rows and columns of a patch that is read.
            outputs: rows and columns of the patch that is made of it.
        """
        return cls({"h_in": inputs, "h_out": outputs, "w_in": inputs, "w_out": outputs, "channels": channels})

    @property
    def channels(self) -> int:
        """Return the number of channels over all groups."""
        return sum(group.channels for group in self.groups)

    @property
    def shapes_a(self) -> list[tuple[int, int, int]]:
        """Return the shapes of the learned A, one `(channels, h_out, h_in)` per group."""
        return [group.shape_a for group in self.groups]

    @property
    def shapes_b(self) -> list[tuple[int, int, int]]:
        """Return the shapes of the learned B, one `(channels, w_in, w_out)` per group."""
        return [group.shape_b for group in self.groups]

    def slices(self) -> Iterator[tuple[NeoCellGroup, slice]]:
        """Yield every group with its slice of the channels."""
        start = 0
        for group in self.groups:
            yield group, slice(start, start + group.channels)
            start += group.channels

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the output.

        Groups whose own outputs differ in size share the largest one. Rows and columns that a smaller group does not
        reach are zero, as in the official code.

        Raises:
            InputError: the output would have no rows or no columns.
        """
        out = (
            max(group.axis_a.output_size(height) for group in self.groups),
            max(group.axis_b.output_size(width) for group in self.groups),
        )
        if min(out) < 1:
            raise InputError(
                f"NeoCell: a {height}x{width} map gives a {out[0]}x{out[1]} output, which is empty. Use a larger input."
            )
        return out

    def check_shapes(self, shapes_a: Sequence[Sequence[int]], shapes_b: Sequence[Sequence[int]]) -> None:
        """Check the shapes of learned matrices, one per group of A and of B.

        Raises:
            InputError: their number or one of the shapes does not match this spec; the message names it.
        """
        for side, shapes, expected in (("A", shapes_a, self.shapes_a), ("B", shapes_b, self.shapes_b)):
            if len(shapes) != len(expected):
                raise InputError(f"NeoCell: {len(expected)} groups need {len(expected)} {side}, got {len(shapes)}")
            for i, (shape, own) in enumerate(zip(shapes, expected, strict=True)):
                if tuple(shape) != own:
                    raise InputError(f"NeoCell: {side} of group {i} must be {own}, got {tuple(shape)}")

    def matrices(
        self, weights_a: Sequence[np.ndarray], weights_b: Sequence[np.ndarray], height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the full matrices A `(channels, out_height, height)` and B `(channels, width, out_width)`.

        They are those of equation 2.

        Args:
            weights_a: learned A, one `(channels, h_out, h_in)` per group.
            weights_b: learned B, one `(channels, w_in, w_out)` per group.
            height: rows of the input map.
            width: columns of the input map.
        """
        self.check_shapes([w.shape for w in weights_a], [w.shape for w in weights_b])
        out_height, out_width = self.output_size(height, width)
        a = [g.axis_a.block_diagonal(w, height, out_height) for g, w in zip(self.groups, weights_a, strict=True)]
        b = [
            g.axis_b.block_diagonal(w.transpose(0, 2, 1), width, out_width).transpose(0, 2, 1)
            for g, w in zip(self.groups, weights_b, strict=True)
        ]
        return np.concatenate(a), np.concatenate(b)

    def bias_map(self, biases: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
        """Return what a bias for each value of an output patch adds to the output (section 3.1 of the paper).

        Args:
            biases: learned biases, one `(channels, h_out, w_out)` per group.
            height: rows of the input map.
            width: columns of the input map.

        Returns:
            `(channels, out_height, out_width)`: every patch has the same bias.
        """
        out_height, out_width = self.output_size(height, width)
        return np.concatenate(
            [
                group.axis_a.repetition(height, out_height)
                @ bias
                @ group.axis_b.repetition(width, out_width).swapaxes(1, 2)
                for group, bias in zip(self.groups, biases, strict=True)
            ]
        )

    def parameters(self) -> int:
        """Return the number of learned values in A and B."""
        return sum(int(np.prod(shape)) for shape in self.shapes_a + self.shapes_b)

    def multiply_adds(self, height: int, width: int, padded: bool = False) -> int:
        """Return the multiply-adds of one image by equation 5, which skips the zeros of the block-diagonal form.

        Square matrices that divide the map cost (k_a + k_b) * channels * height * width. A partial block at an edge of
        the map counts only with the part that lies on the map.

        Args:
            height: rows of the input map.
            width: columns of the input map.
            padded: True to count the zeros too, as the full products of equation 2 do.
        """
        out_height, out_width = self.output_size(height, width)
        if padded:
            return self.channels * (out_height * height * width + out_height * width * out_width)
        return sum(
            g.axis_a.nonzeros(height, out_height) * width + g.axis_b.nonzeros(width, out_width) * out_height
            for g in self.groups
        )


def _is_integer(value) -> bool:
    # bool is a subclass of int, but `channels: true` in a configuration is a mistake.
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
