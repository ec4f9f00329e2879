"""How the commanded pose moves from tick to tick so that it can always come to rest: the governor."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import numpy as np

from unified_video_action.poses import pose_matrix
from unified_video_action.real.control.limits import Bounds
from unified_video_action.real.control.trajectory import norm, turn_of, turned

JOINT_TICKS = 5  # joint accelerations are taken over so many ticks: numbers from inverse kinematics are not smooth
LOOKS, CLOSE_LOOKS = 3, 16  # at the joints, on the way to rest; the latter where they are lively
LIVELY = 0.5  # share of a joint's limit beyond which it is looked at closely
FORESEEN = 0.9  # share of a joint's limit that braking may use where it is looked at so seldom
ATTEMPTS = ((1.0, 1.0), (1.0, 0.4), (0.4, 0.2), (0.1, 0.05))  # share of a step, share of the acceleration for braking
HALVINGS = 6  # of a step towards a wall
GAIN = 15.0  # 1/s, with which what was left behind is caught up
ROUNDING = 1e-9  # metres


@dataclass(frozen=True)
class Motion:
    """The commanded end effector at one tick: its pose, its velocities, and how it can brake.

    In braking, direction and axis stay, and both speeds fall evenly, each by itself.
    """

    position: np.ndarray  # (3,) metres
    rotation: np.ndarray  # (3, 3)
    velocity: np.ndarray  # (3,) metres per second
    spin: np.ndarray  # (3,) radians per second, in the base's frame
    braking: tuple[float, float]  # metres and radians per second^2 with which it is known to come to rest safely

    @classmethod
    def resting(cls, pose: np.ndarray, braking: tuple[float, float]) -> Motion:
        return cls(pose[:3, 3].copy(), pose[:3, :3].copy(), np.zeros(3), np.zeros(3), braking)

    @property
    def pose(self) -> np.ndarray:
        return pose_matrix(self.position, self.rotation)

    @property
    def at_rest(self) -> bool:
        return not (self.velocity.any() or self.spin.any())

    def moved(self, velocity: np.ndarray, spin: np.ndarray, seconds: float, braking: tuple[float, float]) -> Motion:
        """One tick on, with new velocities: differences of positions over `seconds` are these velocities exactly."""
        rotation = turned(spin * seconds) @ self.rotation
        return Motion(self.position + velocity * seconds, rotation, velocity, spin, braking)

    def slower(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Velocity and spin (3,) after one tick of braking."""
        return _shorter(self.velocity, self.braking[0] * seconds), _shorter(self.spin, self.braking[1] * seconds)

    def ticks_to_rest(self, seconds: float) -> int:
        return math.ceil(max(norm(self.velocity) / self.braking[0], norm(self.spin) / self.braking[1]) / seconds)

    def braked(self, ticks: int, seconds: float) -> np.ndarray:
        """Pose (4, 4) after so many ticks of braking. All positions on the way lie on one line."""
        way = _way(self.velocity, self.braking[0] * seconds, ticks) * seconds
        turn = _way(self.spin, self.braking[1] * seconds, ticks) * seconds
        return pose_matrix(self.position + way, turned(turn) @ self.rotation)


