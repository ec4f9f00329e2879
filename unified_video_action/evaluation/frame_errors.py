"""How far imagined frames are from the true ones, in dB and in the task's own units."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unified_video_action.env.state_reader import Readings

MOVED, TURNED = 4.0, 2.0  # units of length, degrees: the block moves where it goes or turns further than this
LOST, LOST_ANGLE = 100.0, 90.0  # least error of what was not found: it has not even moved as the true one did

Errors = dict[str, np.ndarray]  # metric -> (N, F); NaN where it does not count


def frame_errors(
    frames: Tensor,
    true: Tensor,
    valid: np.ndarray,
    made: Readings | None = None,
    readings: Readings | None = None,
    now: Readings | None = None,
) -> Errors:
    """Errors of frames uint8 (N, F, 3, S, S) against true ones; `valid` (N, F) says which count.

    Args:
        made, readings, now: positions read from the frames, the true ones and the newest ones (N,); None: pixels alone.

    Returns:
        psnr. With readings also agent and block (distance) and angle (degrees), block and angle where the true
        block moves; found: agent and block are both somewhere; whole: exactly one whole agent and block. What is
        not found counts as left where it is now, and at least LOST units or LOST_ANGLE degrees off.
    """
    errors = {"psnr": psnr(frames, true)}
    if made is not None:
        still = {name: getattr(now, name)[:, None] for name in ("agent", "block", "angle")}
        moved = {name: _apart(getattr(readings, name), still[name], name) for name in still}  # (N, F)
        moves = (moved["block"] > MOVED) | (moved["angle"] > TURNED)
        for name, least in (("agent", LOST), ("block", LOST), ("angle", LOST_ANGLE)):
            error = _apart(getattr(made, name), getattr(readings, name), name)
            lost = np.isnan(getattr(made, name)).reshape(*error.shape, -1).any(-1)
            lost &= np.isfinite(getattr(readings, name)).reshape(*error.shape, -1).all(-1)
            error[lost] = np.fmax(moved[name], least)[lost]
            errors[name] = error if name == "agent" else np.where(moves, error, np.nan)
        errors["found"] = np.isfinite(made.state).all(-1).astype(np.float64)
        errors["whole"] = (made.one_agent & made.one_block).astype(np.float64)
    return {name: np.where(valid, error, np.nan) for name, error in errors.items()}


def psnr(frames: Tensor, true: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of uint8 frames (N, F, 3, S, S): (N, F) in dB, finite for equal frames too."""
    parts = zip(frames.split(64), true.split(64), strict=True)  # floats of all are four times as large
    error = torch.cat([(made.float() - real.float()).square().mean((-3, -2, -1)) for made, real in parts])
    return (10 * torch.log10(255**2 / error.clamp(min=1 / (3 * frames.shape[-1] ** 2)))).numpy().astype(np.float64)


def _apart(a: np.ndarray, b: np.ndarray, name: str) -> np.ndarray:
    """How far positions (..., 2) are apart, or angles (...) in radians, in degrees: (...), NaN where one is."""
    if name == "angle":
        return np.abs((np.degrees(a - b) + 180) % 360 - 180)
    return np.linalg.norm(a - b, axis=-1)
