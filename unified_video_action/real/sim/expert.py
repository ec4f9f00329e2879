"""A scripted expert for the simulated arm: it takes the cup and puts it onto the saucer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.poses import pose_matrix
from unified_video_action.real.sim.scene import CUP_HEIGHT, GRIPPER, SAUCER_HEIGHT, Table
from unified_video_action.real.sim.world import Snapshot

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # the hand's rotation when its fingers point along x
GRIP = 0.050  # metres, less than the cup's width
NEAR, UPRIGHT = 0.025, 0.97  # metres from the saucer's middle, and height of the cup's axis, that count as success
OPENED = 0.070  # metres


@dataclass(frozen=True)
class Waypoint:
    pose: np.ndarray  # (4, 4)
    gripper: float  # metres
    seconds: float  # on the way here


@dataclass(frozen=True)
class Course:
    """Waypoints, and the way between them: positions and openings gently speeded up and slowed down."""

    waypoints: tuple[Waypoint, ...]  # the first is where it begins

    @property
    def seconds(self) -> float:
        return float(self._ends[-1])

    def at(self, seconds: float) -> tuple[np.ndarray, float]:
        """Pose (4, 4) and opening at a time after the beginning."""
        leg = int(np.searchsorted(self._ends, seconds, side="right"))
        if leg == len(self._ends):
            return self.waypoints[-1].pose, self.waypoints[-1].gripper
        before, after = self.waypoints[leg : leg + 2]
        share = np.clip(1 - (self._ends[leg] - seconds) / after.seconds, 0, 1)
        share = share**3 * (10 - 15 * share + 6 * share**2)  # no jerk at either end
        position = before.pose[:3, 3] + share * (after.pose[:3, 3] - before.pose[:3, 3])
        rotation = before.pose[:3, :3] @ Rotation.from_rotvec(share * self._turns[leg]).as_matrix()
        return pose_matrix(position, rotation), before.gripper + share * (after.gripper - before.gripper)

    @cached_property
    def _ends(self) -> np.ndarray:
        """(n - 1,) seconds from the beginning to each leg's end."""
        return np.cumsum([waypoint.seconds for waypoint in self.waypoints[1:]])

    @cached_property
    def _turns(self) -> np.ndarray:
        """(n - 1, 3) axis-angle of each leg, in the axes at its beginning."""
        turns = np.stack([waypoint.pose[:3, :3] for waypoint in self.waypoints])
        return Rotation.from_matrix(turns[:-1].swapaxes(1, 2) @ turns[1:]).as_rotvec()


def random_table(rng: np.random.Generator) -> Table:
    """A cup on the left, a saucer on the right."""
    cup = rng.uniform([0.30, 0.05], [0.42, 0.17])
    saucer = rng.uniform([0.30, -0.17], [0.42, -0.06])
    return Table(tuple(cup.tolist()), tuple(saucer.tolist()))


def cup_onto_saucer(table: Table, start: np.ndarray, rng: np.random.Generator) -> Course:
    """Over the cup, down along the fingers, grip, lift, over the saucer, down, open, back; tempo and heights vary.

    Args:
        start: (4, 4) pose in which the hand is.
    """
    pace, tilt = rng.uniform(0.8, 1.25), rng.uniform(1.0, 1.15)
    grip_height = rng.uniform(0.038, 0.048)
    cup, saucer = np.array([*table.cup, grip_height]), np.array([*table.saucer, grip_height + SAUCER_HEIGHT + 0.003])
    back, lift = rng.uniform(0.08, 0.11), np.array([0, 0, rng.uniform(0.07, 0.11)])
    at_cup, at_saucer = (_reaching(place, tilt) for place in (cup, saucer))
    legs = [
        (_moved(at_cup, [0, 0, -back]), GRIPPER, 1.4),
        (at_cup, GRIPPER, 1.0),
        (at_cup, GRIP, 0.5),
        (_lifted(at_cup, lift), GRIP, 0.8),
        (_lifted(at_saucer, lift), GRIP, 1.4),
        (at_saucer, GRIP, 0.9),
        (at_saucer, GRIPPER, 0.5),
        (_moved(at_saucer, [0, 0, -back]), GRIPPER, 0.8),
    ]
    way = [Waypoint(start, GRIPPER, 0.0), *(Waypoint(pose, opening, pace * time) for pose, opening, time in legs)]
    return Course((*way, Waypoint(way[-1].pose, GRIPPER, 0.4)))  # a rest, in which the arm catches up


def stands_on_saucer(table: Table, seen: Snapshot) -> bool:
    """The cup stands upright on the saucer, and the gripper has let it go."""
    off = float(np.linalg.norm(seen.cup[:2] - table.saucer))
    axis = Rotation.from_quat(seen.cup[3:7], scalar_first=True).as_matrix()[2, 2]
    height = seen.cup[2] - CUP_HEIGHT / 2 - SAUCER_HEIGHT
    return bool(off < NEAR and axis > UPRIGHT and abs(height) < 0.005 and seen.opening > OPENED)


def _reaching(place: np.ndarray, tilt: float) -> np.ndarray:
    """The hand at a place (3,), fingers away from the base and `tilt` radians down from level."""
    yaw = np.arctan2(place[1], place[0])
    return pose_matrix(place, Rotation.from_euler("ZY", [yaw, tilt]).as_matrix() @ FORWARD)


def _moved(pose: np.ndarray, by: list[float]) -> np.ndarray:
    """A pose moved (3,) in its own axes."""
    return pose @ pose_matrix(np.array(by, float), np.eye(3))


def _lifted(pose: np.ndarray, by: np.ndarray) -> np.ndarray:
    """A pose moved (3,) in the base's axes."""
    return pose_matrix(pose[:3, 3] + by, pose[:3, :3])
