"""Poses of an end effector, and the numbers that a policy reads and says of them.

A pose is a (4, 4) float64 matrix: metres, in a frame that stays where it is. Recordings and drivers write it as six
numbers, position (metres) and axis-angle vector (radians). A policy reads and says positions and 6-D rotations, which
may be relative: seen from the pose of the newest observation, `inverse(base) @ pose`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.rotations import POSE_ACTION, matrix_from_6d, matrix_to_6d

KINDS = {"position": 3, "rotation_6d": 6, "gripper": 1, "rotation_6d_from_start": 6}  # what may be read, and its width


@dataclass(frozen=True)
class EndEffectorSpec:
    """How the poses of one end effector and its gripper become a policy's states, and its actions poses again."""

    states: Mapping[str, str]  # name of a policy's observation -> one of KINDS
    relative_states: bool = True  # seen from the newest pose, otherwise from the base; not rotation_6d_from_start
    relative_actions: bool = True

    def __post_init__(self) -> None:
        for name, kind in self.states.items():
            if kind not in KINDS:
                raise ValueError(f"end_effector.states.{name}={kind!r}: expected one of {', '.join(KINDS)}")

    def observe(
        self, poses: np.ndarray, grippers: np.ndarray, now: np.ndarray, start: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What a policy reads of a history.

        Args:
            poses: (..., P, 4, 4), in order. grippers: (..., P) openings, metres.
            now: (..., 4, 4) pose of the newest observation, from which relative states are seen.
            start: (..., 4, 4) pose in which the episode began.

        Returns:
            name -> float32 (..., P, d).
        """
        seen = relative_to(poses, now) if self.relative_states else poses
        made = {
            "position": lambda: seen[..., :3, 3],
            "rotation_6d": lambda: matrix_to_6d(seen[..., :3, :3]),
            "gripper": lambda: grippers[..., None],
            "rotation_6d_from_start": lambda: matrix_to_6d(relative_to(poses, start)[..., :3, :3]),
        }
        return {name: np.asarray(made[kind](), np.float32) for name, kind in self.states.items()}

    def actions(self, poses: np.ndarray, grippers: np.ndarray, now: np.ndarray) -> np.ndarray:
        """Poses (..., A, 4, 4) and openings (..., A) -> actions float32 (..., A, 10); `now` as in `observe`."""
        seen = relative_to(poses, now) if self.relative_actions else poses
        parts = [seen[..., :3, 3], matrix_to_6d(seen[..., :3, :3]), grippers[..., None]]
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def targets(self, actions: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions (..., A, 10) -> poses (..., A, 4, 4) and openings (..., A), the inverse of `actions`.

        Raises ValueError for another width, or numbers that name no pose.
        """
        if actions.shape[-1] != POSE_ACTION:
            raise ValueError(f"actions of {actions.shape[-1]} numbers: expected {POSE_ACTION} for one end effector")
        poses = pose_matrix(actions[..., :3], matrix_from_6d(actions[..., 3:9]))
        return (now[..., None, :, :] @ poses if self.relative_actions else poses), np.asarray(actions[..., 9], float)


def pose_matrix(position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(..., 3) and (..., 3, 3) -> (..., 4, 4)."""
    pose = np.zeros((*np.shape(position)[:-1], 4, 4))
    pose[..., :3, 3], pose[..., :3, :3], pose[..., 3, 3] = position, rotation, 1.0
    return pose


def from_vector(vector: np.ndarray) -> np.ndarray:
    """Position and axis-angle (..., 6) -> (..., 4, 4)."""
    vector = np.asarray(vector, np.float64)
    rotation = Rotation.from_rotvec(vector[..., 3:].reshape(-1, 3)).as_matrix()
    return pose_matrix(vector[..., :3], rotation.reshape(*vector.shape[:-1], 3, 3))


def to_vector(pose: np.ndarray) -> np.ndarray:
    """(..., 4, 4) -> position and axis-angle (..., 6); the angle lies in [0, pi]."""
    turns = Rotation.from_matrix(pose[..., :3, :3].reshape(-1, 3, 3)).as_rotvec()
    return np.concatenate([pose[..., :3, 3], turns.reshape(*pose.shape[:-2], 3)], axis=-1)


def inverse(pose: np.ndarray) -> np.ndarray:
    """(..., 4, 4) -> (..., 4, 4)."""
    turned = np.swapaxes(pose[..., :3, :3], -1, -2)
    return pose_matrix(-(turned @ pose[..., :3, 3:])[..., 0], turned)


def relative_to(poses: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Poses (..., n, 4, 4) as seen from `base` (..., 4, 4)."""
    return inverse(base)[..., None, :, :] @ poses


def distance(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres and radians (...) between poses (..., 4, 4)."""
    turn = np.swapaxes(one[..., :3, :3], -1, -2) @ other[..., :3, :3]
    angles = Rotation.from_matrix(turn.reshape(-1, 3, 3)).magnitude().reshape(turn.shape[:-2])
    return np.linalg.norm(one[..., :3, 3] - other[..., :3, 3], axis=-1), angles


def between(ones: np.ndarray, others: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Poses (..., 4, 4) at `shares` (...) of the straight ways from `ones` to `others`, turning evenly (slerp)."""
    poses, turned = ones.copy(), ones[..., :3, :3]
    poses[..., :3, 3] += shares[..., None] * (others[..., :3, 3] - ones[..., :3, 3])
    turns = Rotation.from_matrix((np.swapaxes(turned, -1, -2) @ others[..., :3, :3]).reshape(-1, 3, 3)).as_rotvec()
    steps = Rotation.from_rotvec(np.reshape(shares, (-1, 1)) * turns).as_matrix()  # (n, 3, 3)
    poses[..., :3, :3] = turned @ steps.reshape(turned.shape)
    return poses
