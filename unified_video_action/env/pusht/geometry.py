"""The shape of PushT's T, in its own frame and on the table. Lengths in table pixels, angles in radians."""

from __future__ import annotations

import math

import numpy as np
import shapely

BAR = (-60.0, 60.0, 0.0, 30.0)  # x0, x1, y0, y1 in the T's frame; its origin is the middle of the bar's outer side
STEM = (-15.0, 15.0, 30.0, 120.0)
CENTRE_HEIGHT = 45.0
CENTRE_OF_MASS = np.array([0.0, CENTRE_HEIGHT])  # as the simulator sets it; the T turns about this point
TURN_RADIUS = 58.0  # mean distance of the T's corners from its centre of mass
OUTLINE = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], np.float64
)  # (8, 2), one corner after another
CONVEX_CORNERS = (0, 1, 2, 4, 5, 7)  # indices into OUTLINE; 3 and 6 are where the stem meets the bar
INERTIA = 3000.0  # about the centre of mass, of a T of mass 1, as the simulator sets it
AGENT_RADIUS = 15.0
TABLE_SIZE = 512.0
DEFAULT_GOAL = (256.0, 256.0, np.pi / 4)  # x, y in table pixels, angle in radians

GOAL_RANGE = (130.0, 382.0)  # x and y of random goals: the T, which reaches 121 pixels, lies on the table at any angle

Pose = tuple[float, float, float]  # x, y, angle


def random_goal(rng: np.random.Generator) -> np.ndarray:
    """A goal pose anywhere on the table that the T can take: (3,) x, y in table pixels, angle in radians."""
    x, y = rng.uniform(*GOAL_RANGE, size=2)
    return np.array([x, y, rng.uniform(-np.pi, np.pi)])


def state_targets(states: np.ndarray) -> np.ndarray:
    """States (..., 5) -> (..., 6) as a model predicts them: agent xy and block xy in [-1, 1], cosine and sine of the
    block's angle."""
    positions, angle = states[..., :4] / (TABLE_SIZE / 2) - 1, states[..., 4:]
    return np.concatenate([positions, np.cos(angle), np.sin(angle)], axis=-1)


def block_poses(targets: np.ndarray) -> np.ndarray:
    """Poses (..., 3) of the block, from `state_targets` (..., 6) that may be predicted."""
    positions, angle = (targets[..., 2:4] + 1) * (TABLE_SIZE / 2), np.arctan2(targets[..., 5:6], targets[..., 4:5])
    return np.concatenate([positions, angle], axis=-1)


def rotation(angle: float) -> np.ndarray:
    """(2, 2) matrix that turns column vectors by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def to_table(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Points (..., 2) in the T's frame -> on the table."""
    return points @ rotation(pose[2]).T + np.array(pose[:2])


def clearance(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Distance from points (..., 2) on the table to the T at `pose`, 0 inside it: (...)."""
    local = (points - np.array(pose[:2])) @ rotation(pose[2])  # in the T's frame

    def to_rectangle(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
        outside_x = np.maximum(np.maximum(x0 - local[..., 0], local[..., 0] - x1), 0)
        outside_y = np.maximum(np.maximum(y0 - local[..., 1], local[..., 1] - y1), 0)
        return np.hypot(outside_x, outside_y)

    return np.minimum(to_rectangle(*BAR), to_rectangle(*STEM))


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


def moved(poses: np.ndarray, start: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`poses` (..., 3) with `other` for `start`: the centre of mass goes the same way from there and turns as much."""
    centres, before, there = (_on_table(CENTRE_OF_MASS[None], each)[..., 0, :] for each in (poses, start, other))
    angle = other[..., 2:] + poses[..., 2:] - start[..., 2:]
    arm = _on_table(CENTRE_OF_MASS[None], np.concatenate([np.zeros_like(centres), angle], axis=-1))[..., 0, :]
    return np.concatenate([there + centres - before - arm, angle], axis=-1)


def _on_table(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points (m, 2) in the T's frame -> (..., m, 2) on the table for poses (..., 3)."""
    cos, sin = np.cos(poses[..., 2:]), np.sin(poses[..., 2:])  # (..., 1)
    x = cos * points[:, 0] - sin * points[:, 1] + poses[..., 0:1]  # (..., m)
    y = sin * points[:, 0] + cos * points[:, 1] + poses[..., 1:2]
    return np.stack([x, y], axis=-1)
