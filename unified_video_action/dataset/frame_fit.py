"""How frames are shown to a policy: of one size, and the mirrors of a hand-held gripper blackened. Needs no torch."""

from __future__ import annotations

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
class Fit:
    """How frames of any size become frames of one size."""

    size: tuple[int, int] | None = None  # (H, W); None: as they are
    crop: bool = True  # cut the longer side about the centre, so that shapes stay true; False: stretch

    @classmethod
    def parse(cls, image_size: object, crop: bool, where: str) -> Fit:
        """From a configuration's `image_size`: a number S for S x S, or [H, W], or None. `where` is for messages."""
        if image_size is None:
            return cls(None, crop)
        values = image_size if isinstance(image_size, list | tuple) else [image_size] * 2
        if len(values) != 2 or not all(type(value) is int and value > 0 for value in values):
            raise ValueError(f"{where}: image_size={image_size!r}; expected a number of pixels, or [height, width]")
        return cls(tuple(values), crop)

    def shape(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that stored frames (H', W') have afterwards."""
        return self.size or stored

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (H', W', 3) -> (H, W, 3)."""
        if self.size is None or frame.shape[:2] == self.size:
            return frame
        height, width = self.size
        if self.crop:
            frame = cropped(frame, self.size)
        shrinks = frame.shape[0] >= height and frame.shape[1] >= width
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@dataclass(frozen=True)
class FrameMask:
    """Blackens parts of every frame."""

    polygons: tuple[Polygon, ...] = MIRRORS

    @classmethod
    def parse(cls, mask: object, where: str) -> FrameMask | None:
        """From a configuration: null, "mirrors" for the published gripper's, or a list of polygons."""
        if mask is None or mask == "mirrors":
            return mask and cls()
        try:
            polygons = tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in mask)
        except (TypeError, ValueError):
            polygons = ()
        if not polygons or min(map(len, polygons)) < 3:
            raise ValueError(
                f"{where}: mask={mask!r}; expected null, mirrors, or polygons of three corners or more [[[x, y], ...]]"
            )
        return cls(polygons)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> the same shape; the frame given stays as it is."""
        return cv2.multiply(frame, _kept(self.polygons, frame.shape[:2]), scale=1 / 255)


def cropped(frame: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The largest middle part of a frame (H', W', C) whose sides have the ratio of `shape` (height, width)."""
    stored_height, stored_width = frame.shape[:2]
    scale = min(stored_height / shape[0], stored_width / shape[1])
    height, width = round(scale * shape[0]), round(scale * shape[1])
    top, left = (stored_height - height) // 2, (stored_width - width) // 2
    return frame[top : top + height, left : left + width]


@lru_cache(maxsize=16)
def _kept(polygons: tuple[Polygon, ...], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3): 255 where a frame is kept, less along the smoothed edges, 0 where it is black."""
    kept = np.full((*size, 3), 255, np.uint8)
    for polygon in polygons:
        corners = np.round(np.array(polygon) * size[::-1]).astype(np.int32)
        cv2.fillPoly(kept, [corners], (0, 0, 0), cv2.LINE_AA)
    return kept
