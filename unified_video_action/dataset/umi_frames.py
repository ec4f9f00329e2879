"""How the frames of a hand-held gripper are shown to a policy: its side mirrors blackened. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

Polygon = tuple[tuple[float, float], ...]  # corners (x, y) in shares of the frame's width and height

# Where the published gripper's left mirror lies in the square middle of its camera's frames; the right one mirrors it.
LEFT_MIRROR: Polygon = (
    (0.0996, 0.8383),
    (0.1686, 0.7150),
    (0.1243, 0.5276),
    (-0.0237, 0.5572),
    (-0.0237, 0.8728),
    (0.1045, 0.8728),
)
MIRRORS = (LEFT_MIRROR, tuple((1 - x, y) for x, y in LEFT_MIRROR))


@dataclass(frozen=True)
class FrameMask:
    """Blackens parts of every frame.

    Raises:
        ValueError: what is no polygon.
    """

    polygons: tuple[Polygon, ...] = MIRRORS

    def __post_init__(self) -> None:
        for polygon in self.polygons:
            if np.ndim(polygon) != 2 or np.shape(polygon)[0] < 3 or np.shape(polygon)[1] != 2:
                raise ValueError(f"mask: {polygon!r} is no polygon; expected three corners [x, y] or more, 0 to 1")

    @classmethod
    def parse(cls, mask: object, where: str) -> FrameMask | None:
        """From a configuration: null, "mirrors" for the published gripper's, or a list of polygons.

        Raises:
            ValueError: something else; names `where`.
        """
        if mask is None:
            return None
        if mask == "mirrors":
            return cls()
        if isinstance(mask, str) or not isinstance(mask, Sequence) or not mask:
            raise ValueError(f"{where}: mask={mask!r}; expected null, mirrors, or polygons [[[x, y], ...], ...]")
        try:
            return cls(tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in mask))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: mask={mask!r}: expected polygons [[[x, y], ...], ...] ({error})") from error

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> the same shape; the frame given stays as it is."""
        return cv2.multiply(frame, _kept(self.polygons, frame.shape[:2]), scale=1 / 255)


@lru_cache(maxsize=16)
def _kept(polygons: tuple[Polygon, ...], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3): 255 where a frame is kept, less along the smoothed edges, 0 where it is black."""
    kept = np.full((*size, 3), 255, np.uint8)
    for polygon in polygons:
        corners = np.round(np.array(polygon) * size[::-1]).astype(np.int32)
        cv2.fillPoly(kept, [corners], (0, 0, 0), cv2.LINE_AA)
    return kept
