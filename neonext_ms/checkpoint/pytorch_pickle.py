"""The pickle inside a torch.save file, read by an interpreter that cannot execute anything.

It knows the opcodes that build plain values. A global is never imported. The functions of a short table belong to this
package and check their arguments; every other class or function is only a name, and what a file makes of it is a
`Placeholder` that keeps this name and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from neonext_ms.common.errors import InputError

from .budget import CONTAINER, Budget
from .mapped_file import DamageError, printable

_MAX_BYTES = 16 << 20
_MAX_MEMO = 1 << 20
_MAX_DIGITS = 1024
# Opcodes that are charged at once.
_BLOCK = 256

HINT = "Re-save it where it was made, with torch.save(model.state_dict(), 'weights.pt')."

# A file that names one of these wants to run something. Nothing of it would run here either, but somewhere else it
# would, and its user should know.
_EXECUTING = re.compile(
    r"(?:os|posix|nt|subprocess|_posixsubprocess|sys|builtins|importlib|imp|runpy|ctypes|cffi|shutil|socket|pty|codeop"
    r"|timeit|pdb|bdb|cProfile|operator|_operator|types|marshal|pickle|_pickle|cPickle|dill|cloudpickle|joblib|shelve"
    r"|multiprocessing|threading|_thread|asyncio|webbrowser|pip|pkgutil|pydoc|inspect|gc|signal|atexit|urllib2?|http"
    r"|ftplib|smtplib|requests|httpx|aiohttp|zipimport|torch\.(?:storage|serialization|jit|hub|package)"
    r"|torch\.utils\.cpp_extension|numpy\.(?:testing|f2py|distutils))(?:\.|$)"
)
# Harmless values of these modules.
_HARMLESS = re.compile(
    r"builtins\.(?:set|frozenset|bytes|bytearray|complex|list|dict|tuple|int|float|str|bool|object|slice|x?range|getattr"
    r"|long|unicode|Ellipsis|NotImplemented|\w+(?:Error|Exception|Warning))"
    r"|types\.(?:SimpleNamespace|MappingProxyType)|http\.HTTPStatus|torch\.serialization\._get_layout"
)
# Functions whose result is an object of their first argument, or a member of it (an enumeration in a class).
_CONSTRUCTORS = ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__", "builtins.getattr")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True)
class PickleFunction:
    """A function that a file may call (with the opcode REDUCE)."""

    function: Callable


class Placeholder(dict):
    """An object, class or function of which only the name is known; a dict with the items that the file set on it."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def load_pickle(
    data: memoryview,
    start: int,
    budget: Budget,
    known: Mapping[tuple[str, str], object],
    persistent: Callable[[object], object],
) -> tuple[object, int]:
    """Load the pickle that starts at `start`, and return its value and the position of its end.

    Args:
        data: bytes that hold the pickle.
        start: position of its first byte.
        budget: budget of the file, which every opcode is charged to.
        known: values of globals by module and name; only a `PickleFunction` of them can be called.
        persistent: function that turns a persistent id into a value.

    Returns:
        A value made of plain values (`OrderedDict` becomes `dict`, a key that is not a str becomes a text such as
        `<5>`), placeholders, and those of `known` and `persistent`. That of a hostile file can contain itself.

    Raises:
        InputError: the pickle is nothing but a placeholder, names a function that executes something, or uses an
            opcode that torch.save never writes; or the budget is used up.
        Exception: the pickle is damaged; `mapped_file.damage_named` catches every type that occurs.
    """
    machine = _Machine(data[: start + _MAX_BYTES], start, budget, known, persistent)
    value = machine.run()
    if isinstance(value, Placeholder) and not value:
        raise machine.rejected(value.name)
    return value, machine.at


def dictionary_key(value: object, depth: int = 3) -> str:
    """Return a text for a dictionary key that is not a str.

    Numbers with one hash would make a dictionary slow without bound, and so would the hash of nested tuples.
    """
    if type(value) is tuple:
        if not depth:
            raise DamageError("a dictionary has a key of tuples in tuples")
        items = [dictionary_key(item, depth - 1).strip("<>") for item in value[:8]]
        return f"<({', '.join(items)}{', ...' * (len(value) > 8)})>"
    if value is None or type(value) in (bool, float) or (type(value) is int and value.bit_length() <= 64):
        return f"<{value}>"
    if type(value) is str:
        return repr(value[:100])
    if isinstance(value, Placeholder):
        return repr(value)
    if type(value) in (list, dict):
        raise DamageError(f"a dictionary has a key of type {type(value).__name__}")
    return f"<{type(value).__name__}>"


