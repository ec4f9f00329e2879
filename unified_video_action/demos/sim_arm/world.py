"""Time, physics and kinematics of the simulated arm. Physics is computed when somebody looks, up to the present."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_video_action.env.system_libraries import explain_missing_libraries, prepare_rendering
from unified_video_action.poses import pose_matrix

logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)
with explain_missing_libraries():
    prepare_rendering()
    import mujoco
    from mujoco.rendering.classic import gl_context

    importlib.reload(gl_context)  # an earlier import of MuJoCo may have chosen a window

MODEL = Path(__file__).with_name("model.xml")
VIEWS = ("wrist", "side")  # its cameras
ARM = slice(0, 6)  # joints
VELOCITY = np.array([5.0, 5.0, 5.5, 5.5, 5.0, 5.0])  # radians per second, at most
HOME = np.array([0.0, 1.35, 1.30, -0.85, 0.0, 0.0])  # over the table, looking down at it
GRIPPER = 0.086  # metres, open
GRIPPER_SPEED, GRIPPER_LAG = 0.3, 0.04  # metres per second; seconds by which its motor is behind
GIVE = 0.006  # metres that a finger bends before its motor stalls
STEP = 0.002  # seconds of physics, the period of the real arm's own loop
KEPT = 2000  # snapshots, one for each step
BRAKING = 15.0  # radians per second squared by which a stop slows the joints down

CLOSE = 1e-8  # metres and radians within which a pose counts as solved: neighbouring poses get smooth joints
STEPS = 40  # of a search for joints
PATIENCE = 5  # steps without coming nearer after which a search ends, so that what is out of reach costs little
LONGEST = 0.35  # radians that a joint turns in one step of a search, so that it stays on one branch
DAMPING = 1e-3  # of the least squares, so that a stretched arm does not thrash


class Clock:
    """The computer's time, seconds."""

    def time(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(seconds, 0.0))


class ManualClock(Clock):
    """Time that passes only in `sleep`, and then at once: as fast as the simulation can be computed."""

    def __init__(self) -> None:
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(seconds, 0.0)


@dataclass(frozen=True)
class Table:
    """Where things stand at the start: (x, y) in the frame of the arm's base, metres."""

    cup: tuple[float, float] = (0.38, 0.10)
    saucer: tuple[float, float] = (0.38, -0.12)


@dataclass(frozen=True)
class Snapshot:
    """Everything at one moment; arrays are never changed."""

    time: float
    positions: np.ndarray  # (nq,) of the whole model: joints 0 to 5, fingers 6 and 7, the cup's pose 8 to 14
    velocities: np.ndarray  # (nv,)
    pose: np.ndarray  # (4, 4) of the end effector
    opening: float  # gripper width by its motor, metres: less than what it holds, round which its soft fingers bend

    @property
    def joints(self) -> np.ndarray:
        return self.positions[ARM]

    @property
    def cup(self) -> np.ndarray:
        """(7,) of the cup: its centre, and its rotation as a quaternion w, x, y, z."""
        return self.positions[8:15]


