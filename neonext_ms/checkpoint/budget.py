"""The budget of work and memory for reading one file.

A small file can ask for much: an opcode of two bytes copies a list of any length, a dictionary of chosen numbers
compares all of them, a tensor repeats one number a billion times. So every reader charges an operation by what it
costs, and a file that exceeds the budget is rejected.
"""

from __future__ import annotations

from neonext_ms.common.errors import InputError

from .mapped_file import printable

# A step takes about a microsecond: an opcode of a pickle, a third of a field of a message, an element of a copy. The
# largest model needs 180,000 for its weights, and four times as many with a moving average and two states of an
# optimizer, and twice as many in PyTorch's older format.
STEPS = 2_000_000
# A container takes as much memory as eight elements, and an array some microseconds.
CONTAINER = 4
ARRAY = 20
# A name of a NeoNeXt has 50 characters, and wrappers put a few words before it.
NAME_LENGTH = 1000
_LEAST_BYTES = 64 << 20
_EXPANSION = 8


class Budget:
    """The steps and bytes that reading one file may still cost.

    Args:
        source: name of the file in messages.
        size: number of bytes of the file.
    """

    def __init__(self, source: str, size: int):
        self.source = source
        self.steps = STEPS
        # Tensors may share bytes of the file, but whoever copies them needs the memory.
        self.limit = max(_LEAST_BYTES, _EXPANSION * size)
        self.bytes = self.limit

    def spend(self, steps: int) -> None:
        """Charge steps of work.

        Raises:
            InputError: the file has used them up.
        """
        self.steps -= steps
        if self.steps < 0:
            raise InputError(
                f"{self.source}: too many steps to read it (expected at most {STEPS:,}), many times as many as the "
                "weights of a model need. Save the weights alone, with torch.save(model.state_dict(), 'weights.pt')."
            )

    def expand(self, size: int) -> None:
        """Charge the bytes of a tensor.

        Raises:
            InputError: the tensors have more bytes together than the file can explain.
        """
        self.bytes -= size
        if self.bytes < 0:
            raise InputError(
                f"{self.source}: its tensors are expanded to more than {self.limit >> 20} MiB, far more than the file "
                "holds. Make them contiguous and save them again."
            )

    def name(self, text: str) -> str:
        """Return the name of a tensor, and charge what it costs to compare it.

        Raises:
            InputError: the name is too long.
        """
        if len(text) > NAME_LENGTH:
            raise InputError(
                f"{self.source}: the name of a tensor is too long (got {len(text):,} characters, expected at most "
                f"{NAME_LENGTH:,}): {printable(text, 50)}"
            )
        self.spend(4 + len(text) // 16)
        return text
