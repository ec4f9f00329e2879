"""Caches of what is computed once for every frame: where they lie, what they are valid for, and how they are filled."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr
from filelock import FileLock, Timeout
from tqdm import tqdm

from unified_video_action.dataset.fingerprints import user_cache
from unified_video_action.dataset.row_store import RowStore
from unified_video_action.dataset.zarr_store import StoreError, is_url

log = logging.getLogger(__name__)

CACHES = (".latents.zarr", ".frames.zarr")  # endings of their names, which may lie beside recordings

Layout = Mapping[str, tuple[tuple[int, ...], str]]  # array name -> shape and dtype of a row
Stores = dict[str, dict[str, RowStore]]  # group -> array name -> rows
Produce = Callable[[str, int, int], Mapping[str, np.ndarray]]  # (group, start, stop) -> array name -> rows


CHECKSUMS = {"checksums": "crc32"}  # attribute of caches that have them; those of older versions do not


class StaleCacheError(StoreError):
    """A cache that belongs to other weights, settings or data than those asked for."""


def cache_path(location: str, suffix: str, folder: str | Path | None = None) -> Path:
    """Where a store's cache lies: `<store>.<suffix>.zarr` in `folder`, by default beside the store.

    A store at a URL or in a folder that cannot be written has its cache in $XDG_CACHE_HOME/unified_video_action
    (~/.cache by default), which is logged. Away from its store, a cache's name carries a hash of the store's location.
    """
    name = Path(location.rstrip("/")).name
    if folder is None and not is_url(location):
        beside = Path(location).resolve().parent / f"{name}.{suffix}.zarr"
        if beside.exists() or os.access(beside.parent, os.W_OK):
            return beside
    if folder is None:
        folder = user_cache()
        log.info("nothing can be written beside %s; its cache lies in %s", location, folder)
    place = location if is_url(location) else str(Path(location).resolve())
    return Path(folder) / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}.{suffix}.zarr"


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
        path: folder of the cache, a zarr group with one subgroup for each of `groups`.
        key: everything the contents depend on, by name.
        rows: length of every array.
        groups: group name -> layout of its arrays.
        produce: makes the rows of one block.
        rebuild: delete what is there and begin anew; only while no other process uses the cache.
        block: rows that are computed and written together.

    Raises:
        StaleCacheError: there is a cache with another key or without checksums, and `rebuild` is not set.
    """
    if rebuild or not _complete(path, key, groups):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(path):
            if rebuild and path.exists():
                shutil.rmtree(path)
            if not _complete(path, key, groups):
                _fill(path, key, rows, groups, produce, progress, block)
    return {group: {name: RowStore(path / group / name) for name in layout} for group, layout in groups.items()}


def _complete(path: Path, key: Mapping[str, str], groups: Mapping[str, Layout]) -> bool:
    """Whether all of it is there. Raises StaleCacheError for a cache with another key."""
    if not (path / "zarr.json").exists():
        return False
    found = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    if not CHECKSUMS.items() <= found.items():
        raise StaleCacheError(
            f"{path} was built by an older version, without checksums. Delete this folder, or build it again with "
            "scripts/cache_latents.py --rebuild"
        )
    key = {**CHECKSUMS, **key}
    if found != key:
        different = sorted(name for name in {*found, *key} if found.get(name) != key.get(name))
        raise StaleCacheError(
            f"{path} does not fit: it was built for another {' and another '.join(different)}. Delete this folder, "
            "or build it again with scripts/cache_latents.py --rebuild"
        )
    arrays = [path / group / name for group, layout in groups.items() for name in layout]
    return all(array.exists() and RowStore(array).written().all() for array in arrays)


def _fill(
    path: Path,
    key: Mapping[str, str],
    rows: int,
    groups: Mapping[str, Layout],
    produce: Produce,
    progress: bool,
    block: int,
) -> None:
    """Write what is missing, block by block, so that the source of a block is read once for all groups."""
    if not (path / "zarr.json").exists():
        zarr.create_group(path, attributes={**CHECKSUMS, **key}, zarr_format=3, overwrite=True)
    stores: Stores = {group: {} for group in groups}
    for group, layout in groups.items():
        zarr.open_group(path / group, mode="a", zarr_format=3)
        for name, (shape, dtype) in layout.items():
            place = path / group / name
            stores[group][name] = (
                RowStore(place) if place.exists() else RowStore.create(place, rows, shape, dtype, block)
            )
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


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock beside a cache; says so when it has to wait."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that builds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
