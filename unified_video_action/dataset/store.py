"""What every kind of recording looks like to a dataset: rows of time steps in episodes; fingerprints of its files."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.files import written

log = logging.getLogger(__name__)

SMALL = 256 * 2**20  # bytes that are read whenever a fingerprint is asked for; it is remembered for more
AT_ONCE = 2**22  # bytes in memory
PIECE = 2**16  # bytes at a file's beginning, middle and end that enter a fingerprint of much compressed data
LARGEST = 1e6  # absolute value; no action or state is larger, in whatever unit


class StoreError(ValueError):
    """A store that is damaged or inconsistent; the message names file, array and index."""


def is_url(location: str) -> bool:
    return "://" in location or "::" in location


def view_of(location: str | Path, *view: object) -> str:
    """Location of one view (cameras, sizes, episodes) of a recording: each view has caches of its own."""
    return f"{location}@{hashlib.sha256(repr(view).encode()).hexdigest()[:8]}"


class EpisodeStore(ABC):
    """Recorded episodes, N rows in all, whose frames stay where they are until they are asked for.

    Opening one reads an index and the low-dimensional values only. It can be pickled or forked into worker processes,
    each of which opens its files for itself (see `Kept`).

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
        return int(self.episode_ends[-1])

    def frames(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Frames of a camera at `rows` (any shape, in any order): uint8 (*rows.shape, H, W, 3)."""
        wanted, inverse = np.unique(np.asarray(rows, np.int64), return_inverse=True)  # windows repeat frames
        frames = np.empty((len(wanted), *self.frame_shape(name), 3), np.uint8)
        episodes = np.searchsorted(self.episode_ends, wanted, side="right")
        for episode in np.unique(episodes).tolist():
            mine = slice(*np.searchsorted(episodes, [episode, episode + 1]))
            self._read(name, episode, wanted[mine] - self.episode_starts[episode], frames[mine])
        return frames[inverse.reshape(np.shape(rows))]

    @abstractmethod
    def frame_shape(self, name: str) -> tuple[int, int]:
        """(H, W) of a camera's frames."""

    @abstractmethod
    def _read(self, name: str, episode: int, steps: np.ndarray, out: np.ndarray) -> None:
        """Copy a camera's frames at `steps` (n,) of an episode, which increase, into `out` uint8 (n, H, W, 3)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the frames do: caches made from them are valid for this value only."""


class Kept:
    """What a process has opened or decoded, least recently used parts left out; a fork or a pickle begins with nothing.

    Args:
        most: bytes of arrays, or number of other things, that are kept; one is kept in any case.
    """

    def __init__(self, most: float = float("inf")) -> None:
        self.most, self._owner = most, 0
        self._parts: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept under `key`, which `make` makes where there is nothing."""
        if self._owner != os.getpid():  # forked: what the parent has open stays the parent's
            self._owner, self._parts = os.getpid(), OrderedDict()
        if key not in self._parts:
            self._parts[key] = make()
            while len(self._parts) > 1 and sum(map(_size, self._parts.values())) > self.most:
                _close(self._parts.popitem(last=False)[1])
        self._parts.move_to_end(key)
        return self._parts[key]

    def __len__(self) -> int:
        return len(self._parts)

    def clear(self) -> None:
        if self._owner == os.getpid():
            for part in self._parts.values():
                _close(part)
        self._parts = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "_owner": 0, "_parts": OrderedDict()}


def _close(part: Any) -> None:
    if hasattr(part, "close"):
        part.close()


def _size(part: Any) -> int:
    if isinstance(part, np.ndarray) and part.dtype == object:
        return sum(map(len, part))
    return getattr(part, "nbytes", 1)


def check_numbers(array: Any, where: str, width: int | None = None) -> None:
    """Raise StoreError unless an array of a store holds numbers (N, D); D is `width`, where that is given."""
    if array.ndim != 2 or array.dtype.kind not in "fiu" or width not in (None, array.shape[1]):
        raise StoreError(f"{where} is {array.dtype} {array.shape}, expected numbers (N, {width or 'D'})")


def as_float32(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers (N, D) as float32. Raises StoreError, naming row and column, for what is not finite or above LARGEST."""
    bad = ~(np.abs(values.astype(np.float64)) <= LARGEST)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = values[row, column]
        fault = f"is larger than any action or state ({LARGEST:.0e})" if np.isfinite(value) else "is not a number"
        raise StoreError(f"{where}[{row}, {column}] = {value!s} {fault}; correct it, or leave out its episode")
    return values.astype(np.float32)


# -- fingerprints: of what is in files, not of where they lie or when they were written --------------------------------


def user_cache() -> Path:
    """$XDG_CACHE_HOME/unified_video_action, in ~/.cache by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unified_video_action"


def hash_files(files: Mapping[str, Path], small: int = SMALL) -> str:
    """sha256 over the names (keys), sizes and whole contents of files; one that is not there counts as absent.

    More than `small` bytes in all are read again only when a name, a size or a time of modification is another.
    """
    found = {name: path.stat() if path.exists() else None for name, path in files.items()}

    def contents() -> str:
        digest = hashlib.sha256()
        for name, path in files.items():
            digest.update(f"{name} {found[name] and found[name].st_size}\n".encode())
            if found[name]:
                with open(path, "rb") as file:
                    while piece := file.read(AT_ONCE):
                        digest.update(piece)
        return digest.hexdigest()

    signature = hashlib.sha256()
    for name, stat in found.items():
        signature.update(f"{name} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    total = sum(stat.st_size for stat in found.values() if stat)
    return contents() if total <= small else remembered(signature.hexdigest(), contents, total)


def remembered(signature: str, contents: Callable[[], str], total: int) -> str:
    """What `contents` gives, which reads `total` bytes, or gave at an earlier time for the same signature."""
    path = user_cache() / "fingerprints" / signature
    if path.is_file() and re.fullmatch("[0-9a-f]{64}", text := path.read_text()):
        return text
    log.info("reading %.1f GB of data once, to know later whether it has changed", total / 1e9)
    text = contents()
    try:
        with written(path) as part:
            part.write_text(text)
    except OSError as error:
        log.warning("%s cannot be written (%s): the data will be read again at the next start", path, error)
    return text


def sample_files(digest: hashlib._Hash, paths: Sequence[Path], root: Path) -> None:
    """Add every file's name below `root`, size and contents to a fingerprint; of large data, three pieces of each.

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
