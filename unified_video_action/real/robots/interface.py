"""What a driver of an arm and a driver of a camera must offer. Times are seconds of `time.monotonic()`.

Poses are (4, 4) matrices of the end effector in the frame of the arm's base, metres; gripper widths are metres.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


class RobotError(RuntimeError):
    """An arm or a camera that does not answer, or answers nonsense."""


@dataclass(frozen=True)
class ArmState:
    time: float  # of the measurement: when it was read, less the driver's latency
    pose: np.ndarray
    gripper: float
    joints: np.ndarray  # (J,) radians
    joint_velocities: np.ndarray  # (J,) radians per second


@dataclass(frozen=True)
class ArmCommand:
    """A pose, and the time at which the arm is to be there."""

    time: float
    pose: np.ndarray
    gripper: float


@dataclass(frozen=True)
class ArmLimits:
    """What an arm can do, by its maker's data sheet."""

    joints_low: np.ndarray  # (J,) radians
    joints_high: np.ndarray
    joint_velocity: np.ndarray  # (J,) radians per second
    gripper_low: float  # metres
    gripper_high: float


@dataclass(frozen=True)
class Frame:
    time: float  # at which light fell on the sensor: when it was received, less the camera's latency
    image: np.ndarray  # uint8 (H, W, 3) RGB


class Device(ABC):
    """A context: it connects on entry, and closes on leaving."""

    @abstractmethod
    def connect(self) -> None:
        """Connect, unless it is connected. Raises RobotError with what is missing and how to mend it."""

    @abstractmethod
    def close(self) -> None:
        """Give the connection back. An arm holds or releases nothing by this itself."""

    def __enter__(self) -> Device:
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Arm(Device):
    """An arm with a gripper. All calls come from one thread and return at once; `connect` and `close` may take seconds.

    As a context, it holds before it closes.
    """

    limits: ArmLimits
    rate: float  # commands per second that it wants

    @abstractmethod
    def state(self) -> ArmState:
        """The newest state. Raises RobotError when the arm does not answer."""

    @abstractmethod
    def command(self, command: ArmCommand) -> None:
        """Go on towards a pose. Raises RobotError when the arm does not answer."""

    @abstractmethod
    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        """Joints (J,) for a pose, found from the joints `near`; None where there are none."""

    @abstractmethod
    def stop(self) -> None:
        """Come to rest as fast as is gentle, and hold there. Never raises: an arm that is lost is logged."""

    @abstractmethod
    def release(self) -> None:
        """Let go: joints are free to be moved by hand, weight compensated where the arm can."""

    def __exit__(self, *error: object) -> None:
        self.stop()
        self.close()


class Camera(Device):
    """A camera that delivers frames on its own."""

    @abstractmethod
    def latest(self) -> Frame | None:
        """The newest frame, None before there is one. Returns at once; the frame of a dead camera just grows old."""


@dataclass(frozen=True)
class Setup:
    """An arm and its cameras; a robot's configuration builds one."""

    arm: Arm
    cameras: tuple[Camera, ...]  # for the policy's rgb observations, in their order