class Governor:
    """Moves a commanded pose towards a target, tick by tick, so that it can always come to rest inside all bounds.

    It takes a step only if the end effector could brake from there to rest, on a straight line, inside the workspace
    and with joints that exist and keep their limits; otherwise it makes a smaller step, or begins to brake, which was
    found safe when the step before was taken. So limits of acceleration never meet a wall, whatever the target.
    """

    def __init__(self, bounds: Bounds, joints_for: Callable[[np.ndarray, np.ndarray], np.ndarray | None]) -> None:
        self.bounds = bounds
        self.motion: Motion | None = None
        self.gripper = 0.0
        self._joints_for = joints_for
        self._past: deque[np.ndarray] = deque(maxlen=2 * JOINT_TICKS)  # joints of the newest ticks
        self._strongest = (bounds.acceleration, bounds.spin_acceleration)

    @property
    def joints(self) -> np.ndarray:
        return self._past[-1]

    def copy(self) -> Governor:
        """One that goes on from here by itself."""
        other = copy(self)
        other._past = self._past.copy()
        return other

    def begin(self, pose: np.ndarray, gripper: float, joints: np.ndarray) -> None:
        self.motion, self.gripper = Motion.resting(pose, self._strongest), gripper
        self._past.extend([joints] * self._past.maxlen)
        self.target: np.ndarray | None = None

    def follow(self, pose: np.ndarray, gripper: float) -> set[str]:
        """One tick towards a pose (4, 4) inside the workspace; what kept it from going all the way."""
        bounds, motion, period = self.bounds, self.motion, self.bounds.period
        before = pose if self.target is None else self.target
        self.target = pose
        ahead = (pose[:3, 3] - before[:3, 3]) / period
        ahead_spin = turn_of(pose[:3, :3] @ before[:3, :3].T) / period
        error, turn = pose[:3, 3] - motion.position, turn_of(pose[:3, :3] @ motion.rotation.T)
        velocity, there = self._towards(error, ahead, motion.velocity, bounds.speed, bounds.acceleration)
        spin, around = self._towards(turn, ahead_spin, motion.spin, bounds.spin, bounds.spin_acceleration)
        found = set() if there and around else {"acceleration"}
        step = bounds.gripper_speed * period
        self.gripper += min(max(gripper - self.gripper, -step), step)
        for share, strength in ATTEMPTS:
            braking = self._strongest[0] * strength, self._strongest[1] * strength
            candidate = self._inside(velocity, spin, share, braking)
            if candidate is None:
                continue
            joints = self._foreseen(candidate)
            if joints is not None:
                self.motion = candidate
                self._past.append(joints)
                return found
            found.add("joints")
        self.brake()
        return found

    def brake(self) -> None:
        """One tick towards rest: the step that was found safe when the one before was taken."""
        motion, period = self.motion, self.bounds.period
        self.motion = motion.moved(*motion.slower(period), period, motion.braking)
        joints = self._joints_for(self.motion.pose, self.joints)
        # The way was looked at, so there are joints; if not after all, no number passes the gate.
        self._past.append(np.full_like(self.joints, np.nan) if joints is None else joints)

    def _towards(
        self, error: np.ndarray, ahead: np.ndarray, now: np.ndarray, most: float, acceleration: float
    ) -> tuple[np.ndarray, bool]:
        """Velocity (3,) of the next tick, and whether it leads all the way to the target."""
        period = self.bounds.period
        straight = error / period
        if norm(straight) <= most and norm(straight - now) <= acceleration * period:
            return straight, True
        far = norm(error)
        easy, bend = acceleration / 2, acceleration / 2 / GAIN**2  # half is kept for what the target does itself
        speed = GAIN * far if far <= bend else math.sqrt(2 * easy * (far - bend / 2))
        wanted = ahead if norm(ahead) <= most else np.zeros(3)  # a target that leaps says nothing of where it goes
        wanted = _at_most(wanted + (error * (speed / far) if far > 0 else 0.0), most)
        return now + _at_most(wanted - now, acceleration * period), False

    def _inside(
        self, velocity: np.ndarray, spin: np.ndarray, share: float, braking: tuple[float, float]
    ) -> Motion | None:
        """The longest step, of those tried, after which the end effector can come to rest in the workspace."""
        bounds, motion, period = self.bounds, self.motion, self.bounds.period
        slower, slower_spin = motion.slower(period)
        for _ in range(HALVINGS):
            taken = slower + share * (velocity - slower)
            rest = motion.position + (taken + _way(taken, braking[0] * period)) * period
            if (rest >= bounds.low - ROUNDING).all() and (rest <= bounds.high + ROUNDING).all():
                return motion.moved(taken, slower_spin + share * (spin - slower_spin), period, braking)
            share *= 0.6
        return None

    def _foreseen(self, candidate: Motion) -> np.ndarray | None:
        """Joints (J,) of the candidate, if it and all of its braking keep the joints' bounds."""
        bounds, past = self.bounds, self._past
        joints = self._joints_for(candidate.pose, past[-1])
        if joints is None or (np.abs(joints - past[-1]) > bounds.joint_speed * bounds.period).any():
            return None
        if bounds.joints_used([past[0], past[JOINT_TICKS], joints], (JOINT_TICKS, JOINT_TICKS)) > 1:
            return None
        left = candidate.ticks_to_rest(bounds.period)
        used = self._used(candidate, joints, left, max(JOINT_TICKS, math.ceil(left / LOOKS)))
        if LIVELY < used <= FORESEEN:
            used = self._used(candidate, joints, left, max(1, math.ceil(left / CLOSE_LOOKS)))
        return joints if used <= FORESEEN else None

    def _used(self, candidate: Motion, joints: np.ndarray, left: int, stride: int) -> float:
        """Largest share of the joints' bounds that braking takes, looked at every `stride` ticks."""
        recent, gap, most = [self._past[0], self._past[JOINT_TICKS], joints], JOINT_TICKS, 0.0
        for tick in range(stride, left + 2 * stride, stride):  # the last look is at rest, for the last change of speed
            there: np.ndarray | None = recent[2]
            if tick < left + stride:
                guess = recent[2] + (recent[2] - recent[1]) * (stride / gap)
                there = self._joints_for(candidate.braked(tick, self.bounds.period), guess)
            if there is None:
                return math.inf
            recent = [recent[1], recent[2], there]
            most = max(most, self.bounds.joints_used(recent, (gap, stride)))
            if most > FORESEEN:
                return most
            gap = stride
        return most


def _at_most(vector: np.ndarray, length: float) -> np.ndarray:
    given = norm(vector)
    return vector if given <= length else vector * (length / given)


def _shorter(vector: np.ndarray, by: float) -> np.ndarray:
    length = norm(vector)
    return np.zeros(3) if length <= by else vector * (1 - by / length)


def _way(vector: np.ndarray, step: float, ticks: float = math.inf) -> np.ndarray:
    """Sum of the vector as it is shortened by `step`, tick after tick, `ticks` times or until nothing is left."""
    length = norm(vector)
    if length <= step:
        return np.zeros(3)
    count = min(ticks, math.floor(length / step))
    return vector * ((count * length - step * count * (count + 1) / 2) / length)
