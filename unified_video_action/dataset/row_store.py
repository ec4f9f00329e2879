"""Rows of equal size in one file, written block by block and read at random at the speed of the page cache.

On disk it is an ordinary zarr v3 array of a single uncompressed shard: a table of (offset, length) for each block of
rows, then the blocks, in order. Any zarr library reads it. Behind them lie the blocks' checksums (CRC-32): a process
and the workers that it forks check each block once, when it is first read from. A block counts as written once its
table entry is; the file therefore survives a kill at any moment. The file is mapped for reading: what is held in memory
is the system's cache.
"""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BytesCodec, ShardingCodec

from unified_video_action.dataset.zarr_store import StoreError

ABSENT = 2**64 - 1  # offset and length of a block that is not written, by zarr's sharding specification
ENTRY = 16  # bytes of a table entry
CHECKSUM = 4  # bytes


class RowStore:
    """Open an existing store.

    Raises:
        FileNotFoundError: no such array. StoreError: one that `create` did not make, or not whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            array = zarr.open_array(self.path, mode="r", zarr_format=3)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no cached array here") from error
        self.rows, self.row_shape, self.dtype = array.shape[0], tuple(array.shape[1:]), array.dtype
        self.block, self._file = array.chunks[0], self.path / array.metadata.encode_chunk_key((0,) * array.ndim)
        self._row_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize
        self._start = self.blocks * ENTRY
        self._checksums = self._start + self.blocks * self.block * self._row_bytes  # where they begin
        self._mapped: np.ndarray | None = None
        self._checked = np.frombuffer(mmap.mmap(-1, self.blocks), bool)  # workers that are forked share it
        if not array.shards or not self._file.is_file():
            raise StoreError(f"{self.path}: not a cached array; delete this folder, and it will be built again")
        size, expected = self._file.stat().st_size, self._checksums + self.blocks * CHECKSUM
        if size != expected:
            raise StoreError(
                f"{self.path}: cut short, {size} bytes in place of {expected}; delete this folder, and it will be "
                "built again"
            )

    @classmethod
    def create(cls, path: str | Path, rows: int, row_shape: tuple[int, ...], dtype: str, block: int = 128) -> RowStore:
        """Make an empty store, whole or (after a kill) not at all, and open it."""
        path, blocks = Path(path), -(-rows // block)
        unfinished = path.with_name(path.name + ".unfinished")
        layout = ShardingCodec(
            chunk_shape=(block, *row_shape),
            codecs=[BytesCodec()],
            index_codecs=[BytesCodec()],
            index_location="start",
        )
        array = zarr.create_array(
            unfinished,
            shape=(rows, *row_shape),
            dtype=dtype,
            chunks=(blocks * block, *row_shape),
            serializer=layout,
            compressors=None,
            filters=None,
            zarr_format=3,
            overwrite=True,
        )
        file = unfinished / array.metadata.encode_chunk_key((0,) * array.ndim)
        file.parent.mkdir(parents=True)
        with open(file, "wb") as handle:
            handle.write(np.full((blocks, 2), ABSENT, "<u8").tobytes())
            handle.truncate(blocks * (ENTRY + CHECKSUM + block * int(np.prod(row_shape)) * np.dtype(dtype).itemsize))
        unfinished.rename(path)
        return cls(path)

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block)

    def written(self) -> np.ndarray:
        """(blocks,) bool: which blocks are on disk."""
        return np.fromfile(self._file, "<u8", 2 * self.blocks).reshape(-1, 2)[:, 0] != ABSENT

    def write(self, block: int, values: np.ndarray) -> None:
        """Write the rows of one block, (<= block, *row_shape); they are on disk when this returns."""
        expected = (min(self.rows - block * self.block, self.block), *self.row_shape)
        if values.shape != expected or values.dtype != self.dtype:
            raise ValueError(
                f"{self.path}: block {block} takes {self.dtype} {expected}, got {values.dtype} {values.shape}"
            )
        size = self.block * self._row_bytes
        offset = self._start + block * size
        values = np.ascontiguousarray(values)
        with open(self._file, "r+b") as handle:
            handle.seek(offset)
            handle.write(values.data)
            handle.seek(self._checksums + block * CHECKSUM)
            handle.write(np.array(zlib.crc32(values), "<u4").tobytes())
            handle.flush()
            os.fsync(handle.fileno())  # the rows must reach the disk before the entry that vouches for them
            handle.seek(block * ENTRY)
            handle.write(np.array([offset, size], "<u8").tobytes())

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy `rows` (n,) into `out` (n, *row_shape), which is contiguous and of the store's dtype.

        Raises:
            ValueError: a row that is not there. StoreError: a damaged block; names it.
        """
        if self._mapped is None:
            shape = self.rows, *self.row_shape
            self._mapped = np.asarray(np.memmap(self._file, self.dtype, "r", self._start, shape))  # (rows, *row_shape)
        for row in rows.tolist():
            if not 0 <= row < self.rows:
                raise ValueError(f"{self.path}: row {row} of {self.rows} cannot be read")
            if not self._checked[row // self.block]:
                self._check(row // self.block)
        self._mapped.take(rows, axis=0, out=out, mode="clip")  # the default mode would copy twice

    def _check(self, block: int) -> None:
        """Compare a block with its checksum."""
        start, stop = block * self.block, min((block + 1) * self.block, self.rows)
        stored = np.fromfile(self._file, "<u4", 1, offset=self._checksums + block * CHECKSUM)
        if zlib.crc32(self._mapped[start:stop]) != stored:
            raise StoreError(
                f"{self.path}: block {block} (rows {start} to {stop - 1}) is damaged: its checksum is another. Delete "
                "this folder, and it will be built again"
            )
        self._checked[block] = True

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": None}
