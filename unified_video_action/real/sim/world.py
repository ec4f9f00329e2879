"""The simulated arm's physics: it goes on with the clock, follows what it is told, and keeps its last seconds."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import numpy as np

from unified_video_action.poses import pose_matrix
from unified_video_action.real.sim.clock import Clock, ManualClock, RealClock
from unified_video_action.real.sim.engine import mujoco
from unified_video_action.real.sim.scene import (
    GIVE,
    GRIPPER,
    GRIPPER_LAG,
    GRIPPER_SPEED,
    HOME,
    JOINTS,
    STEP,
    Table,
    model_xml,
)

log = logging.getLogger(__name__)

KEPT = 2000  # snapshots, one for each step
WAKE = 0.004  # seconds between two looks at the clock, in real time
SLOW, QUIET = 0.1, 5.0  # seconds that the physics may be late without a word, and from one word to the next
BRAKING = 15.0  # radians per second squared by which a stop slows the joints down
VELOCITY = np.array([joint.velocity for joint in JOINTS])
ARM = slice(0, len(JOINTS))


@dataclass(frozen=True)
class Snapshot:
    """Everything at one moment; arrays are never changed."""

    time: float
    positions: np.ndarray  # (nq,) of the whole model: joints 0 to 5, fingers 6 and 7, the cup's pose 8 to 14
    velocities: np.ndarray  # (nv,)
    pose: np.ndarray  # (4, 4) of the hand
    opening: float  # of the gripper, metres, by its motor: less than what it holds, round which its soft fingers bend

    @property
    def joints(self) -> np.ndarray:
        return self.positions[ARM]

    @property
    def cup(self) -> np.ndarray:
        """(7,) of the cup: its centre, and its rotation as a quaternion w, x, y, z."""
        return self.positions[8:15]


@dataclass(frozen=True)
class Target:
    """Joints to be reached at a time."""

    time: float
    joints: np.ndarray
    opening: float


class World:
    """Shared by an arm and its cameras: each starts it, and it ends when the last has closed it.

    With a real clock, physics has a thread of its own; with a `ManualClock` it happens while that one sleeps.
    """

    def __init__(self, clock: Clock | None = None, table: Table | None = None, fovy: float = 90.0) -> None:
        self.clock = clock or RealClock()
        self.table = table or Table()
        self.model = mujoco.MjModel.from_xml_string(model_xml(self.table, fovy))
        self._data = mujoco.MjData(self.model)
        self._hand = self.model.site("hand").id
        self._gains = self.model.actuator_gainprm[ARM].copy(), self.model.actuator_biasprm[ARM].copy()
        self._lock = threading.Lock()  # of the physics
        self._users = 0
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._reset()

    def start(self) -> None:
        """Let time pass from now on, if it does not yet."""
        self._users += 1
        if self._users > 1:
            return
        self._began = self.clock.time() - self._steps * STEP
        self._step()  # so that there is a snapshot at once
        if isinstance(self.clock, ManualClock):
            self.clock.follow(self._run_to)
            return
        self._ending.clear()
        self._thread = threading.Thread(target=self._run, name="physics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """One user less; time stops with the last."""
        self._users -= 1
        if self._users > 0:
            return
        if isinstance(self.clock, ManualClock):
            self.clock.leave(self._run_to)
        elif self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None

    @property
    def running(self) -> bool:
        return self._users > 0

    def at(self, time: float) -> Snapshot:
        """The newest snapshot of not later than `time`; the oldest that is kept, where `time` lies before it."""
        newest = self._steps - 1
        wanted = min(newest, int(np.floor((time - self._began) / STEP + 1e-6)))
        return self._kept[max(wanted, newest - KEPT + 2, 0) % KEPT]

    def aim(self, target: Target) -> None:
        """Go on to `target`, in a straight line of joints from where the arm was told to be."""
        with self._lock:
            self._hold_on()
            self._target, self._braking = target, False

    def brake(self) -> None:
        """Slow down, and hold."""
        with self._lock:
            self._hold_on()
            self._target, self._braking = None, True

    def let_go(self) -> None:
        """The arm's motors give way; its weight stays compensated, its gripper keeps its grip."""
        with self._lock:
            self._free, self._target = True, None
            self.model.actuator_gainprm[ARM] = 0
            self.model.actuator_biasprm[ARM] = 0

    def push(self, torques: np.ndarray) -> None:
        """Somebody pushes the arm: torques (6,) about its joints from now on, newton metres."""
        with self._lock:
            self._data.qfrc_applied[ARM] = torques

    def _reset(self) -> None:
        self._data.qpos[ARM] = HOME
        self._data.qpos[6:8] = GRIPPER / 2
        self._told, self._speed, self._opening = HOME.copy(), np.zeros(len(JOINTS)), GRIPPER
        self._told_opening = GRIPPER
        self._target: Target | None = None
        self._braking = self._free = False
        self._kept: list[Snapshot | None] = [None] * KEPT
        self._steps, self._began, self._complained = 0, 0.0, -np.inf

    def _hold_on(self) -> None:
        """After having let go: the motors take hold where the arm is now."""
        if self._free:
            self._free = False
            self._told, self._speed = self._data.qpos[ARM].copy(), np.zeros(len(JOINTS))
            self.model.actuator_gainprm[ARM], self.model.actuator_biasprm[ARM] = self._gains

    def _run(self) -> None:
        while not self._ending.is_set():
            self._run_to(self.clock.time())
            self.clock.sleep(WAKE)

    def _run_to(self, now: float) -> None:
        behind = now - self._began - self._steps * STEP
        if behind > SLOW and self.clock.runs_alone and now > self._complained + QUIET:
            log.warning("the simulated arm is %.2f s late: this computer is busy", behind)
            self._complained = now
        with self._lock:
            while self._began + self._steps * STEP <= now:
                self._step()

    def _step(self) -> None:
        now, data = self._began + self._steps * STEP, self._data
        mujoco.mj_step1(self.model, data)
        pose = pose_matrix(data.site_xpos[self._hand], data.site_xmat[self._hand].reshape(3, 3))
        self._kept[self._steps % KEPT] = Snapshot(now, data.qpos.copy(), data.qvel.copy(), pose, self._opening)
        self._drive(now)
        mujoco.mj_step2(self.model, data)
        self._steps += 1  # last, so that other threads see whole snapshots only

    def _drive(self, now: float) -> None:
        """Move what the motors are told by one step."""
        if self._free:
            return
        if self._target is not None:
            left = max(self._target.time - now, STEP)
            self._speed = np.clip((self._target.joints - self._told) / left, -VELOCITY, VELOCITY)
            self._told_opening += (self._target.opening - self._told_opening) * STEP / left
        elif self._braking:
            self._speed -= np.clip(self._speed, -BRAKING * STEP, BRAKING * STEP)
        self._told = self._told + self._speed * STEP
        fingers = float(self._data.qpos[6] + self._data.qpos[7])
        speed = np.clip((self._told_opening - self._opening) / GRIPPER_LAG, -GRIPPER_SPEED, GRIPPER_SPEED)
        self._opening = float(np.clip(self._opening + speed * STEP, fingers - 2 * GIVE, fingers + 2 * GIVE))
        self._data.ctrl[ARM] = self._told
        self._data.ctrl[6:8] = self._opening / 2
