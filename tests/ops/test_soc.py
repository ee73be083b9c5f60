from __future__ import annotations

import dataclasses

import pytest

from neonext_ms.common.errors import UsageError
from neonext_ms.ops.soc import MACS_PER_CYCLE, SOCS, soc


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("Ascend310P3", 69.5),
        ("Ascend310B1", 10.0),
        ("Ascend310B4", 4.1),
        ("Ascend910B2", 354),
        ("Ascend910B3", 295),
        ("Ascend910B4", 246),
        ("Ascend910_9391", 364),
    ],
)
def test_peak_of_the_published_devices(name, tflops):
    device = soc(name)
    peak = device.ai_cores * device.cube_mhz * 1e6 * MACS_PER_CYCLE * 2 / 1e12
    assert peak == pytest.approx(tflops, rel=0.01)


def test_the_table_is_complete():
    assert list(SOCS) == [device.name for device in SOCS.values()]
    for device in SOCS.values():
        assert device.name.startswith("Ascend")
        for field in dataclasses.fields(device):
            value = getattr(device, field.name)
            assert value is not None
            if field.name not in ("name", "family", "vector_cores", "bf16"):
                assert value > 0
        assert device.bf16 == (device.npu_arch in (2201, 3002))
    assert {device.npu_arch for device in SOCS.values()} == {1001, 2002, 2201, 3002}
    with pytest.raises(dataclasses.FrozenInstanceError):
        soc("Ascend310P3").ai_cores = 9


def test_the_older_910b_is_not_one_of_the_910b_family():
    assert (soc("Ascend910B").family, soc("Ascend910B").npu_arch) == ("ascend910", 1001)
    assert (soc("Ascend910B1").family, soc("Ascend910B1").npu_arch) == ("ascend910b", 2201)


def test_buffers_are_those_of_the_platform_configuration():
    device = soc("Ascend310P3")
    sizes = (device.ub_bytes, device.l1_bytes, device.l0a_bytes, device.l0b_bytes, device.l0c_bytes, device.l2_bytes)
    assert sizes == (262144, 1048576, 65536, 65536, 262144, 16777216)
    assert (device.ai_cores, device.vector_cores, device.cube_mhz) == (8, 7, 1060)
    assert (device.memory_bytes_per_cycle, device.l2_read_bytes_per_cycle) == (17, 114)
    assert soc("Ascend910B4-1").l2_bytes == 168 << 20


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("310P3", "did you mean Ascend310P3?"),
        ("ascend310p3", "did you mean Ascend310P3?"),
        ("Ascend910B4_1", "did you mean Ascend910B4-1?"),
        ("Ascend310P", "did you mean Ascend310P1 or Ascend310P3"),
        ("Ascend310P33", "Ascend310P3"),
        ("Ascend910_93", "Ascend910_9362"),
        ("", "known devices: Ascend310P1, "),
        ("H100", "known devices: Ascend310P1, "),
    ],
)
def test_an_unknown_name_is_rejected_with_the_nearest(name, suggested):
    with pytest.raises(UsageError) as error:
        soc(name)
    assert suggested in str(error.value) and "npu-smi" in str(error.value)
