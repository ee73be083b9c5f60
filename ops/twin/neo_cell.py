"""The NeoCell kernels of `ops/ascendc` run in the twin: forward, all gradients, and what they cost.

Nothing here has run on a device. The kernels' sources and their tiling function are the ones that CANN builds; what
stands in for the hardware is `ops/twin/include`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ml_dtypes
import numpy as np

from neonext_ms.common.errors import InputError

from ..packing import LANES, RUN_ATTRIBUTES, pack, pack_channels, plan, unpack_gradients
from ..soc import Soc
from ..soc import soc as soc_of
from ..spec import NeoCellSpec
from .build import build
from .kernel import Kernel
from .kernel import compile as compile_kernel

KERNELS = Path(__file__).parents[1] / "ascendc" / "op_kernel"
# Name -> NumPy type, AscendC type, CANN's name for it.
DTYPES: Mapping[str, tuple[np.dtype, str, str]] = {
    "float16": (np.dtype(np.float16), "half", "DT_FLOAT16"),
    "float32": (np.dtype(np.float32), "float", "DT_FLOAT"),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), "bfloat16_t", "DT_BF16"),
}
_FACTS = ("total_a", "total_b", "cores", "h_out", "w_out", "strip", "columns")


@dataclass(frozen=True)
class Tiling:
    """What the tiling function decided.

    Attributes:
        data: the bytes of NeoCellTiling, as the kernel reads them.
        total_a, total_b: rows of coefficients.
        cores: cores that work.
        h_out, w_out: size of the output.
        strip, columns: rows and columns of the output computed at a time.
    """

    data: bytes
    total_a: int
    total_b: int
    cores: int
    h_out: int
    w_out: int
    strip: int
    columns: int


@dataclass(frozen=True)
class Run:
    """Outputs of one launch, in NumPy, and the counts of the twin (`Kernel.launch`)."""

    outputs: tuple[np.ndarray, ...]
    counts: dict
    tiling: Tiling


def to_blocks(x: np.ndarray, c0: int = LANES) -> np.ndarray:
    """`(N, C, H, W)` as `(N, C1, H, W, C0)`, NC1HWC0, the last channels zero where C0 does not divide C."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % c0), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, c0, h, w).transpose(0, 1, 3, 4, 2))


def from_blocks(x: np.ndarray, channels: int) -> np.ndarray:
    """The reverse of `to_blocks`."""
    n, c1, h, w, c0 = x.shape
    return np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3).reshape(n, c1 * c0, h, w)[:, :channels])


@lru_cache(maxsize=1)
def _tiling_library() -> ctypes.CDLL:
    # The architecture makes no difference; the define shows the part of the header that is for the host.
    source = Path(__file__).with_name("tiling.cpp")
    library = ctypes.CDLL(str(build(source, 2002, {"NEO_CELL_HOST_TILING": None}, [KERNELS])))
    library.neo_cell_make_tiling.restype = ctypes.c_char_p
    return library


def tiling(
    shape: Sequence[int],
    runs: Mapping[str, Sequence[int]],
    *,
    cores: int,
    ub_bytes: int,
    element_bytes: int,
    compute_bytes: int,
    output_size: tuple[int, int] | None = None,
    bias: bool = False,
    gradient: bool = False,
) -> Tiling:
    """The operators' own tiling function (`op_kernel/neo_cell_tiling.h`).

    Args:
        shape: of x as stored, `(N, C1, H, W, C0)`.
        runs: the operator's attributes (`packing.RUN_ATTRIBUTES`).
        cores: at most so many are used.
        ub_bytes: unified buffer of a core.
        element_bytes: of a stored number.
        compute_bytes: of a number in the arithmetic.
        output_size: rows and columns of the output; from the runs if None.
        bias: whether there is one.
        gradient: for NeoCellGrad.

    Raises:
        InputError: the tiling function refuses; the message is its own.
    """
    library = _tiling_library()
    n, c1, h, w, c0 = shape
    numbers = [cores, ub_bytes, n, c1, c0, h, w, *(output_size or (0, 0)), element_bytes, compute_bytes]
    numbers += [int(bias), int(gradient), len(runs["channels"])]
    for run in zip(*(runs[name] for name in RUN_ATTRIBUTES), strict=True):
        numbers += run
    data = ctypes.create_string_buffer(library.neo_cell_tiling_bytes())
    refusal = library.neo_cell_make_tiling((ctypes.c_int64 * len(numbers))(*map(int, numbers)), data)
    if refusal:
        raise InputError(f"NeoCell: {refusal.decode()}; x is {tuple(shape)}, the runs are {dict(runs)}")
    facts = (ctypes.c_int32 * len(_FACTS))()
    library.neo_cell_tiling_facts(data, facts)
    return Tiling(data.raw, **dict(zip(_FACTS, facts, strict=True)))


def kernel(name: str, soc: str, dtype: str) -> Kernel:
    """A kernel of `ops/ascendc`, compiled for a device and a type; `name` is "neo_cell" or "neo_cell_grad"."""
    device, (_, written, orig) = soc_of(soc), _dtype(dtype, soc_of(soc))
    defines = {"DTYPE_X": written, "ORIG_DTYPE_X": orig}
    return compile_kernel(KERNELS / f"{name}.cpp", soc=device.name, entry=name, defines=defines)


