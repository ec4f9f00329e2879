"""What a driver of an arm and a driver of a camera must offer. Times are seconds of `time.monotonic()`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


class RobotError(RuntimeError):
    """An arm or a camera that does not answer, or answers nonsense."""


@dataclass(frozen=True)
class ArmState:
    """Where the arm is."""

    time: float  # at which it was there: when it was read, less the driver's latency
    pose: np.ndarray  # (4, 4) of the hand in the frame of the arm's base, metres
    gripper: float  # opening, metres
    joints: np.ndarray  # (J,) radians
    joint_velocities: np.ndarray  # (J,) radians per second


@dataclass(frozen=True)
class ArmCommand:
    """Where the arm is to be at a time."""

    time: float
    pose: np.ndarray  # (4, 4)
    gripper: float  # metres


@dataclass(frozen=True)
class ArmLimits:
    """What an arm can do, by its maker's data sheet."""

    joints_low: np.ndarray  # (J,) radians
    joints_high: np.ndarray  # (J,)
    joint_velocity: np.ndarray  # (J,) radians per second
    gripper_low: float  # metres
    gripper_high: float


@dataclass(frozen=True)
class Frame:
    """One picture."""

    time: float  # at which light fell on the sensor: when it was received, less the camera's latency
    image: np.ndarray  # uint8 (H, W, 3) RGB


class Arm(ABC):
    """An arm with a hand. All calls come from one thread and return at once; `connect` and `close` may take seconds.

    Use as a context: it connects on entry; on leaving it holds, and closes.
    """

    limits: ArmLimits
    rate: float  # commands per second that it wants

    @abstractmethod
    def connect(self) -> None:
        """Raises RobotError with what is missing and how to mend it."""

    @abstractmethod
    def state(self) -> ArmState:
        """The newest state. Raises RobotError when the arm does not answer."""

    @abstractmethod
    def command(self, command: ArmCommand) -> None:
        """Go on towards a pose, to be reached at its time. Raises RobotError when the arm does not answer."""

    @abstractmethod
    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        """Joints (J,) that bring the hand to `pose`, found from the joints `near`; None where there are none."""

    @abstractmethod
    def stop(self) -> None:
        """Come to rest as fast as is gentle, and hold there. Never raises: an arm that is lost is logged."""

    @abstractmethod
    def release(self) -> None:
        """Let go: joints are free to be moved by hand, weight compensated where the arm can."""

    @abstractmethod
    def close(self) -> None:
        """Give the connection back. Holds or releases nothing by itself."""

    def __enter__(self) -> Arm:
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self.close()


class Camera(ABC):
    """A camera that delivers frames on its own; a context like `Arm`."""

    latency: float  # seconds from the light to the frame's receipt

    @abstractmethod
    def connect(self) -> None:
        """Raises RobotError with what is missing and how to mend it."""

    @abstractmethod
    def latest(self) -> Frame | None:
        """The newest frame, None before there is one. Returns at once; the frame of a dead camera just grows old."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Camera:
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Setup:
    """An arm and what looks at its work; what a robot's configuration builds."""

    arm: Arm
    cameras: tuple[Camera, ...]  # for the policy's rgb observations, in their order
