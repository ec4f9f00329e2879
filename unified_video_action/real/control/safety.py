"""What an arm may be sent. Always on: there is no switch, only limits, and every command passes through here.

Targets are clipped, or stop the arm, by `Rules`; the `Governor` (motion.py) leads the commanded pose towards them; and
the `Gate`, which need not trust it, looks at what goes out. Numbers that are not finite, and an arm that is left behind
by its commands (`max_lag`), always stop it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from copy import copy

import numpy as np

from unified_video_action.poses import pose_matrix
from unified_video_action.real.control.limits import SLACK, Bounds, SafetyLimits
from unified_video_action.real.control.motion import JOINT_TICKS, Governor, Motion
from unified_video_action.real.control.trajectory import apart, between, norm, turn_of, turned
from unified_video_action.real.robots.interface import ArmLimits, ArmState

log = logging.getLogger(__name__)

CHANGE_SLACK = 1e-3  # of a limit of acceleration, where rounding weighs more
QUIET = 2.0  # seconds between two messages of one rule
NEAR = 0.01, 0.1  # metres and radians within which an arm at rest is where it was commanded to be


class SafetyStop(Exception):
    """The arm must stop. `rule` names the limit."""

    def __init__(self, rule: str, text: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {text}")


class Gate:
    """Refuses what would make the stream of commands break a limit, which the governor should never ask for."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._joints: deque[np.ndarray] = deque(maxlen=2 * JOINT_TICKS + 1)

    def copy(self) -> Gate:
        """One that goes on from here by itself."""
        other = copy(self)
        other._joints = self._joints.copy()
        return other

    def begin(self, motion: Motion, gripper: float, joints: np.ndarray) -> None:
        """Start a stream: the arm rests here."""
        self._motion, self._gripper = motion, gripper
        self._joints.extend([joints] * self._joints.maxlen)

    def passes(self, motion: Motion, gripper: float, joints: np.ndarray) -> None:
        """Raises SafetyStop for a command that must not be sent, one tick after the one before."""
        bounds, before, period = self._bounds, self._motion, self._bounds.period
        velocity = (motion.position - before.position) / period
        spin = turn_of(motion.rotation @ before.rotation.T) / period
        change, spin_change = (velocity - before.velocity) / period, (spin - before.spin) / period
        self._joints.append(joints)
        recent = [self._joints[0], self._joints[JOINT_TICKS], joints]
        wrong = {
            "finite": not np.isfinite([*motion.pose.ravel(), gripper, *joints]).all(),
            "workspace": (motion.position < bounds.low - SLACK).any() or (motion.position > bounds.high + SLACK).any(),
            "speed": norm(velocity) > bounds.speed * (1 + SLACK),
            "acceleration": norm(change) > bounds.acceleration * (1 + CHANGE_SLACK),
            "angular speed": norm(spin) > bounds.spin * (1 + SLACK),
            "angular acceleration": norm(spin_change) > bounds.spin_acceleration * (1 + CHANGE_SLACK),
            "joints": bounds.joints_used(recent, (JOINT_TICKS, JOINT_TICKS)) > 1 + CHANGE_SLACK,
            "joint speed": (np.abs(joints - self._joints[-2]) > bounds.joint_speed * period * (1 + CHANGE_SLACK)).any(),
            "gripper": not bounds.gripper_low - SLACK <= gripper <= bounds.gripper_high + SLACK,
            "gripper speed": abs(gripper - self._gripper) > bounds.gripper_speed * period * (1 + SLACK),
        }
        for rule, is_broken in wrong.items():
            if is_broken:
                raise SafetyStop(rule, "a command was about to break this limit, and was not sent")
        self._motion = Motion(motion.position, motion.rotation, velocity, spin, motion.braking)
        self._gripper = gripper


