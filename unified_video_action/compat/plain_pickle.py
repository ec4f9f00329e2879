"""Pickles that arrive over a network, read as data: dicts, lists, texts, numbers and NumPy arrays of numbers."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from unified_video_action.compat.pickle_reader import CODE, Allowed, Built, Reader, UnsafePickleError, reading

NUMBERS = r"[<>|=]?(b1|[iu][1248]|f[248])"


@dataclass
class ArrayType(Built):
    """A numpy dtype: one of numbers, unless `pattern` allows more."""

    code: Any = ""
    pattern: str = NUMBERS

    def set_state(self, state: Any) -> None:
        if state[1] in ("<", ">") and len(self.code) < 8:
            self.code = state[1] + self.code

    def dtype(self) -> np.dtype:
        if not isinstance(self.code, str) or not re.fullmatch(self.pattern, self.code):
            raise UnsafePickleError("an array of something else than numbers")
        return np.dtype(self.code)

    def content(self) -> Any:
        return self.code


@dataclass
class Array(Built):
    """A numpy array, also of bytes that are not copied."""

    value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = numbers(data, dtype, shape, "F" if fortran else "C")

    def content(self) -> np.ndarray:
        if self.value is None:
            raise ValueError("an array without content")
        return self.value


def numbers(data: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if not isinstance(dtype, ArrayType) or not isinstance(data, bytes | bytearray | memoryview):
        raise UnsafePickleError("an array of something else than numbers")
    return np.frombuffer(data, dtype.dtype()).reshape(whole_numbers(shape), order=order)


def whole_numbers(values: Any) -> tuple[int, ...]:
    """A shape or a stride; raises ValueError for anything else, before it could be compared or printed."""
    if not isinstance(values, tuple | list) or len(values) > 32 or not all(type(value) is int for value in values):
        raise ValueError("a shape that is not a few whole numbers")
    return tuple(values)


def encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """As protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise ValueError("a text in an unknown encoding")
    return text.encode(encoding)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> Array:
    """As protocol 5 writes arrays."""
    values = numbers(data, dtype, shape, "F" if order == "F" else "C")
    return Array(value=values if axes is None else values.transpose(whole_numbers(axes)))


NUMPY: dict[str, Allowed] = {"numpy.ndarray": Allowed("numpy.ndarray")}
for _home in ("numpy.core", "numpy._core"):
    NUMPY |= {
        f"{_home}.multiarray._reconstruct": Allowed("_reconstruct", lambda *_: Array()),
        f"{_home}.multiarray.scalar": Allowed("scalar", lambda dtype, data: numbers(data, dtype, (1,))[0].item()),
        f"{_home}.numeric._frombuffer": Allowed("_frombuffer", _from_buffer),
    }


class MessageReader(Reader):
    names = NUMPY | {
        "numpy.dtype": Allowed("numpy.dtype", lambda code, *_: ArrayType(code=code)),
        "_codecs.encode": Allowed("_codecs.encode", encoded),
        "builtins.bytes": Allowed("builtins.bytes", lambda: b""),
    }
    refused = CODE | {"EMPTY_SET", "ADDITEMS", "FROZENSET"}
    most = 2000  # an array takes about 40
    keys = (str,)


def read(data: bytes | memoryview, most_bytes: int) -> Any:
    """What a pickled message holds: dicts, lists, tuples, texts, numbers and NumPy arrays of numbers.

    Raises:
        ValueError: it is longer than `most_bytes`, damaged, or asks for anything but plain data; the text says what.
    """
    if len(data) > most_bytes:
        raise ValueError(f"a pickle of {len(data)} bytes: the most is {most_bytes}")
    with reading("message"):
        return MessageReader(BytesIO(data)).content()


def write(value: np.ndarray | str) -> bytes:
    """An array or a text as every Python 3 and every NumPy since 1.0 unpickles it."""
    # NumPy 2 says numpy._core, which older ones lack; the first of these names is the one of the array itself.
    data = pickle.dumps(value, protocol=3)
    is_array = isinstance(value, np.ndarray)
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1) if is_array else data
