"""Zarr stores (v2 or v3) as they are stored: where the episodes lie in them, which chunks there are, fingerprints."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import zipfile
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ZipStore

from unified_video_action.dataset.store import SMALL, StoreError, hash_files, is_url
from unified_video_action.downloads import how_to_fetch
from unified_video_action.files import unreadable
from unified_video_action.messages import few

log = logging.getLogger(__name__)

MARKER = "meta/episode_ends"  # every episode store has this array below its root
AT_ONCE = 64  # questions asked of a store at the same time
MARKS = (  # what file systems call a file's version
    *("ETag", "etag", "md5", "md5Hash", "Content-MD5"),
    *("LastModified", "Last-Modified", "mtime", "modified", "created"),
)

Chunk = tuple[int, ...]  # index in the grid


def open_root(location: str) -> zarr.Group:
    """Open the group that holds meta/episode_ends, read-only, in a folder, zip or fsspec URL; it may be nested.

    Raises:
        FileNotFoundError: nothing is there. StoreError: something that is not one readable episode store.
    """
    try:
        store, names = _open(location)
        root = "" if names is None else _only_root(names, location)
        return zarr.open_group(store, mode="r", path=root, use_consolidated=False)
    except (FileNotFoundError, StoreError):
        raise
    except zipfile.BadZipFile as error:
        raise StoreError(unreadable(location, "zip", error)) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{location}: cannot be opened ({error})") from error


def open_array(root: zarr.Group, path: str, location: str) -> zarr.Array:
    """An array of a store. Raises StoreError for one that is missing, broken or made of pickles, which can run code."""
    group = path.rpartition("/")[0]
    try:
        array = root[path]
    except KeyError:
        there = "a store at a URL cannot list what it has"
        if not is_url(location):
            there = f"{group} has {few(sorted(root[group].array_keys()) if group in root else ())}"
        raise StoreError(f"{location}: the array {path} is missing; {there}") from None
    except Exception as error:  # whatever broken metadata or a network raises
        raise StoreError(f"{location}: {path} cannot be opened ({error})") from error
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{location}: {path} is a group, expected an array")
    if any(getattr(codec, "codec_id", None) == "pickle" for codec in (*array.filters, *array.compressors)):
        raise StoreError(
            f"{location}: {path} is stored as pickles, which run whatever their author liked when they are read; it is "
            "not opened. Write the array without the codec pickle"
        )
    return array


def _open(location: str) -> tuple[Store, list[str] | None]:
    """A store, and names of files in it, its marker among them; None: it cannot be listed, and has no other root."""
    path = Path(location)
    if is_url(location) and not location.rstrip("/").endswith(".zip"):
        return FsspecStore.from_url(location, read_only=True), None
    if is_url(location):
        import fsspec
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        files = fsspec.filesystem("zip", fo=location.removeprefix("zip::"))
        return FsspecStore(AsyncFileSystemWrapper(files, asynchronous=True), path="", read_only=True), files.find("")
    if path.is_dir():
        found = [*path.glob(f"{MARKER}/*")] or [*path.glob(f"*/{MARKER}/*"), *path.glob(f"*/*/{MARKER}/*")]
        names = [file.relative_to(path).as_posix() for file in found or path.iterdir()]
        return LocalStore(path, read_only=True), names
    if not path.exists():
        remedy = how_to_fetch(path) or "scripts/download.py list"
        raise FileNotFoundError(
            f"{path}: no such file or folder; `{remedy}` fetches public data, scripts/collect_demos.py makes "
            "demonstrations, and task.dataset.paths=PATH names others of PushT"
        )
    with zipfile.ZipFile(path) as archive:
        return ZipStore(path, mode="r"), archive.namelist()


def _only_root(names: list[str], location: str) -> str:
    """The one folder among `names` that contains meta/episode_ends."""
    files = tuple(f"/{MARKER}/{name}" for name in (".zarray", "zarr.json"))
    hits = [PurePosixPath(name.lstrip("/")) for name in names if f"/{name}".endswith(files)]
    roots = sorted({"/".join(hit.parts[:-3]) for hit in hits})
    roots = [root for root in roots if "/." not in f"/{root}"]  # hidden: unfinished, or a system's own
    if not roots:
        there = sorted({name.strip("/").split("/")[0] for name in names})
        raise StoreError(f"{location}: holds no array {MARKER}, so it is not an episode store; it has {few(there)}")
    if len(roots) > 1:
        raise StoreError(f"{location}: holds several episode stores ({', '.join(roots)}); give the path of one")
    return roots[0]


# -- chunks ------------------------------------------------------------------------------------------------------------


def stored_sizes(array: zarr.Array) -> tuple[int, ...]:
    """Extent of what is stored together: a chunk, or a whole shard where there are shards."""
    return array.shards or array.chunks


def chunk_grid(array: zarr.Array, start: int = 0, stop: int | None = None) -> list[Chunk]:
    """Index of every stored chunk that rows [start, stop) need, in order."""
    sizes = stored_sizes(array)
    counts = [-(-n // size) for n, size in zip(array.shape, sizes, strict=True)]
    rows = range(start // sizes[0], counts[0] if stop is None else min(counts[0], -(-stop // sizes[0])))
    return list(itertools.product(rows, *map(range, counts[1:])))


def missing_chunks(array: zarr.Array, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Those of `chunks` that are not stored, which zarr would silently fill in."""
    if isinstance(array.store, LocalStore):
        root = str(array.store.root)
        return [chunk for chunk in chunks if not os.path.exists(os.path.join(root, _path(array, chunk)))]
    found = _asked(lambda chunk: array.store.exists(_path(array, chunk)), chunks)
    return [chunk for chunk, there in zip(chunks, found, strict=True) if not there]


