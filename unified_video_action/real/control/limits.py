"""The limits of what an arm may be sent, as a configuration gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from unified_video_action.real.robots.interface import ArmLimits

SLACK = 1e-6  # of radians, for rounding


def require_numbers(settings: Any, *names: str, above: float = 0.0) -> None:
    """Raises ValueError naming the first of these fields that is neither None nor a finite number above this one."""
    for name in names:
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
            raise ValueError(f"{name}: {value!r}, expected a finite number above {above:g}")


@dataclass(frozen=True)
class Rules:
    """What happens to a target that breaks a limit: "clip" brings it to the nearest allowed one, "stop" stops the arm.

    The defaults clip what a policy that is merely imprecise does every day.
    """

    workspace: str = "clip"
    table: str = "clip"
    step: str = "clip"
    speed: str = "clip"
    joints: str = "clip"  # no joints reach it, or they would break their limits
    gripper: str = "clip"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value not in ("clip", "stop"):
                raise ValueError(f"{name}: {value!r}, expected clip or stop")


@dataclass(frozen=True)
class SafetyLimits:
    """The `safety` section: limits in the frame of the arm's base. Positions are those of the end effector's origin.

    Raises:
        ValueError: a field that makes no sense, with its name.
    """

    workspace_low: list[float]  # (3,) metres
    workspace_high: list[float]
    table_height: float  # metres: the end effector's origin stays above
    linear_speed: float  # metres per second
    linear_acceleration: float  # metres per second^2
    angular_speed: float  # radians per second
    angular_acceleration: float  # radians per second^2
    joint_acceleration: float  # radians per second^2, of every joint, taken over 5 ticks
    joint_speed_share: float = 0.7  # of the maker's limits
    joint_margin: float = 0.03  # radians between a joint and its maker's ends
    max_step: float = 0.15  # metres from the measured pose to the target
    max_turn: float = 1.0  # radians, the same
    max_lag: float = 0.2  # metres from the measured pose to the commanded one; more always begins to brake
    max_lag_turn: float = 1.2  # radians, the same
    gripper_speed: float = 0.2  # metres per second
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        for name in ("workspace_low", "workspace_high"):
            values = getattr(self, name)
            if np.shape(values) != (3,) or not np.isfinite(np.asarray(values, float)).all():
                raise ValueError(f"{name}: {values!r}, expected three numbers, metres")
        signed = ("table_height", "joint_margin")
        require_numbers(self, *signed, above=-math.inf)
        require_numbers(self, *(each.name for each in fields(self) if each.type == "float" and each.name not in signed))
        low = [*self.workspace_low[:2], max(self.workspace_low[2], self.table_height)]
        if not np.less(low, self.workspace_high).all():
            raise ValueError(f"workspace_low, table_height: {low} does not lie below workspace_high")
        if self.joint_margin < 0 or self.joint_speed_share > 1:
            raise ValueError("joint_margin: not negative, and joint_speed_share: at most 1")
        if self.max_lag < self.max_step or self.max_lag_turn < self.max_turn:
            raise ValueError("max_lag: must not be less than max_step, nor max_lag_turn less than max_turn")


class Bounds:
    """The configured limits and the maker's together, for a stream of commands at a rate.

    Raises:
        ValueError: no state is inside them.
    """

    def __init__(self, limits: SafetyLimits, arm: ArmLimits, rate: float) -> None:
        self.period = 1.0 / rate  # seconds
        self.low = np.array([*limits.workspace_low[:2], max(limits.workspace_low[2], limits.table_height)], float)
        self.high = np.asarray(limits.workspace_high, float)
        self.speed, self.acceleration = limits.linear_speed, limits.linear_acceleration
        self.spin, self.spin_acceleration = limits.angular_speed, limits.angular_acceleration
        self.joints_low, self.joints_high = arm.joints_low + limits.joint_margin, arm.joints_high - limits.joint_margin
        self.joint_speed = arm.joint_velocity * limits.joint_speed_share  # (J,) radians per second
        self.joint_acceleration, self.gripper_speed = limits.joint_acceleration, limits.gripper_speed
        self.gripper_low, self.gripper_high = arm.gripper_low, arm.gripper_high
        if (self.joints_low >= self.joints_high).any():
            raise ValueError(f"joint_margin: {limits.joint_margin} leaves no range for a joint")

    def joints_used(self, joints: list[np.ndarray], ticks: tuple[int, int]) -> float:
        """Share of the limits that the newest of three joints (J,), so many ticks apart, use; infinite out of range."""
        newest = joints[2]
        if not ((newest >= self.joints_low - SLACK) & (newest <= self.joints_high + SLACK)).all():
            return math.inf
        first, second = ticks[0] * self.period, ticks[1] * self.period
        speed = (newest - joints[1]) / second
        change = (speed - (joints[1] - joints[0]) / first) * (2 / (first + second))
        return max((np.abs(speed) / self.joint_speed).max(), np.abs(change).max() / self.joint_acceleration)
