"""Poses between poses, in time. For one pose at a time, scipy's rotations are slow: these are not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unified_video_action.poses import between as all_between


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
    angle = 2 * math.atan2(length, abs(w))
    return np.array([x, y, z]) * (sign * angle / length)


def between(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """The pose (4, 4) at `share` of the straight way from one to the other, turning evenly (slerp)."""
    pose = np.eye(4)
    pose[:3, 3] = one[:3, 3] + share * (other[:3, 3] - one[:3, 3])
    pose[:3, :3] = one[:3, :3] @ turned(share * turn_of(one[:3, :3].T @ other[:3, :3]))
    return pose


@dataclass(frozen=True)
class Trajectory:
    """Where a hand is to be, time after time; before the first and after the last it stays there.

    Raises:
        ValueError: arrays that do not fit together, or times that do not rise.
    """

    times: np.ndarray  # (n,) seconds, rising
    poses: np.ndarray  # (n, 4, 4)
    grippers: np.ndarray  # (n,) metres

    def __post_init__(self) -> None:
        n = len(self.times)
        if not n or self.poses.shape != (n, 4, 4) or self.grippers.shape != (n,):
            raise ValueError(f"trajectory: {n} times, poses {self.poses.shape}, grippers {self.grippers.shape}")
        if (np.diff(self.times) <= 0).any():
            raise ValueError(f"trajectory: times {self.times} do not rise")

    @property
    def end(self) -> float:
        return float(self.times[-1])

    def at(self, time: float) -> tuple[np.ndarray, float]:
        """Pose (4, 4) and opening."""
        after = int(np.searchsorted(self.times, time, side="right"))
        if after == 0 or after == len(self.times):
            index = 0 if after == 0 else -1
            return self.poses[index], float(self.grippers[index])
        begin, end = self.times[after - 1], self.times[after]
        share = float((time - begin) / (end - begin))
        opening = self.grippers[after - 1] + share * (self.grippers[after] - self.grippers[after - 1])
        return between(self.poses[after - 1], self.poses[after], share), float(opening)

    def sampled(self, times: np.ndarray) -> Trajectory:
        """The same at other times (m,)."""
        times = np.asarray(times, float)
        grippers = np.interp(times, self.times, self.grippers)
        if len(self.times) == 1:
            return Trajectory(times, np.repeat(self.poses, len(times), axis=0), grippers)
        after = np.searchsorted(self.times, times, side="right").clip(1, len(self.times) - 1)
        begin, end = self.times[after - 1], self.times[after]
        share = ((times - begin) / (end - begin)).clip(0, 1)
        return Trajectory(times, all_between(self.poses[after - 1], self.poses[after], share), grippers)

    def followed_by(self, other: Trajectory, since: float, fade: float, remember: float) -> Trajectory:
        """This one up to `since`, the other from `since + fade` on, and between them from the one to the other."""
        kept = self.times[(self.times > since - remember) & (self.times < since)]
        later = other.times[other.times > since]
        times = np.unique(np.concatenate([kept, [since, since + fade], later]))
        before, after, share = self.sampled(times), other.sampled(times), ((times - since) / fade).clip(0, 1)
        grippers = before.grippers + share * (after.grippers - before.grippers)
        return Trajectory(times, all_between(before.poses, after.poses, share), grippers)
