"""The pickle inside a torch.save file, read by an interpreter that cannot execute anything.

It knows the opcodes that build plain values. A global is never imported: a file is rejected unless the name is in a
short table, and the functions of that table belong to this package and check their arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from neonext_ms.common.errors import InputError

from .mapped_file import DamageError, printable

# A tensor takes about fifty opcodes, and the training checkpoint of the largest model has 2,000 tensors.
_MAX_OPCODES = 1_000_000
_MAX_BYTES = 16 << 20
# Keys are hashed and compared. Only these types bound the time of that: nested tuples can take forever.
_KEY_TYPES = (str, int, float, bool, bytes, type(None))

HINT = "Re-save it where it was made, with torch.save(model.state_dict(), 'weights.pt')."


@dataclass(frozen=True)
class PickleFunction:
    """A function that a file may call (with the opcode REDUCE)."""

    function: Callable


def load_pickle(
    data: memoryview,
    start: int,
    source: str,
    known: Mapping[tuple[str, str], object],
    persistent: Callable[[object], object],
) -> tuple[object, int]:
    """Load the pickle that starts at `start`, and return its value and the position of its end.

    Args:
        data: bytes that hold the pickle.
        start: position of its first byte.
        source: name of the file in messages.
        known: globals that the pickle may name, by module and name; only a `PickleFunction` can be called.
        persistent: function that turns a persistent id into a value.

    Returns:
        A value made of plain values (`OrderedDict` becomes `dict`) and those of `known` and `persistent`. That of a
        hostile file can contain itself.

    Raises:
        InputError: the file names another global, or uses an opcode that torch.save never writes.
        Exception: the pickle is damaged; `mapped_file.damage_named` catches every type that occurs.
    """
    machine = _Machine(data[: start + _MAX_BYTES], start, source, known, persistent)
    return machine.run(), machine.at


class _Machine:
    """The stack machine of a pickle: one method for each opcode that is allowed."""

    def __init__(self, data: memoryview, start: int, source: str, known: Mapping, persistent: Callable):
        self.data = data
        self.at = start
        self.source = source
        self.known = known
        self.persistent = persistent
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, object] = {}

    def run(self):
        for _ in range(_MAX_OPCODES):
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self.rejected_opcode(code)
            operation(self)
        raise InputError(f"{self.source}: too many steps in its pickle (expected at most {_MAX_OPCODES}). {HINT}")

    def take(self, count: int) -> memoryview:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise DamageError("the pickle is truncated")
        self.at += count
        return taken

    def number(self, layout: str):
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        for end in range(self.at, min(len(self.data), self.at + 4096)):
            if self.data[end] == 0x0A:
                text = bytes(self.data[self.at : end]).decode("utf-8")
                self.at = end + 1
                return text
        raise DamageError("a line of the pickle has no end")

    def push(self, value) -> None:
        self.stack.append(value)

    def to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def rejected_opcode(self, code: int) -> InputError:
        from pickletools import opcodes

        name = next((opcode.name for opcode in opcodes if opcode.code == chr(code)), hex(code))
        return InputError(
            f"{self.source}: the pickle uses the opcode {name}, which torch.save does not write for a state dict; "
            f"nothing of it was executed. {HINT}"
        )

    def find(self, module, name) -> None:
        if type(module) is not str or type(name) is not str:
            raise DamageError("the name of a global is not a text")
        value = self.known.get((module, name))
        if value is None:
            raise InputError(
                f"{self.source}: contains {printable(module)}.{printable(name)}; nothing of it was executed, because "
                f"only tensors and plain containers are read. {HINT}"
            )
        self.push(value)

    def global_(self) -> None:
        self.find(self.line(), self.line())

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.find(module, name)

    def inst(self) -> None:
        # Naming the global says more than naming the opcode.
        self.global_()
        raise self.rejected_opcode(0x69)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not PickleFunction or type(arguments) is not tuple:
            raise InputError(f"{self.source}: the pickle calls an object that is not a function; nothing was executed")
        self.push(function.function(*arguments))

    def build(self) -> None:
        # A state dict carries its `_metadata` this way. It says nothing about the tensors, so it is dropped.
        state = self.stack.pop()
        if type(self.stack[-1]) is not dict or type(state) is not dict:
            raise InputError(f"{self.source}: the pickle sets the state of an object that is not a dictionary. {HINT}")

    def persistent_id(self) -> None:
        self.push(self.persistent(self.stack.pop()))

    def set_items(self, target, items: list) -> None:
        if type(target) is not dict or len(items) % 2:
            raise DamageError("items are set on an object that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _KEY_TYPES:
                raise DamageError(f"a dictionary has a key of type {type(key).__name__}")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def set_marked(self) -> None:
        items = self.to_mark()
        self.set_items(self.stack[-1], items)

    def new_dict(self) -> None:
        items = self.to_mark()
        self.push({})
        self.set_items(self.stack[-1], items)

    def extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise DamageError("items are appended to an object that is not a list")
        self.stack[-1].extend(items)

    def append(self) -> None:
        self.extend([self.stack.pop()])

    def append_marked(self) -> None:
        self.extend(self.to_mark())

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise DamageError("the pickle takes more values than its stack has")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def text(self, layout: str) -> None:
        self.push(str(self.take(self.number(layout)), "utf-8"))

    def bytes_(self, layout: str) -> None:
        self.push(bytes(self.take(self.number(layout))))

    def long(self, layout: str) -> None:
        count = self.number(layout)
        if not 0 <= count <= 1024:
            raise DamageError("a number is too long")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def int_line(self) -> None:
        line = self.line()
        self.push({"00": False, "01": True}[line] if line in ("00", "01") else int(line))

    def skip(self, count: int) -> None:
        self.take(count)


_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.skip(1),  # PROTO
    0x95: lambda m: m.skip(8),  # FRAME
    0x28: _Machine.mark,
    0x30: _Machine.pop,
    0x31: _Machine.to_mark,  # POP_MARK
    0x32: lambda m: m.push(m.stack[-1]),  # DUP
    0x4E: lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x49: _Machine.int_line,  # INT
    0x4A: lambda m: m.push(m.number("<i")),  # BININT
    0x4B: lambda m: m.push(m.number("<B")),
    0x4D: lambda m: m.push(m.number("<H")),
    0x4C: lambda m: m.push(int(m.line().removesuffix("L"))),  # LONG
    0x8A: lambda m: m.long("<B"),
    0x8B: lambda m: m.long("<i"),
    0x46: lambda m: m.push(float(m.line())),  # FLOAT
    0x47: lambda m: m.push(m.number(">d")),  # BINFLOAT
    0x55: lambda m: m.text("<B"),  # SHORT_BINSTRING, as Python 2 wrote
    0x54: lambda m: m.text("<I"),  # BINSTRING
    0x58: lambda m: m.text("<I"),  # BINUNICODE
    0x8C: lambda m: m.text("<B"),
    0x8D: lambda m: m.text("<Q"),
    0x43: lambda m: m.bytes_("<B"),  # SHORT_BINBYTES
    0x42: lambda m: m.bytes_("<I"),
    0x8E: lambda m: m.bytes_("<Q"),
    0x29: lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    0x74: lambda m: m.push(tuple(m.to_mark())),
    0x5D: lambda m: m.push([]),
    0x6C: lambda m: m.push(m.to_mark()),  # LIST
    0x61: _Machine.append,
    0x65: _Machine.append_marked,
    0x7D: lambda m: m.push({}),
    0x64: _Machine.new_dict,  # DICT
    0x73: _Machine.set_item,
    0x75: _Machine.set_marked,
    0x70: lambda m: m.put(int(m.line())),  # PUT
    0x71: lambda m: m.put(m.number("<B")),
    0x72: lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m.memo)),  # MEMOIZE
    0x67: lambda m: m.get(int(m.line())),  # GET
    0x68: lambda m: m.get(m.number("<B")),
    0x6A: lambda m: m.get(m.number("<I")),
    0x63: _Machine.global_,
    0x93: _Machine.stack_global,
    0x69: _Machine.inst,
    0x52: _Machine.reduce,
    0x62: _Machine.build,
    0x51: _Machine.persistent_id,  # BINPERSID
}
