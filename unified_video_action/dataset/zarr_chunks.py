"""Stored chunks of zarr arrays: which are there, whether one that is not may be read as empty, and their contents."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from unified_video_action.dataset.fingerprints import SMALL, hash_files

AT_ONCE = 64  # questions asked of a store at the same time
SAMPLED = 256  # at most so many chunks of an array at a URL enter the fingerprint

Chunk = tuple[int, ...]  # index in the grid


def chunk_grid(array: zarr.Array, start: int = 0, stop: int | None = None) -> list[Chunk]:
    """Index of every stored chunk (a whole shard where there are shards) that rows [start, stop) need, in order."""
    sizes = array.shards or array.chunks
    counts = [-(-n // size) for n, size in zip(array.shape, sizes, strict=True)]
    rows = range(start // sizes[0], counts[0] if stop is None else min(counts[0], -(-stop // sizes[0])))
    return list(itertools.product(rows, *map(range, counts[1:])))


def missing_chunks(array: zarr.Array, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Those of `chunks` that are not stored, which zarr would silently fill in."""

    async def look(some: Sequence[Chunk]) -> list[bool]:
        return await asyncio.gather(*(array.store.exists(_chunk_path(array, chunk)) for chunk in some))

    missing: list[Chunk] = []
    for start in range(0, len(chunks), AT_ONCE):
        some = chunks[start : start + AT_ONCE]
        missing += [chunk for chunk, found in zip(some, sync(look(some)), strict=True) if not found]
    return missing


class EmptyRun(NamedTuple):
    """Chunks [first, stop) along the rows, at one place of the other dimensions, of which none is stored."""

    first: int
    stop: int
    place: Chunk  # in the other dimensions

    @classmethod
    def around(cls, array: zarr.Array, chunk: Chunk) -> EmptyRun:
        """The longest one that holds a chunk which is not stored."""
        number, *place = chunk
        count = -(-array.shape[0] // (array.shards or array.chunks)[0])

        def stored(row: int) -> bool:
            return not missing_chunks(array, [(row, *place)])

        first = next((n + 1 for n in range(number - 1, -1, -1) if stored(n)), 0)
        return cls(first, next((n for n in range(number + 1, count) if stored(n)), count), tuple(place))

    def rows(self, array: zarr.Array) -> tuple[int, int]:
        """[start, stop)"""
        size = (array.shards or array.chunks)[0]
        return self.first * size, min(self.stop * size, array.shape[0])

    def why_lost(self, array: zarr.Array, episode_ends: np.ndarray) -> str | None:
        """Why these chunks must be taken for lost; None where they may be read as the array's fill value.

        A writer may leave out chunks that hold only the fill value, as zarr 3 does unless told otherwise, and nothing
        in a store says whether it did. A recording does not jump where a chunk happens to end, so the rows beside the
        run decide: each that belongs to the same episode as the run's end must hold the fill value alone, in a stored
        chunk that holds something else too. In two cases other evidence stands for them:

        * The run is the array's beginning and ends within the first episode: a dark camera, an arm that waits.
        * It is the whole length, several chunks, of some columns, and other columns are stored: a value that never
          changes.

        A run that reaches the end is lost otherwise: so look stores whose writing or copying was interrupted.
        """
        if array.metadata.fill_value is None:
            return "its metadata has no fill value"
        if array.dtype.kind == "O":
            return "its rows are pictures, of which none is empty"
        start, stop = self.rows(array)
        if stop == array.shape[0]:
            columns = [chunk for chunk in chunk_grid(array) if chunk[0] == 0 and chunk[1:] != self.place]
            if start == 0 and self.stop > 1 and len(missing_chunks(array, columns)) < len(columns):
                return None
            return "they reach the array's end, as in a store that was not written or copied to its end"
        if start == 0 and stop <= episode_ends[0]:
            return None
        beside = [] if start == 0 or start in episode_ends else [(start - 1, self.first - 1)]
        beside += [] if stop in episode_ends else [(stop, self.stop)]
        for row, number in beside:
            if not self._fades_out(array, row, number):
                return f"row {row} beside them, of the same episode, holds other values"
        return None if beside else "no row beside them is of the same episode"

    def _fades_out(self, array: zarr.Array, row: int, number: int) -> bool:
        """Whether a row of chunk `number` holds the fill value alone here, and the chunk something else too."""
        size = (array.shards or array.chunks)[0]
        values = np.asarray(array[(slice(number * size, (number + 1) * size), *self.slices(array))])
        empty = values == array.metadata.fill_value
        return bool(empty[row - number * size].all() and not empty.all())

    def slices(self, array: zarr.Array) -> tuple[slice, ...]:
        """Its place in the dimensions after the first."""
        sizes = (array.shards or array.chunks)[1:]
        return tuple(slice(n * s, min((n + 1) * s, full)) for n, s, full in zip(self.place, sizes, array.shape[1:]))


def hash_chunks(array: zarr.Array, small: int = SMALL) -> str:
    """sha256 that changes with the contents of any stored chunk, whenever it was written and wherever it lies.

    Contents are read (see `hash_files`); the checksums in a zip's directory stand for those of its members. At a URL of
    a folder, where each chunk is a request, 256 evenly spaced ones have to do.
    """
    chunks = chunk_grid(array)
    names = {array.metadata.encode_chunk_key(chunk): _chunk_path(array, chunk) for chunk in chunks}
    if isinstance(array.store, LocalStore):
        return hash_files({name: array.store.root / path for name, path in names.items()}, small)
    if isinstance(array.store, ZipStore):
        with zipfile.ZipFile(array.store.path) as archive:
            return _hash_members(archive, names)
    archive = getattr(getattr(array.store.fs, "sync_fs", None), "zip", None)  # of a zip at a URL
    if archive is not None:
        return _hash_members(archive, names)
    digest = hashlib.sha256()
    for chunk in evenly(chunks, SAMPLED):
        stored = sync(array.store.get(_chunk_path(array, chunk), prototype=default_buffer_prototype()))
        digest.update(b"absent" if stored is None else stored.to_bytes())
    return digest.hexdigest()


def evenly(items: Sequence, most: int) -> Sequence:
    """All items, or `most` of them at even distances."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _hash_members(archive: zipfile.ZipFile, names: Mapping[str, str]) -> str:
    """Of members of an archive: name for the fingerprint -> name in the archive."""
    digest, members = hashlib.sha256(), archive.NameToInfo  # of two members of one name, the newer
    for name, path in names.items():
        digest.update(f"{name} {path in members and (members[path].file_size, members[path].CRC)}\n".encode())
    return digest.hexdigest()


def _chunk_path(array: zarr.Array, chunk: Chunk) -> str:
    return str(PurePosixPath(array.path, array.metadata.encode_chunk_key(chunk)))
