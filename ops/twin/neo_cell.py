"""The NeoCell kernels of `ops/ascendc` in the simulator: output, all gradients, and counts of the work.

Nothing here has run on a device. The sources of the kernels and their tiling function are those that CANN builds; the
headers in `ops/twin/include` take the place of the hardware.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ml_dtypes
import numpy as np

from neonext_ms.common.errors import InputError, UsageError

from ..packing import LANES, RUN_ATTRIBUTES, pack, pack_channels, plan, unpack_gradients
from ..soc import Soc
from ..soc import soc as soc_of
from ..spec import NeoCellSpec
from .build import build
from .kernel import Kernel
from .kernel import compile as compile_kernel

PROJECT = Path(__file__).parents[1] / "ascendc"
# Name -> NumPy dtype, AscendC type, CANN's name of the type.
DTYPES: Mapping[str, tuple[np.dtype, str, str]] = {
    "float16": (np.dtype(np.float16), "half", "DT_FLOAT16"),
    "float32": (np.dtype(np.float32), "float", "DT_FLOAT"),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), "bfloat16_t", "DT_BF16"),
}
_FACTS = ("total_a", "total_b", "cores", "h_out", "w_out", "strip", "columns", "group")


@dataclass(frozen=True)
class Tiling:
    """The result of the tiling function.

    Attributes:
        data: bytes of NeoCellTiling, as the kernel reads them.
        total_a, total_b: numbers of rows of coefficients.
        cores: number of cores that work.
        h_out, w_out: size of the output.
        strip, columns: rows and columns of the output that are computed at a time.
        group: images that are computed at a time.
    """

    data: bytes
    total_a: int
    total_b: int
    cores: int
    h_out: int
    w_out: int
    strip: int
    columns: int
    group: int


@dataclass(frozen=True)
class KernelRun:
    """One launch: the outputs, the counts of the simulator (`Kernel.launch`), and the tiling."""

    outputs: tuple
    counts: dict
    tiling: Tiling


def to_nc1hwc0(x: np.ndarray, c0: int = LANES) -> np.ndarray:
    """Convert `(N, C, H, W)` to `(N, C1, H, W, C0)`, padded with zero channels if C0 does not divide C."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % c0), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, c0, h, w).transpose(0, 1, 3, 4, 2))


def from_nc1hwc0(x: np.ndarray, channels: int) -> np.ndarray:
    """Convert `(N, C1, H, W, C0)` back to `(N, channels, H, W)`."""
    n, c1, h, w, c0 = x.shape
    return np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3).reshape(n, c1 * c0, h, w)[:, :channels])


@lru_cache(maxsize=4)
def _tiling_library(project: Path) -> ctypes.CDLL:
    source = Path(__file__).with_name("tiling.cpp")
    # Any architecture will do: the tiling function is host code.
    library = ctypes.CDLL(str(build(source, 2002, {}, [project / "op_host"])))
    library.neo_cell_make_tiling.restype = ctypes.c_char_p
    return library


def tiling(
    shape: Sequence[int],
    runs: Mapping[str, Sequence[int]],
    *,
    cores: int,
    ub_bytes: int,
    vector_cores: int = 0,
    element_bytes: int,
    compute_bytes: int,
    output_size: tuple[int, int] | None = None,
    bias: bool = False,
    gradient: bool = False,
) -> Tiling:
    """Call the tiling function of the operators (`op_host/neo_cell_make_tiling.h`).

    Args:
        shape: shape of x as stored, `(N, C1, H, W, C0)`.
        runs: attributes of the operator (`packing.RUN_ATTRIBUTES`).
        cores: largest number of cores to use.
        ub_bytes: unified buffer of a core.
        vector_cores: largest number of a 310P's vector cores to use beside them.
        element_bytes: bytes of a stored number.
        compute_bytes: bytes of a number in the arithmetic.
        output_size: rows and columns of the output; None to derive them from the runs.
        bias: True if there is a bias.
        gradient: True for NeoCellGrad.

    Raises:
        InputError: the tiling function rejects the problem; the message is its own.
    """
    library = _tiling_library(PROJECT)
    n, c1, h, w, c0 = shape
    numbers = [cores, ub_bytes, vector_cores, n, c1, c0, h, w, *(output_size or (0, 0)), element_bytes, compute_bytes]
    numbers += [int(bias), int(gradient), len(runs["channels"])]
    for run in zip(*(runs[name] for name in RUN_ATTRIBUTES), strict=True):
        numbers += run
    data = ctypes.create_string_buffer(library.neo_cell_tiling_bytes())
    error = library.neo_cell_make_tiling((ctypes.c_int64 * len(numbers))(*map(int, numbers)), data)
    if error:
        raise InputError(f"NeoCell: {error.decode()}; x is {tuple(shape)}, the runs are {dict(runs)}")
    facts = (ctypes.c_int32 * len(_FACTS))()
    library.neo_cell_tiling_facts(data, facts)
    return Tiling(data.raw, **dict(zip(_FACTS, facts, strict=True)))