class World:
    """The arm and its table, shared by an arm and its cameras; any thread may use it."""

    def __init__(self, clock: Clock | None = None, table: Table | None = None) -> None:
        self.clock, self.table = clock or Clock(), table or Table()
        spec = mujoco.MjSpec.from_file(str(MODEL))
        spec.body("cup").pos[:2] = self.table.cup
        spec.geom("saucer").pos[:2] = spec.geom("saucer_mark").pos[:2] = self.table.saucer
        self.model = spec.compile()
        self._data = mujoco.MjData(self.model)
        self._end_effector = self.model.site("end_effector").id
        self._gains = self.model.actuator_gainprm[ARM].copy(), self.model.actuator_biasprm[ARM].copy()
        self._lock = threading.Lock()
        self._data.qpos[ARM], self._data.qpos[6:8] = HOME, GRIPPER / 2
        self._commanded, self._speed = HOME.copy(), np.zeros(6)
        self._opening = self._commanded_opening = GRIPPER
        self._target: tuple[float, np.ndarray, float] | None = None  # time, joints and gripper width
        self._braking = self._free = False
        self._kept: list[Snapshot | None] = [None] * KEPT
        self._steps = 0
        self._began: float | None = None

    def start(self) -> None:
        """Let time pass from now on, if it does not yet."""
        if self._began is None:
            self._began = self.clock.time()

    def at(self, time: float) -> Snapshot:
        """The newest snapshot of not later than `time`; the oldest that is kept, where `time` lies before it."""
        with self._lock:
            self._run()
            newest = self._steps - 1
            wanted = min(newest, int(np.floor((time - self._began) / STEP + 1e-6)))
            return self._kept[max(wanted, newest - KEPT + 1, 0) % KEPT]

    def aim(self, time: float, joints: np.ndarray, opening: float) -> None:
        """Be at joints (6,) and a gripper width at a time, in a straight line of joints from those commanded last."""
        with self._lock:
            self._take_hold()
            self._target, self._braking = (time, joints, opening), False

    def brake(self) -> None:
        """Slow down, and hold."""
        with self._lock:
            self._take_hold()
            self._target, self._braking = None, True

    def let_go(self) -> None:
        """The arm's motors give way; its weight stays compensated, its gripper keeps its grip."""
        with self._lock:
            self._run()
            self._free, self._target = True, None
            self.model.actuator_gainprm[ARM] = self.model.actuator_biasprm[ARM] = 0

    def push(self, torques: np.ndarray) -> None:
        """Somebody pushes the arm: torques (6,) about its joints from now on, newton metres."""
        with self._lock:
            self._run()
            self._data.qfrc_applied[ARM] = torques

    def _take_hold(self) -> None:
        """After having let go: the motors take hold where the arm is now."""
        self._run()
        if self._free:
            self._free = False
            self._commanded, self._speed = self._data.qpos[ARM].copy(), np.zeros(6)
            self.model.actuator_gainprm[ARM], self.model.actuator_biasprm[ARM] = self._gains

    def _run(self) -> None:
        """Compute physics up to the present."""
        end, data = self.clock.time(), self._data
        while (now := self._began + self._steps * STEP) <= end:
            mujoco.mj_step1(self.model, data)
            pose = pose_matrix(data.site_xpos[self._end_effector], data.site_xmat[self._end_effector].reshape(3, 3))
            self._kept[self._steps % KEPT] = Snapshot(now, data.qpos.copy(), data.qvel.copy(), pose, self._opening)
            if not self._free:
                self._drive(now)
            mujoco.mj_step2(self.model, data)
            self._steps += 1

    def _drive(self, now: float) -> None:
        """Move the motors' targets by one step."""
        if self._target is not None:
            time, joints, opening = self._target
            left = max(time - now, STEP)
            self._speed = np.clip((joints - self._commanded) / left, -VELOCITY, VELOCITY)
            self._commanded_opening += (opening - self._commanded_opening) * STEP / left
        elif self._braking:
            self._speed -= np.clip(self._speed, -BRAKING * STEP, BRAKING * STEP)
        self._commanded = self._commanded + self._speed * STEP
        fingers = float(self._data.qpos[6] + self._data.qpos[7])
        speed = np.clip((self._commanded_opening - self._opening) / GRIPPER_LAG, -GRIPPER_SPEED, GRIPPER_SPEED)
        self._opening = float(np.clip(self._opening + speed * STEP, fingers - 2 * GIVE, fingers + 2 * GIVE))
        self._data.ctrl[ARM], self._data.ctrl[6:8] = self._commanded, self._opening / 2


class Kinematics:
    """Forward and inverse kinematics, for one thread: it has a model of its own."""

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_path(str(MODEL))
        self._data = mujoco.MjData(self._model)
        self._end_effector = self._model.site("end_effector").id
        self.low, self.high = self._model.jnt_range[ARM].T

    def pose_of(self, joints: np.ndarray) -> np.ndarray:
        """Joints (6,) -> the end effector's pose (4, 4)."""
        self._data.qpos[ARM] = joints
        mujoco.mj_kinematics(self._model, self._data)
        site = self._end_effector
        return pose_matrix(self._data.site_xpos[site], self._data.site_xmat[site].reshape(3, 3))

    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        """Joints (6,) within their ranges that bring the end effector to `pose`; None where a search finds none.

        Damped least squares from `near`; the arm stays as it is bent there: other solutions are not looked for.
        """
        if not np.isfinite(pose).all():
            return None
        joints, across = np.clip(near, self.low, self.high), np.zeros((6, self._model.nv))
        turn, quaternion = np.zeros(3), np.zeros(4)
        best, waited = np.inf, 0
        for _ in range(STEPS):
            now = self.pose_of(joints)
            mujoco.mju_mat2Quat(quaternion, (pose[:3, :3] @ now[:3, :3].T).ravel())
            mujoco.mju_quat2Vel(turn, quaternion, 1.0)
            error = np.concatenate([pose[:3, 3] - now[:3, 3], turn])
            distance = np.linalg.norm(error)
            if distance < CLOSE:
                return joints
            best, waited = (distance, 0) if distance < 0.98 * best else (best, waited + 1)
            if waited == PATIENCE:
                return None
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(self._model, self._data, across[:3], across[3:], self._end_effector)
            jacobian = across[:, ARM]  # (6, 6)
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + DAMPING**2 * np.eye(6), error)
            step *= min(1.0, LONGEST / max(np.abs(step).max(), 1e-12))
            joints = np.clip(joints + step, self.low, self.high)
        return None
