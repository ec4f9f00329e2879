"""The simulated arm as a driver: what a real one offers, and faults that can be switched on."""

from __future__ import annotations

import logging

import numpy as np

from unified_video_action.real.robot import Arm, ArmCommand, ArmLimits, ArmState, RobotError
from unified_video_action.real.sim.faults import Faults
from unified_video_action.real.sim.kinematics import Kinematics
from unified_video_action.real.sim.scene import GRIPPER, JOINTS
from unified_video_action.real.sim.world import ARM, Target, World

log = logging.getLogger(__name__)


class SimArm(Arm):
    """Poses are of the hand's frame in the frame of the arm's base, as real/sim/scene.py describes both.

    A command is turned into joints once; the joints then move evenly until its time, never faster than they can.
    """

    rate = 200.0
    limits = ArmLimits(
        joints_low=np.array([joint.low for joint in JOINTS]),
        joints_high=np.array([joint.high for joint in JOINTS]),
        joint_velocity=np.array([joint.velocity for joint in JOINTS]),
        gripper_low=0.0,
        gripper_high=GRIPPER,
    )

    def __init__(self, world: World, faults: Faults | None = None) -> None:
        self.world, self.faults = world, faults or Faults()
        self._kinematics = Kinematics()
        self._connected = False
        self._aimed: np.ndarray | None = None  # joints last sent
        self._solved: tuple[bytes, np.ndarray | None] = (b"", None)  # a pose, and its joints: asked for, then sent

    def connect(self) -> None:
        if not self._connected:
            self.world.start()
            self._connected = True

    def state(self) -> ArmState:
        self._require("read")
        seen = self.world.at(self.world.clock.time() - self.faults.state_delay)
        pose = seen.pose.copy()
        if self.faults.jump is not None:
            pose[:3, 3] += self.faults.jump
        if self.faults.not_a_number:
            pose[:3, 3] = np.nan
        return ArmState(seen.time, pose, seen.opening, seen.joints.copy(), seen.velocities[ARM].copy())

    def command(self, command: ArmCommand) -> None:
        """A pose that no joints reach is logged, and the arm stays on its way to the one before."""
        self._require("commanded")
        near = self._aimed if self._aimed is not None else self.world.at(self.world.clock.time()).joints
        joints = self.joints_for(command.pose, near)
        if joints is None or not np.isfinite([command.time, command.gripper]).all():
            log.warning("the simulated arm cannot reach position %s; it goes on as before", command.pose[:3, 3])
            return
        self._aimed = joints
        opening = float(np.clip(command.gripper, self.limits.gripper_low, self.limits.gripper_high))
        self.world.aim(Target(command.time, joints, opening))

    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        key = pose.tobytes()
        if key != self._solved[0] or self._solved[1] is None:
            self._solved = key, self._kinematics.joints_for(pose, near)
        return self._solved[1]

    def stop(self) -> None:
        if self.faults.unplugged or not self._connected:
            log.error(
                "the simulated arm cannot be stopped: it is %s", "unplugged" if self._connected else "not connected"
            )
            return
        self._aimed = None
        self.world.brake()

    def release(self) -> None:
        self._require("released")
        self._aimed = None
        self.world.let_go()

    def close(self) -> None:
        if self._connected:
            self._connected = False
            self.world.close()

    def _require(self, done: str) -> None:
        if not self._connected:
            raise RobotError(f"the simulated arm cannot be {done}: it is not connected; call connect() first")
        if self.faults.unplugged:
            raise RobotError(f"the simulated arm cannot be {done}: it is unplugged")
