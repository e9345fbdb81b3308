"""Reads the plain data of a pickle file (lists, dicts, texts, numbers, arrays) without running anything in it.

Some ground truths are published as pickles, and unpickling runs whatever a file says. Here `Unpickler.find_class` is
overridden with a fixed list of names, as the documentation of `pickle` recommends. Surprising: even those names are
never imported; each stands for a function here that checks what it is given. The file's instructions are looked
through before, since some of them do harm without a name.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from indexer.errors import SeenitError, first_line

MAX_BYTES = 4_000_000  # of a file, and of the byte strings it makes; ten times the largest ground truth known
MAX_DEPTH = 32  # of containers in one another
DTYPE = re.compile(r"[iu][1248]|f[248]|b1|[SU][0-9]{1,3}")

PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
OPCODES = (  # none of these makes an object of a class, a set, or anything from outside the file
    {"PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"}
    | {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
    | {"EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"}
    | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
    | (PUTS | GETS | TUPLES)
)


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
    try:
        _look_through(data)
        return _plain(_PlainUnpickler(io.BytesIO(data), encoding="latin-1").load(), {}, 0)
    except Exception as error:  # Unpickler documents that damaged data may raise anything
        raise SeenitError(
            f"{path} holds more than plain data, or is damaged ({first_line(error)}); fetch it from its authors again"
        ) from None


def _look_through(data: bytes) -> None:
    """ValueError for what harms before any name is asked for: other instructions, odd keys, a memo of gigabytes.

    Tuples as keys are hashed without a bound on depth or time. To know them, the stack is followed with True for a
    tuple and False for all else; lists and dicts are not followed inside, for they cannot be keys.
    """
    stack: list[bool] = []
    marks: list[int] = []  # how long the stack was at each
    memo: dict[Any, bool] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name not in OPCODES:
            raise ValueError(f"the instruction {name}")
        taken: list[bool] = []
        if name in PUTS:
            key = len(memo) if argument is None else argument
            if not 0 <= key <= len(data):  # the memo is a list as long as its largest number
                raise ValueError("a number of the memo that makes no sense")
            memo[key] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name in GETS:
            stack.append(memo[argument])
        elif pickletools.markobject in opcode.stack_before or (name == "POP" and marks and marks[-1] == len(stack)):
            start = marks.pop()
            taken = stack[start:]
            del stack[start:]
            if opcode.stack_before[0] is not pickletools.markobject and name != "POP":
                stack.pop()  # the container under the mark
            if opcode.stack_after:
                stack.append(name == "TUPLE")
        else:
            taken = [stack.pop() for _ in opcode.stack_before][::-1]
            stack += taken * 2 if name == "DUP" else [name in TUPLES] * len(opcode.stack_after)
        if name in ("SETITEM", "SETITEMS", "DICT") and any(taken[name == "SETITEM" :: 2]):
            raise ValueError("a key that is neither text nor number")
    if stack:
        raise ValueError("it ends in the middle")


class _Name:
    """A name of the list below; it can be called, and nothing in it can be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError("a state for a name")


class _Dtype:
    def __init__(self, code: str, *_: Any) -> None:
        if not DTYPE.fullmatch(code):
            raise ValueError(f"arrays of {code!r} are not plain")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("arrays of records are not plain")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array before its contents come."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        self.array = _array(data, kind, shape, "F" if by_columns else "C")


class _PlainUnpickler(pickle.Unpickler):
    """Knows a few names, without NumPy's older or newer inner package, and what stands for them here."""

    bytes_made = 0

    def find_class(self, module: str, name: str) -> _Name:
        known: dict[str, Callable[..., Any]] = {
            "numpy multiarray _reconstruct": lambda *_: _Array(),
            "numpy multiarray scalar": lambda kind, data: _array(data, kind, (), "C").item(),
            "numpy numeric _frombuffer": _array,
            "numpy ndarray": _refuse_call,
            "numpy dtype": _Dtype,
            "_codecs encode": self._bytes_of,
            "builtins bytes": lambda: b"",
            "__builtin__ bytes": lambda: b"",
        }
        short = re.sub(r"^numpy\._?core\.", "numpy ", f"{module} {name}")
        if short not in known:
            raise ValueError(f"it names {module}.{name}")
        return _Name(known[short])

    def _bytes_of(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1" or type(text) is not str:
            raise ValueError(f"bytes of a text in {encoding!r:.20}")
        self.bytes_made += len(text)
        if self.bytes_made > MAX_BYTES:
            raise ValueError("it makes too many bytes")
        return text.encode("latin-1")


def _refuse_call(*_: Any) -> NoReturn:
    raise ValueError("a call of a type")


def _array(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """An array over bytes; its shape must need all of them."""
    if type(data) is str:  # Python 2 wrote bytes as text
        data = data.encode("latin-1")
    if type(data) not in (bytes, bytearray) or type(kind) is not _Dtype or order not in ("C", "F"):
        raise ValueError("an array without bytes")
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order)


def _plain(value: Any, known: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """The value with arrays in the place of what stood for them, and nothing but plain data in it.

    known  by id: what was seen, which is kept from being freed, and what it became
    """
    if type(value) not in (list, tuple, dict, _Array):
        if type(value) not in (type(None), bool, int, float, str, bytes, bytearray, np.ndarray):
            raise ValueError(f"{type(value).__name__.strip('_')} is not plain data")
        return value
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
    if id(value) in known:
        return known[id(value)][1]
    if type(value) is _Array:
        return value.array
    known[id(value)] = value, value  # a list may hold itself
    if type(value) is list:
        value[:] = [_plain(one, known, depth + 1) for one in value]
    elif type(value) is dict:
        if not all(type(key) in (str, int) for key in value):
            raise ValueError("a key that is neither text nor number")
        value.update({key: _plain(one, known, depth + 1) for key, one in value.items()})
    else:
        known[id(value)] = value, tuple(_plain(one, known, depth + 1) for one in value)
    return known[id(value)][1]
