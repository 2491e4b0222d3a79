"""The pickle machine: protocols 2 to 5, over bytes that may be a mapped file.

Opcodes as in the standard library's `pickletools`. Nothing is imported or called by name. Long bytes are
views of the file, strings are counted, and every opcode costs one operation of the limits. Python's own
unpickler would not do: it hashes keys without a hook, and deep tuples or equal hashes as keys never end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from gas_ext.safe_pickle.errors import DamagedPickleError, Limits, UnsafePickleError, printable
from gas_ext.safe_pickle.globals import BUILDERS, MARKERS, RECORDS, VALUES, Builder, NumpyDtype, check_key
from gas_ext.safe_pickle.objects import PickledGlobal, PickledObject

_SHORT_BYTES = 64  # bytes values up to this length are copied into `bytes`; longer ones stay views
_LONGEST_NUMBER = 64  # bytes of an integer
_LONGEST_LINE = 256  # bytes of a module's or class's name

PersistentId = Callable[[Any], Any]


class Machine:
    """Reads one pickle from `position` on.

    `load_from_bytes` reads a nested torch stream; `persistent_id` turns a persistent id into an object, and
    without it they are refused.
    """

    def __init__(
        self,
        data: memoryview,
        limits: Limits,
        load_from_bytes: Builder,
        persistent_id: PersistentId | None = None,
        position: int = 0,
    ) -> None:
        self.data, self.limits, self.position = data, limits, position
        self.stack: list[Any] = []
        self.push = self.stack.append
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent_id = persistent_id
        self.builders = {**BUILDERS, ("torch.storage", "_load_from_bytes"): load_from_bytes}

    def run(self) -> Any:
        """Return the value of the pickle; `position` is then behind it."""
        while True:
            code = self.take(1)[0]
            self.limits.spend("operations")
            if code == 0x2E:  # STOP
                if len(self.stack) != 1 or self.marks:
                    raise DamagedPickleError("it ends with unfinished values")
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise DamagedPickleError(f"opcode {code:#04x} is not used by known files")
            operation(self)

    # Bytes

    def take(self, count: int) -> memoryview:
        """Return the next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise DamagedPickleError("it is cut off")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, layout: str) -> int:
        """Return the next little-endian number of a `struct` layout."""
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def text(self, count: int) -> str:
        """Return the next `count` bytes as text."""
        self.limits.spend("text_bytes", count)
        return str(self.take(count), "utf-8", "surrogatepass")

    def line(self) -> str:
        """Return the text up to the next line feed."""
        end = bytes(self.data[self.position : self.position + _LONGEST_LINE]).find(b"\n")
        if end < 0:
            raise DamagedPickleError("a name has no end")
        text = self.text(end)
        self.take(1)
        return text

    # Stack

    def pop(self) -> Any:
        """Take the newest value from the stack, above the newest mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise DamagedPickleError("it takes a value that does not exist")
        return self.stack.pop()

    def mark(self) -> None:
        """Begin a group of values."""
        if len(self.marks) >= self.limits.marks:
            raise DamagedPickleError("its values are nested too deeply")
        self.marks.append(len(self.stack))

    def group(self) -> list[Any]:
        """Take all values since the newest mark."""
        if not self.marks:
            raise DamagedPickleError("it ends a group that has not started")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, wanted: type) -> Any:
        """Return the newest value, which must be of a type, without taking it."""
        value = self.pop()
        if type(value) is not wanted:
            raise DamagedPickleError(f"it fills a {type(value).__name__} as if it were a {wanted.__name__}")
        self.push(value)
        return value

    def some(self, count: int) -> tuple[Any, ...]:
        """Take the newest `count` values, oldest first."""
        return tuple([self.pop() for _ in range(count)][::-1])

    # Containers

    def extend_list(self, values: list[Any]) -> None:
        """Append values to the list on top."""
        self.top(list).extend(values)

    def extend_dict(self, values: list[Any]) -> None:
        """Put key, value, key, value, ... into the dictionary on top."""
        if len(values) % 2:
            raise DamagedPickleError("a key has no value")
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[check_key(self.limits, key)] = value

    def extend_set(self, values: list[Any]) -> None:
        """Put values into the set on top."""
        self.top(set).update([check_key(self.limits, value) for value in values])

    # Globals and objects

    def find(self, module: Any, name: Any) -> None:
        """Push the value or name of a global, or refuse it by name."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickleError("a global has no name")
        key = (module, name)
        if key in VALUES:
            self.push(VALUES[key])
        elif key in self.builders or key in RECORDS or key in MARKERS:
            self.push(PickledGlobal(module, name))
        else:
            raise UnsafePickleError(
                f"it names {printable(module)}.{printable(name)}, which is not on the list of known names"
            )

    def reduce(self) -> None:
        """Call the builder of a global with the arguments on the stack."""
        function, arguments = self.some(2)
        if not isinstance(function, PickledGlobal) or not isinstance(arguments, tuple):
            raise UnsafePickleError(f"it calls a {type(function).__name__}")
        builder = self.builders.get((function.module, function.name))
        if builder is None:
            raise UnsafePickleError(f"it calls {function.module}.{function.name}")
        self.push(builder(self.limits, *arguments))

    def new_object(self) -> None:
        """Start the record of an object, whose attributes follow."""
        cls, arguments = self.some(2)
        if not isinstance(cls, PickledGlobal) or (cls.module, cls.name) not in RECORDS or arguments != ():
            raise UnsafePickleError("it creates an object of a class that is not on the list")
        self.push(PickledObject(cls.module, cls.name))

    def build(self) -> None:
        """Give an object its attributes."""
        state = self.pop()
        target = self.pop()
        if isinstance(target, NumpyDtype):
            target.build(state)
        elif isinstance(target, PickledObject) and type(state) is dict:
            self.limits.spend("operations", len(state))
            target.state.update(state)
        elif not (type(target) is dict and type(state) is dict):
            # A state dict carries version numbers as an attribute, which is dropped; nothing else has any.
            raise UnsafePickleError(f"it sets attributes of a {type(target).__name__}")
        self.push(target)

    def persist(self) -> None:
        """Read a persistent id."""
        if self.persistent_id is None:
            raise UnsafePickleError("it refers to an object outside the file")
        self.push(self.persistent_id(self.pop()))

    # Memo

    def put(self, index: int) -> None:
        """Remember the newest value."""
        value = self.pop()
        self.push(value)
        self.memo[index] = value

    def get(self, index: int) -> None:
        """Push a remembered value."""
        if index not in self.memo:
            raise DamagedPickleError("it uses a value that it has not created")
        self.push(self.memo[index])

    def integer(self, count: int) -> int:
        """Return the next integer of `count` bytes, two's complement."""
        if not 0 <= count <= _LONGEST_NUMBER:
            raise DamagedPickleError("an integer is too long")
        return int.from_bytes(self.take(count), "little", signed=True)

    def blob(self, count: int) -> bytes | memoryview:
        """Return the next `count` bytes: short ones as bytes, long ones as a view."""
        part = self.take(count)
        return bytes(part) if count <= _SHORT_BYTES else part

    def protocol(self) -> None:
        """Check the protocol's number."""
        version = self.take(1)[0]
        if not 2 <= version <= 5:
            raise DamagedPickleError(f"its protocol {version} is not 2 to 5")

    def frame(self) -> None:
        """Check the length of a frame, which is not needed otherwise."""
        if self.number("<Q") > len(self.data) - self.position:
            raise DamagedPickleError("it is cut off")


