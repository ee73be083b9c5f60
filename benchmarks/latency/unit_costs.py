"""The device model's costs besides the figures of `ops/soc.py`, each with its source or the word "assumed".

Nothing here was measured by this project; nothing has run on a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from neonext_ms.ops.soc import Soc

FP16 = 2  # bytes
TILE = 16  # rows, columns and depth of what the cube multiplies in one cycle
REPEAT = 128  # float16 numbers that one repeat of a vector instruction works on

_SLOW_INSTRUCTIONS = ("Exp", "Ln", "Sqrt", "Div")
# Vector instructions of the shortest tanh form of GELU, x / (1 + exp(-1.5958 (x + 0.044715 x^3))): six ordinary ones
# (Mul Mul Muls Add Muls Adds) and two slow ones (Exp, Div). AscendC's own Gelu has 10 and 3.
GELU = (6, 2)


@dataclass(frozen=True)
class Costs:
    """Costs of instructions and launches.

    "Table 6" and "Table 8" are the theoretical throughputs of vector instructions in the appendix of the AscendC
    documentation (mirror-cann/asc-devkit), given for the Atlas A2 and A3 (`__NPU_ARCH__` 2201) only; assumed for the
    other devices.

    Attributes:
        launch_us: microseconds from one task to the next. At most 3.4 on a 310P3, derived from the published throughput
            of ResNet-50 in int8 at batch 1; assumed for the other devices.
        repeat_cycles: cycles of one repeat (256 bytes) of Add, Mul and similar instructions. Table 6.
        multiply_add_cycles: cycles of one repeat of MulAddDst. Table 8: half the rate of Mul, because three operands at
            different addresses cannot be read in one cycle. The table does not say if a coefficient that is broadcast
            by zero strides counts as one of the three; the cost is 1 if it does not.
        slow_cycles: cycles of one repeat of Exp, Div, Ln or Sqrt on 128 float16 numbers (32 a cycle). Table 6.
        vector_start_cycles: cycles of one vector instruction besides its repeats. Derived from asc-devkit's example
            `bank_conflict_ub` on an A2: 1000 Adds of 64 repeats take 47.8 us without and 83.3 us with conflicts that
            double every repeat, so 1.80 GHz and 22 cycles; `add_high_performance` gives 23. Those Adds write the same
            place; the example does not say if independent instructions overlap. Assumed for the other devices.
        vector_repeats: repeats of one instruction of an elementwise kernel. Assumed.
        copy_start_cycles: cycles of one DataCopy besides its bytes. Derived from asc-devkit's example `data_copy` on an
            A2: 49152 copies of 128 bytes a core take 548 us, 20 cycles each with their bytes. Assumed for the others.
        burst_cycles: cycles of one burst of a DataCopy besides its bytes. Assumed.
        scalar_cycles: cycles of one scalar instruction that the simulator counts. Assumed.
        cube_start_cycles: cycles of one Mmad besides its tiles. Derived from asc-devkit's table of `UnitFlag`: 4209
            cycles for 8 Mmads of 512 tiles each. Assumed for the other devices.
        l2_share: share of the level-2 cache that one tensor, or one kernel's input and output, may take to be read
            from there instead of from memory. Assumed.
    """

    launch_us: float = 3.4
    repeat_cycles: float = 1.0
    multiply_add_cycles: float = 2.0
    slow_cycles: float = 4.0
    vector_start_cycles: float = 22.0
    vector_repeats: float = 128.0
    copy_start_cycles: float = 20.0
    burst_cycles: float = 1.0
    scalar_cycles: float = 1.0
    cube_start_cycles: float = 14.0
    l2_share: float = 1.0

    def overlapping(self) -> Costs:
        """Return the costs if independent vector instructions hide each other's start."""
        return replace(self, vector_start_cycles=0.0)

    def hopeful(self) -> Costs:
        """Return the costs if, besides, MulAddDst with a broadcast coefficient runs at the full rate."""
        return replace(self.overlapping(), multiply_add_cycles=self.repeat_cycles)

    def cycles_of_repeat(self, instruction: str) -> float:
        """Return the cycles of one repeat of an instruction, given by its AscendC name."""
        if instruction == "MulAddDst":
            return self.multiply_add_cycles
        return self.slow_cycles if instruction in _SLOW_INSTRUCTIONS else self.repeat_cycles

    def elementwise_cycles(self, quick: float, slow: float = 0) -> float:
        """Return the cycles of one vector unit for so many ordinary and slow instructions on 128 float16 numbers."""
        starts = (quick + slow) * self.vector_start_cycles / self.vector_repeats
        return quick * self.repeat_cycles + slow * self.slow_cycles + starts

    def fits_l2(self, size: float, soc: Soc) -> bool:
        """Return if so many bytes count as held by the level-2 cache."""
        return size <= self.l2_share * soc.l2_bytes


def tiles(size: float, unit: int = TILE) -> int:
    """Return how many units cover a size."""
    return -(-int(size) // unit)