class SafetyFilter:
    """Everything that is sent to one arm comes out of here.

    Args:
        joints_for: the arm's inverse kinematics.
        on_clip: receives a message about targets that a rule changed, now and then; `clipped` counts them all.
        ahead: ticks by which commands are sent ahead of their time. So many that were missed are made up for; after
            more, the arm has come to the end of its commands and rests there, and so does the stream.
    """

    def __init__(
        self, limits: SafetyLimits, arm: ArmLimits, rate: float,
        joints_for: Callable[[np.ndarray, np.ndarray], np.ndarray | None], now: Callable[[], float] = time.monotonic,
        on_clip: Callable[[str], None] = lambda text: None, ahead: int = 4,
    ) -> None:  # fmt: skip
        self.limits, self.bounds = limits, Bounds(limits, arm, rate)
        self.clipped: Counter[str] = Counter()  # per rule, the ticks in which it changed a target
        self._joints_for, self._now, self._on_clip, self._ahead = joints_for, now, on_clip, ahead
        self._governor, self._gate = Governor(self.bounds, joints_for), Gate(self.bounds)
        self._logged: dict[str, float] = {}  # rule -> when a message about it was logged
        self._held = False  # the arm rests at its newest command

    @property
    def at_rest(self) -> bool:
        return self._governor.motion.at_rest

    @property
    def commanded(self) -> tuple[np.ndarray, float]:
        """The pose (4, 4) and gripper width of the newest command."""
        return self._governor.motion.pose, self._governor.gripper

    def begin(self, state: ArmState) -> None:
        """Start a stream of commands at the arm, which rests.

        Raises:
            SafetyStop: the arm stands where it must not be, or its inverse kinematics contradict its state.
        """
        pose, gripper, bounds = state.pose, state.gripper, self.bounds
        if self._held and all(np.less(apart(self.commanded[0], pose), NEAR)):
            pose, gripper = self.commanded  # it sags: do not let it creep
        position = pose[:3, 3]
        if (position < bounds.low).any() or (position > bounds.high).any():
            raise SafetyStop(
                "workspace",
                f"the arm is at {shown(position)} m, outside {shown(bounds.low)} to {shown(bounds.high)}; release "
                "the arm and move it inside by hand, or widen safety.workspace_* if they are wrong",
            )
        joints = self._joints_for(pose, state.joints)
        if joints is None or np.abs(joints - state.joints).max() > NEAR[1]:
            found = "none" if joints is None else shown(joints)
            text = f"joints for the pose in which the arm stands: {found}, but it reports {shown(state.joints)}"
            raise SafetyStop("joints", text)
        if (joints < bounds.joints_low).any() or (joints > bounds.joints_high).any():
            raise SafetyStop("joints", f"joints {shown(joints)} are nearer to their ends than safety.joint_margin")
        self._restart(pose, float(np.clip(gripper, bounds.gripper_low, bounds.gripper_high)), joints)
        self._asked: np.ndarray | None = None  # position of the newest target
        self._held = True

    def forget(self) -> None:
        """The arm may be moved by hand from now on: `begin` starts wherever it finds it."""
        self._held = False

    def follow(
        self, pose: np.ndarray, gripper: float, measured: np.ndarray, ticks: int = 1
    ) -> tuple[np.ndarray, float]:
        """The pose (4, 4) and gripper width to send, so many ticks after the last ones.

        Args:
            pose, gripper: the target. measured: (4, 4), where the arm is.

        Raises:
            SafetyStop: a limit is broken whose rule is to stop. Nothing may be sent but what `brake` returns.
        """
        pose, gripper = self._allowed(pose, gripper, measured, ticks)
        way, turn = apart(self._governor.motion.pose, measured)
        if way > self.limits.max_lag or turn > self.limits.max_lag_turn:
            raise SafetyStop("lag", f"the arm is {way:.3f} m and {turn:.2f} rad behind; is something in its way?")
        before, steps = self._governor.target, self._made_up(ticks)
        sent = self._governor.copy(), self._gate.copy()
        try:
            for step in range(1, steps + 1):
                target = pose if step == steps or before is None else between(before, pose, step / steps)
                for rule in self._governor.follow(target, gripper):
                    if rule == "acceleration":
                        self.clipped[rule] += 1
                    else:
                        self._broken(rule, "a smaller step is taken")
                self._pass()
        except SafetyStop:
            self._governor, self._gate = sent  # braking goes on from the newest command, not from this one
            raise
        return self.commanded

    def brake(self, ticks: int = 1) -> tuple[np.ndarray, float]:
        """As `follow`, on the way to rest. Raises SafetyStop where there is none: the arm's own stop must do."""
        for _ in range(self._made_up(ticks)):
            self._governor.brake()
            self._pass()
        return self.commanded

    def _restart(self, pose: np.ndarray, gripper: float, joints: np.ndarray) -> None:
        self._governor.begin(pose, gripper, joints)
        self._gate.begin(self._governor.motion, gripper, joints)

    def _made_up(self, ticks: int) -> int:
        """How many ticks are to be computed for so many that have passed."""
        if ticks <= self._ahead:
            return ticks
        self._restart(*self.commanded, self._governor.joints)
        return 1

    def _pass(self) -> None:
        self._gate.passes(self._governor.motion, self._governor.gripper, self._governor.joints)

    def _allowed(self, pose: np.ndarray, gripper: float, measured: np.ndarray, ticks: int) -> tuple[np.ndarray, float]:
        """The target, clipped."""
        limits, bounds = self.limits, self.bounds
        if not (np.isfinite(pose).all() and np.isfinite(gripper)):
            raise SafetyStop("finite", "a target is not finite")
        position, rotation = pose[:3, 3].astype(float), pose[:3, :3]
        before, self._asked = self._asked, position
        speed = 0.0 if before is None else norm(position - before) / (ticks * bounds.period)
        if speed > bounds.speed * (1 + SLACK):
            self._broken("speed", f"{speed:.2f} m/s")
        way, turn = position - measured[:3, 3], turn_of(rotation @ measured[:3, :3].T)
        if norm(way) > limits.max_step:
            self._broken("step", f"{norm(way):.3f} m from the measured pose")
            position = measured[:3, 3] + way * (limits.max_step / norm(way))
        if norm(turn) > limits.max_turn:
            self._broken("step", f"{norm(turn):.2f} rad from the measured pose")
            rotation = turned(turn * (limits.max_turn / norm(turn))) @ measured[:3, :3]
        if position[2] < limits.table_height:
            self._broken("table", f"height {position[2]:.3f} m")
        if (position < np.asarray(limits.workspace_low)).any() or (position > bounds.high).any():
            self._broken("workspace", f"position {shown(position)} m")
        if not bounds.gripper_low <= gripper <= bounds.gripper_high:
            self._broken("gripper", f"width {gripper:.4f} m")
        clipped = pose_matrix(np.clip(position, bounds.low, bounds.high), rotation)
        return clipped, float(np.clip(gripper, bounds.gripper_low, bounds.gripper_high))

    def _broken(self, rule: str, detail: str) -> None:
        if getattr(self.limits.rules, rule) == "stop":
            raise SafetyStop(rule, detail)
        self.clipped[rule] += 1
        if self._now() - self._logged.get(rule, -np.inf) > QUIET:
            self._logged[rule] = self._now()
            text = f"{rule}: {detail} ({self.clipped[rule]} times so far)"
            log.warning("safety: clipped: %s", text)
            self._on_clip(text)


def shown(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
