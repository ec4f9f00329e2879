"""Read-only access to recorded episodes in a zarr store, by row, without ever holding the store in memory."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore

from unified_video_action.dataset.fingerprints import SMALL
from unified_video_action.dataset.jpeg import decode_image, register_jpeg
from unified_video_action.dataset.store import EpisodeStore, as_float32
from unified_video_action.dataset.zarr_chunks import Chunk, EmptyRun, chunk_grid, evenly, hash_chunks, missing_chunks
from unified_video_action.dataset.zarr_store import MARKER, StoreError, expand, is_url, open_root
from unified_video_action.messages import few

log = logging.getLogger(__name__)

FRAMES_IN_MEMORY = 64 * 2**20  # bytes of decoded frames that a process keeps
LARGEST_CHUNK = 2**30  # bytes that reading a single frame may decode
CHUNKS_CHECKED = 10_000  # at most so many chunks are looked for on opening; reading checks again


class ReplayBuffer(EpisodeStore):
    """Episodes of a store in the layout of Diffusion Policy: data/<array> (N, ...) and meta/episode_ends (E,).

    Vectors are read on opening and kept (float32); frames stay on disk and are decoded chunk by chunk. The object can
    be pickled or forked into worker processes, each of which opens the store, and decodes, for itself.

    Args:
        location: folder, zip (the store at its root or nested in folders) or fsspec URL; ~ and variables are expanded.
        images: names of frame arrays: (N, H, W, 3), uint8, or floats that hold whole numbers 0..255, where JPEG may be
            the compressor of single frames; or (N,) bytes, each a JPEG or PNG, all of one size.
        vectors: names of arrays (N, D) to keep in memory.
        frames_in_memory: bytes of decoded frames that a process keeps; None: FRAMES_IN_MEMORY.

    Raises:
        FileNotFoundError: nothing at `location`.
        StoreError: damaged, truncated or inconsistent; names file, array and index.
    """

    def __init__(
        self,
        location: str | Path,
        images: Sequence[str],
        vectors: Sequence[str],
        frames_in_memory: int | None = None,
    ) -> None:
        self.location = expand(location)
        self.frames_in_memory = FRAMES_IN_MEMORY if frames_in_memory is None else frames_in_memory
        self.images = tuple(images)
        self._group: zarr.Group | None = None
        self._arrays: dict[str, zarr.Array] = {}
        self._owner = 0  # process that opened them
        self._decoded: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._sizes: dict[str, tuple[int, int]] = {}  # (H, W) of arrays of bytes
        self._empty: set[tuple[str, Chunk]] = set()  # chunks that are not stored and hold the fill value
        register_jpeg()
        self.episode_ends = self._read_episode_ends()
        for name in images:
            self._check_images(name)
        self.vectors = {name: self.read_vectors(name) for name in vectors}

    def frame_shape(self, name: str) -> tuple[int, int]:
        """(H, W) of an image array."""
        return self._sizes.get(name) or self._array(name).shape[1:3]

    def frames(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Frames at `rows` (any shape) of an image array: uint8 (*rows.shape, H, W, 3)."""
        flat = np.asarray(rows, np.int64).ravel()
        frames = np.empty((len(flat), *self.frame_shape(name), 3), np.uint8)
        blocks, places = np.divmod(flat, self._array(name).chunks[0])
        for block in np.unique(blocks):
            mine = blocks == block
            values = self._decode(name, int(block))[places[mine]]
            frames[mine] = values if name not in self._sizes else self._pictures(name, flat[mine], values)
        return frames.reshape(*np.shape(rows), *frames.shape[1:])

    def fingerprint(self, small: int = SMALL) -> str:
        """sha256 over episode ends, image arrays' layout and all their stored chunks, as `hash_chunks` reads them."""
        digest = hashlib.sha256(self.episode_ends.tobytes())
        for name in self.images:
            array = self._array(name)
            digest.update(f"{name} {array.shape} {array.dtype} {array.metadata.fill_value}".encode())
            digest.update(hash_chunks(array, small).encode())
        return digest.hexdigest()

    def has(self, name: str) -> bool:
        """Whether there is an array data/<name>."""
        self._own()
        return f"data/{name}" in self._group

    def release(self) -> None:
        """Give back open files and decoded frames; the next read opens the store again."""
        self.__dict__.update(self.__getstate__())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_group": None, "_arrays": {}, "_owner": 0, "_decoded": OrderedDict()}

    def _own(self) -> None:
        if self._owner != os.getpid():  # open files must not be shared between processes
            register_jpeg()
            self._group, self._arrays, self._owner = open_root(self.location), {}, os.getpid()

    def _array(self, name: str) -> zarr.Array:
        return self._member(f"data/{name}")

    def _member(self, path: str) -> zarr.Array:
        self._own()
        if path not in self._arrays:
            try:
                member = self._group[path]
            except KeyError:
                raise StoreError(f"{self.location}: the array {path} is missing; {self._beside(path)}") from None
            except Exception as error:  # whatever broken metadata or a network raises
                raise StoreError(f"{self.location}: {path} cannot be opened ({error})") from error
            if not isinstance(member, zarr.Array):
                raise StoreError(f"{self.location}: {path} is a group, expected an array")
            self._arrays[path] = member
        return self._arrays[path]

    def _read(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of an array; every stored chunk they need must be there and intact."""
        array = self._member(path)
        self._check_chunks(path, chunk_grid(array, start, stop))
        try:
            return np.asarray(array[start:stop])
        except Exception as error:  # whatever a decoder, a zip or a network raises
            rows = (array.shards or array.chunks)[0]
            if stop - start > rows:  # find the chunk that fails, to name it
                for first in range(start - start % rows, stop, rows):
                    self._read(path, first, min(first + rows, stop))
            raise StoreError(f"{self.location}: {path}[{start}:{stop}] cannot be read ({error})") from error

    def _beside(self, path: str) -> str:
        """What there is in place of an array."""
        group = path.rpartition("/")[0]
        if is_url(self.location):
            return "a store at a URL cannot list what it has"
        return f"{group} has {few(sorted(self._group[group].array_keys()) if group in self._group else ())}"

    def _check_chunks(self, path: str, chunks: Sequence[Chunk]) -> None:
        """Raise StoreError for a chunk that is lost; a warning names those that are read as the fill value."""
        array, empty = self._member(path), []
        for chunk in missing_chunks(array, chunks):
            if (path, chunk) in self._empty:
                continue
            run = EmptyRun.around(array, chunk)
            start, stop = run.rows(array)
            try:
                why = "no episode has 0 steps" if path == MARKER else run.why_lost(array, self.episode_ends)
            except Exception as error:  # whatever a decoder, a zip or a network raises
                why = f"what is beside them cannot be read ({error})"
            if why:
                raise StoreError(
                    f"{self.location}: {path} lacks chunk {chunk} (rows from {start}, {stop - start} of them). Chunks "
                    f"that hold only the fill value may be left out, but {why}: it is taken for lost. Fetch the store "
                    f"again{_how_to_fill(self.location, array, run)}"
                )
            self._empty |= {(path, (number, *run.place)) for number in range(run.first, run.stop)}
            empty.append(f"{start} to {stop - 1}")
        if empty:
            log.warning(
                "%s: %s has no chunk for rows %s; they are read as %s, the fill value",
                *(self.location, path, few(empty), array.metadata.fill_value),
            )

    def _read_episode_ends(self) -> np.ndarray:
        array = self._member(MARKER)
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.shape[0]:
            raise StoreError(f"{self.location}: {MARKER} is {array.dtype} {array.shape}, expected integers (E,)")
        ends = self._read(MARKER, 0, array.shape[0]).astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        if (lengths < 1).any():
            index = int(np.argmax(lengths < 1))
            raise StoreError(f"{self.location}: {MARKER}[{index}] = {ends[index]} does not increase")
        return ends

    def _check_rows(self, name: str) -> zarr.Array:
        array = self._array(name)
        if array.ndim == 0 or array.shape[0] != len(self):
            last = self.n_episodes - 1
            raise StoreError(
                f"{self.location}: {MARKER}[{last}] = {len(self)}, but data/{name} has shape {array.shape}; "
                "both must count the same steps"
            )
        return array

    def _check_images(self, name: str) -> None:
        array = self._check_rows(name)
        if array.ndim == 1 and array.dtype.kind == "O":  # bytes of any length
            self._check_first_picture(name)
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
            self._check_chunks(f"data/{name}", evenly(chunk_grid(array), CHUNKS_CHECKED))

    def _check_first_picture(self, name: str) -> None:
        first = self._read(f"data/{name}", 0, 1)
        self._sizes[name] = self._picture(name, 0, first[0]).shape[:2]

    def _pictures(self, name: str, rows: np.ndarray, encoded: np.ndarray) -> np.ndarray:
        """Decode (n,) pictures of an array of bytes: uint8 (n, H, W, 3)."""
        pictures = [self._picture(name, int(row), picture) for row, picture in zip(rows, encoded, strict=True)]
        for row, picture in zip(rows, pictures, strict=True):
            if picture.shape[:2] != self._sizes[name]:
                raise StoreError(
                    f"{self.location}: data/{name}[{row}] is a picture of {picture.shape[:2]}, the first one of "
                    f"{self._sizes[name]}"
                )
        return np.stack(pictures)

    def _picture(self, name: str, row: int, encoded: object) -> np.ndarray:
        if not isinstance(encoded, bytes):
            raise StoreError(f"{self.location}: data/{name}[{row}] is {type(encoded).__name__}, expected bytes")
        try:
            return decode_image(encoded, f"data/{name}[{row}]")
        except ValueError as error:
            raise StoreError(f"{self.location}: {error}") from error

    def read_vectors(self, name: str) -> np.ndarray:
        """float32 (N, D) of an array of numbers. Raises StoreError: no such array, or a value that cannot be true."""
        array = self._check_rows(name)
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise StoreError(f"{self.location}: data/{name} is {array.dtype} {array.shape}, expected numbers (N, D)")
        return as_float32(self._read(f"data/{name}", 0, len(self)), f"{self.location}: data/{name}")

    def _decode(self, name: str, block: int) -> np.ndarray:
        """One chunk's worth of frames as uint8 (or of encoded pictures), from memory if it was read lately."""
        key = (name, block)
        if key not in self._decoded:
            rows = self._array(name).chunks[0]
            start, stop = block * rows, min((block + 1) * rows, len(self))
            values = self._read(f"data/{name}", start, stop)
            self._decoded[key] = values if name in self._sizes else self._as_uint8(name, start, values)
            while len(self._decoded) > 1 and sum(map(_bytes, self._decoded.values())) > self.frames_in_memory:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(key)
        return self._decoded[key]

    def _as_uint8(self, name: str, start: int, frames: np.ndarray) -> np.ndarray:
        if frames.dtype == np.uint8:
            return frames
        with np.errstate(invalid="ignore"):
            whole = frames.astype(np.uint8)
        if not np.array_equal(whole, frames):
            place = np.argwhere(whole != frames)[0]
            raise StoreError(
                f"{self.location}: data/{name}[{start + place[0]}] holds {frames[tuple(place)]}; pixels must be whole "
                "numbers from 0 to 255"
            )
        return whole


def _bytes(values: np.ndarray) -> int:
    return values.nbytes if values.dtype != object else sum(map(len, values))


def _how_to_fill(location: str, array: zarr.Array, run: EmptyRun) -> str:
    """The end of a message: how to store an empty run of chunks."""
    fill = array.metadata.fill_value
    if fill is None or array.dtype.kind == "O":
        return ""
    if is_url(location) or not isinstance(array.store, LocalStore):
        return f"; if these rows do hold {fill}, write the store with write_empty_chunks=True"
    rows = slice(*run.rows(array))
    place = ", ".join(f"{part.start}:{part.stop}" for part in (rows, *run.slices(array)))
    code = (
        "import zarr; zarr.config.set({'array.write_empty_chunks': True}); "
        f"zarr.open_array('{array.store.root / array.path}', mode='r+')[{place}] = {fill}"
    )
    return f'; if these rows do hold {fill}, store them: python -c "{code}"'
