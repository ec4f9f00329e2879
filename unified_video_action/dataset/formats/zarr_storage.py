"""Zarr stores (v2 or v3) as they are stored: where the episodes lie in them, which chunks there are, fingerprints."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import zipfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ZipStore

from unified_video_action.dataset.fingerprints import SMALL, hash_files
from unified_video_action.dataset.store import StoreError, is_url
from unified_video_action.files import unreadable
from unified_video_action.messages import few

log = logging.getLogger(__name__)

MARKER = "meta/episode_ends"  # every episode store has this array below its root
MARKER_FILES = tuple(f"{MARKER}/{name}" for name in (".zarray", "zarr.json"))
AT_ONCE = 64  # questions asked of a store at the same time
MARKS = (
    "ETag",
    "etag",
    "md5",
    "md5Hash",
    "Content-MD5",
    "LastModified",
    "Last-Modified",
    "mtime",
    "modified",
    "created",
)

Chunk = tuple[int, ...]  # index in the grid


def open_root(location: str) -> zarr.Group:
    """Open the group that holds meta/episode_ends, read-only; it may be nested in folders.

    Args:
        location: folder, zip or fsspec URL, as `expand` returns it.

    Raises:
        FileNotFoundError: nothing is there.
        StoreError: something is there that is not one readable episode store.
    """
    try:
        store, root = _open_url(location) if is_url(location) else _open_path(Path(location))
        return zarr.open_group(store, mode="r", path=root, use_consolidated=False)
    except (FileNotFoundError, StoreError):
        raise
    except zipfile.BadZipFile as error:
        raise StoreError(unreadable(location, "zip", error)) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{location}: cannot be opened ({error})") from error


def _open_path(path: Path) -> tuple[LocalStore | ZipStore, str]:
    if path.is_dir():
        found = [*path.glob(f"{MARKER}/*")] or [*path.glob(f"*/{MARKER}/*"), *path.glob(f"*/*/{MARKER}/*")]
        root = _only_root([file.relative_to(path).as_posix() for file in found or path.iterdir()], str(path))
        return LocalStore(path, read_only=True), root
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; scripts/download_data.py fetches public data, "
            "scripts/collect_demos.py makes demonstrations"
        )
    with zipfile.ZipFile(path) as archive:
        root = _only_root(archive.namelist(), str(path))
    return ZipStore(path, mode="r"), root


def _open_url(url: str) -> tuple[FsspecStore, str]:
    if not url.rstrip("/").endswith(".zip"):
        return FsspecStore.from_url(url, read_only=True), ""
    import fsspec
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    files = fsspec.filesystem("zip", fo=url.removeprefix("zip::"))
    root = _only_root(files.find(""), url)
    return FsspecStore(AsyncFileSystemWrapper(files, asynchronous=True), path="", read_only=True), root


def _only_root(names: list[str], location: str) -> str:
    """The one folder among `names` that contains meta/episode_ends."""
    hits = [name.lstrip("/") for name in names if f"/{name}".endswith(tuple(f"/{file}" for file in MARKER_FILES))]
    roots = sorted({"/".join(PurePosixPath(name).parts[:-3]) for name in hits})
    roots = [root for root in roots if "/." not in f"/{root}"]  # hidden: unfinished, or a system's own
    if not roots:
        there = sorted({name.strip("/").split("/")[0] for name in names})
        raise StoreError(f"{location}: holds no array {MARKER}, so it is not an episode store; it has {few(there)}")
    if len(roots) > 1:
        raise StoreError(f"{location}: holds several episode stores ({', '.join(roots)}); give the path of one")
    return roots[0]


# -- chunks ------------------------------------------------------------------------------------------------------------


def chunk_grid(array: zarr.Array, start: int = 0, stop: int | None = None) -> list[Chunk]:
    """Index of every stored chunk (a whole shard where there are shards) that rows [start, stop) need, in order."""
    sizes = array.shards or array.chunks
    counts = [-(-n // size) for n, size in zip(array.shape, sizes, strict=True)]
    rows = range(start // sizes[0], counts[0] if stop is None else min(counts[0], -(-stop // sizes[0])))
    return list(itertools.product(rows, *map(range, counts[1:])))


def missing_chunks(array: zarr.Array, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Those of `chunks` that are not stored, which zarr would silently fill in."""
    if isinstance(array.store, LocalStore):
        root = str(array.store.root)
        return [chunk for chunk in chunks if not os.path.exists(os.path.join(root, _chunk_path(array, chunk)))]
    found = _asked(lambda chunk: array.store.exists(_chunk_path(array, chunk)), chunks)
    return [chunk for chunk, there in zip(chunks, found, strict=True) if not there]