_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    0x80: Machine.protocol,
    0x95: Machine.frame,
    0x28: Machine.mark,
    # Values
    0x4E: lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x89: lambda m: m.push(False),  # NEWFALSE
    0x4A: lambda m: m.push(m.number("<i")),  # BININT
    0x4B: lambda m: m.push(m.number("<B")),  # BININT1
    0x4D: lambda m: m.push(m.number("<H")),  # BININT2
    0x8A: lambda m: m.push(m.integer(m.number("<B"))),  # LONG1
    0x8B: lambda m: m.push(m.integer(m.number("<i"))),  # LONG4
    0x47: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),  # BINFLOAT
    0x8C: lambda m: m.push(m.text(m.number("<B"))),  # SHORT_BINUNICODE
    0x58: lambda m: m.push(m.text(m.number("<I"))),  # BINUNICODE
    0x8D: lambda m: m.push(m.text(m.number("<Q"))),  # BINUNICODE8
    0x43: lambda m: m.push(m.blob(m.number("<B"))),  # SHORT_BINBYTES
    0x42: lambda m: m.push(m.blob(m.number("<I"))),  # BINBYTES
    0x8E: lambda m: m.push(m.blob(m.number("<Q"))),  # BINBYTES8
    # Containers
    0x29: lambda m: m.push(()),  # EMPTY_TUPLE
    0x85: lambda m: m.push(m.some(1)),  # TUPLE1
    0x86: lambda m: m.push(m.some(2)),  # TUPLE2
    0x87: lambda m: m.push(m.some(3)),  # TUPLE3
    0x74: lambda m: m.push(tuple(m.group())),  # TUPLE
    0x5D: lambda m: m.push([]),  # EMPTY_LIST
    0x61: lambda m: m.extend_list([m.pop()]),  # APPEND
    0x65: lambda m: m.extend_list(m.group()),  # APPENDS
    0x7D: lambda m: m.push({}),  # EMPTY_DICT
    0x73: lambda m: m.extend_dict(list(m.some(2))),  # SETITEM
    0x75: lambda m: m.extend_dict(m.group()),  # SETITEMS
    0x8F: lambda m: m.push(set()),  # EMPTY_SET
    0x90: lambda m: m.extend_set(m.group()),  # ADDITEMS
    # Memo
    0x71: lambda m: m.put(m.number("<B")),  # BINPUT
    0x72: lambda m: m.put(m.number("<I")),  # LONG_BINPUT
    0x94: lambda m: m.put(len(m.memo)),  # MEMOIZE
    0x68: lambda m: m.get(m.number("<B")),  # BINGET
    0x6A: lambda m: m.get(m.number("<I")),  # LONG_BINGET
    # Globals and objects
    0x63: lambda m: m.find(m.line(), m.line()),  # GLOBAL
    0x93: lambda m: m.find(*m.some(2)),  # STACK_GLOBAL
    0x52: Machine.reduce,
    0x81: Machine.new_object,
    0x62: Machine.build,
    0x51: Machine.persist,
}
