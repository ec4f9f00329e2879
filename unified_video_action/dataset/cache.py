"""Caches of what is computed once for every frame: NumPy files, filled block by block, read through memory maps.

A cache is a folder with key.json, which says what its contents depend on, and for each array NAME.npy (rows, ...) and
NAME.crc.npy (blocks,), the CRC-32 of each block of rows, or -1 for one that is not written. A block's checksum is
written once its rows are on the disk: a build that was killed goes on where it stopped. Reading a block for the first
time compares it with its checksum.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from numpy.lib.format import open_memmap
from tqdm import tqdm

from unified_video_action.dataset.store import StoreError, is_url, user_cache

log = logging.getLogger(__name__)

CACHES = (".latents", ".frames", ".latents.zarr", ".frames.zarr", ".lock")  # they may lie beside recordings
VERSION = "numpy, CRC-32"
REMEDY = "Delete this folder, or build it again with scripts/cache_latents.py --rebuild"

Layout = Mapping[str, tuple[tuple[int, ...], str]]  # array name -> shape and dtype of a row
Produce = Callable[[str, int, int], Mapping[str, np.ndarray]]  # (group, start, stop) -> array name -> rows


class StaleCacheError(StoreError):
    """A cache that belongs to other weights, settings or data than those asked for."""


class CachedRows:
    """One array of a cache, (rows, *row_shape), read at random at the speed of the page cache.

    A process and the workers that it forks check each block once. It can be pickled.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._checksums = path, path.with_suffix(".crc.npy")
        self._values, self._crc = _mapped(path), _mapped(self._checksums)
        self.rows, self.row_shape, self.dtype = len(self._values), self._values.shape[1:], self._values.dtype
        self.block = int(json.loads((path.parent / "key.json").read_text())["block"])
        if self._crc.shape != (-(-self.rows // self.block),):
            raise StoreError(f"{self._checksums}: checksums of {len(self._crc)} blocks. {REMEDY}")
        self._checked = np.frombuffer(mmap.mmap(-1, len(self._crc)), bool)  # workers that are forked share it

    @classmethod
    def create(cls, path: Path, rows: int, row_shape: tuple[int, ...], dtype: str, block: int) -> CachedRows:
        """Make an empty array, whole or (after a kill) not at all, and open it."""
        part = path.with_suffix(".unfinished")
        open_memmap(part, "w+", dtype, (rows, *row_shape))
        part.rename(path)
        with open(part, "wb") as file:
            np.save(file, np.full(-(-rows // block), -1, np.int64))
        part.rename(path.with_suffix(".crc.npy"))
        return cls(path)

    def written(self) -> np.ndarray:
        """(blocks,) bool: which blocks are on disk."""
        return np.load(self._checksums) >= 0

    def write(self, block: int, values: np.ndarray) -> None:
        """Write the rows of one block, (<= block, *row_shape); they are on disk when this returns.

        They are not written through a map: on a full disk that would kill the process, and this raises OSError.
        """
        rows, values = self._rows(block), np.ascontiguousarray(values)
        assert values.dtype == self.dtype and values.shape == (rows.stop - rows.start, *self.row_shape)
        checksum = np.array([zlib.crc32(values)], self._crc.dtype)
        for path, array, first, given in (
            (self.path, self._values, rows.start, values),
            (self._checksums, self._crc, block, checksum),
        ):
            with open(path, "r+b") as file:
                file.seek(first * given[0].nbytes - array.nbytes, os.SEEK_END)  # the file ends with the array
                file.write(given)
                file.flush()
                os.fsync(file.fileno())  # the rows must reach the disk before the checksum that vouches for them

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows (*rows.shape, *row_shape), in `out` where that is given. Raises StoreError for a damaged block."""
        for row in rows.ravel().tolist():  # faster than NumPy for the few rows of a window
            if not 0 <= row < self.rows:
                raise ValueError(f"{self.path}: row {row} of {self.rows} cannot be read")
            if not self._checked[row // self.block]:
                self._check(row // self.block)
        out = np.empty((*rows.shape, *self.row_shape), self.dtype) if out is None else out
        return self._values.take(rows, axis=0, out=out, mode="clip")  # the default mode would copy twice

    def _check(self, block: int) -> None:
        """Compare a block with its checksum."""
        rows = self._rows(block)
        if zlib.crc32(self._values[rows]) != self._crc[block]:
            raise StoreError(f"{self.path}: block {block} (rows {rows.start} to {rows.stop - 1}) is damaged. {REMEDY}")
        self._checked[block] = True

    def _rows(self, block: int) -> slice:
        return slice(block * self.block, min((block + 1) * self.block, self.rows))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_values": None, "_crc": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _values=_mapped(state["path"]), _crc=_mapped(state["_checksums"]))


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(open_memmap(path, "r"))  # whose items are plain arrays, faster to take
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no cached array here") from error
    except Exception as error:  # whatever a broken header raises
        raise StoreError(f"{path}: cut short or damaged ({error}). {REMEDY}") from error


Stores = dict[str, dict[str, CachedRows]]  # group -> array name -> rows


def cache_path(location: str, suffix: str, folder: str | Path | None = None) -> Path:
    """Where a store's cache lies: `<store>.<suffix>` in `folder`, by default beside the store.

    A store at a URL or in a folder that cannot be written has its cache in $XDG_CACHE_HOME/unified_video_action
    (~/.cache by default), which is logged. Away from its store, a cache's name carries a hash of the store's location.
    """
    name = Path(location.rstrip("/")).name
    whole = location if is_url(location) else str(Path(location).resolve())
    if folder is None and not is_url(location):
        beside = Path(whole).parent / f"{name}.{suffix}"
        if beside.exists() or os.access(beside.parent, os.W_OK):
            return beside
    if folder is None:
        folder = user_cache()
        log.info("nothing can be written beside %s; its cache lies in %s", location, folder)
    return Path(folder) / f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}.{suffix}"


def fill_cache(
    path: Path,
    key: Mapping[str, str],
    rows: int,
    groups: Mapping[str, Layout],
    produce: Produce,
    rebuild: bool = False,
    progress: bool = True,
    block: int = 128,
) -> Stores:
    """Open the cache at `path`, first computing whatever it lacks.

    An interrupted build goes on where it stopped; groups may be added to an existing cache; of several processes that
    arrive at once, one builds and the others wait for it. The lock ends with the process that holds it.

    Args:
        key: everything the contents depend on, by name; a cache with another key is a StaleCacheError.
        rows: length of every array.
        groups: group name -> layout of its arrays.
        produce: makes the rows of one block.
        rebuild: delete what is there and begin again; only while no other process uses the cache.
        block: rows that are computed and written together.
    """
    key = {"format": VERSION, **key, "rows": str(rows), "block": str(block)}
    if rebuild or not _complete(path, key, groups):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if rebuild and path.exists():
                shutil.rmtree(path)
            if not _complete(path, key, groups):
                _fill(path, key, groups, produce, progress)
    return {group: {name: CachedRows(array_path(path, group, name)) for name in groups[group]} for group in groups}


def array_path(path: Path, group: str, name: str) -> Path:
    return path / f"{group}.{name}.npy"


def _complete(path: Path, key: Mapping[str, str], groups: Mapping[str, Layout]) -> bool:
    """Whether a cache has all blocks of all groups. Raises StaleCacheError if it is there with another key."""
    if not (path / "key.json").exists():
        return False
    try:
        found = json.loads((path / "key.json").read_text())
    except ValueError as error:
        raise StaleCacheError(f"{path}/key.json is damaged ({error}). {REMEDY}") from error
    if found != key:
        different = sorted(name for name in {*found, *key} if found.get(name) != key.get(name))
        raise StaleCacheError(
            f"{path} does not fit: it was built for another {' and another '.join(different)}. {REMEDY}"
        )
    arrays = [array_path(path, group, name) for group, layout in groups.items() for name in layout]
    return all(array.with_suffix(".crc.npy").exists() and CachedRows(array).written().all() for array in arrays)


def _fill(path: Path, key: Mapping[str, str], groups: Mapping[str, Layout], produce: Produce, progress: bool) -> None:
    """Write what is missing, block by block, so that the source of a block is read once for all groups."""
    rows, block = int(key["rows"]), int(key["block"])
    if not (path / "key.json").exists():
        path.mkdir(exist_ok=True)
        (path / "key.unfinished").write_text(json.dumps(key, indent=1))
        (path / "key.unfinished").rename(path / "key.json")
    stores: Stores = {group: {} for group in groups}
    for group, layout in groups.items():
        for name, (shape, dtype) in layout.items():
            file = array_path(path, group, name)
            there = file.with_suffix(".crc.npy").exists()
            stores[group][name] = CachedRows(file) if there else CachedRows.create(file, rows, shape, dtype, block)
    done = {group: np.all([store.written() for store in arrays.values()], axis=0) for group, arrays in stores.items()}
    with tqdm(total=rows * len(groups), desc=f"building {path.name}", unit="frame", disable=not progress) as bar:
        for number, start in enumerate(range(0, rows, block)):
            stop = min(start + block, rows)
            for group, arrays in stores.items():
                if not done[group][number]:
                    values = produce(group, start, stop)
                    for name, store in arrays.items():
                        store.write(number, values[name])
                bar.update(stop - start)


def _locked(path: Path) -> AcquireReturnProxy:
    """The lock beside a cache, which the caller holds in a `with`; says so when it has to wait."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that builds %s", path)
        return lock.acquire()
