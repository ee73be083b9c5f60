"""Features of public samples: host code in the same file, templates, parameters by value, partial headers."""

from pathlib import Path

import numpy as np
import pytest

from neonext_ms.common.errors import InputError
from neonext_ms.ops import twin
from neonext_ms.ops.twin.host import has_host, without_host

SAMPLE = Path(__file__).with_name("kernels") / "sample.asc"
TILING = np.dtype([("length", np.uint32), ("factor", np.float32), ("shift", np.int16, 2)])


@pytest.fixture(scope="module")
def scale():
    return twin.compile(SAMPLE, soc="Ascend310P3", entry="device::scale<half>")


def _tiling(length, factor, shift=(0, 0)):
    return np.array([(length, factor, shift)], TILING)


def test_a_template_with_a_struct_by_value(scale):
    x = np.arange(512, dtype=np.float16)
    y = np.zeros_like(x)
    scale.launch([x, y, _tiling(512, 0.5, (9, 2)), -3], blocks=4, outputs=(1,))
    assert np.array_equal(y, x / 2 - 1)
    scale.launch([x, y, _tiling(512, 2.0).tobytes(), np.int16(1)], blocks=2, outputs=(1,))
    assert np.array_equal(y, x * 2 + 1)


def test_numbers_by_value():
    x = np.linspace(-2, 2, 64, dtype=np.float32)
    least = np.minimum(np.tanh(x.astype(np.float64)).astype(np.float32), np.float32(0.5))
    y = np.zeros_like(x)
    kernel = twin.compile(SAMPLE, soc="Ascend910B3", entry="bounded")
    counts = kernel.launch([x, y, _tiling(64, 2.0), 4, 0.5, True], blocks=1, outputs=(1,))
    assert np.array_equal(y, -2 * least)
    (note,) = counts["notes"]
    assert note.startswith("Tanh: counted as one instruction")
    # Arrays only: the struct is still no pointer, though a symbol of extern "C" says nothing about it.
    numbers = [np.array(2, np.uint64), np.array(0.5, np.float32), np.array(False)]
    kernel.launch([x, y, _tiling(64, 1.0), *numbers], blocks=1, outputs=(1,))
    assert np.array_equal(y, least)


def test_padding_goes_out_with_a_block():
    x = np.arange(64, dtype=np.float32)
    y = np.zeros(8, np.float32)
    counts = twin.compile(SAMPLE, soc="Ascend910B3", entry="one_sum").launch([x, y], blocks=1, outputs=(1,))
    assert y[0] == x.sum() and "never written" in counts["notes"][0]
    with pytest.raises(twin.SimulatorError, match=r"\[unwritten"):
        twin.compile(SAMPLE, soc="Ascend910B3", entry="one_block_too_many").launch(
            [x, np.zeros(16, np.float32)], blocks=1, outputs=(1,)
        )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((_tiling(512, 1.0), 1 << 15), "argument 3 is 32768.*cannot hold"),
        ((_tiling(512, 1.0), "1"), "argument 3 is '1'.*cannot hold"),
        ((np.zeros(3, np.uint8), 1), "argument 2 is 3 bytes; its parameter is a struct of 12 bytes"),
        ((None, 1), "argument 2 is None; its parameter is a struct"),
        ((_tiling(512, 1.0),), r"3 arguments; the entry 'device::scale<half>' takes 4"),
    ],
)
def test_wrong_values(scale, value, message):
    x = np.zeros(512, np.float16)
    with pytest.raises(InputError, match=message):
        scale.launch([x, x.copy(), *value], blocks=1, outputs=(1,))


def test_lines_behind_the_host_part():
    kernel = twin.compile(SAMPLE, soc="Ascend910B3", entry="late")
    with pytest.raises(twin.SimulatorError, match="flag-unset") as caught:
        kernel.launch([None], blocks=1)
    line = next(i for i, text in enumerate(SAMPLE.read_text().splitlines(), 1) if "EVENT_ID3" in text)
    assert (caught.value.line, Path(caught.value.file)) == (line, SAMPLE)


def test_what_is_left_out():
    text = SAMPLE.read_text()
    assert has_host(text) and not has_host('// acl <<<\nauto x = "<<<";\n')
    left = without_host(text)
    assert left.count("\n") == text.count("\n")
    assert "<<<8" not in left and "aclrtMemcpy" not in left
    for kept in ("scale(__gm__ T* gx", "return (n + 7)", "AscendC::Tanh(b, a, length);", "EVENT_ID3", "float, factor"):
        assert kept in left
    members = "struct S { int f() { return 1; } };"
    nested = f"namespace a {{ namespace {{ {members} void h() {{ k<<<1>>>(); }}\nint g() {{ return 2; }} }} }}"
    assert without_host(nested) == nested.replace(" k<<<1>>>(); ", "")
    plan = "void plan(uint32_t n) { AscendC::GetSumMaxMinTmpSize(n, 4, false, n, n); }\n"
    assert without_host(plan + "void g() { k<<<1>>>(); }") == "void plan(uint32_t n) {}\nvoid g() {}"
