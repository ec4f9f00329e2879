"""Frames as other projects' clients send them, made into those that a policy was trained on."""

from __future__ import annotations

import cv2
import numpy as np

from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.real.planner import ObservationEntry
from unified_video_action.real.server.errors import BAD_REQUEST, Refused

SMALLEST, LARGEST = 16, 512  # pixels of a side that is resized
ROUNDING = 1e-3  # by which a float frame may leave [0, 1]


def as_trained(name: str, frames: object, entry: ObservationEntry, resize: bool) -> np.ndarray:
    """uint8 (..., H, W, 3).

    Args:
        frames: (..., h, w, 3) or (..., 3, h, w), uint8 or floating point in [0, 1].
        resize: another size of the same proportions is resized, as clients that always send one size need it.

    Raises:
        Refused: something else.
    """
    height, width, _ = entry.shape
    wanted = f"RGB frames of {width} x {height} pixels, uint8 or floating point in [0, 1]"
    if not isinstance(frames, np.ndarray):
        raise Refused(BAD_REQUEST, f"{name}: got a {type(frames).__name__}, expected an array, {wanted}")
    if not 3 <= frames.ndim <= 4 or 3 not in (frames.shape[-1], frames.shape[-3]):
        raise Refused(BAD_REQUEST, f"{name}: got {frames.dtype} {frames.shape}, expected {wanted}")
    if not frames.size:
        raise Refused(BAD_REQUEST, f"{name}: got no frames, expected {wanted}")
    came = pixels(frames)
    if frames.shape[-1] != 3:
        frames = np.moveaxis(frames, -3, -1)  # (..., h, w, 3)
    fits = came == (height, width)
    got = f"{name}: got frames of {came[1]} x {came[0]} pixels"
    if not fits and not resize:
        raise Refused(BAD_REQUEST, f"{got}, expected {wanted}")
    if not fits and abs(came[0] * width - came[1] * height) > max(came[0] * width, came[1] * height) / 50:
        raise Refused(
            BAD_REQUEST,
            f"{got}, whose proportions are not those of {wanted}; crop them as the training data was, or pad them: "
            f"openpi_client.image_tools.resize_with_pad(image, {height}, {width})",
        )
    if not fits and not all(SMALLEST <= side <= LARGEST for side in came):
        raise Refused(
            BAD_REQUEST,
            f"{got}, expected {wanted}; others of the same proportions are resized if their sides have {SMALLEST} to "
            f"{LARGEST} pixels",
        )
    frames = _bytes(name, frames, wanted)
    if fits:
        return frames
    fit = Fit((height, width), crop=False)
    return np.stack([fit(each) for each in frames.reshape(-1, *came, 3)]).reshape(*frames.shape[:-3], *entry.shape)


def pixels(frames: np.ndarray) -> tuple[int, int]:
    """Height and width of frames (..., h, w, 3) or (..., 3, h, w)."""
    return frames.shape[-3:-1] if frames.shape[-1] == 3 else frames.shape[-2:]


def _bytes(name: str, frames: np.ndarray, wanted: str) -> np.ndarray:
    """uint8 (..., h, w, 3), contiguous; k / 255 becomes k."""
    if frames.dtype.kind != "f" and frames.dtype != np.uint8:
        raise Refused(BAD_REQUEST, f"{name}: got {frames.dtype} {frames.shape}, expected {wanted}")
    # Not a number is neither above nor below; both comparisons are false for it.
    if frames.dtype != np.uint8 and not (frames.min() >= -ROUNDING and frames.max() <= 1 + ROUNDING):
        raise Refused(BAD_REQUEST, f"{name}: got values outside [0, 1], expected {wanted}")
    if frames.dtype.kind == "f" and frames.dtype != np.float32:
        frames = frames.astype(np.float32)
    made = np.empty(frames.shape, np.uint8)
    for one, into in zip(frames.reshape(-1, *frames.shape[-3:]), made.reshape(-1, *frames.shape[-3:])):
        cv2.merge([_scaled(one[..., colour]) for colour in range(3)], into)  # several times as fast as a copy by NumPy
    return made


def _scaled(plane: np.ndarray) -> np.ndarray:
    """One colour (h, w) as uint8."""
    return plane if plane.dtype == np.uint8 else cv2.convertScaleAbs(plane, alpha=255.0)
