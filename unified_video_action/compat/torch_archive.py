"""Reading foreign `.ckpt` files as data: the zip format of torch.save, and the older stream of pickles."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from unified_video_action.compat.pickle_reader import (
    Allowed,
    Built,
    Reader,
    UnsafePickleError,
    check_keys,
    entries,
    pairs,
    plain,
    reading,
)
from unified_video_action.compat.plain_pickle import NUMBERS, NUMPY, Array, ArrayType, encoded, whole_numbers
from unified_video_action.compat.zip_archive import PICKLE, ZipArchive
from unified_video_action.files import require_data

REPEATED = 1 << 30  # bytes, most by which tensors together may be larger than what is stored of them
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
STORAGE_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip


class ConfigNode(Built):
    """An OmegaConf container or value: only its content is kept."""

    def content(self) -> Any:
        state = self.state if isinstance(self.state, dict) else {}
        return state["_content"] if "_content" in state else state.get("_val")


def _set(items: Any = ()) -> set:
    check_keys(items := list(entries(items)))
    return set(items)


def _bytearray(data: Any = b"") -> bytes:
    if not isinstance(data, bytes):
        raise ValueError("a bytearray of something else than bytes")
    return data


def _dill_array(make: Any, arguments: Any, state: Any, *_: Any) -> Array:
    array = Array()
    array.set_state(state)
    return array


def _named(*names: Any) -> str:
    """A device, or a built-in type as dill mentions it."""
    if not all(isinstance(name, str | int) for name in names):
        raise ValueError("a name that is not text")
    return ":".join(map(str, names))[:80]


BUILDERS: dict[str, Callable[..., Any]] = {
    "builtins.list": lambda items=(): list(entries(items)),
    "builtins.tuple": lambda items=(): tuple(entries(items)),
    "builtins.set": _set,
    "builtins.frozenset": lambda items=(): frozenset(_set(items)),
    "builtins.dict": lambda items=(): pairs(entries(items)),
    "builtins.bytearray": _bytearray,
    "collections.OrderedDict": lambda items=(): pairs(entries(items)),
    "collections.defaultdict": lambda factory=None, items=(): pairs(entries(items)),
    "argparse.Namespace": Built,
    "copyreg._reconstructor": lambda kind, *_: kind.build(),
    "_codecs.encode": encoded,
    "pathlib.PosixPath": lambda *parts: "/".join(parts).replace("//", "/"),
    "torch.Size": lambda items=(): tuple(entries(items)),
    "torch.device": _named,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "numpy.dtype": lambda code, *_: ArrayType(code=code, pattern=NUMBERS + r"|[<>|=]?[SU]\d{1,5}"),
    "dill._dill._create_array": _dill_array,
    "dill._dill._load_type": lambda name: Allowed(f"type {_named(name)}"),
    "omegaconf.base.ContainerMetadata": Built,
    "omegaconf.base.Metadata": Built,
    "omegaconf.dictconfig.DictConfig": ConfigNode,
    "omegaconf.listconfig.ListConfig": ConfigNode,
}
BUILDERS |= {
    f"omegaconf.nodes.{kind}Node": ConfigNode
    for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "InterpolationResult")
}
# Types that are passed around but never made: arguments of the builders above, and annotations of settings.
MENTIONED = (
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "bytes", "object", "type")),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
)
ALLOWED: dict[str, Allowed] = NUMPY | {name: Allowed(name, make) for name, make in BUILDERS.items()}
ALLOWED |= {name: Allowed(name) for name in MENTIONED}
ALLOWED |= {f"torch.{kind}Storage": Allowed(f"torch.{kind}Storage", value=x) for kind, x in STORAGE_DTYPES.items()}
ALLOWED |= {str(dtype): Allowed(str(dtype), value=dtype) for dtype in STORAGE_DTYPES.values()}


class CheckpointReader(Reader):
    """Reads a checkpoint's pickle: plain data, and tensors that are views of storages outside of it."""

    most = 500_000  # a tensor takes about 40

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, Tensor] = {}  # key -> whole storage, 1-D
        self.bytes_left = REPEATED  # bytes that views may still have
        self.names = ALLOWED | {f"torch._utils.{name}": Allowed(name, self.view) for name in REBUILD}

    def persistent_load(self, reference: Any) -> Tensor:
        """`("storage", type, key, location, elements, ...)` -> the whole storage."""
        if not isinstance(reference, tuple):
            return super().persistent_load(reference)
        tag, kind, key, _, elements = reference[:5]
        if tag != "storage" or not isinstance(kind, Allowed) or not isinstance(kind.value, torch.dtype):
            raise UnsafePickleError("a reference to something else than a tensor's storage")
        if not isinstance(key, str) or type(elements) is not int or elements < 0:
            raise ValueError("a storage without a name and a number of elements")
        if key not in self.storages:
            self.storages[key] = self.find(key, kind.value, elements, reference)
            self.bytes_left += self.storages[key].nbytes
        found = self.storages[key]
        if found.dtype != kind.value or found.numel() != elements:
            raise ValueError(f"storage {key[:80]!r} is referred to in two ways")
        return found

    def find(self, key: str, dtype: torch.dtype, elements: int, reference: tuple) -> Tensor:
        raise UnsafePickleError("a reference to data outside the pickle")

    def view(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        """A view into a storage; ValueError if it reaches outside, or views together are far larger than storages."""
        size, stride, (offset,) = whole_numbers(size), whole_numbers(stride), whole_numbers((offset,))
        if not isinstance(storage, Tensor) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if 0 not in size else 0
        if end > storage.numel():
            raise ValueError(f"a tensor that reaches to element {end} of a storage of {storage.numel()}")
        self.bytes_left -= math.prod(size) * storage.itemsize
        if self.bytes_left < 0 or max(size, default=0) > 2**40:
            raise ValueError(f"tensors that are more than {REPEATED >> 20} MiB larger than what is stored of them")
        try:
            return storage.as_strided(size, stride, offset)
        except RuntimeError as error:
            raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}") from error