@dataclass(frozen=True)
class EmptyRun:
    """Chunks [first, stop) along the rows of an array, at one index of its other dimensions; none of them is stored."""

    array: zarr.Array
    first: int
    stop: int
    column: Chunk  # index in the other dimensions

    @classmethod
    def around(cls, array: zarr.Array, chunk: Chunk) -> EmptyRun:
        """The longest one that holds a chunk which is not stored."""
        number, *column = chunk
        count = -(-array.shape[0] // stored_sizes(array)[0])

        def stored(row: int) -> bool:
            return not missing_chunks(array, [(row, *column)])

        first = next((n + 1 for n in range(number - 1, -1, -1) if stored(n)), 0)
        return cls(array, first, next((n for n in range(number + 1, count) if stored(n)), count), tuple(column))

    @property
    def rows(self) -> tuple[int, int]:
        """[start, stop)"""
        size = stored_sizes(self.array)[0]
        return self.first * size, min(self.stop * size, self.array.shape[0])

    def why_lost(self, episode_ends: np.ndarray) -> str | None:
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
        array, (start, stop) = self.array, self.rows
        if array.metadata.fill_value is None:
            return "its metadata has no fill value"
        if array.dtype.kind == "O":
            return "its rows are pictures, of which none is empty"
        if stop == array.shape[0]:
            others = [chunk for chunk in chunk_grid(array) if chunk[0] == 0 and chunk[1:] != self.column]
            if start == 0 and self.stop > 1 and len(missing_chunks(array, others)) < len(others):
                return None
            return "they reach the array's end, as in a store that was not written or copied to its end"
        if start == 0 and stop <= episode_ends[0]:
            return None
        beside = [] if start == 0 or start in episode_ends else [(start - 1, self.first - 1)]
        beside += [] if stop in episode_ends else [(stop, self.stop)]
        for row, number in beside:
            if not self._fades_out(row, number):
                return f"row {row} beside them, of the same episode, holds other values"
        return None if beside else "no row beside them is of the same episode"

    def _fades_out(self, row: int, number: int) -> bool:
        """Whether a row of chunk `number` holds the fill value alone here, and the chunk something else too."""
        sizes = stored_sizes(self.array)
        chunk = tuple(slice(n * size, (n + 1) * size) for n, size in zip((number, *self.column), sizes, strict=True))
        empty = np.asarray(self.array[chunk]) == self.array.metadata.fill_value
        return bool(empty[row - number * sizes[0]].all() and not empty.all())


# -- fingerprints ------------------------------------------------------------------------------------------------------


def hash_chunks(array: zarr.Array, small: int = SMALL) -> str:
    """sha256 that changes with any stored chunk.

    On disk it is that of the contents, whenever and wherever they lie (see `hash_files`); the checksums in a zip's
    directory stand for those of its members. At a URL of a folder it is that of all chunks' names, sizes and contents;
    where those are more than `small` bytes in all, entity tags and times of modification, as far as the file system
    gives them, stand for the contents.
    """
    names = {array.metadata.encode_chunk_key(chunk): _path(array, chunk) for chunk in chunk_grid(array)}
    if isinstance(array.store, LocalStore):
        return hash_files({name: array.store.root / path for name, path in names.items()}, small)
    if isinstance(array.store, ZipStore):
        with zipfile.ZipFile(array.store.path) as archive:
            return _hash_members(archive, names)
    archive = getattr(getattr(array.store.fs, "sync_fs", None), "zip", None)  # of a zip at a URL
    if archive is not None:
        return _hash_members(archive, names)
    found = _remote_files(array, names.values())
    facts = {name: info and info.get("size") for name, info in zip(names, found, strict=True)}
    if sum(size or 0 for size in facts.values()) > small:
        marks = [info and {mark: str(info[mark]) for mark in MARKS if mark in info} for info in found]
        if {} in marks:
            log.warning(
                "%s: gives no times or tags of files: changes that keep all sizes go unnoticed", array.store.path
            )
        return hashlib.sha256(repr((facts, marks)).encode()).hexdigest()
    digest = hashlib.sha256(repr(facts).encode())
    for part in _asked(lambda path: array.store.get(path, prototype=default_buffer_prototype()), names.values()):
        digest.update(b"absent" if part is None else part.to_bytes())
    return digest.hexdigest()


def _hash_members(archive: zipfile.ZipFile, names: Mapping[str, str]) -> str:
    """Of members of an archive: name for the fingerprint -> name in the archive."""
    digest, members = hashlib.sha256(), archive.NameToInfo  # of two members of one name, the newer
    for name, path in names.items():
        digest.update(f"{name} {path in members and (members[path].file_size, members[path].CRC)}\n".encode())
    return digest.hexdigest()


def _remote_files(array: zarr.Array, paths: Iterable[str]) -> list[dict[str, Any] | None]:
    """What a file system says of each of an array's chunks, in one listing where it can list; None: it is not there."""
    files, root = array.store.fs, array.store.path.rstrip("/")
    try:
        listed = sync(files._find(f"{root}/{array.path}", detail=True))
    except Exception:  # whatever a network raises; many servers cannot list
        listed = {}
    listed = {name.lstrip("/"): info for name, info in listed.items() if info.get("size") is not None}

    async def look(path: str) -> dict[str, Any] | None:
        try:
            return listed.get(path.lstrip("/")) if listed else await files._info(path)
        except FileNotFoundError:
            return None

    return list(_asked(look, [f"{root}/{path}" for path in paths]))


def _asked(question: Callable[[Any], Coroutine], items: Iterable) -> Iterable:
    """The answers to a question about each item, some of which are on their way at the same time."""

    async def ask(some: Sequence) -> list:
        return await asyncio.gather(*map(question, some))

    items = list(items)
    for start in range(0, len(items), AT_ONCE):
        yield from sync(ask(items[start : start + AT_ONCE]))


def _path(array: zarr.Array, chunk: Chunk) -> str:
    return str(PurePosixPath(array.path, array.metadata.encode_chunk_key(chunk)))