def kernel(name: str, device: Soc, dtype: str) -> Kernel:
    """Compile a kernel of `ops/ascendc`, "neo_cell" or "neo_cell_grad", for a device and a dtype."""
    _, written, orig = _dtype(dtype, device)
    defines = {"DTYPE_X": written, "ORIG_DTYPE_X": orig}
    return compile_kernel(PROJECT / "op_kernel" / f"{name}.cpp", soc=device, entry=name, defines=defines)


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
    vector_cores: bool = True,
    accumulate_fp32: bool = False,
    transposed: bool = False,
    output_size: tuple[int, int] | None = None,
    c0: int = LANES,
    ub_bytes: int | None = None,
    **launch,
) -> KernelRun:
    """Run the operator NeoCell in the simulator.

    Args:
        x: maps `(N, C, H, W)`.
        weights_a: learned A, one `(channels, h_out, h_in)` per group.
        weights_b: learned B, one `(channels, w_in, w_out)` per group.
        spec: geometry.
        bias: `(C,)` or None.
        soc: name of a device of `ops/soc.py`.
        dtype: "float16", "float32" or "bfloat16"; all inputs are rounded to it first.
        blocks: largest number of cores to use; None for all cores of the device.
        vector_cores: False to leave out the vector cores that a 310P has beside its AI cores.
        accumulate_fp32: True to compute float16 maps in float32; bfloat16 maps always are.
        transposed: True to transpose all matrices; x is then an upstream gradient.
        output_size: rows and columns of the output, if they do not follow from those of x.
        c0: channels of a block.
        ub_bytes: size of the unified buffer, if it should be smaller than that of the device.
        launch: further arguments of `Kernel.launch`.

    Returns:
        a run with the output `(N, C, H_out, W_out)`.

    Raises:
        InputError: the shapes do not fit, or the device does not support the dtype.
        SimulatorError: the kernel broke a rule of the device.
    """
    device = soc_of(soc)
    number, _, _ = _dtype(dtype, device)
    wide = dtype == "bfloat16" or (accumulate_fp32 and dtype == "float16")
    stored, coef_a, coef_b = _stored(x, weights_a, weights_b, spec, number, transposed, c0)
    runs = plan(spec, transposed).attributes
    cores, beside = _cores(device, blocks, vector_cores)
    tiles = tiling(
        stored.shape,
        runs,
        cores=cores,
        vector_cores=beside,
        ub_bytes=ub_bytes or device.ub_bytes,
        element_bytes=number.itemsize,
        compute_bytes=4 if wide else number.itemsize,
        output_size=output_size,
        bias=bias is not None,
    )
    y = np.zeros((*stored.shape[:2], tiles.h_out, tiles.w_out, c0), number)
    offset = None if bias is None else pack_channels(bias.astype(number))
    counts = kernel("neo_cell", device, dtype).launch(
        [stored, coef_a, coef_b, offset, y, None, np.frombuffer(tiles.data, np.uint8)],
        blocks=tiles.cores,
        outputs=(4,),
        tiling_key=int(wide),
        **launch,
    )
    return KernelRun((from_nc1hwc0(y, spec.channels),), counts, tiles)


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
    vector_cores: bool = True,
    c0: int = LANES,
    ub_bytes: int | None = None,
    **launch,
) -> KernelRun:
    """Run the operator NeoCellGrad in the simulator and sum its results over the images.

    Args:
        dy: upstream gradient `(N, C, H_out, W_out)`.
        x, weights_a, weights_b, spec, soc, dtype, blocks, vector_cores, c0, ub_bytes, launch: as in `forward`.

    Returns:
        a run with two lists of float32 gradients, in the shapes of the weights of A and of B.
    """
    device = soc_of(soc)
    number, _, _ = _dtype(dtype, device)
    stored, coef_a, coef_b = _stored(x, weights_a, weights_b, spec, number, False, c0)
    cores, beside = _cores(device, blocks, vector_cores)
    tiles = tiling(
        stored.shape,
        plan(spec).attributes,
        cores=cores,
        vector_cores=beside,
        ub_bytes=ub_bytes or device.ub_bytes,
        element_bytes=number.itemsize,
        compute_bytes=4,
        output_size=(dy.shape[2], dy.shape[3]),
        gradient=True,
    )
    grad_a = np.zeros((len(x), tiles.total_a, LANES), np.float32)
    grad_b = np.zeros((len(x), tiles.total_b, LANES), np.float32)
    upstream = to_nc1hwc0(dy.astype(number), c0)
    counts = kernel("neo_cell_grad", device, dtype).launch(
        [stored, upstream, coef_a, coef_b, grad_a, grad_b, None, np.frombuffer(tiles.data, np.uint8)],
        blocks=tiles.cores,
        outputs=(4, 5),
        **launch,
    )
    return KernelRun(unpack_gradients(spec, grad_a.sum(0), grad_b.sum(0)), counts, tiles)


def _cores(device: Soc, blocks: int | None, vector_cores: bool) -> tuple[int, int]:
    """Return the numbers of cores of the two kinds: the first blocks run on AI cores, those beyond on vector cores."""
    beside = device.vector_cores_beside if vector_cores else 0
    if blocks is None:
        return device.vector_units, beside
    first = min(blocks, device.vector_units) if beside else blocks
    return first, min(blocks - first, beside)


def _dtype(dtype: str, device: Soc) -> tuple[np.dtype, str, str]:
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; expected {', '.join(DTYPES)}")
    if dtype == "bfloat16" and not device.bf16:
        raise UsageError(f"{device.name} has no bfloat16; use float16 or float32")
    return DTYPES[dtype]


def _stored(x, weights_a, weights_b, spec, number, transposed, c0):
    if x.ndim != 4 or x.shape[1] != spec.channels:
        raise InputError(f"NeoCell: x must be (N, {spec.channels}, H, W), got {tuple(x.shape)}")
    coef_a, coef_b = pack(spec, weights_a, weights_b, transposed)
    return to_nc1hwc0(x.astype(number), c0), coef_a.astype(number), coef_b.astype(number)
