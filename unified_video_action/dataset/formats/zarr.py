"""Diffusion Policy's replay buffers: zarr stores whose frames are read by row, never held in memory as a whole."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zarr

from unified_video_action.dataset.formats.pictures import decode_image, register_pictures
from unified_video_action.dataset.formats.zarr_storage import (
    MARKER,
    Chunk,
    EmptyRun,
    chunk_grid,
    hash_chunks,
    missing_chunks,
    open_array,
    open_root,
    stored_sizes,
)
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.store import SMALL, EpisodeStore, Kept, StoreError, as_float32, check_numbers, is_url
from unified_video_action.dataset.tables import Table
from unified_video_action.files import expand
from unified_video_action.messages import few

log = logging.getLogger(__name__)

FRAMES_IN_MEMORY = 64 * 2**20  # bytes of decoded frames that a process keeps
LARGEST_CHUNK = 2**30  # bytes that reading a single frame may decode


@dataclass(frozen=True)
class ZarrSource(Source):
    """A store with data/<array> (N, ...) and meta/episode_ends (E,): folder, zip or fsspec URL.

    Arrays that the task does not want are not read. An entry of `low_dim`, `action` and `auxiliary` is an array's name,
    or `{array: NAME, columns: [...]}` for some of its columns, in that order. See also `ReplayBuffer.read_executed`.
    """

    cameras: Mapping[str, str] = field(default_factory=dict)  # the task's name of a camera -> array (N, H, W, 3)
    low_dim: Mapping[str, str | Mapping] = field(default_factory=dict)  # the task's name -> array (N, D)
    action: str | Mapping | None = "action"  # array (N, D); None: a video to learn from
    auxiliary: str | Mapping | None = None  # array (N, K) of regression targets, about [-1, 1]; None: has none

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("cameras", "low_dim"):
            if not isinstance(getattr(self, part), Mapping):
                raise ValueError(f"source {self.path}: {part}={getattr(self, part)!r} must map names to arrays")

    def tables(self, wanted: Wanted) -> list[Table]:
        self.require(wanted, cameras=self.cameras, low_dim=self.low_dim)
        cameras = {name: self.cameras[name] for name in wanted.cameras}
        chosen = {name: self._array_and_columns(name, self.low_dim[name]) for name in wanted.low_dim}
        action = None if self.action is None else self._array_and_columns("action", self.action)
        auxiliary = None
        if wanted.auxiliary and self.auxiliary is not None:
            auxiliary = self._array_and_columns("auxiliary", self.auxiliary)
        arrays = [array for array, _ in [*chosen.values(), *filter(None, (action, auxiliary))]]
        store = ReplayBuffer(self.path, list(dict.fromkeys(cameras.values())), arrays)
        low_dim = {name: _columns(store, *entry) for name, entry in chosen.items()}
        actions, targets = (_columns(store, *entry) if entry else None for entry in (action, auxiliary))
        executed = store.read_executed(*action) if action else None
        return [Table(store, cameras, low_dim, actions, targets, executed=executed)]

    def _array_and_columns(self, name: str, entry: str | Mapping) -> tuple[str, list[int] | None]:
        """No columns means all of them."""
        if isinstance(entry, str):
            return entry, None
        if isinstance(entry, Mapping) and set(entry) == {"array", "columns"} and isinstance(entry["array"], str):
            if entry["columns"] and all(isinstance(column, int) and column >= 0 for column in entry["columns"]):
                return entry["array"], list(entry["columns"])
        raise ValueError(
            f"source {self.path}: {name}={entry!r} must be an array's name or {{array: NAME, columns: [0, 1, ...]}}"
        )


class ReplayBuffer(EpisodeStore):
    """Episodes of a store in the layout of Diffusion Policy: data/<array> (N, ...) and meta/episode_ends (E,).

    Vectors are read on opening and kept (float32); frames stay on disk and are decoded chunk by chunk.

    Args:
        location: folder, zip (the store at its root or nested in folders) or fsspec URL; ~ and variables are expanded.
        images: names of frame arrays: (N, H, W, 3), uint8, or floats that hold whole numbers 0..255, where JPEG may be
            the compressor of single frames; or (N,) bytes, each a JPEG or PNG, all of one size.
        vectors: names of arrays (N, D) to keep in memory; a mapping says D, where it is not None.
        frames_in_memory: bytes of decoded frames that a process keeps; None: FRAMES_IN_MEMORY.

    Attributes:
        vectors: array -> float32 (N, D).

    Raises:
        FileNotFoundError: nothing at `location`.
        StoreError: damaged, truncated or inconsistent; names file, array and index.
    """

    def __init__(
        self,
        location: str | Path,
        images: Sequence[str],
        vectors: Sequence[str] | Mapping[str, int | None],
        frames_in_memory: int | None = None,
    ) -> None:
        self.location, self.images = expand(location), tuple(images)
        self._arrays = Kept()
        self._decoded = Kept(FRAMES_IN_MEMORY if frames_in_memory is None else frames_in_memory)
        self._sizes: dict[str, tuple[int, int]] = {}  # (H, W) of arrays of bytes
        self._empty: set[tuple[str, Chunk]] = set()  # chunks that are not stored and hold the fill value
        self.episode_ends = self._read_episode_ends()
        for name in images:
            self._check_images(name)
        widths = vectors if isinstance(vectors, Mapping) else dict.fromkeys(vectors)
        self.vectors = {name: self.read_vectors(name, width) for name, width in widths.items()}

    def frame_shape(self, name: str) -> tuple[int, int]:
        return self._sizes.get(name) or self._array(f"data/{name}").shape[1:3]

    def _read(self, name: str, episode: int, steps: np.ndarray, out: np.ndarray) -> None:
        rows = self.episode_starts[episode] + steps
        size = self._array(f"data/{name}").chunks[0]
        for block in np.unique(rows // size).tolist():
            mine = rows // size == block
            values = self._decoded.get((name, block), lambda: self._decode(name, block * size, size))  # noqa: B023
            values = values[rows[mine] - block * size]
            if name in self._sizes:
                values = [self._picture(name, row, picture) for row, picture in zip(rows[mine].tolist(), values)]
            out[mine] = values

    def fingerprint(self, small: int = SMALL) -> str:
        """sha256 over episode ends, image arrays' layout and all their stored chunks, as `hash_chunks` reads them."""
        digest = hashlib.sha256(self.episode_ends.tobytes())
        for name in self.images:
            array = self._array(f"data/{name}")
            digest.update(f"{name} {array.shape} {array.dtype} {array.metadata.fill_value}".encode())
            digest.update(hash_chunks(array, small).encode())
        return digest.hexdigest()

    def read_vectors(self, name: str, width: int | None = None) -> np.ndarray:
        """float32 (N, D) of an array of numbers; D is `width`, where that is given."""
        where = f"{self.location}: data/{name}"
        check_numbers(self._rows_array(name), where, width)
        return as_float32(self._read_rows(f"data/{name}", 0, len(self)), where)

    def read_executed(self, action: str, columns: list[int] | None = None) -> np.ndarray | None:
        """float32 (N, D) of data/executed, actions that a disturbed robot was given; None: the store has none."""
        values = self.read_vectors("executed", self.vectors[action].shape[1]) if self.has("executed") else None
        return values if values is None or columns is None else values[:, columns]

    def has(self, name: str) -> bool:
        """Whether there is an array data/<name>."""
        return f"data/{name}" in self.root()

    def root(self) -> zarr.Group:
        """The store as zarr sees it."""

        def opened() -> zarr.Group:
            register_pictures()
            return open_root(self.location)

        return self._arrays.get("", opened)

    def close(self) -> None:
        """Give back open files and decoded frames; the next read opens the store again."""
        self._arrays.clear()
        self._decoded.clear()

    def _array(self, path: str) -> zarr.Array:
        return self._arrays.get(path, lambda: open_array(self.root(), path, self.location))

    def _read_rows(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of an array; every stored chunk they need must be there and intact."""
        array = self._array(path)
        self._check_chunks(path, chunk_grid(array, start, stop))
        try:
            return np.asarray(array[start:stop])
        except Exception as error:  # whatever a decoder, a zip or a network raises
            rows = stored_sizes(array)[0]
            if stop - start > rows:  # find the chunk that fails, to name it
                for first in range(start - start % rows, stop, rows):
                    self._read_rows(path, first, min(first + rows, stop))
            raise StoreError(f"{self.location}: {path}[{start}:{stop}] cannot be read ({error})") from error

    def _check_chunks(self, path: str, chunks: Sequence[Chunk]) -> None:
        """Raise StoreError for a chunk that is lost; a warning names those that are read as the fill value."""
        array, empty = self._array(path), []
        for chunk in missing_chunks(array, chunks):
            if (path, chunk) in self._empty:
                continue
            run = EmptyRun.around(array, chunk)
            start, stop = run.rows
            try:
                why = "no episode has 0 steps" if path == MARKER else run.why_lost(self.episode_ends)
            except Exception as error:  # whatever a decoder, a zip or a network raises
                why = f"what is beside them cannot be read ({error})"
            if why:
                raise StoreError(
                    f"{self.location}: {path} lacks chunk {chunk} (rows from {start}, {stop - start} of them), which "
                    f"is taken for lost: {why}. Fetch the store again; if these rows do hold "
                    f"{array.metadata.fill_value}, write the array with write_empty_chunks=True"
                )
            self._empty |= {(path, (number, *run.column)) for number in range(run.first, run.stop)}
            empty.append(f"{start} to {stop - 1}")
        if empty:
            log.warning(
                "%s: %s has no chunk for rows %s; they are read as %s, the fill value",
                *(self.location, path, few(empty), array.metadata.fill_value),
            )

    def _read_episode_ends(self) -> np.ndarray:
        array = self._array(MARKER)
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.shape[0]:
            raise StoreError(f"{self.location}: {MARKER} is {array.dtype} {array.shape}, expected integers (E,)")
        ends = self._read_rows(MARKER, 0, array.shape[0]).astype(np.int64)
        wrong = np.diff(ends, prepend=0) < 1
        if wrong.any():
            index = int(np.argmax(wrong))
            raise StoreError(f"{self.location}: {MARKER}[{index}] = {ends[index]} does not increase")
        return ends

    def _rows_array(self, name: str) -> zarr.Array:
        """The array data/<name>, which has as many rows as the episodes."""
        array = self._array(f"data/{name}")
        if array.ndim == 0 or array.shape[0] != len(self):
            raise StoreError(
                f"{self.location}: {MARKER}[{self.n_episodes - 1}] = {len(self)}, but data/{name} has shape "
                f"{array.shape}; both must count the same steps"
            )
        return array

    def _check_images(self, name: str) -> None:
        array = self._rows_array(name)
        if array.ndim == 1 and array.dtype.kind == "O":  # bytes of any length
            self._picture(name, 0, self._read_rows(f"data/{name}", 0, 1)[0])
        elif array.ndim != 4 or array.shape[-1] != 3 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
            raise StoreError(
                f"{self.location}: data/{name} is {array.dtype} {array.shape}, expected uint8 or float (N, H, W, 3), "
                "or the bytes of pictures (N,)"
            )
        size = int(np.prod(array.chunks)) * array.dtype.itemsize
        if size > LARGEST_CHUNK:
            raise StoreError(
                f"{self.location}: data/{name} has chunks of {array.chunks[0]} frames ({size / 2**30:.1f} GiB), too "
                "large to read by window; rewrite the array with chunks of a few hundred frames at most"
            )
        if not is_url(self.location):
            self._check_chunks(f"data/{name}", chunk_grid(array))

    def _picture(self, name: str, row: int, encoded: object) -> np.ndarray:
        """Decode a picture of an array of bytes: uint8 (H, W, 3), of the same size as the first one."""
        where = f"{self.location}: data/{name}[{row}]"
        if not isinstance(encoded, bytes):
            raise StoreError(f"{where} is {type(encoded).__name__}, expected bytes")
        picture = decode_image(encoded, where)
        if picture.shape[:2] != self._sizes.setdefault(name, picture.shape[:2]):
            raise StoreError(f"{where} is a picture of {picture.shape[:2]}, the first one of {self._sizes[name]}")
        return picture

    def _decode(self, name: str, start: int, count: int) -> np.ndarray:
        """A chunk's worth of frames as uint8, or of encoded pictures."""
        frames = self._read_rows(f"data/{name}", start, min(start + count, len(self)))
        if name in self._sizes or frames.dtype == np.uint8:
            return frames
        with np.errstate(invalid="ignore"):
            whole = frames.astype(np.uint8)
        if not np.array_equal(whole, frames):
            index = np.argwhere(whole != frames)[0]
            raise StoreError(
                f"{self.location}: data/{name}[{start + index[0]}] holds {frames[tuple(index)]}; pixels must be whole "
                "numbers from 0 to 255"
            )
        return whole


def _columns(store: ReplayBuffer, array: str, columns: list[int] | None) -> np.ndarray:
    values = store.vectors[array]
    if columns is not None and max(columns) >= values.shape[1]:
        raise StoreError(f"{store.location}: data/{array} has {values.shape[1]} columns, not number {max(columns)}")
    return values if columns is None else values[:, columns]
