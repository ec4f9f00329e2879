"""Frames of a store, decoded once, for training on pixels rather than latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from unified_video_action.dataset.cache_folder import fill_cache
from unified_video_action.dataset.row_store import RowStore


class FrameCache:
    """All frames of one camera as uint8 (3, H, W) on disk, uncompressed, so that any frame costs one small read."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    @classmethod
    def build(
        cls,
        path: str | Path,
        rows: int,
        frames: Callable[[int, int], np.ndarray],
        source: str,
        rebuild: bool = False,
        progress: bool = True,
    ) -> FrameCache:
        """Open the cache at `path`, first decoding what it lacks.

        Args:
            rows: number of frames.
            frames: (start, stop) -> uint8 (stop - start, 3, H, W).
            source: fingerprint of the data.
            rebuild, progress: as for `fill_cache`.

        Raises:
            StaleCacheError: the cache there is of another source.
        """
        shape = frames(0, 1).shape[1:]
        stores = fill_cache(
            Path(path),
            {"source": source},
            rows,
            {"plain": {"frames": (shape, "uint8")}},
            lambda _, start, stop: {"frames": frames(start, stop)},
            rebuild,
            progress,
        )
        return cls(stores["plain"]["frames"])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (*rows.shape, 3, H, W)."""
        frames = np.empty((rows.size, *self._store.row_shape), np.uint8)
        self._store.read(rows.ravel(), frames)
        return frames.reshape(*rows.shape, *frames.shape[1:])
