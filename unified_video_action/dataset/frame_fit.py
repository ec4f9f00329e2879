"""Frames of any size as frames of one size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


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


def cropped(frame: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The largest middle part of a frame (H', W', C) whose sides have the ratio of `shape` (height, width)."""
    stored_height, stored_width = frame.shape[:2]
    scale = min(stored_height / shape[0], stored_width / shape[1])
    height, width = round(scale * shape[0]), round(scale * shape[1])
    top, left = (stored_height - height) // 2, (stored_width - width) // 2
    return frame[top : top + height, left : left + width]


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
