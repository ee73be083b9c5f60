"""The table of devices: published figures of each Ascend chip that `atc --soc_version` accepts.

The figures are those of CANN's platform configuration (hicann/runtime, src/platform/platform_config/cann/<name>.ini).
None of them was measured here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from neonext_ms.common.errors import UsageError

# Multiply-adds of a cube unit in float16.
MACS_PER_CYCLE = 16 * 16 * 16


@dataclass(frozen=True)
class Core:
    """Clock in MHz and rates in bytes per cycle of one kind of core, for vector work."""

    mhz: int
    memory_bytes_per_cycle: int
    l2_read_bytes_per_cycle: int
    l2_write_bytes_per_cycle: int


# A vector core of a 310P: sections VectorCoreSpec and VectorCoreMemoryRates of Ascend310P1, P3, P5 and P7.ini, which
# agree. Their VectorCoreintrinsicDtypeMap has vadd, vmul, vmla, vaxpy, vexp, vdiv and vconv in float16 and float32, and
# ops-nn runs GeGluV2, GLU and GroupNormSilu there. The unified buffer is as large as that of an AI core.
VECTOR_CORE = Core(mhz=1000, memory_bytes_per_cycle=9, l2_read_bytes_per_cycle=57, l2_write_bytes_per_cycle=57)


@dataclass(frozen=True)
class Soc:
    """One device, with the figures of its CANN platform configuration.

    Attributes:
        name: exact name for `atc --soc_version`.
        family: family name for `AddConfig` of an AscendC operator. `Ascend910B`, of the family ascend910, is an older
            chip than `Ascend910B1` and the others of the family ascend910b.
        npu_arch: `__NPU_ARCH__`.
        ai_cores: cores with a cube unit.
        vector_cores: cores without a cube unit, see `vector_units` and `vector_cores_beside`.
        cube_mhz: clock of the cube unit.
        ub_bytes: unified buffer of a core.
        l1_bytes, l0a_bytes, l0b_bytes, l0c_bytes: buffers of the cube unit of a core.
        l2_bytes: level-2 cache of the chip.
        memory_bytes_per_cycle: rate of a core from memory.
        l2_read_bytes_per_cycle: rate of a core from the level-2 cache.
        l2_write_bytes_per_cycle: rate of a core to the level-2 cache.
        l1_to_l0a_bytes_per_cycle, l1_to_l0b_bytes_per_cycle: rates that feed the cube unit of a core.
        l0c_to_ub_bytes_per_cycle: rate of results out of the cube unit. Where cube and vector units are separate cores,
            the results go through memory or the level-2 cache instead.
        bf16: True if the device computes in bfloat16.
    """

    name: str
    family: str
    npu_arch: int
    ai_cores: int
    vector_cores: int
    cube_mhz: int
    ub_bytes: int
    l1_bytes: int
    l0a_bytes: int
    l0b_bytes: int
    l0c_bytes: int
    l2_bytes: int
    memory_bytes_per_cycle: int
    l2_read_bytes_per_cycle: int
    l2_write_bytes_per_cycle: int
    l1_to_l0a_bytes_per_cycle: int
    l1_to_l0b_bytes_per_cycle: int
    l0c_to_ub_bytes_per_cycle: int
    bf16: bool

    @property
    def split(self) -> bool:
        """Return True if cube and vector units are separate cores that exchange data through memory."""
        return self.npu_arch == 2201

    @property
    def vector_units(self) -> int:
        """Return the number of cores that a vector kernel runs on by default.

        Separate vector cores come two for each cube core; otherwise each AI core has one vector unit.
        """
        return self.vector_cores if self.split else self.ai_cores

    @property
    def vector_cores_beside(self) -> int:
        """Return the number of a 310P's vector cores: a kernel may ask for them beside the AI cores."""
        return self.vector_cores if self.npu_arch == 2002 else 0

    @property
    def ai_core(self) -> Core:
        """Return the figures of an AI core; separate vector cores share its path to memory."""
        rates = (self.memory_bytes_per_cycle, self.l2_read_bytes_per_cycle, self.l2_write_bytes_per_cycle)
        return Core(self.cube_mhz, *rates)

    @property
    def vector_mhz(self) -> int:
        """Return the clock of those vector units; the configuration has one clock for a core and its units."""
        return self.cube_mhz

    @property
    def memory_bytes_per_second(self) -> float:
        """Return the rate of all AI cores together from or to memory, which separate vector cores share."""
        return self.ai_cores * self.cube_mhz * 1e6 * self.memory_bytes_per_cycle

    @property
    def l2_read_bytes_per_second(self) -> float:
        """Return the rate of all AI cores together from the level-2 cache."""
        return self.ai_cores * self.cube_mhz * 1e6 * self.l2_read_bytes_per_cycle

    @property
    def l2_write_bytes_per_second(self) -> float:
        """Return the rate of all AI cores together to the level-2 cache."""
        return self.ai_cores * self.cube_mhz * 1e6 * self.l2_write_bytes_per_cycle


