"""Reads the plain data of a pickle file (lists, dicts, texts, numbers, arrays) without running anything in it.

Some ground truths are published as pickles, and unpickling runs whatever a file says. Here the standard library's
`pickletools` only takes the file apart into instructions, and a small machine follows those that build plain data.
Surprising: names in the file ("numpy.dtype") are compared with a fixed list and are never imported.
"""

import pickletools
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import SeenitError, first_line

MAX_BYTES = 4_000_000  # of a file, and of the byte strings it makes; ten times the largest ground truth known
MAX_DEPTH = 32  # of containers in one another

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
IGNORED = {"PROTO", "FRAME", "STOP"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

# every name that may occur, without NumPy's older or newer inner package, and what it stands for
NAMES = {
    "numpy multiarray _reconstruct": "empty array",
    "numpy multiarray scalar": "scalar",
    "numpy numeric _frombuffer": "array",
    "numpy ndarray": "array type",
    "numpy dtype": "dtype",
    "_codecs encode": "bytes of a text",
    "builtins bytes": "no bytes",
    "__builtin__ bytes": "no bytes",
}
DTYPE = re.compile(r"[iu][1248]|f[248]|b1|[SU][0-9]{1,3}")
PLAIN = (type(None), bool, int, float, str, bytes, bytearray, np.ndarray)


class _Name(str):
    """A name out of NAMES on the stack; only the file's own texts are plain `str`."""


class _Dtype:
    def __init__(self, code: str) -> None:
        if not DTYPE.fullmatch(code):
            raise ValueError(f"arrays of {code!r} are not plain")
        self.dtype = np.dtype(code)


class _EmptyArray:
    """Stands for an array until its contents come; `keys` are the memo's entries to be filled then."""

    def __init__(self) -> None:
        self.keys: list[int] = []


def read_plain_pickle(path: str | Path) -> Any:
    """The data in a pickle file of any protocol: dict, list, tuple, str, bytes, int, float, bool, None, numpy arrays.

    Python 2's byte strings come as str (Latin-1), NumPy's scalars as Python's.
    Raises SeenitError in one line where the file asks for anything else, is damaged, larger than MAX_BYTES, or deeper
    than MAX_DEPTH.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SeenitError(f"cannot read {path}: {first_line(error)}") from None
    if len(data) > MAX_BYTES:
        raise SeenitError(f"{path} is larger than {MAX_BYTES / 1e6:.0f} MB; a ground truth is not, so it was not read")
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(data):
            machine.follow(instruction.name, argument)
        return machine.answer()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error) as error:
        raise SeenitError(
            f"{path} holds more than plain data, or is damaged ({first_line(error)}); fetch it from its authors again"
        ) from None


class _Machine:
    """Follows the instructions that make plain data; ValueError and kin at every other."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.bytes_made = 0

    def answer(self) -> Any:
        if len(self.stack) != 1 or self.below:
            raise ValueError("it ends in the middle")
        level, seen = [self.stack[0]], set()
        for _ in range(MAX_DEPTH):
            if not level:
                return self.stack[0]
            inner: list[Any] = []
            for value in level:
                if type(value) in (list, tuple, dict):
                    if id(value) not in seen:
                        seen.add(id(value))
                        inner += value.values() if type(value) is dict else value
                elif type(value) not in PLAIN:
                    raise ValueError(f"{type(value).__name__.strip('_')} is not plain data")
            level = inner
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")

    def follow(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in IGNORED:
            pass
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in NUMBERS or name in TEXTS or name in BYTES:
            stack.append(argument)
        elif name in PUTS:
            self._put(len(self.memo) if name == "MEMOIZE" else argument)
        elif name in GETS:
            stack.append(self.memo[argument])
        elif name == "MARK":
            if len(self.below) == MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
            self.below.append(stack)
            self.stack = []
        elif name == "POP" and stack:
            stack.pop()
        elif name in ("POP", "POP_MARK"):
            self._to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in TUPLES:
            start = len(stack) - TUPLES[name]
            if start < 0:
                raise IndexError("a tuple of what is not there")
            stack[start:] = [tuple(stack[start:])]
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._to_mark()
            self.stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._to_mark()
            _of_type(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._to_mark()
            _of_type(self.stack[-1], dict).update(_pairs(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if name == "GLOBAL" else [stack.pop(-2), stack.pop()]
            stack.append(_known(" ".join(parts)))
        elif name == "REDUCE":
            arguments = _of_type(stack.pop(), tuple)
            stack.append(self._made(_of_type(stack.pop(), _Name), arguments))
        elif name == "BUILD":
            self._build(_of_type(stack.pop(), tuple))
        else:
            raise ValueError(f"the instruction {name}")

    def _to_mark(self) -> list[Any]:
        """What lies above the last mark, taken off the stack with it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def _put(self, key: int) -> None:
        self.memo[key] = value = self.stack[-1]
        if isinstance(value, _EmptyArray):
            value.keys.append(key)

    def _made(self, name: _Name, arguments: tuple[Any, ...]) -> Any:
        """What a name makes of its arguments."""
        if name == "empty array":
            return _EmptyArray()
        if name == "dtype":
            return _Dtype(_of_type(arguments[0], str))
        if name == "scalar":
            kind, data = arguments
            return _array(data, kind, (), "C").item()
        if name == "array":
            data, kind, shape, order = arguments[:4]
            return _array(data, kind, shape, order)
        if name == "no bytes" and not arguments:
            return b""
        if name == "bytes of a text" and arguments[1:] == ("latin1",):
            data = _of_type(arguments[0], str).encode("latin-1")
            self.bytes_made += len(data)
            if self.bytes_made > MAX_BYTES:
                raise ValueError("it makes too many bytes")
            return data
        raise ValueError(f"{name} of {len(arguments)} arguments")

    def _build(self, state: tuple[Any, ...]) -> None:
        """Complete the dtype or the array on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, _Dtype):
            if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
                raise ValueError("arrays of records are not plain")
            target.dtype = target.dtype.newbyteorder(state[1])
        elif isinstance(target, _EmptyArray):
            _, shape, kind, by_columns, data = state
            self.stack[-1] = array = _array(data, kind, shape, "F" if by_columns else "C")
            self.memo.update(dict.fromkeys(target.keys, array))
            target.keys = []
        else:
            raise ValueError(f"a state for {type(target).__name__}")


def _array(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """An array over bytes; its shape must need all of them."""
    if isinstance(data, str):  # Python 2 wrote bytes as text
        data = data.encode("latin-1")
    if type(data) not in (bytes, bytearray) or order not in ("C", "F"):
        raise ValueError("an array without bytes")
    return np.frombuffer(data, _of_type(kind, _Dtype).dtype).reshape(_of_type(shape, tuple), order=order)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    keys, values = items[::2], items[1::2]
    if not all(type(key) in (str, int) for key in keys):
        raise ValueError("a key that is neither text nor number")
    return dict(zip(keys, values, strict=True))


def _known(name: str) -> _Name:
    """What a name stands for; ValueError if it is not one of NAMES."""
    short = re.sub(r"^numpy\._?core\.", "numpy ", name)
    if short not in NAMES:
        raise ValueError(f"it names {name.replace(' ', '.')!r}")
    return _Name(NAMES[short])


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__.strip('_')} where {kind.__name__.strip('_')} belongs")
    return value
