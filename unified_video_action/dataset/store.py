"""What every kind of recording looks like to a dataset: rows of time steps that belong to episodes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FILES_HASHED = 256  # at most so many files of a folder are looked into for a fingerprint,
PIECE = 2**16  # at their beginning, middle and end, so many bytes each


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
    """Feed a fingerprint with every file's name below `root` and size, and with pieces of 256 of them at most."""
    hashed = set(np.linspace(0, len(paths) - 1, min(FILES_HASHED, len(paths))).round().astype(int).tolist())
    for number, path in enumerate(paths):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        if number in hashed:
            with open(path, "rb") as file:
                for start in sorted({0, size // 2, max(size - PIECE, 0)}):
                    file.seek(start)
                    digest.update(file.read(PIECE))
