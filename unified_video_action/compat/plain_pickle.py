"""Pickles that arrive over a network, read as data: dicts, lists, tuples, texts, numbers and NumPy arrays of numbers.

They are read by the interpreter of `safe_pickle`, which imports and calls nothing that a pickle names. Here it knows
only the instructions and the few names that such data is written with, and a message may have only so many of them:
that bounds the time and the memory that a hostile one can cost.
"""

from __future__ import annotations

import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Sequence
from typing import Any

import numpy as np

from unified_video_action.compat.pickle_globals import Allowed, Array, ArrayType, UnsafePickleError, plain
from unified_video_action.compat.safe_pickle import CONSTANTS, LITERALS, Reader

INSTRUCTIONS = 2000  # most in one message; an array takes about 40
KNOWN = {
    *CONSTANTS, *(LITERALS - {"STRING", "BINSTRING", "SHORT_BINSTRING"}),  # which only Python 2 writes
    "PROTO", "FRAME", "MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET",
    "LONG_BINGET", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT",
    "DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
LARGE = 4096  # bytes
NUMBERS = re.compile(r"(b1|[iu][1248]|f[248])")


class Slices:
    """A file to read from; what is read in large pieces, as an array's data is, is not copied."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._whole, self._at = memoryview(data), 0

    def read(self, count: int) -> bytes | memoryview:
        piece = self._whole[self._at : self._at + count]
        self._at += len(piece)
        return piece if len(piece) >= LARGE else bytes(piece)

    def readline(self) -> bytes:
        """Up to and including the end of the line, or all that is left."""
        pieces, end = [], b""
        while not end and self._at < len(self._whole):
            piece, end, _ = bytes(self._whole[self._at : self._at + LARGE]).partition(b"\n")
            pieces.append(piece + end)
            self._at += len(pieces[-1])
        return b"".join(pieces)


class NumberType(ArrayType):
    """A dtype of numbers or booleans."""

    def dtype(self) -> np.dtype:
        code = self.code.lstrip("<>|=") if isinstance(self.code, str) else ""
        if not NUMBERS.fullmatch(code):
            raise UnsafePickleError("an array of something else than numbers")
        return np.dtype(self.code)


class NumberArray(Array):
    """An array of them; also of bytes that were not copied."""

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _numbers(data, dtype, shape, "F" if fortran else "C")


def _numbers(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, NumberType) or not isinstance(data, bytes | bytearray | memoryview):
        raise UnsafePickleError("an array of something else than numbers")
    return np.frombuffer(data, dtype.dtype()).reshape(shape, order=order)


def _type(code: Any, *_: Any) -> NumberType:
    return NumberType(code=code)


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, NumberType) or not isinstance(data, bytes):
        raise ValueError("a scalar without a type and bytes")
    kind = dtype.dtype()
    if len(data) != kind.itemsize:
        raise ValueError(f"a scalar of {len(data)} bytes: expected {kind.itemsize}")
    return np.frombuffer(data, kind)[0].item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str = "C", axes: Sequence[int] | None = None) -> Array:
    """As protocol 5 writes arrays."""
    if order not in ("C", "F", "K"):
        raise ValueError("an array in an unknown order")
    values = _numbers(data, dtype, shape, "F" if order == "F" else "C")
    return Array(value=values if axes is None else values.transpose(axes))


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """As protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("a text that is encoded in another way than latin-1")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


NAMES = {"numpy.ndarray": Allowed("numpy.ndarray"), "numpy.dtype": Allowed("numpy.dtype", _type),
         "_codecs.encode": Allowed("_codecs.encode", _encoded),
         "builtins.bytes": Allowed("builtins.bytes", _no_bytes)}  # fmt: skip
for _home in ("numpy.core", "numpy._core"):
    NAMES[f"{_home}.multiarray._reconstruct"] = Allowed("_reconstruct", lambda *_: NumberArray())
    NAMES[f"{_home}.multiarray.scalar"] = Allowed("scalar", _scalar)
    NAMES[f"{_home}.numeric._frombuffer"] = Allowed("_frombuffer", _from_buffer)


class PlainReader(Reader):
    """Reads one message."""

    def __init__(self) -> None:
        super().__init__()
        self.left = INSTRUCTIONS

    def step(self, name: str, argument: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"more than {INSTRUCTIONS} instructions")
        if name not in KNOWN:
            raise UnsafePickleError(f"the pickle instruction {name}")
        super().step(name, argument)

    def do_global(self, names: str) -> None:
        self.stack.append(_named(*names.split(" ", 1)))

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no text")
        self.stack.append(_named(module, name))

    # Keys are texts: the hash of a deeply nested tuple would overflow the interpreter's stack.

    def do_dict(self, _: None) -> None:
        self.stack.append(_pairs(self.since_mark()))

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _dict(self.stack[-1]).update(_pairs([key, value]))

    def do_setitems(self, _: None) -> None:
        items = self.since_mark()
        _dict(self.stack[-1]).update(_pairs(items))


def _pairs(items: list[Any]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("a dict whose keys are not texts")
    return dict(zip(items[::2], items[1::2], strict=True))


def _dict(value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"expected a dict, found a {type(value).__name__}")
    return value


def _named(module: str, name: str) -> Allowed:
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    if (found := NAMES.get(f"{module}.{name}")) is None:
        raise UnsafePickleError(f"{module}.{name}"[:100])
    return found


def read(data: bytes | memoryview, most_bytes: int) -> Any:
    """What a pickled message holds; nothing of it is run.

    Raises:
        ValueError: it is longer than `most_bytes`, damaged, or asks for anything but plain data; the text says what.
    """
    if len(data) > most_bytes:
        raise ValueError(f"a pickle of {len(data)} bytes: the most is {most_bytes}")
    try:
        return plain(PlainReader().load(Slices(data)))
    except UnsafePickleError as error:
        raise ValueError(
            f"a pickle that asks for {error.what}: refused, and nothing of it was run. Plain dicts, lists, texts, "
            "numbers and NumPy arrays of numbers are read"
        ) from error
    except RecursionError as error:
        raise ValueError("a pickle that is nested too deeply") from error


def write(value: np.ndarray | str) -> bytes:
    """An array or a text as every Python 3 and every NumPy since 1.0 unpickles it."""
    # NumPy 2 says numpy._core, which older ones lack; the first of these names is the one of the array itself.
    data = pickle.dumps(value, protocol=3)
    return (
        data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
        if isinstance(value, np.ndarray)
        else data
    )
