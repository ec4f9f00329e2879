"""Driver of the ARX X5 and L5 arms through real-stanford/arx5-sdk, whose Python module is arx5_interface.

Frames. The base is the maker's: origin at the foot of the arm, x forward, y left, z up. The maker's end effector
(`eef_link` of its URDF) has x along the fingers, y left, z up. Poses here have UMI's axes, as UMI's data: the same
origin, z along the fingers, x right, y down. The maker's rotations are roll, pitch, yaw about the fixed x, y, z axes.

Time. The SDK counts seconds since its controller was made; the difference to `time.monotonic()` is measured again every
second. It moves evenly, in joints, from its last command to the next, until that one's time.

What to know before the first run: on `close` the SDK itself damps the motors and ends; the arm then sinks. After an
over-current or nonsense from a motor, the SDK damps the arm and answers no call that needs its command lock; then the
states grow old, which is noticed here before such a call is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.poses import inverse, pose_matrix
from unified_video_action.real.robots.interface import Arm, ArmCommand, ArmLimits, ArmState, RobotError

log = logging.getLogger(__name__)

AXES = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # UMI's of the end effector, in the maker's
STALE = 0.1  # seconds after which a state is not an answer
SYNC = 1.0  # seconds between two measurements of the clocks' difference
SOON = 0.004  # seconds: two periods of the SDK's loop; a target that is nearer is refused by it
ENGAGE = 0.06  # seconds from the order to stay where the arm is until its motors take hold
LOOSE = 0.1  # share of the usual damping with which the arm can be moved by hand
NETWORKS = Path("/sys/class/net")


class Arx5Arm(Arm):
    """One arm on one CAN interface. On connecting it holds where it stands.

    Args:
        model: of the SDK: X5, X5_umi, L5, L5_umi; the wrong one is dangerous.
        interface: of the network, can0 or an EtherCAT adapter's.
        tool: (x, y, z) metres from the maker's end effector to the origin of poses, in the maker's axes.
        latency: seconds between the motors' measurement and the SDK's time of it.
    """

    rate = 200.0

    def __init__(
        self, model: str = "X5_umi", interface: str = "can0", tool: Sequence[float] = (0.0, 0.0, 0.0),
        latency: float = 0.0,
    ) -> None:  # fmt: skip
        self.model, self.interface, self.latency = model, interface, latency
        self._name = f"{model} on {interface}"
        self._tool = pose_matrix(np.asarray(tool, float), AXES)  # seen from the maker's end effector
        self._controller: Any = None
        self._engaged_at: float | None = None  # when motors take hold; None: they are loose
        self._holding = False
        self._offset, self._synced = 0.0, -np.inf  # monotonic time less the SDK's

    def connect(self) -> None:
        if self._controller is not None:
            return
        try:
            import arx5_interface as sdk
        except ImportError as error:
            raise RobotError(
                f"the arm's SDK cannot be imported ({error}); build real-stanford/arx5-sdk for this Python, and put "
                "its python/ folder into PYTHONPATH and its lib/ folder into LD_LIBRARY_PATH"
            ) from error
        self._sdk = sdk
        if not (NETWORKS / self.interface).exists():
            raise RobotError(
                f"interface={self.interface!r}: this computer has no such network interface; plug the adapter in and "
                f"bring it up: sudo ip link set up {self.interface} type can bitrate 1000000"
            )
        try:
            robot = sdk.RobotConfigFactory.get_instance().get_config(self.model)
            controls = sdk.ControllerConfigFactory.get_instance()
            settings = controls.get_config("cartesian_controller", robot.joint_dof)
            self._controller = sdk.Arx5CartesianController(robot, settings, self.interface)
            ranges = robot.joint_pos_min, robot.joint_pos_max
            links = robot.base_link_name, robot.eef_link_name, robot.gravity_vector
            self._solver = sdk.Arx5Solver(robot.urdf_path, robot.joint_dof, *ranges, *links)
        except Exception as error:  # RuntimeError, ValueError and what else C++ throws
            self._controller = None
            raise RobotError(f"{self._name}: {error}; is it switched on?") from error
        joints = (np.array(part, float) for part in (*ranges, robot.joint_vel_max))
        self.limits = ArmLimits(*joints, 0.0, float(robot.gripper_width))
        kd, gripper_kd = np.asarray(settings.default_kd), settings.default_gripper_kd
        self._gain = sdk.Gain(settings.default_kp, kd, settings.default_gripper_kp, gripper_kd)
        self._loose = sdk.Gain(np.zeros(robot.joint_dof), LOOSE * kd, 0.0, LOOSE * gripper_kd)
        self._synced = -np.inf
        self._holding, self._engaged_at = False, None
        try:
            self._take_hold(wait=True)
        except RobotError:
            self.close()
            raise

    def state(self) -> ArmState:
        joints = self._joint_state()
        try:
            eef = self._controller.get_eef_state()
            pose = _from_maker(np.array(eef.pose_6d(), float)) @ self._tool
            moment = eef.timestamp + self._offset - self.latency
            return ArmState(moment, pose, float(eef.gripper_pos), np.array(joints.pos()), np.array(joints.vel()))
        except RuntimeError as error:
            raise RobotError(f"{self._name}: its state cannot be read: {error}") from error

    def command(self, command: ArmCommand) -> None:
        """A pose that no joints reach is logged, and the arm stays on its way to the one before.

        The first commands after `release` only bring the motors to hold the arm where it is, which takes 60 ms.
        """
        joints = self._joint_state()
        if self.joints_for(command.pose, np.array(joints.pos())) is None:
            log.warning("%s cannot reach position %s; it goes on as before", self.model, command.pose[:3, 3])
            return
        if not self._take_hold():
            return
        self._send(_to_maker(command.pose @ inverse(self._tool)), command.gripper, command.time - self._offset)

    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        self._require()
        if not np.isfinite(pose).all():
            return None
        wanted = _to_maker(pose @ inverse(self._tool))
        status, joints = self._solver.inverse_kinematics(wanted, np.asarray(near, float))
        joints = np.array(joints, float)
        inside = (joints >= self.limits.joints_low).all() and (joints <= self.limits.joints_high).all()
        return joints if status == 0 and inside else None

    def stop(self) -> None:
        """Hold at the pose commanded for now; the motors, which are a little behind, come to rest there.

        After `release` they take hold where the arm is, which takes 60 ms.
        """
        try:
            self._joint_state()
            if self._holding:
                commanded = self._controller.get_eef_cmd()
                self._send(np.array(commanded.pose_6d(), float), commanded.gripper_pos, 0.0)
            else:
                self._take_hold(wait=True)
        except (RobotError, RuntimeError, ValueError) as error:
            log.error("%s cannot be stopped: %s; use its emergency stop", self.model, error)

    def release(self) -> None:
        self._joint_state()
        self._holding, self._engaged_at = False, None
        try:
            self._controller.set_to_damping()
            self._controller.set_gain(self._loose)
        except RuntimeError as error:
            raise RobotError(f"{self._name} cannot be released: {error}") from error

    def close(self) -> None:
        if self._controller is not None:
            log.warning("%s: the connection ends; its motors are damped, and the arm sinks", self.model)
        self._controller = self._solver = None
        self._holding, self._engaged_at = False, None

    def _joint_state(self) -> Any:
        """The SDK's newest state. Raises RobotError where it is old."""
        self._require()
        try:
            state = self._controller.get_joint_state()
            self._synchronise()
        except RuntimeError as error:
            raise RobotError(f"{self._name} does not answer: {error}") from error
        age = time.monotonic() - state.timestamp - self._offset
        if age > STALE:
            raise RobotError(
                f"{self._name}: its newest state is {age:.2f} s old; the SDK has put it into its "
                "emergency state, or its cable is loose: switch it off and on, and start again"
            )
        return state

    def _synchronise(self) -> None:
        """Measure the difference of the clocks, now and then: by the shortest of a few questions."""
        now = time.monotonic()
        if now - self._synced < SYNC:
            return
        asked = []
        for _ in range(5):
            before = time.monotonic()
            theirs = self._controller.get_timestamp()
            after = time.monotonic()
            asked.append((after - before, (before + after) / 2 - theirs))
        self._offset, self._synced = min(asked)[1], now

    def _take_hold(self, wait: bool = False) -> bool:
        """Motors that are loose get the arm's present pose as a command, and soon after take hold; whether they have.

        At once they would drive the arm to its last command from before it was released. Raises RobotError.
        """
        if self._holding:
            return True
        try:
            if self._engaged_at is None:
                here = self._controller.get_eef_state()
                self._send(np.array(here.pose_6d(), float), here.gripper_pos, 0.0, ENGAGE / 2)
                self._engaged_at = time.monotonic() + ENGAGE
            if wait:
                time.sleep(ENGAGE)
            if time.monotonic() >= self._engaged_at:
                self._controller.set_gain(self._gain)
                self._holding, self._engaged_at = True, None
        except RuntimeError as error:
            self._engaged_at = None  # the next try starts with the pose of then
            raise RobotError(f"{self._name} does not take hold: {error}") from error
        return self._holding

    def _send(self, pose_6d: np.ndarray, gripper: float, at: float, soonest: float = SOON) -> None:
        """Give the SDK a target, for its time `at` or a little later."""
        state = self._sdk.EEFState(pose_6d, float(np.clip(gripper, self.limits.gripper_low, self.limits.gripper_high)))
        try:
            state.timestamp = max(at, self._controller.get_timestamp() + soonest)
            self._controller.set_eef_cmd(state)
        except (RuntimeError, ValueError) as error:
            raise RobotError(f"{self._name} refuses a command: {error}") from error

    def _require(self) -> None:
        if self._controller is None:
            raise RobotError(f"{self._name} is not connected; call connect() first")


def _from_maker(pose_6d: np.ndarray) -> np.ndarray:
    """x, y, z, roll, pitch, yaw -> (4, 4)."""
    return pose_matrix(pose_6d[:3], Rotation.from_euler("xyz", pose_6d[3:]).as_matrix())


def _to_maker(pose: np.ndarray) -> np.ndarray:
    """(4, 4) -> x, y, z, roll, pitch, yaw."""
    return np.concatenate([pose[:3, 3], Rotation.from_matrix(pose[:3, :3]).as_euler("xyz")])
