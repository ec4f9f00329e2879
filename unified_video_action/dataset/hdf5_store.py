"""Read-only access to demonstrations in one HDF5 file, data/<demo>/..., the layout of robomimic and LIBERO."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.dataset.fingerprints import SMALL, remembered
from unified_video_action.dataset.store import EpisodeStore, as_float32
from unified_video_action.dataset.zarr_store import StoreError, expand, is_url
from unified_video_action.env.system_libraries import explain_missing_libraries
from unified_video_action.files import unreadable
from unified_video_action.messages import few

with explain_missing_libraries():
    import h5py

FRAMES_AT_ONCE = 64  # read for the fingerprint


class MissingDataset(StoreError):
    """A dataset that a demonstration lacks."""


class Hdf5Store(EpisodeStore):
    """Episodes of a file with one group for each demonstration below `data`, in the order of their numbers.

    Names are paths within a demonstration, such as "obs/agentview_image" or "actions". Opening reads shapes and the
    vectors (kept, float32); frames stay in the file. The object can be pickled or forked into worker processes, each of
    which opens the file for itself.

    Args:
        location: a file; ~ and environment variables are expanded.
        images: names of frames, uint8 (T, H, W, 3).
        vectors: names of numbers (T, D) to keep in memory.
        flipped: the frames are stored upside down, as OpenGL draws them; they are given upright.

    Attributes:
        demos: names of the E demonstrations, "demo_0" and so on.
        vectors: name -> (N, D) float32.
        attributes: those of the group `data`.

    Raises:
        FileNotFoundError: nothing at `location`.
        StoreError: no such layout, damaged or inconsistent; names file, demonstration and dataset.
    """

    def __init__(
        self, location: str | Path, images: Sequence[str], vectors: Sequence[str], flipped: bool = False
    ) -> None:
        self.location, self.images, self.flipped = expand(location), tuple(images), flipped
        self._file: h5py.File | None = None
        self._owner = 0  # process that opened it
        if is_url(self.location):
            raise StoreError(f"{self.location}: HDF5 files are read from disk; download it, and give its path")
        if not Path(self.location).is_file():
            what = "is a folder, expected an HDF5 file" if Path(self.location).is_dir() else "no such file"
            raise FileNotFoundError(f"{self.location}: {what}")
        try:
            self._index(tuple(vectors))
        finally:
            self._close()  # whoever is forked from here opens the file anew

    def frame_shape(self, name: str) -> tuple[int, int]:
        """(H, W) of a camera's frames."""
        return self._sizes[name]

    def frames(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Frames of a camera at `rows` (any shape, in any order): uint8 (*rows.shape, H, W, 3)."""
        wanted, places = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        found = np.empty((len(wanted), *self.frame_shape(name), 3), np.uint8)
        episodes = np.searchsorted(self.episode_ends, wanted, side="right")
        for episode in np.unique(episodes):
            mine = np.flatnonzero(episodes == episode)
            dataset = self._dataset(int(episode), name)
            steps = wanted[mine] - self.episode_starts[episode]
            for run in _runs(steps, dataset.chunks[0] if dataset.chunks else 1):
                first, last = int(steps[run][0]), int(steps[run][-1])
                found[mine[run]] = self._read(dataset, first, last + 1)[steps[run] - first]
        if self.flipped:
            found = found[:, ::-1]
        return np.ascontiguousarray(found[places.reshape(np.shape(rows))])

    def fingerprint(self, small: int = SMALL) -> str:
        """sha256 over episode ends and all frames; more than `small` bytes are read once, as `hash_files` does."""
        place = hashlib.sha256(self.episode_ends.tobytes() + bytes([self.flipped]))
        for name in self.images:
            place.update(f"{name} {self.frame_shape(name)}".encode())
        total = sum(len(self) * 3 * height * width for height, width in self._sizes.values())
        if total <= small:
            return self._contents(place.copy())
        stat = Path(self.location).stat()
        signature = hashlib.sha256(f"{place.hexdigest()} {stat.st_size} {stat.st_mtime_ns}".encode())
        return remembered(signature.hexdigest(), lambda: self._contents(place.copy()), total)

    def _contents(self, digest: hashlib._Hash) -> str:
        for name in self.images:
            for episode in range(self.n_episodes):
                dataset = self._dataset(episode, name)
                for start in range(0, len(dataset), FRAMES_AT_ONCE):
                    digest.update(self._read(dataset, start, start + FRAMES_AT_ONCE).tobytes())
        self._close()
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_owner": 0}

    def _index(self, vectors: tuple[str, ...]) -> None:
        """Set every attribute but the location."""
        file = self._open()
        group = file.get("data")
        demos = list(group) if isinstance(group, h5py.Group) else []
        if not demos:
            raise StoreError(f"{self.location}: holds {few(file)}, expected data/<demonstration>/...")
        self.demos = tuple(sorted(demos, key=_number))
        self.attributes = {name: group.attrs[name] for name in group.attrs}
        names = (*self.images, *vectors)
        lengths, sizes, values = [], {}, {name: [] for name in vectors}
        for episode, demo in enumerate(self.demos):
            found = {name: self._dataset(episode, name) for name in names}
            counts = {name: dataset.shape[0] if dataset.ndim else 0 for name, dataset in found.items()}
            if len(set(counts.values())) != 1 or 0 in counts.values():
                raise StoreError(f"{self.location}: data/{demo} has datasets of {counts} steps, expected one length")
            lengths.append(next(iter(counts.values())))
            for name in self.images:
                self._check_images(found[name], sizes.setdefault(name, found[name].shape[1:3]))
            for name in vectors:
                values[name].append(self._vectors(found[name], values[name][0].shape[1] if episode else None))
        self.episode_ends, self._sizes = np.cumsum(lengths), sizes
        self.vectors = {name: np.concatenate(parts) for name, parts in values.items()}  # (N, D)

    def _check_images(self, dataset: h5py.Dataset, size: tuple[int, int]) -> None:
        if dataset.dtype != np.uint8 or dataset.shape[1:] != (*size, 3):
            raise StoreError(
                f"{self.location}: {dataset.name} is {dataset.dtype} {dataset.shape}, expected uint8 "
                f"{(dataset.shape[0], *size, 3)}, as every frame of a camera"
            )

    def _vectors(self, dataset: h5py.Dataset, width: int | None) -> np.ndarray:
        """(T, D) float32; D must be `width`, where that is given."""
        if dataset.ndim != 2 or dataset.dtype.kind not in "fiu" or width not in (None, dataset.shape[1]):
            raise StoreError(
                f"{self.location}: {dataset.name} is {dataset.dtype} {dataset.shape}, "
                f"expected numbers (T, {width or 'D'})"
            )
        return as_float32(self._read(dataset, 0, dataset.shape[0]), f"{self.location}: {dataset.name}")

    def _open(self) -> h5py.File:
        if self._owner != os.getpid():  # an open file must not be shared between processes
            try:
                self._file, self._owner = h5py.File(self.location, "r"), os.getpid()
            except OSError as error:
                raise StoreError(unreadable(self.location, "HDF5 file", error)) from error
        return self._file

    def _close(self) -> None:
        if self._file is not None and self._owner == os.getpid():
            self._file.close()
        self._file, self._owner = None, 0

    def _dataset(self, episode: int, name: str) -> h5py.Dataset:
        path = f"data/{self.demos[episode]}/{name}"
        try:
            member = self._open().get(path)
        except (OSError, RuntimeError, KeyError) as error:
            raise StoreError(f"{self.location}: {path} cannot be opened ({error})") from error
        if not isinstance(member, h5py.Dataset):
            beside = self._open().get(path.rpartition("/")[0])
            names = few(beside if isinstance(beside, h5py.Group) else ())
            raise MissingDataset(f"{self.location}: {path} is missing; beside it there is {names}")
        return member

    def _read(self, dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
        try:
            return dataset[start:stop]
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{self.location}: {dataset.name}[{start}:{stop}] cannot be read ({error})") from error


def _number(demo: str) -> tuple[int, str]:
    """Sorts demo_2 before demo_10, and names without a number last."""
    found = re.search(r"(\d+)$", demo)
    return (int(found[1]) if found else 2**62, demo)


def _runs(steps: np.ndarray, reach: int) -> Iterator[slice]:
    """Cut increasing steps where the next one is more than `reach` away: each run is read at once."""
    cuts = np.flatnonzero(np.diff(steps) > reach) + 1
    bounds = [0, *cuts.tolist(), len(steps)]
    for first, last in zip(bounds[:-1], bounds[1:]):
        yield slice(first, last)
