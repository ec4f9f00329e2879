"""The limits of what an arm may be told, as a configuration gives them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from unified_video_action.instantiate import build_dataclass
from unified_video_action.real.motion import Bounds
from unified_video_action.real.robot import ArmLimits

CHOICES = ("clip", "stop")


@dataclass(frozen=True)
class Rules:
    """What happens to a target that breaks a limit: "clip" brings it to the nearest allowed one, "stop" stops the arm.

    The defaults clip what a policy that is merely imprecise does every day.

    Raises:
        ValueError: neither of the two.
    """

    workspace: str = "clip"
    table: str = "clip"
    step: str = "clip"
    speed: str = "clip"
    joints: str = "clip"  # no joints reach it, or they would break their limits
    gripper: str = "clip"

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) not in CHOICES:
                raise ValueError(f"{each.name}: {getattr(self, each.name)!r}, expected {' or '.join(CHOICES)}")


@dataclass(frozen=True)
class SafetyLimits:
    """Limits of what is sent, in the frame of the arm's base; the hand's origin is what is meant by its position.

    Raises:
        ValueError: a field that makes no sense, with its name.
    """

    workspace_low: list[float]  # (3,) metres
    workspace_high: list[float]
    table_height: float  # metres: the hand's origin stays above
    linear_speed: float  # metres per second
    linear_acceleration: float  # metres per second^2
    angular_speed: float  # radians per second
    angular_acceleration: float  # radians per second^2
    joint_acceleration: float  # radians per second^2, of every joint, taken over 5 ticks
    joint_speed_share: float = 0.7  # of the maker's limits
    joint_margin: float = 0.03  # radians between a joint and its maker's ends
    max_step: float = 0.15  # metres from the pose reached to the pose asked for
    max_turn: float = 1.0  # radians, the same
    max_lag: float = 0.2  # metres from the pose reached to the pose sent; more always begins to brake
    max_lag_turn: float = 1.2  # radians, the same
    gripper_low: float | None = None  # metres; the maker's where None
    gripper_high: float | None = None
    gripper_speed: float = 0.2  # metres per second
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        for name in ("workspace_low", "workspace_high"):
            values = getattr(self, name)
            if np.shape(values) != (3,) or not np.isfinite(np.asarray(values, float)).all():
                raise ValueError(f"{name}: {values!r}, expected three numbers, metres")
        if not (np.asarray(self.workspace_low) < np.asarray(self.workspace_high)).all():
            raise ValueError(f"workspace_low: {self.workspace_low} does not lie below workspace_high")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.startswith("workspace") or each.name == "rules" or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise ValueError(f"{each.name}: {value!r} is not a number")
            if each.name not in ("table_height", "joint_margin", "gripper_low", "gripper_high") and value <= 0:
                raise ValueError(f"{each.name}: {value} is not positive")
        if self.joint_margin < 0 or self.joint_speed_share > 1:
            raise ValueError("joint_margin: not negative, and joint_speed_share: at most 1")
        if self.table_height >= self.workspace_high[2]:
            raise ValueError(f"table_height: {self.table_height} leaves no room below workspace_high")
        if self.max_lag < self.max_step or self.max_lag_turn < self.max_turn:
            raise ValueError("max_lag: must not be less than max_step, nor max_lag_turn less than max_turn")

    @classmethod
    def read(cls, node: Any, where: str = "safety") -> SafetyLimits:
        """From a robot's configuration. Raises ValueError naming the field."""
        return build_dataclass(cls, node, where)

    def bounds(self, arm: ArmLimits, rate: float) -> Bounds:
        """These and the maker's together. Raises ValueError where they leave no room."""
        low = arm.gripper_low if self.gripper_low is None else max(arm.gripper_low, self.gripper_low)
        high = arm.gripper_high if self.gripper_high is None else min(arm.gripper_high, self.gripper_high)
        if low >= high:
            raise ValueError(f"gripper_low: {low} leaves the gripper no room below {high}")
        joints_low, joints_high = arm.joints_low + self.joint_margin, arm.joints_high - self.joint_margin
        if (joints_low >= joints_high).any():
            raise ValueError(f"joint_margin: {self.joint_margin} leaves a joint no room")
        return Bounds(
            period=1.0 / rate, low=self.low, high=self.high,
            speed=self.linear_speed, acceleration=self.linear_acceleration,
            spin=self.angular_speed, spin_acceleration=self.angular_acceleration,
            joints_low=joints_low, joints_high=joints_high,
            joint_speed=arm.joint_velocity * self.joint_speed_share, joint_acceleration=self.joint_acceleration,
            gripper_low=low, gripper_high=high, gripper_speed=self.gripper_speed,
        )  # fmt: skip

    @property
    def low(self) -> np.ndarray:
        """(3,) of the box above the table."""
        return np.array([*self.workspace_low[:2], max(self.workspace_low[2], self.table_height)], float)

    @property
    def high(self) -> np.ndarray:
        return np.asarray(self.workspace_high, float)
