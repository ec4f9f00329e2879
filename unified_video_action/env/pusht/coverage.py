"""How much of the goal the T covers, and how far it is from it, for many poses at once."""

from __future__ import annotations

import numpy as np
import shapely

from unified_video_action.env.pusht.geometry import CENTRE_OF_MASS, OUTLINE, TURN_RADIUS


def coverage(poses: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Share (...) of the goal (3,) that the T covers at poses (..., 3), which must be finite."""
    target = shapely.polygons(_on_table(OUTLINE, goal))
    blocks = shapely.polygons(_on_table(OUTLINE, poses))
    return shapely.area(shapely.intersection(blocks, target)) / shapely.area(target)


def distance(poses: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Pixels (...) from the goal (3,) for poses (..., 3): the centre of mass's way, and the turn at TURN_RADIUS."""
    centres, target = (_on_table(CENTRE_OF_MASS[None], each)[..., 0, :] for each in (poses, goal))  # (..., 2)
    turn = (poses[..., 2] - goal[2] + np.pi) % (2 * np.pi) - np.pi
    return np.sqrt(np.square(centres - target).sum(axis=-1) + np.square(TURN_RADIUS * turn))


def _on_table(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points (m, 2) in the T's frame -> (..., m, 2) on the table for poses (..., 3)."""
    cos, sin = np.cos(poses[..., 2:]), np.sin(poses[..., 2:])  # (..., 1)
    x = cos * points[:, 0] - sin * points[:, 1] + poses[..., 0:1]  # (..., m)
    y = sin * points[:, 0] + cos * points[:, 1] + poses[..., 1:2]
    return np.stack([x, y], axis=-1)
