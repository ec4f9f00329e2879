"""Rotations as robots and networks write them.

The network's form is 6-D: the first two rows of the rotation matrix (Zhou et al. 2019), which has no jumps. Simulators
and demonstrations use axis-angle vectors (radians).
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

POSE_ACTION = 10  # position (3), rotation (6), gripper (1): what the network sees
AXIS_ANGLE_ACTION = 7  # position (3), axis-angle (3), gripper (1): what robosuite's controllers take
AXES = np.eye(3)
SHORTEST = 1e-6  # length of a row that names a direction


def matrix_to_6d(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 6)."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def matrix_from_6d(rotation: np.ndarray) -> np.ndarray:
    """(..., 6), two rows that need be neither of length 1 nor at right angles -> (..., 3, 3), by Gram-Schmidt.

    A network that has hardly learnt, and whose samples are clamped, may say two rows that are parallel. The second is
    then the axis that lies farthest from the first.

    Raises:
        ValueError: a number is not finite, or the first row is zero.
    """
    rows = np.asarray(rotation, np.float64).reshape(*np.shape(rotation)[:-1], 2, 3)
    if not np.isfinite(rows).all():
        raise ValueError(f"6-D rotation {np.asarray(rotation)} is not finite")
    first, second = np.moveaxis(rows, -2, 0)
    if not (np.linalg.norm(first, axis=-1) > SHORTEST).all():
        raise ValueError(f"6-D rotation {np.asarray(rotation)} names no rotation: its first row is zero")
    x = first / np.linalg.norm(first, axis=-1, keepdims=True)
    across, otherwise = _across(second, x), _across(AXES[np.abs(x).argmin(-1)], x)
    y = np.where(np.linalg.norm(across, axis=-1, keepdims=True) > SHORTEST, across, otherwise)
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-2)


def axis_angle_to_6d(axis_angle: np.ndarray) -> np.ndarray:
    """(..., 3) radians -> (..., 6)."""
    flat = np.asarray(axis_angle, np.float64).reshape(-1, 3)
    return matrix_to_6d(Rotation.from_rotvec(flat).as_matrix()).reshape(*np.shape(axis_angle)[:-1], 6)


def to_pose_actions(actions: np.ndarray) -> np.ndarray:
    """Position, axis-angle, gripper (..., 7) -> position, 6-D rotation, gripper (..., 10), float32."""
    if actions.shape[-1] != AXIS_ANGLE_ACTION:
        raise ValueError(f"actions have shape {actions.shape}, expected (..., {AXIS_ANGLE_ACTION})")
    parts = [actions[..., :3], axis_angle_to_6d(actions[..., 3:6]), actions[..., 6:]]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def from_pose_actions(actions: np.ndarray) -> np.ndarray:
    """Inverse of `to_pose_actions`: (..., 10) -> (..., 7), float64; angles lie in [0, pi] radians."""
    if actions.shape[-1] != POSE_ACTION:
        raise ValueError(f"actions have shape {actions.shape}, expected (..., {POSE_ACTION})")
    matrix = matrix_from_6d(actions[..., 3:9])
    turns = Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_rotvec().reshape(*matrix.shape[:-2], 3)
    return np.concatenate([actions[..., :3], turns, actions[..., 9:]], axis=-1)


def _across(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The part of `rows` (..., 3) at right angles to the unit vectors `x`."""
    return rows - (x * rows).sum(-1, keepdims=True) * x