# Per family: architecture; KiB of UB, L1, L0A, L0B, L0C; bytes per cycle from L2, to L2, L1 to L0A, L1 to L0B,
# L0C to UB; bfloat16.
_FAMILIES: dict[str, tuple] = {
    "ascend310p": (2002, (256, 1024, 64, 64, 256), (114, 114, 512, 256, 512), False),
    "ascend310b": (3002, (248, 1024, 64, 64, 128), (256, 128, 512, 256, 128), True),
    "ascend910": (1001, (256, 1024, 64, 64, 256), (110, 86, 512, 256, 256), False),
    "ascend910b": (2201, (192, 512, 64, 64, 128), (110, 86, 512, 256, 256), True),
    "ascend910_93": (2201, (192, 512, 64, 64, 128), (110, 86, 512, 256, 256), True),
}

# Name, family, AI cores, vector cores, cube MHz, MiB of L2, bytes per cycle from memory.
_ROWS = (
    ("Ascend310P1", "ascend310p", 10, 8, 1060, 16, 17),
    ("Ascend310P3", "ascend310p", 8, 7, 1060, 16, 17),
    ("Ascend310P5", "ascend310p", 8, 7, 800, 16, 17),
    ("Ascend310P7", "ascend310p", 8, 7, 550, 16, 17),
    ("Ascend310B1", "ascend310b", 1, 1, 1224, 4, 17),
    ("Ascend310B2", "ascend310b", 1, 1, 1224, 4, 17),
    ("Ascend310B3", "ascend310b", 1, 1, 1224, 4, 17),
    ("Ascend310B4", "ascend310b", 1, 1, 500, 4, 8),
    ("Ascend910A", "ascend910", 32, 0, 1000, 32, 32),
    ("Ascend910ProA", "ascend910", 32, 0, 1100, 32, 32),
    ("Ascend910PremiumA", "ascend910", 32, 0, 1220, 32, 32),
    ("Ascend910B", "ascend910", 30, 0, 900, 32, 32),
    ("Ascend910ProB", "ascend910", 30, 0, 1150, 32, 32),
    ("Ascend910B1", "ascend910b", 24, 48, 1850, 192, 32),
    ("Ascend910B2", "ascend910b", 24, 48, 1800, 192, 32),
    ("Ascend910B2C", "ascend910b", 24, 48, 1800, 192, 32),
    ("Ascend910B3", "ascend910b", 20, 40, 1800, 192, 32),
    ("Ascend910B4", "ascend910b", 20, 40, 1500, 96, 32),
    ("Ascend910B4-1", "ascend910b", 20, 40, 1500, 168, 32),
    ("Ascend910_9362", "ascend910_93", 20, 40, 1500, 168, 32),
    ("Ascend910_9363", "ascend910_93", 20, 40, 1500, 168, 32),
    ("Ascend910_9372", "ascend910_93", 20, 40, 1800, 192, 32),
    ("Ascend910_9381", "ascend910_93", 24, 48, 1800, 192, 32),
    ("Ascend910_9382", "ascend910_93", 24, 48, 1800, 192, 32),
    ("Ascend910_9391", "ascend910_93", 24, 48, 1850, 192, 32),
    ("Ascend910_9392", "ascend910_93", 24, 48, 1850, 192, 32),
)


def _device(name: str, family: str, ai_cores: int, vector_cores: int, mhz: int, l2_mib: int, memory: int) -> Soc:
    arch, kib, rates, bf16 = _FAMILIES[family]
    buffers = [size * 1024 for size in kib]
    values: list[Any] = [name, family, arch, ai_cores, vector_cores, mhz, *buffers, l2_mib << 20, memory, *rates, bf16]
    return Soc(*values)


SOCS = {row[0]: _device(*row) for row in _ROWS}


def soc(name: str) -> Soc:
    """Return a device by its name for `atc --soc_version`.

    Raises:
        UsageError: the device is unknown; the message suggests the nearest names.
    """
    if name in SOCS:
        return SOCS[name]
    suggested = _nearest(name)
    hint = f"did you mean {' or '.join(suggested)}?" if suggested else f"known devices: {', '.join(SOCS)}."
    raise UsageError(
        f"unknown device {name!r}; {hint} `npu-smi info` shows the name of a device; write it with Ascend in front."
    )


def _nearest(name: str) -> list[str]:
    def plain(text: str) -> str:
        return "".join(c for c in text.lower().removeprefix("ascend") if c.isalnum())

    wanted = plain(str(name))
    known = {plain(device): device for device in SOCS}
    if not wanted or wanted in known:
        return [known[wanted]] if wanted else []
    starting = [device for key, device in known.items() if key.startswith(wanted)]
    # `Ascend310P` is not a misspelling but a family: list its first devices.
    return starting[:4] or [known[key] for key in difflib.get_close_matches(wanted, known, n=3, cutoff=0.6)]