class _Machine:
    """The stack machine of a pickle: one method for each opcode that is allowed."""

    def __init__(self, data: memoryview, start: int, budget: Budget, known: Mapping, persistent: Callable):
        self.data = data
        self.at = start
        self.budget = budget
        self.source = budget.source
        self.known = known
        self.persistent = persistent
        self.stack: list = []
        self.marks: list[list] = []
        # A list: numbers with one hash would make a dictionary slow without bound.
        self.memo: list = []

    def run(self):
        while True:
            self.budget.spend(_BLOCK)
            for _ in range(_BLOCK):
                code = self.take(1)[0]
                if code == 0x2E:  # STOP
                    return self.stack.pop()
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise self.rejected_opcode(code)
                operation(self)

    def take(self, count: int) -> memoryview:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise DamageError("the pickle is truncated")
        self.at += count
        return taken

    def number(self, layout: str):
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        for limit in (64, 4096):
            piece = bytes(self.data[self.at : self.at + limit])
            if (length := piece.find(b"\n")) >= 0:
                self.at += length + 1
                return piece[:length].decode("utf-8")
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

    def rejected(self, name: str) -> InputError:
        return InputError(
            f"{self.source}: contains {name}; nothing of it was executed, because only tensors and plain containers "
            f"are read. {HINT}"
        )

    def find(self, module, name) -> None:
        if type(module) is not str or type(name) is not str:
            raise DamageError("the name of a global is not a text")
        module = _PYTHON_2.get(module, module)
        value = self.known.get((module, name))
        if value is None:
            shown = f"{printable(module)}.{printable(name)}"
            if _EXECUTING.match(module) and not _HARMLESS.fullmatch(shown):
                raise self.rejected(shown)
            value = self.placeholder(shown)
        self.push(value)

    def placeholder(self, name: str) -> Placeholder:
        self.budget.spend(2 * CONTAINER)
        return Placeholder(name)

    def call(self, function: Placeholder, arguments) -> None:
        name = function.name
        first = arguments[0] if type(arguments) is tuple and arguments else None
        if name in _CONSTRUCTORS and isinstance(first, Placeholder):
            name = first.name
        self.push(self.placeholder(name))

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
        if isinstance(function, Placeholder):
            self.call(function, arguments)
            return
        if type(function) is not PickleFunction or type(arguments) is not tuple:
            raise InputError(f"{self.source}: the pickle calls an object that is not a function; nothing was executed")
        self.budget.spend(CONTAINER)
        self.push(function.function(*arguments))

    def new_object(self, code: int, count: int) -> None:
        arguments = self.tuple_from_stack(count)
        if not isinstance(arguments[0], Placeholder):
            raise self.rejected_opcode(code)
        self.call(arguments[0], ())

    def build(self) -> None:
        # A state dict carries its `_metadata` this way. It says nothing about the tensors, so it is dropped.
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder):
            return
        if type(self.stack[-1]) is not dict or type(state) is not dict:
            raise InputError(f"{self.source}: the pickle sets the state of an object that is not a dictionary. {HINT}")

    def persistent_id(self) -> None:
        self.push(self.persistent(self.stack.pop()))

    def set_items(self, target, items: list) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise DamageError("items are set on an object that is not a dictionary")
        self.budget.spend(len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if type(key) is str else dictionary_key(key)] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def set_marked(self) -> None:
        items = self.to_mark()
        self.set_items(self.stack[-1], items)

    def new_dict(self) -> None:
        items = self.to_mark()
        self.push_container({})
        self.set_items(self.stack[-1], items)

    def push_container(self, value) -> None:
        self.budget.spend(CONTAINER)
        self.stack.append(value)

    def new_set(self, items: list) -> None:
        # Nobody needs its elements, and their hashes could take forever.
        self.push(self.placeholder("builtins.set"))

    def add_items(self) -> None:
        self.to_mark()
        if not isinstance(self.stack[-1], Placeholder):
            raise DamageError("items are added to an object that is not a set")

    def extend(self, items: list) -> None:
        if isinstance(self.stack[-1], Placeholder):
            return
        if type(self.stack[-1]) is not list:
            raise DamageError("items are appended to an object that is not a list")
        self.stack[-1].extend(items)

    def append(self) -> None:
        self.extend([self.stack.pop()])

    def append_marked(self) -> None:
        self.extend(self.to_mark())

    def tuple_from_stack(self, count: int) -> tuple:
        if len(self.stack) < count:
            raise DamageError("the pickle takes more values than its stack has")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def tuple_of(self, count: int) -> None:
        self.push_container(self.tuple_from_stack(count))

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def put(self, index: int) -> None:
        value = self.stack[-1]
        if index == len(self.memo):
            self.memo.append(value)
            return
        if not 0 <= index < _MAX_MEMO:
            raise DamageError(f"a position of the memo is out of range (got {printable(index)})")
        self.memo += [_NOTHING] * (index + 1 - len(self.memo))
        self.memo[index] = value

    def get(self, index: int) -> None:
        if not 0 <= index < len(self.memo) or self.memo[index] is _NOTHING:
            raise DamageError("the pickle takes a value from its memo that is not there")
        self.push(self.memo[index])

    def text(self, layout: str) -> None:
        # Python writes lone surrogates, too, such as those of a file name.
        self.push(str(self.take(self.number(layout)), "utf-8", "surrogatepass"))

    def bytes_(self, layout: str) -> None:
        self.push(bytes(self.take(self.number(layout))))

    def long(self, layout: str) -> None:
        count = self.number(layout)
        if not 0 <= count <= _MAX_DIGITS:
            raise DamageError("a number is too long")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def int_line(self) -> None:
        line = self.line()
        self.push({"00": False, "01": True}[line] if line in ("00", "01") else int(line))

    def skip(self, count: int) -> None:
        self.take(count)


_NOTHING = object()

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
    0x96: lambda m: m.bytes_("<Q"),  # BYTEARRAY8
    0x29: lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    0x74: lambda m: m.push_container(tuple(m.to_mark())),
    0x5D: lambda m: m.push_container([]),
    0x6C: lambda m: m.push_container(m.to_mark()),  # LIST
    0x61: _Machine.append,
    0x65: _Machine.append_marked,
    0x7D: lambda m: m.push_container({}),
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
    0x8F: lambda m: m.new_set([]),
    0x90: _Machine.add_items,
    0x91: lambda m: m.new_set(m.to_mark()),  # FROZENSET
    0x81: lambda m: m.new_object(0x81, 2),  # NEWOBJ
    0x92: lambda m: m.new_object(0x92, 3),  # NEWOBJ_EX
    0x52: _Machine.reduce,
    0x62: _Machine.build,
    0x51: _Machine.persistent_id,  # BINPERSID
}