def forward(
    x: np.ndarray,
    weights_a: Sequence[np.ndarray],
    weights_b: Sequence[np.ndarray],
    spec: NeoCellSpec,
    bias: np.ndarray | None = None,
    *,
    soc: str = "Ascend310P3",
    dtype: str = "float16",
    blocks: int | None = None,
    accumulate_fp32: bool = False,
    transposed: bool = False,
    output_size: tuple[int, int] | None = None,
    c0: int = LANES,
    ub_bytes: int | None = None,
    **launch,
) -> Run:
    """The operator NeoCell in the twin.

    Args:
        x: `(N, C, H, W)`.
        weights_a: learned A, one `(channels, h_out, h_in)` per group.
        weights_b: learned B, one `(channels, w_in, w_out)` per group.
        spec: the geometry.
        bias: `(C)` or None.
        soc: a device of `ops/soc.py`.
        dtype: "float16", "float32" or "bfloat16": everything is rounded to it first.
        blocks: cores to use, all of the device's if None.
        accumulate_fp32: arithmetic in float32 on float16 maps; bfloat16 always has it.
        transposed: with all matrices transposed: x is an upstream gradient.
        output_size: rows and columns of the output, where they do not follow from those of x.
        c0: channels of a block.
        ub_bytes: a smaller unified buffer than the device's.
        launch: for `Kernel.launch`.

    Returns:
        a Run with the output `(N, C, H_out, W_out)`.

    Raises:
        InputError: shapes that do not fit, a type that the device does not have.
        TwinError: the kernel did what a device would punish.
    """
    device = soc_of(soc)
    number, _, _ = _dtype(dtype, device)
    wide = dtype == "bfloat16" or (accumulate_fp32 and dtype == "float16")
    stored, coef_a, coef_b = _stored(x, weights_a, weights_b, spec, number, transposed, c0)
    runs = plan(spec, transposed).attributes
    made = tiling(
        stored.shape,
        runs,
        cores=blocks or device.vector_units,
        ub_bytes=ub_bytes or device.ub_bytes,
        element_bytes=number.itemsize,
        compute_bytes=4 if wide else number.itemsize,
        output_size=output_size,
        bias=bias is not None,
    )
    y = np.zeros((*stored.shape[:2], made.h_out, made.w_out, c0), number)
    offset = None if bias is None else pack_channels(bias.astype(number))
    counts = kernel("neo_cell", soc, dtype).launch(
        [stored, coef_a, coef_b, offset, y, None, np.frombuffer(made.data, np.uint8)],
        blocks=made.cores,
        outputs=(4,),
        tiling_key=int(wide),
        **launch,
    )
    return Run((from_blocks(y, spec.channels),), counts, made)


def gradients(
    x: np.ndarray,
    dy: np.ndarray,
    weights_a: Sequence[np.ndarray],
    weights_b: Sequence[np.ndarray],
    spec: NeoCellSpec,
    *,
    soc: str = "Ascend310P3",
    dtype: str = "float16",
    blocks: int | None = None,
    c0: int = LANES,
    ub_bytes: int | None = None,
    **launch,
) -> Run:
    """The operator NeoCellGrad in the twin, with its sums over the images taken.

    Args:
        dy: upstream gradient `(N, C, H_out, W_out)`.
        x, weights_a, weights_b, spec, soc, dtype, blocks, c0, ub_bytes, launch: as in `forward`.

    Returns:
        a Run with two lists of float32 gradients, in the shapes of the weights of A and of B.
    """
    device = soc_of(soc)
    number, _, _ = _dtype(dtype, device)
    stored, coef_a, coef_b = _stored(x, weights_a, weights_b, spec, number, False, c0)
    made = tiling(
        stored.shape,
        plan(spec).attributes,
        cores=blocks or device.vector_units,
        ub_bytes=ub_bytes or device.ub_bytes,
        element_bytes=number.itemsize,
        compute_bytes=4,
        output_size=dy.shape[2:],
        gradient=True,
    )
    grad_a = np.zeros((len(x), made.total_a, LANES), np.float32)
    grad_b = np.zeros((len(x), made.total_b, LANES), np.float32)
    upstream = to_blocks(dy.astype(number), c0)
    counts = kernel("neo_cell_grad", soc, dtype).launch(
        [stored, upstream, coef_a, coef_b, grad_a, grad_b, None, np.frombuffer(made.data, np.uint8)],
        blocks=made.cores,
        outputs=(4, 5),
        **launch,
    )
    return Run(unpack_gradients(spec, grad_a.sum(0), grad_b.sum(0)), counts, made)


def _dtype(dtype: str, device: Soc) -> tuple[np.dtype, str, str]:
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if dtype == "bfloat16" and not device.bf16:
        raise InputError(f"{device.name} has no bfloat16; use float16 or float32")
    return DTYPES[dtype]


def _stored(x, weights_a, weights_b, spec, number, transposed, c0):
    if x.ndim != 4 or x.shape[1] != spec.channels:
        raise InputError(f"NeoCell: x must be (N, {spec.channels}, H, W), got {tuple(x.shape)}")
    coef_a, coef_b = pack(spec, weights_a, weights_b, transposed)
    return to_blocks(x.astype(number), c0), coef_a.astype(number), coef_b.astype(number)
