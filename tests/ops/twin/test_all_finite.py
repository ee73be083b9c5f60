"""`all_finite.cpp`, which the MindSpore wheel ships in source, runs unchanged."""

import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from neonext_ms.ops import twin

PLACE = "lib/plugin/ascend/custom_ascendc_910b/op_impl/ai_core/tbe/custom_ascendc_910b_impl/dynamic/all_finite.cpp"
TILE = 2048
DTYPES = {np.float16: 1, ml_dtypes.bfloat16: 27, np.float32: 0}


@pytest.fixture(scope="module")
def kernel():
    spec = importlib.util.find_spec("mindspore")
    source = Path(spec.origin).parent / PLACE if spec and spec.origin else None
    if source is None or not source.is_file():
        pytest.skip("this MindSpore does not ship all_finite.cpp")
    return twin.compile(source, soc="Ascend910B3", entry="all_finite")


def _tiling(count, blocks, dtype):
    """Return the tiling data that the operator's host code computes.

    It holds elements, tile, tail, loops, real tail and padding of all cores but the last, the same numbers of the last
    core, the number of buffers, and the dtype.
    """
    size = np.dtype(dtype).itemsize
    share = -(-count // (blocks * TILE)) * TILE

    def part(elements):
        loops = -(-elements // TILE)
        real = elements - (loops - 1) * TILE
        pad = -real % (32 // size)
        tail = -(-(real + pad) * size // 256) * 256 // size
        return elements, TILE, tail, loops, real, pad

    numbers = [*part(share), *part(count - share * (blocks - 1)), 1, DTYPES[dtype]]
    return np.array(numbers, np.uint32).view(np.uint8)


def _launch(kernel, x, blocks, hazards):
    flag = np.zeros(16, np.uint16)
    arguments = [x, flag, None, _tiling(x.size, blocks, x.dtype.type)]
    # Every core that finds something writes the same place.
    places = {"outputs": (1,), "initialised": (1,), "shared": (1,)}
    counts = kernel.launch(arguments, blocks=blocks, **places, hazards=hazards)
    return bool(flag[0]), counts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan])
def test_finds_what_is_not_finite(kernel, dtype, blocks, bad):
    x = np.random.default_rng(0).standard_normal(5 * TILE * blocks - 77).astype(dtype)
    for place in (3, x.size - 5):
        values = x.copy()
        if bad is not None:
            values[place] = bad
        found, counts = _launch(kernel, values, blocks, "report")
        assert found == (bad is not None)
        assert len(counts["cores"]) == blocks


def test_its_unordered_padding_is_named(kernel):
    """CopyInPad fills the buffer on V and copies over it on MTE2 with no event between the two."""
    x = np.zeros(TILE - 77, np.float16)
    with pytest.raises(twin.SimulatorError) as caught:
        _launch(kernel, x, 1, "raise")
    assert caught.value.rule == "write-after-write"
    line = Path(caught.value.file).read_text().splitlines()[caught.value.line - 1]
    assert line.strip().startswith("DataCopyPad(")
    _, counts = _launch(kernel, x, 1, "report")
    assert [(found.rule, found.line) for found in counts["hazards"]] == [("write-after-write", caught.value.line)]
