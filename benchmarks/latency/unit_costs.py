"""What the device model assumes besides the figures of `ops/soc.py`, each with its source or the word "assumed".

Nothing here was measured by this project; nothing has run on a device.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from neonext_ms.ops.soc import Soc

FUSED_MULTIPLY_ADDS = ("MulAddDst",)
SLOW_INSTRUCTIONS = ("Exp", "Ln", "Sqrt", "Div")


@dataclass(frozen=True)
class Costs:
    """Costs of instructions and launches.

    "Table 6", "Table 8": theoretical throughput of vector instructions in the appendix of the AscendC documentation
    (mirror-cann/asc-devkit), given for the Atlas A2 and A3 (`__NPU_ARCH__` 2201) only; assumed for the others.

    Attributes:
        launch_us: microseconds from one task to the next. At most 3.4 on a 310P3, derived from the published throughput
            of ResNet-50 in int8 at batch 1; assumed for the others.
        repeat_cycles: of one repeat (256 bytes) of Add, Mul and the like. Table 6.
        multiply_add_cycles: of one repeat of MulAddDst. Table 8: half the rate of Mul, because three operands at
            different addresses cannot be read in one cycle. Whether a coefficient that is broadcast by zero strides
            counts as one of the three is not said; 1 if it does not.
        slow_cycles: of one repeat of 128 float16 Exp, Div, Ln, Sqrt (32 elements a cycle). Table 6.
        vector_start_cycles: of one vector instruction besides its repeats. Derived from asc-devkit's example
            `bank_conflict_ub` on an A2: 1000 Adds of 64 repeats take 47.8 us without and 83.3 us with conflicts that
            double every repeat, so 1.80 GHz and 22 cycles; `add_high_performance` gives 23. Those Adds write the same
            place; whether independent ones overlap is not said. Assumed for the others.
        vector_repeats: repeats of one instruction of an elementwise kernel. Assumed.
        copy_start_cycles: of one DataCopy besides its bytes. Derived from asc-devkit's example `data_copy` on an A2:
            49152 copies of 128 bytes a core take 548 us, 20 cycles each with their bytes. Assumed for the others.
        burst_cycles: of one burst of a DataCopy besides its bytes. Assumed.
        scalar_cycles: of one scalar instruction that the twin counts. Assumed.
        cube_start_cycles: of one Mmad besides its tiles. Derived from asc-devkit's table of `UnitFlag`: 4209 cycles for
            8 Mmads of 512 tiles each. Assumed for the others.
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
        """The same if vector instructions that do not wait for each other cost nothing to start."""
        return replace(self, vector_start_cycles=0.0)

    def hopeful(self) -> Costs:
        """The same if, besides, MulAddDst with a broadcast coefficient runs at the full rate."""
        return replace(self.overlapping(), multiply_add_cycles=self.repeat_cycles)

    def ideal(self) -> Costs:
        """The same if, besides, every instruction does and nothing is launched: a roofline."""
        return replace(self.hopeful(), slow_cycles=self.repeat_cycles, launch_us=0.0)

    def cycles_of_repeat(self, instruction: str) -> float:
        """Cycles of one repeat of an instruction by its AscendC name."""
        if instruction in FUSED_MULTIPLY_ADDS:
            return self.multiply_add_cycles
        return self.slow_cycles if instruction in SLOW_INSTRUCTIONS else self.repeat_cycles

    def fits_l2(self, size: float, soc: Soc) -> bool:
        """Whether so many bytes count as held by the level-2 cache."""
        return size <= self.l2_share * soc.l2_bytes


# Vector instructions of GELU: how many ordinary ones, how many slow ones (Exp, Div).
#   short  x / (1 + exp(-1.5958 (x + 0.044715 x^3))): Mul Mul Muls Add Muls Exp Adds Div, the tanh form
#   cann   the same with both signs of the exponent kept from overflow: AscendC's Gelu, 13 instructions
#   fast   x / (1 + exp(-1.702 x)): AscendC's FasterGelu
GELU_FORMS = {"short": (6, 2), "cann": (10, 3), "fast": (2, 2)}


def elementwise_cycles(quick: int, slow: int, costs: Costs) -> float:
    """Cycles of one vector unit for so many instructions on 128 float16 numbers."""
    starts = (quick + slow) * costs.vector_start_cycles / costs.vector_repeats
    return quick * costs.repeat_cycles + slow * costs.slow_cycles + starts


def gelu_cycles(form: str, costs: Costs) -> float:
    """Cycles of one vector unit for GELU of 128 float16 numbers."""
    return elementwise_cycles(*GELU_FORMS[form], costs)


def bank_ways(stride: int) -> int:
    """Cycles that reading or writing the 8 blocks of one repeat takes, for blocks `stride` times 32 bytes apart.

    The unified buffer has 16 groups of banks, each a block wide, and a cycle reaches one row of each (asc-devkit, on
    avoiding bank conflicts, for 2201; the platform configuration of the 310P names 16 groups too). A stride of zero
    reads its block once. Not part of the times that this model predicts.
    """
    return 1 if stride == 0 else max(Counter(i * stride % 16 for i in range(8)).values())
