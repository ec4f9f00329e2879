"""msgpack messages with arrays as openpi writes them, and openpi's names of observations.

An array is a map of the bytes keys `__ndarray__`, `data`, `dtype` and `shape`, a NumPy scalar one of `__npgeneric__`,
`data` and `dtype`. What arrives is data from a stranger: sizes and types are bounded while it is read, so that a short
message cannot ask for much memory, and nothing in it is ever called.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import msgpack
import numpy as np

CONTAINERS = 256  # most maps and lists in one message
ENTRIES = 128  # most entries in each
DIMENSIONS = 8  # of an array
AS_ARRAYS = "send frames and states as arrays (openpi_client.msgpack_numpy), not as lists"
DTYPE = re.compile(r"[<>|=](b1|[iu][1248]|f[248])")  # numbers and booleans; no objects, records or dates
TEXT = re.compile(r"[<>|=]U\d{1,5}")

VIEWS = {"observation/image": 0, "observation/exterior_image_1_left": 0, "observation/wrist_image": 1,
         "observation/wrist_image_left": 1}  # fmt: skip  # which of a policy's cameras
STATE = "observation/state"  # all states side by side
PROMPT = "prompt"


def pack(message: Any) -> bytes:
    """One message. Raises ValueError for arrays of objects, records or complex numbers."""
    return msgpack.packb(message, default=_plain)


def unpack(data: bytes | memoryview, most_bytes: int) -> Any:
    """Read one message; arrays are read-only views of it.

    Raises:
        ValueError: it is longer than `most_bytes`, damaged, too deep or too rich in containers, or holds an array whose
            type is not a number or whose size is not that of its data.
    """
    if len(data) > most_bytes:
        raise ValueError(f"a message of {len(data)} bytes: the most is {most_bytes}")
    containers = itertools.count(1)

    def counted(items: Any) -> Any:
        if next(containers) > CONTAINERS:
            raise ValueError(f"more than {CONTAINERS} maps and lists in one message; {AS_ARRAYS}")
        if isinstance(items, dict) and b"__ndarray__" in items:
            return _array(items)
        return _scalar(items) if isinstance(items, dict) and b"__npgeneric__" in items else items

    limits = {"max_array_len": ENTRIES, "max_map_len": ENTRIES}
    try:
        return msgpack.unpackb(data, object_hook=counted, list_hook=counted, ext_hook=_no_extension, **limits)
    except UnicodeDecodeError as error:
        raise ValueError("damaged message: a text is not UTF-8") from error
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        if "max_array_len" in str(error):
            raise ValueError(f"a list of more than {ENTRIES} entries; {AS_ARRAYS}") from error
        raise ValueError(f"damaged message: {str(error)[:200] or type(error).__name__}") from error


def observations(
    message: Mapping[str, Any], cameras: Sequence[str], states: Mapping[str, int]
) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """What openpi's clients send, under a policy's own names.

    Args:
        cameras: of the policy, the main one first. states: its states, in order, and their widths.

    Returns:
        observation -> (the name under which it was sent, its value), and the names that are of none.

    Raises:
        ValueError: `observation/state` is not as wide as all states together.
    """
    found: dict[str, tuple[str, Any]] = {}
    unknown: list[str] = []
    for sent, value in message.items():
        own = next((name for name in (sent, sent.removeprefix("observation/")) if name in {*states, *cameras}), None)
        if own is not None:
            found[own] = sent, value
        elif sent in VIEWS:
            found |= {own: (sent, value) for own in cameras[VIEWS[sent] :][:1] if own not in found}
        elif sent == STATE:
            found |= {own: (own, part) for own, part in _split(value, states).items() if own not in found}
        elif sent != PROMPT:
            unknown.append(sent)
    return found, unknown


def _split(value: Any, states: Mapping[str, int]) -> dict[str, np.ndarray]:
    """One vector (..., d) -> each state (..., its width), in their order."""
    width = sum(states.values())
    if not states:
        return {}
    if not isinstance(value, np.ndarray) or value.ndim < 1 or value.shape[-1] != width:
        came = f"an array {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        layout = ", ".join(f"{name} ({size})" for name, size in states.items())
        raise ValueError(f"{STATE}: {came}; expected {width} numbers: {layout}; or send each under its own name")
    return dict(zip(states, np.split(value, np.cumsum(list(states.values()))[:-1], axis=-1), strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "VOc":
            raise ValueError(f"an array of {value.dtype} cannot be sent")
        if isinstance(value, np.ndarray):
            whole = np.ascontiguousarray(value).reshape(-1)
            data = whole.view(np.uint8).data if whole.size else b""  # packed from where it lies, not from a copy
            return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": list(value.shape)}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _array(items: Mapping[Any, Any]) -> np.ndarray:
    data, dtype, shape = items.get(b"data"), items.get(b"dtype"), items.get(b"shape")
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype):
        raise ValueError(f"an array of type {_short(dtype)}: expected numbers, as '<f4' or '|u1'")
    if not isinstance(shape, list) or len(shape) > DIMENSIONS:
        raise ValueError(f"an array without a shape of at most {DIMENSIONS} dimensions")
    if not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise ValueError("an array whose shape is not made of whole numbers")
    kind = np.dtype(dtype)
    if not isinstance(data, bytes) or prod(shape) * kind.itemsize != len(data):
        had = f"{len(data)} bytes" if isinstance(data, bytes) else "no bytes"
        raise ValueError(f"an array {tuple(shape)} of {dtype} with {had} of data")
    return np.frombuffer(data, kind).reshape(shape)


def _scalar(items: Mapping[Any, Any]) -> Any:
    data, dtype = items.get(b"data"), items.get(b"dtype")
    if isinstance(dtype, str) and isinstance(data, str) and TEXT.fullmatch(dtype):
        return data
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype) or not isinstance(data, bool | int | float):
        raise ValueError(f"a scalar of type {_short(dtype)}: expected a number or a text")
    return np.dtype(dtype).type(data)


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"an extension of type {code}: expected plain data")


def _short(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__
