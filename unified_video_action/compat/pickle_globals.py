"""What the names in a foreign checkpoint's pickle stand for: plain data, built here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

STORAGE_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip


class UnsafePickleError(ValueError):
    """The file asks for something that is not on the list. `what` names it."""

    def __init__(self, what: str, path: Path | None = None) -> None:
        self.what = what
        super().__init__(
            f"{path or 'pickle'}: refused, because it asks for {what}, which plain weights and settings do not need. "
            f"Nothing of it was run. If you trust its author, ask for the weights as safetensors."
        )


@dataclass(frozen=True)
class Allowed:
    """A name on the list and what replaces it."""

    name: str
    make: Callable[..., Any] | None = None  # None: may be mentioned (as a type annotation), not built
    value: Any = None

    def build(self, *arguments: Any) -> Any:
        if self.make is None:
            raise UnsafePickleError(f"a call of {self.name}")
        return self.make(*arguments)


@dataclass
class Built:
    """An object whose state arrives after it is made."""

    state: Any = None

    def set_state(self, state: Any) -> None:
        self.state = state

    def content(self) -> Any:
        return self.state


class ConfigNode(Built):
    """An OmegaConf container or value: only its content is kept."""

    def content(self) -> Any:
        state = self.state if isinstance(self.state, dict) else {}
        return state["_content"] if "_content" in state else state.get("_val")


@dataclass
class ArrayType(Built):
    """A numpy dtype; only numbers, bools and fixed strings."""

    code: str = ""

    def set_state(self, state: Any) -> None:
        self.code = state[1] + self.code if state[1] in ("<", ">") else self.code

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.hasobject:
            raise UnsafePickleError("a numpy array of objects")
        return dtype

    def content(self) -> str:
        return self.code


@dataclass
class Array(Built):
    """A numpy array."""

    value: np.ndarray = field(default_factory=lambda: np.empty(0))

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes):
            raise UnsafePickleError("a numpy array of objects")
        self.value = np.frombuffer(data, dtype.dtype()).reshape(shape, order="F" if fortran else "C")

    def content(self) -> np.ndarray:
        return self.value


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    """A view into a storage; one that reaches outside it raises ValueError."""
    if not isinstance(storage, torch.Tensor) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if 0 not in size else 0
    if end > storage.numel():
        raise ValueError(f"a tensor that reaches to element {end} of a storage of {storage.numel()}")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _pairs(items: Any = ()) -> dict:
    return dict(items.items() if isinstance(items, dict) else items)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise ValueError(f"text encoding {encoding!r}")
    return text.encode(encoding)


def _bytearray(data: Any = b"") -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f"a bytearray of {data!r}")
    return data


def _scalar(dtype: ArrayType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype())[0].item()


def _dill_array(make: Allowed, arguments: tuple, state: tuple, *_: Any) -> Array:
    array = make.build(*arguments)
    array.set_state(state)
    return array


BUILDERS: dict[str, Callable[..., Any]] = {
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.set": lambda items=(): set(items),
    "builtins.frozenset": lambda items=(): frozenset(items),
    "builtins.dict": _pairs,
    "builtins.bytearray": _bytearray,
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda factory=None, items=(): _pairs(items),
    "argparse.Namespace": Built,
    "copyreg._reconstructor": lambda kind, *_: kind.build(),
    "_codecs.encode": _encoded,
    "pathlib.PosixPath": lambda *parts: "/".join(parts).replace("//", "/"),
    "torch.Size": lambda items=(): tuple(items),
    "torch.device": lambda *names: ":".join(map(str, names)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "numpy.dtype": lambda code, *_: ArrayType(code=code),
    "dill._dill._create_array": _dill_array,
    "dill._dill._load_type": lambda name: Allowed(f"type {name}"),  # how dill mentions a built-in type
    "omegaconf.base.ContainerMetadata": Built,
    "omegaconf.base.Metadata": Built,
    "omegaconf.dictconfig.DictConfig": ConfigNode,
    "omegaconf.listconfig.ListConfig": ConfigNode,
}
BUILDERS |= {
    f"omegaconf.nodes.{kind}Node": ConfigNode
    for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "InterpolationResult")
}
for _home in ("numpy.core.multiarray", "numpy._core.multiarray"):
    BUILDERS |= {f"{_home}.scalar": _scalar, f"{_home}._reconstruct": lambda *_: Array()}

# Types that are passed around but never made: arguments of the builders above, and annotations of settings.
MENTIONED = (
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "bytes", "object", "type")),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    "numpy.ndarray",
)

ALLOWED: dict[str, Allowed] = {name: Allowed(name, make) for name, make in BUILDERS.items()}
ALLOWED |= {name: Allowed(name) for name in MENTIONED}
ALLOWED |= {f"torch.{kind}Storage": Allowed(f"torch.{kind}Storage", value=x) for kind, x in STORAGE_DTYPES.items()}
ALLOWED |= {str(dtype): Allowed(str(dtype), value=dtype) for dtype in STORAGE_DTYPES.values()}

_UNFINISHED = object()


def plain(value: Any) -> Any:
    """Replace what stands for an object by its content, all the way down; what was shared stays shared."""
    done: dict[int, Any] = {}

    def convert(item: Any) -> Any:
        if isinstance(item, torch.Tensor | str | bytes | int | float | None):
            return item
        if id(item) not in done:
            done[id(item)] = _UNFINISHED
            done[id(item)] = replace(item)
        elif done[id(item)] is _UNFINISHED:
            raise ValueError("damaged pickle: a container that holds itself")
        return done[id(item)]

    def replace(item: Any) -> Any:
        if isinstance(item, Built):
            return convert(item.content())
        if isinstance(item, Allowed):
            return item.name if item.value is None else item.value
        if isinstance(item, dict):
            return {convert(key): convert(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple | set | frozenset):
            return type(item)(convert(entry) for entry in item)
        return item

    return convert(value)
