"""The one table of devices: what is known of each Ascend chip that `atc --soc_version` takes."""

from __future__ import annotations

from dataclasses import dataclass

from neonext_ms.common.errors import InputError

PLATFORM_CONFIG = "CANN platform_config/{name}.ini (hicann/runtime, src/platform/platform_config/cann)"
MACS_PER_CYCLE = 16 * 16 * 16


@dataclass(frozen=True)
class Soc:
    """One device, with the figures of its CANN platform configuration; nothing here was measured.

    Attributes:
        name: exactly as `atc --soc_version` takes it.
        family: as `AddConfig` of an AscendC operator takes it. `Ascend910B`, of the family ascend910, is an older
            chip than `Ascend910B1` and the others of the family ascend910b.
        npu_arch: `__NPU_ARCH__`.
        ai_cores: cores with a cube unit.
        vector_cores: vector cores besides those inside the AI cores.
        cube_mhz: clock of the cube unit.
        ub_bytes: unified buffer of a core.
        l1_bytes, l0a_bytes, l0b_bytes, l0c_bytes: the cube's buffers of a core.
        l2_bytes: level-2 cache of the chip.
        memory_bytes_per_cycle: from memory, for each core.
        l2_read_bytes_per_cycle: from the level-2 cache, for each core.
        l2_write_bytes_per_cycle: to the level-2 cache, for each core.
        l1_to_l0a_bytes_per_cycle, l1_to_l0b_bytes_per_cycle: what feeds the cube of a core.
        l0c_to_ub_bytes_per_cycle: results of the cube on their way out. Where cube and vector are separate cores they
            go through memory or the level-2 cache instead.
        ub_to_l1_bytes_per_cycle: vector results on their way to the cube, where both share a core.
        vector_bytes_per_cycle: what a vector unit computes, 128 float16 or 64 float32 numbers.
        bf16: whether it computes in bfloat16.
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
    ub_to_l1_bytes_per_cycle: int
    vector_bytes_per_cycle: int
    bf16: bool

    @property
    def fp16_tflops(self) -> float:
        """Peak of all cubes in 10^12 operations a second: 4096 multiply-adds a cycle and core, two operations each."""
        return self.ai_cores * self.cube_mhz * 1e6 * MACS_PER_CYCLE * 2 / 1e12

    @property
    def split(self) -> bool:
        """Whether cube and vector are separate cores, with data between them through memory."""
        return self.npu_arch == 2201

    @property
    def vector_units(self) -> int:
        """Cores that a vector kernel runs on.

        Two for each cube core where they are separate, else the vector unit of every AI core. The vector-only cores of
        the 310P do not count: the AscendC documentation says that they have no Mul, Add or MulAddDst.
        """
        return self.vector_cores if self.split else self.ai_cores

    @property
    def vector_mhz(self) -> int:
        """Clock of those vector units: the configuration has one clock for a core and its units."""
        return self.cube_mhz

    @property
    def memory_bytes_per_second(self) -> float:
        """All AI cores together, reading or writing memory. Separate vector cores share the rate of their AI core."""
        return self.ai_cores * self.cube_mhz * 1e6 * self.memory_bytes_per_cycle

    @property
    def l2_read_bytes_per_second(self) -> float:
        """All AI cores together, from the level-2 cache."""
        return self.ai_cores * self.cube_mhz * 1e6 * self.l2_read_bytes_per_cycle

    @property
    def l2_write_bytes_per_second(self) -> float:
        """All AI cores together, to the level-2 cache."""
        return self.ai_cores * self.cube_mhz * 1e6 * self.l2_write_bytes_per_cycle

    @property
    def source(self) -> str:
        """Where the figures are from."""
        return PLATFORM_CONFIG.format(name=self.name)


# For each family: architecture, KiB of UB, L1, L0A, L0B, L0C, then bytes a cycle: from L2, to L2, L1 to L0A, L1 to L0B,
# L0C to UB, UB to L1, vector unit (vec_calc_size in float16 numbers, times two); last, bfloat16.
_FAMILIES = {
    "ascend310p": (2002, (256, 1024, 64, 64, 256), (114, 114, 512, 256, 512, 256, 256), False),
    "ascend310b": (3002, (248, 1024, 64, 64, 128), (256, 128, 512, 256, 128, 128, 256), True),
    "ascend910": (1001, (256, 1024, 64, 64, 256), (110, 86, 512, 256, 256, 128, 256), False),
    "ascend910b": (2201, (192, 512, 64, 64, 128), (110, 86, 512, 256, 256, 128, 256), True),
    "ascend910_93": (2201, (192, 512, 64, 64, 128), (110, 86, 512, 256, 256, 128, 256), True),
}

# Name, family, AI cores, vector cores, cube MHz, MiB of L2, bytes a cycle from memory.
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


def _row(name: str, family: str, ai_cores: int, vector_cores: int, mhz: int, l2_mib: int, memory: int) -> Soc:
    arch, kib, rates, bf16 = _FAMILIES[family]
    buffers = [size * 1024 for size in kib]
    return Soc(name, family, arch, ai_cores, vector_cores, mhz, *buffers, l2_mib << 20, memory, *rates, bf16)


SOCS = {row[0]: _row(*row) for row in _ROWS}


def soc(name: str) -> Soc:
    """A device by the name that `atc --soc_version` takes.

    Raises:
        InputError: there is no such device; the message names the nearest ones.
    """
    if name in SOCS:
        return SOCS[name]
    found = _nearest(name)
    hint = f"did you mean {' or '.join(found)}?" if found else f"known are {', '.join(SOCS)}."
    raise InputError(
        f"unknown device {name!r}; {hint} `npu-smi info` shows a device's name, to be written with Ascend before it"
    )


def _nearest(name: str) -> list[str]:
    import difflib

    def plain(text: str) -> str:
        return "".join(c for c in text.lower().removeprefix("ascend") if c.isalnum())

    wanted = plain(str(name))
    same = [known for known in SOCS if plain(known) == wanted]
    if same or not wanted:
        return same
    begun = [known for known in SOCS if plain(known).startswith(wanted)]
    if begun:
        return begun[:4]
    plains = {plain(known): known for known in SOCS}
    return [plains[match] for match in difflib.get_close_matches(wanted, plains, n=3, cutoff=0.6)]
