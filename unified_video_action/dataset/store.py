"""What every kind of recording looks like to a dataset: rows of time steps that belong to episodes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unified_video_action.dataset.fingerprints import SMALL
from unified_video_action.dataset.zarr_store import StoreError

PIECE = 2**16  # bytes at a file's beginning, middle and end that enter a fingerprint of large data
LARGEST = 1e6  # absolute value; no action or state is larger, in whatever unit


class EpisodeStore(ABC):
    """Recorded episodes, N rows in all, whose frames stay where they are until they are asked for.

    Opening one reads an index and the low-dimensional values only. It can be pickled or forked into worker processes,
    each of which opens its files for itself.

    Attributes:
        location: file, folder or URL; caches are named after it, and messages name it.
        episode_ends: (E,) row after each episode's last one.
    """

    location: str
    episode_ends: np.ndarray

    @property
    def episode_starts(self) -> np.ndarray:
        """(E,) first row of each episode."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    def __len__(self) -> int:
        """Number of rows (time steps of all episodes)."""
        return int(self.episode_ends[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """(episode, step within it) of a row."""
        episode = int(np.searchsorted(self.episode_ends, row, side="right"))
        return episode, int(row - self.episode_starts[episode])

    @abstractmethod
    def frame_shape(self, name: str) -> tuple[int, int]:
        """(H, W) of a camera's frames."""

    @abstractmethod
    def frames(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Frames of a camera at `rows` (any shape, in any order): uint8 (*rows.shape, H, W, 3)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the frames do: caches made from them are valid for this value only."""


def sample_files(digest: hashlib._Hash, paths: Sequence[Path], root: Path) -> None:
    """Feed a fingerprint with every file's name below `root`, size and contents; of large data, three pieces of each.

    Meant for compressed files, such as videos, of which an edit leaves hardly a byte alone.
    """
    sizes = [path.stat().st_size for path in paths]
    whole = sum(sizes) <= SMALL
    for path, size in zip(paths, sizes, strict=True):
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            for start in range(0, size, PIECE) if whole else sorted({0, size // 2, max(size - PIECE, 0)}):
                file.seek(start)
                digest.update(file.read(PIECE))


def as_float32(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers (N, D) of a recording as float32.

    Args:
        where: store and array, for messages.

    Raises:
        StoreError: a value that is not finite or larger than any honest one; names row and column.
    """
    bad = ~(np.abs(values.astype(np.float64)) <= LARGEST)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = values[row, column]
        fault = f"is larger than any action or state ({LARGEST:.0e})" if np.isfinite(value) else "is not a number"
        raise StoreError(f"{where}[{row}, {column}] = {value!s} {fault}; correct it, or leave out its episode")
    return values.astype(np.float32)
