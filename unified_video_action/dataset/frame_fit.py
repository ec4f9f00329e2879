"""How frames are shown to a policy: of one size, and the mirrors of a hand-held gripper blackened. Needs no torch."""

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
class Fit:
    """How frames of any size become frames of one size."""

    size: tuple[int, int] | None = None  # (H, W); None: as they are
    crop: bool = True  # cut the longer side about the centre, so that shapes stay true; False: stretch

    @classmethod
    def parse(cls, image_size: object, crop: bool, where: str) -> Fit:
        """From a configuration's `image_size`: a number S for S x S, or [H, W], or None."""
        values = [image_size] * 2 if isinstance(image_size, int) else image_size
        if values is None:
            return cls(None, crop)
        if not isinstance(values, list | tuple) or len(values) != 2 or not all(_positive(value) for value in values):
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
        """From a configuration: null, "mirrors" for the published gripper's, or a list of polygons."""
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


def cropped(frame: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The largest middle part of a frame (H', W', C) whose sides have the ratio of `shape` (height, width)."""
    stored_height, stored_width = frame.shape[:2]
    scale = min(stored_height / shape[0], stored_width / shape[1])
    height, width = round(scale * shape[0]), round(scale * shape[1])
    top, left = (stored_height - height) // 2, (stored_width - width) // 2
    return frame[top : top + height, left : left + width]


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@lru_cache(maxsize=16)
def _kept(polygons: tuple[Polygon, ...], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3): 255 where a frame is kept, less along the smoothed edges, 0 where it is black."""
    kept = np.full((*size, 3), 255, np.uint8)
    for polygon in polygons:
        corners = np.round(np.array(polygon) * size[::-1]).astype(np.int32)
        cv2.fillPoly(kept, [corners], (0, 0, 0), cv2.LINE_AA)
    return kept
