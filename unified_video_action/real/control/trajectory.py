"""Poses between poses, in time. For one pose at a time, scipy's rotations are slow: these are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DECAY = 0.01  # of the weights of ever newer chunks in an ensemble, as ACT has it (Zhao et al. 2023)


def turned(vector: np.ndarray) -> np.ndarray:
    """Axis-angle vector (3,) -> rotation matrix (3, 3)."""
    x, y, z = (float(value) for value in vector)
    angle = math.sqrt(x * x + y * y + z * z)
    if angle < 1e-9:
        sine, versine = 1.0, 0.5  # each over the angle, or its square: the first terms of their series
    else:
        sine, versine = math.sin(angle) / angle, (1 - math.cos(angle)) / (angle * angle)
    return np.array(
        [
            [1 - versine * (y * y + z * z), versine * x * y - sine * z, versine * x * z + sine * y],
            [versine * x * y + sine * z, 1 - versine * (x * x + z * z), versine * y * z - sine * x],
            [versine * x * z - sine * y, versine * y * z + sine * x, 1 - versine * (x * x + y * y)],
        ]
    )


def turn_of(matrix: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) -> axis-angle vector (3,), its angle in [0, pi]; by its quaternion, so exact near pi."""
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    squares = (1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i)
    w, x, y, z = (
        (squares[0], h - f, c - g, d - b),
        (h - f, squares[1], b + d, c + g),
        (c - g, b + d, squares[2], f + h),
        (d - b, c + g, f + h, squares[3]),
    )[squares.index(max(squares))]
    sign = -1.0 if w < 0 else 1.0
    length = math.sqrt(x * x + y * y + z * z)
    if length < 1e-15:
        return np.zeros(3)
    return np.array([x, y, z]) * (sign * 2 * math.atan2(length, abs(w)) / length)


def norm(vector: np.ndarray) -> float:
    return math.sqrt(float(vector @ vector))


def apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Metres and radians between two poses (4, 4)."""
    return norm(one[:3, 3] - other[:3, 3]), norm(turn_of(one[:3, :3].T @ other[:3, :3]))


def between(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """The pose (4, 4) at `share` of the straight way from one to the other, turning evenly (slerp)."""
    pose = one.copy()
    pose[:3, 3] += share * (other[:3, 3] - one[:3, 3])
    pose[:3, :3] = one[:3, :3] @ turned(share * turn_of(one[:3, :3].T @ other[:3, :3]))
    return pose


@dataclass(frozen=True)
class Trajectory:
    """Poses of the end effector and gripper widths over time; before the first and after the last it stays there."""

    times: np.ndarray  # (n,) seconds, rising
    poses: np.ndarray  # (n, 4, 4)
    grippers: np.ndarray  # (n,) metres

    @property
    def end(self) -> float:
        return float(self.times[-1])

    def at(self, time: float) -> tuple[np.ndarray, float]:
        """Pose (4, 4) and gripper width."""
        after = int(np.searchsorted(self.times, time, side="right"))
        if after in (0, len(self.times)):
            index = 0 if after == 0 else -1
            return self.poses[index], float(self.grippers[index])
        begin, end = self.times[after - 1], self.times[after]
        pose = between(self.poses[after - 1], self.poses[after], float((time - begin) / (end - begin)))
        return pose, float(np.interp(time, self.times, self.grippers))

    def sampled(self, times: np.ndarray) -> Trajectory:
        """The same at other times (m,)."""
        poses, grippers = zip(*(self.at(time) for time in times))
        return Trajectory(times, np.stack(poses), np.array(grippers))

    def followed_by(self, other: Trajectory, since: float, fade: float, remember: float) -> Trajectory:
        """This one up to `since`, the other from `since + fade` on, and between them from the one to the other."""
        kept = self.times[(self.times > since - remember) & (self.times < since)]
        later = other.times[other.times > since]
        times = np.unique(np.concatenate([kept, [since, since + fade], later]))
        before, after, shares = self.sampled(times), other.sampled(times), ((times - since) / fade).clip(0, 1)
        poses = [between(*both) for both in zip(before.poses, after.poses, shares)]
        return Trajectory(times, np.stack(poses), before.grippers + shares * (after.grippers - before.grippers))


def ensemble(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The weighted mean of trajectories, oldest first and heaviest, at the times of the newest."""
    times = trajectories[-1].times
    sampled = [each.sampled(times) for each in trajectories]
    known = np.stack([(each.times[0] <= times) & (times <= each.end) for each in trajectories])  # (chunks, n)
    weights = np.exp(-DECAY * (known.cumsum(axis=0) - 1)) * known
    weights /= weights.sum(axis=0)
    poses = np.einsum("cn,cnij->nij", weights, np.stack([each.poses for each in sampled]))  # (n, 4, 4)
    left, _, right = np.linalg.svd(poses[:, :3, :3])  # the rotations nearest to the means of matrices
    left[..., 2] *= np.linalg.det(left @ right)[:, None]
    poses[:, :3, :3] = left @ right
    return Trajectory(times, poses, (weights * np.stack([each.grippers for each in sampled])).sum(axis=0))
