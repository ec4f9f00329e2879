"""The zip file that torch.save writes: one folder, nothing compressed. Read without torch, and without much memory.

Also an array of numbers in one, such as LIBERO's start states.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from unified_video_action.compat.pickle_reader import reading
from unified_video_action.compat.plain_pickle import MessageReader

LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # of a zip entry; the last two are the lengths of its name and extra field
DIRECTORY = 1 << 23  # bytes, most of the zip's list of entries; a tensor takes about 80
PICKLE = 1 << 26  # bytes, most of a pickle; settings and descriptions of tensors take a few megabytes


class _Bounded(io.FileIO):
    """A file of which no large piece is read."""

    def read(self, size: int = -1) -> bytes:
        if size > DIRECTORY:
            raise ValueError(f"its list of entries has {size} bytes: the most is {DIRECTORY}")
        return super().read(size if size >= 0 else DIRECTORY)


class ZipArchive:
    """The entries of such a file.

    Raises:
        ValueError: compressed, encrypted or overlapping entries, or no torch checkpoint.
        zipfile.BadZipFile, and what else zipfile may raise: a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        self.entries = {info.filename: info for info in entries}
        for info in entries:
            is_compressed = info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
            if is_compressed or info.flag_bits & 1:  # bit 0: encrypted
                raise ValueError(f"entry {info.filename[:80]!r} is compressed or encrypted, which torch never writes")
            if info.header_offset < 0:
                raise ValueError("its zip directory points outside the file")
        if len(self.entries) < len(entries) or sum(info.file_size for info in entries) > self.size:
            raise ValueError("its entries overlap")
        records = [name for name in self.entries if name.endswith("/data.pkl")]
        if len(records) != 1:
            raise ValueError("a zip file without the data.pkl of a torch checkpoint")
        self.root = records[0].removesuffix("data.pkl")

    def read(self, name: str) -> bytes | None:
        """A small entry's bytes; None when there is none."""
        if (info := self.entries.get(self.root + name)) is None:
            return None
        start, size = self.span(name)
        if size > PICKLE:
            raise ValueError(f"its {name} has {size} bytes: the most is {PICKLE}")
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if zlib.crc32(data) != info.CRC:
            raise ValueError(f"its {name} is damaged (its checksum is another)")
        return data

    def span(self, name: str) -> tuple[int, int]:
        """Position and length of an entry's bytes in the file."""
        if (info := self.entries.get(self.root + name)) is None:
            raise ValueError(f"storage {name[:80]!r} is missing")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))  # the directory's lengths may differ
        start = info.header_offset + LOCAL_HEADER.size + header[-2] + header[-1]
        if start + info.file_size > self.size:
            raise ValueError(f"storage {name[:80]!r} reaches beyond the end of the file")
        return start, info.file_size


def read_array(path: str | Path) -> np.ndarray:
    """The array in `path`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, something other than an array of numbers, or a pickle that asks for anything else.
    """
    with reading(f"{path} is not a stored array of numbers"):
        found = MessageReader(io.BytesIO(ZipArchive(Path(path)).read("data.pkl"))).content()
        if not isinstance(found, np.ndarray):
            raise ValueError(f"it holds a {type(found).__name__}")
    return found