class ZipReader(CheckpointReader):
    """Of a zip checkpoint, whose storages are mapped copy-on-write from the file."""

    def __init__(self, path: Path) -> None:
        self.archive = ZipArchive(path)
        super().__init__(BytesIO(self.archive.read("data.pkl")))
        if self.archive.read("byteorder") not in (None, b"little"):
            raise ValueError("written on a big-endian machine, which is not supported")
        self.bytes = torch.UntypedStorage.from_file(str(path), False, self.archive.size)

    def find(self, key: str, dtype: torch.dtype, elements: int, reference: tuple) -> Tensor:
        start, size = self.archive.span("data/" + key)
        if size != elements * dtype.itemsize:
            raise ValueError(f"storage {key[:80]} has {size} bytes, expected {elements} elements of {dtype}")
        raw = self.bytes[start : start + size]
        raw = raw if start % dtype.itemsize == 0 else raw.clone()  # torch aligns; others may not
        return torch.empty(0, dtype=dtype).set_(raw, 0, (elements,))


class LegacyReader(CheckpointReader):
    """Of the format before torch 1.6: five pickles, then every storage's length and bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(BytesIO(stream.read(PICKLE)))  # the pickles come first
        self.stream, self.left = stream, os.fstat(stream.fileno()).st_size

    def content(self) -> Any:
        if self.load() != LEGACY_MAGIC or self.load() != LEGACY_PROTOCOL:
            raise ValueError("not a torch checkpoint")
        self.load()  # the writer's byte order and type sizes
        content, keys = self.load(), self.load()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("it does not say which storages follow")
        if set(keys) != self.storages.keys() or len(keys) > len(self.storages):
            raise ValueError("the storages that follow are not the ones it refers to")
        self.stream.seek(self.file.tell())
        for key in keys:
            tensor = self.storages[key]
            (elements,) = struct.unpack("<q", self.stream.read(8))
            if elements != tensor.numel():
                raise ValueError(f"storage {key[:80]} has {elements} elements, expected {tensor.numel()}")
            if elements and self.stream.readinto(tensor.view(torch.uint8).numpy()) != tensor.nbytes:
                raise ValueError("it ends early, perhaps not completely downloaded")
        return plain(content)

    def find(self, key: str, dtype: torch.dtype, elements: int, reference: tuple) -> Tensor:
        """A tensor that `content` fills."""
        if len(reference) > 5 and reference[5] is not None:
            raise ValueError("views of storages, as torch wrote them before 0.4, are not supported")
        self.left -= elements * dtype.itemsize
        if self.left < 0:
            raise ValueError(f"storage {key[:80]} is longer than the file")
        return torch.empty(elements, dtype=dtype)


def load_checkpoint(path: str | Path) -> Any:
    """Read what `torch.save` wrote, with pickle or dill, in the zip or the older format, without running any of it.

    Tensors of a zip file are mapped from the file, so those that are not touched cost no memory. OmegaConf nodes come
    back as plain dicts and lists (interpolations as the strings they were).

    Raises:
        FileNotFoundError: no such file.
        UnsafePickleError: the file wants to run or build something that is not on the list; the message names it.
        ValueError: the file is damaged, not a checkpoint, or larger inside than a checkpoint is.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    require_data(path)
    with reading(str(path)), path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        return (ZipReader(path) if is_zip else LegacyReader(file)).content()
