"""What a dataset knows of a store: its numbers in memory, and how its frames are to be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from unified_video_action.dataset.store import EpisodeStore


def check_weight(path: str, weight: float | None) -> None:
    """Raise ValueError for a source's weight that is no share."""
    if weight is not None and not weight > 0:
        raise ValueError(f"source {path}: weight={weight} must be positive, or null")


@dataclass(frozen=True)
class StoreSource:
    """A store named in a configuration."""

    path: str  # folder, zip or fsspec URL; ~ and environment variables are expanded
    weight: float | None = None  # share of the training samples, relative to the other sources'; None: by its size
    has_action: bool = True  # False: a video to learn from, whose actions (if any) are not read

    def __post_init__(self) -> None:
        check_weight(self.path, self.weight)

    @classmethod
    def parse(cls, source: str | Mapping | StoreSource) -> StoreSource:
        """From a path, or a mapping of this class's fields. Raises ValueError for other keys."""
        if isinstance(source, StoreSource):
            return source
        if not isinstance(source, Mapping):
            return cls(str(source))
        known = set(cls.__dataclass_fields__)
        if not set(source) <= known or "path" not in source:
            raise ValueError(
                f"source {dict(source)}: expected a path, or a mapping with path and {sorted(known - {'path'})}"
            )
        return cls(**source)


@dataclass(frozen=True)
class Table:
    """One store, or its mirror image, with a number of rows N."""

    store: EpisodeStore
    cameras: Mapping[str, str]  # camera -> the store's name for it
    low_dim: Mapping[str, np.ndarray]  # name -> (N, d)
    action: np.ndarray | None = None  # (N, D); None: a video without actions
    auxiliary: np.ndarray | None = None  # (N, K) regression targets, about [-1, 1]
    instructions: tuple[str, ...] | None = None  # one for each episode; None: the task has none
    weight: float | None = None  # its source's
    mirror: Callable[[np.ndarray], np.ndarray] | None = None  # stored frames (..., 3, H, W) -> this table's frames

    def __len__(self) -> int:
        return len(self.store)

    def stored_frames(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Frames as stored: uint8 (*rows.shape, 3, H, W)."""
        return np.moveaxis(self.store.frames(self.cameras[camera], rows), -1, -3)

    def mirrored(self, frames: np.ndarray) -> np.ndarray:
        """Stored frames as this table shows them."""
        return frames if self.mirror is None else self.mirror(frames)


def repeats(windows: list[int], weights: list[float | None]) -> list[float]:
    """How often each source's windows must occur so that sources have the given shares; at least once each.

    Args:
        windows: number of windows of each source.
        weights: their shares, or None for all.

    Raises:
        ValueError: some sources have a weight and others have none.
    """
    if all(weight is None for weight in weights):
        return [1.0] * len(windows)
    if any(weight is None for weight in weights):
        raise ValueError(f"weights {weights}: give a weight to every source, or to none")
    wanted = [weight / max(count, 1) for weight, count in zip(weights, windows, strict=True)]
    lowest = min(share for share, count in zip(wanted, windows, strict=True) if count)
    return [share / lowest for share in wanted]