class EmptyRun(NamedTuple):
    """Chunks [first, stop) along the rows, at one index of the other dimensions, of which none is stored."""

    first: int
    stop: int
    column: Chunk  # index in the other dimensions

    @classmethod
    def around(cls, array: zarr.Array, chunk: Chunk) -> EmptyRun:
        """The longest one that holds a chunk which is not stored."""
        number, *column = chunk
        count = -(-array.shape[0] // (array.shards or array.chunks)[0])

        def stored(row: int) -> bool:
            return not missing_chunks(array, [(row, *column)])

        first = next((n + 1 for n in range(number - 1, -1, -1) if stored(n)), 0)
        return cls(first, next((n for n in range(number + 1, count) if stored(n)), count), tuple(column))

    def rows(self, array: zarr.Array) -> tuple[int, int]:
        """[start, stop)"""
        size = (array.shards or array.chunks)[0]
        return self.first * size, min(self.stop * size, array.shape[0])

    def why_lost(self, array: zarr.Array, episode_ends: np.ndarray) -> str | None:
        """Why these chunks must be taken for lost; None where they may be read as the array's fill value.

        A writer may leave out chunks that hold only the fill value, as zarr 3 does by default, and nothing
        in a store says whether it did. A recording does not jump where a chunk happens to end, so the rows beside the
        run decide: each that belongs to the same episode as the run's end must hold the fill value alone, in a stored
        chunk that holds something else too. In two cases other evidence stands for them:

        * The run is the array's beginning and ends within the first episode: a dark camera, an arm that waits.
        * It is the whole length, several chunks, of some columns, and other columns are stored: a value that never
          changes.

        A run that reaches the end is lost otherwise: so are stores whose writing or copying was interrupted.
        """
        if array.metadata.fill_value is None:
            return "its metadata has no fill value"
        if array.dtype.kind == "O":
            return "its rows are pictures, of which none is empty"
        start, stop = self.rows(array)
        if stop == array.shape[0]:
            columns = [chunk for chunk in chunk_grid(array) if chunk[0] == 0 and chunk[1:] != self.column]
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
        values = np.asarray(array[(slice(number * size, (number + 1) * size), *self._slices(array))])
        empty = values == array.metadata.fill_value
        return bool(empty[row - number * size].all() and not empty.all())

    def _slices(self, array: zarr.Array) -> tuple[slice, ...]:
        """Its extent in the dimensions after the first."""
        sizes = (array.shards or array.chunks)[1:]
        return tuple(slice(n * s, min((n + 1) * s, full)) for n, s, full in zip(self.column, sizes, array.shape[1:]))

    def remedy(self, array: zarr.Array) -> str:
        """The end of a message: how to store these chunks, where they do hold the fill value."""
        fill = array.metadata.fill_value
        if fill is None or array.dtype.kind == "O":
            return ""
        if not isinstance(array.store, LocalStore):
            return f"; if these rows do hold {fill}, write the store with write_empty_chunks=True"
        index = ", ".join(f"{part.start}:{part.stop}" for part in (slice(*self.rows(array)), *self._slices(array)))
        code = (
            "import zarr; zarr.config.set({'array.write_empty_chunks': True}); "
            f"zarr.open_array('{array.store.root / array.path}', mode='r+')[{index}] = {fill}"
        )
        return f'; if these rows do hold {fill}, store them: python -c "{code}"'


# -- fingerprints ------------------------------------------------------------------------------------------------------


def hash_chunks(array: zarr.Array, small: int = SMALL) -> str:
    """sha256 that changes with any stored chunk.

    On disk it is that of the contents, whenever and wherever they lie (see `hash_files`); the checksums in a zip's
    directory stand for those of its members. At a URL of a folder it is that of all chunks' names, sizes and contents;
    where those are more than `small` bytes in all, entity tags and times of modification, as far as the file system
    gives them, stand for the contents.
    """
    names = {array.metadata.encode_chunk_key(chunk): _chunk_path(array, chunk) for chunk in chunk_grid(array)}
    if isinstance(array.store, LocalStore):
        return hash_files({name: array.store.root / path for name, path in names.items()}, small)
    if isinstance(array.store, ZipStore):
        with zipfile.ZipFile(array.store.path) as archive:
            return _hash_members(archive, names)
    archive = getattr(getattr(array.store.fs, "sync_fs", None), "zip", None)  # of a zip at a URL
    if archive is not None:
        return _hash_members(archive, names)
    paths = list(names.values())
    found = _remote_files(array, paths)
    facts = {name: info and info.get("size") for name, info in zip(names, found, strict=True)}
    if sum(size or 0 for size in facts.values()) > small:
        marks = [info and {mark: str(info[mark]) for mark in MARKS if mark in info} for info in found]
        if {} in marks:
            log.warning(
                "%s: gives no times or tags of files: changes that keep all sizes go unnoticed", array.store.path
            )
        return hashlib.sha256(repr((facts, marks)).encode()).hexdigest()
    digest = hashlib.sha256(repr(facts).encode())
    for part in _asked(lambda path: array.store.get(path, prototype=default_buffer_prototype()), paths):
        digest.update(b"absent" if part is None else part.to_bytes())
    return digest.hexdigest()


def _hash_members(archive: zipfile.ZipFile, names: Mapping[str, str]) -> str:
    """Of members of an archive: name for the fingerprint -> name in the archive."""
    digest, members = hashlib.sha256(), archive.NameToInfo  # of two members of one name, the newer
    for name, path in names.items():
        digest.update(f"{name} {path in members and (members[path].file_size, members[path].CRC)}\n".encode())
    return digest.hexdigest()


def _remote_files(array: zarr.Array, paths: Sequence[str]) -> list[dict[str, Any] | None]:
    """What a file system says of each of an array's chunks, in one listing where it can list; None: it is not there."""
    files, root = array.store.fs, array.store.path.rstrip("/")
    try:
        listed = sync(files._find(f"{root}/{array.path}", detail=True))
    except Exception:  # whatever a network raises; many servers cannot list
        listed = {}
    listed = {name.lstrip("/"): info for name, info in listed.items() if info.get("size") is not None}

    async def look(path: str) -> dict[str, Any] | None:
        if listed:
            return listed.get(path.lstrip("/"))
        try:
            return await files._info(path)
        except FileNotFoundError:
            return None

    return list(_asked(look, [f"{root}/{path}" for path in paths]))


def _asked(question: Callable[[Any], Coroutine], items: Sequence) -> Iterator:
    """The answers to a question about each item, some of which are on their way at the same time."""

    async def ask(some: Sequence) -> list:
        return await asyncio.gather(*map(question, some))

    for start in range(0, len(items), AT_ONCE):
        yield from sync(ask(items[start : start + AT_ONCE]))


def _chunk_path(array: zarr.Array, chunk: Chunk) -> str:
    return str(PurePosixPath(array.path, array.metadata.encode_chunk_key(chunk)))
