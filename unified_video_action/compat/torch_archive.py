"""Where a torch checkpoint keeps the bytes of its tensors: the zip format, and the older stream of pickles."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from unified_video_action.compat.pickle_globals import Allowed, UnsafePickleError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # of a zip entry; the last two are the lengths of its name and extra field
# What reading a damaged file may raise, besides ValueError.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError),
    *(LookupError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError),
)
MAX_PICKLE = 1 << 30  # bytes; settings and tensor descriptions take a few megabytes


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _storage_type(reference: Any) -> tuple[torch.dtype, str, int]:
    """Check `("storage", type, key, location, elements, ...)` -> dtype, key, elements."""
    tag, kind, key, _, elements = reference[:5]
    if tag != "storage" or not isinstance(kind, Allowed) or not isinstance(kind.value, torch.dtype):
        raise UnsafePickleError(f"a reference to {tag!r} of type {kind!r}")
    return kind.value, str(key), int(elements)


class ZipStorages:
    """Storages of a zip checkpoint, mapped copy-on-write from the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = zipfile.ZipFile(path)
        if any(info.header_offset < 0 for info in self.archive.infolist()):
            raise ValueError("its zip directory points outside the file")
        records = [name for name in self.archive.namelist() if name.endswith("/data.pkl")]
        if len(records) != 1:
            raise ValueError("a zip file without the data.pkl of a torch checkpoint")
        self.root = records[0].removesuffix("data.pkl")
        order = self.root + "byteorder"
        if order in self.archive.namelist() and self.archive.read(order) != b"little":
            raise ValueError("written on a big-endian machine, which is not supported")
        self.bytes = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        self.tensors: dict[str, Tensor] = {}

    def pickle(self) -> bytes:
        info = self.archive.getinfo(self.root + "data.pkl")
        if info.file_size > MAX_PICKLE:
            raise ValueError(f"its pickle has {info.file_size} bytes, more than a checkpoint needs")
        return self.archive.read(info)

    def resolve(self, reference: Any) -> Tensor:
        """The whole storage that a pickle refers to, as a 1-D tensor."""
        dtype, key, elements = _storage_type(reference)
        if key not in self.tensors:
            start, size = self._span(self.root + "data/" + key)
            if size != elements * dtype.itemsize:
                raise ValueError(f"storage {key} has {size} bytes, expected {elements} elements of {dtype}")
            raw = self.bytes[start : start + size]
            raw = raw if start % dtype.itemsize == 0 else raw.clone()  # torch aligns; others may not
            self.tensors[key] = torch.empty(0, dtype=dtype).set_(raw, 0, (elements,))
        return self.tensors[key]

    def _span(self, name: str) -> tuple[int, int]:
        """Position and length of an entry's bytes in the file."""
        try:
            info = self.archive.getinfo(name)
        except KeyError as error:
            raise ValueError(f"storage {name} is missing") from error
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"storage {name} is compressed, which torch never writes")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))  # the directory's lengths may differ
        start = info.header_offset + LOCAL_HEADER.size + header[-2] + header[-1]
        if start + info.file_size > len(self.bytes):
            raise ValueError(f"storage {name} reaches beyond the end of the file")
        return start, info.file_size


class LegacyStorages:
    """Storages of the format before torch 1.6: five pickles, then every storage's length and bytes."""

    def __init__(self, file: BinaryIO, read_pickle: Callable[[], Any]) -> None:
        self.file, self.read_pickle = file, read_pickle
        if read_pickle() != LEGACY_MAGIC or read_pickle() != LEGACY_PROTOCOL:
            raise ValueError("not a torch checkpoint")
        read_pickle()  # the writer's byte order and type sizes
        self.tensors: dict[str, Tensor] = {}

    def resolve(self, reference: Any) -> Tensor:
        """The whole storage that a pickle refers to, as a 1-D tensor that `fill` will fill."""
        dtype, key, elements = _storage_type(reference)
        if len(reference) > 5 and reference[5] is not None:
            raise ValueError("views of storages, as torch wrote them before 0.4, are not supported")
        if elements * dtype.itemsize > self._bytes_left():
            raise ValueError(f"storage {key} is longer than the file")
        if key not in self.tensors:
            self.tensors[key] = torch.empty(elements, dtype=dtype)
        return self.tensors[key]

    def fill(self) -> None:
        keys = [str(key) for key in self.read_pickle()]
        if set(keys) != self.tensors.keys():
            raise ValueError("the storages that follow are not the ones it refers to")
        for key in keys:
            tensor = self.tensors[key]
            (elements,) = struct.unpack("<q", self._read(8))
            if elements != tensor.numel():
                raise ValueError(f"storage {key} has {elements} elements, expected {tensor.numel()}")
            data = bytearray(self._read(elements * tensor.itemsize))
            if data:
                tensor.copy_(torch.frombuffer(data, dtype=tensor.dtype))

    def _read(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) != size:
            raise ValueError("it ends early, perhaps not completely downloaded")
        return data

    def _bytes_left(self) -> int:
        position = self.file.tell()
        end = self.file.seek(0, 2)
        self.file.seek(position)
        return end - position
