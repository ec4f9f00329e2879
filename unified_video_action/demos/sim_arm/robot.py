"""The simulated arm and its cameras as drivers: what real ones offer."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unified_video_action.demos.sim_arm.world import (
    ARM,
    GRIPPER,
    VELOCITY,
    VIEWS,
    Clock,
    Kinematics,
    Snapshot,
    Table,
    World,
    mujoco,
)
from unified_video_action.real.robots.interface import (
    Arm,
    ArmCommand,
    ArmLimits,
    ArmState,
    Camera,
    Frame,
    RobotError,
    Setup,
)

log = logging.getLogger(__name__)

MOST_SHAPES = 100  # of a scene


class SimArm(Arm):
    """Poses are of the end effector in the frame of the arm's base, as model.xml describes both.

    A command is turned into joints once; the joints then move evenly until its time, never faster than they can.
    """

    rate = 200.0

    def __init__(self, world: World) -> None:
        self.world, self._kinematics = world, Kinematics()
        self.limits = ArmLimits(*world.model.jnt_range[ARM].T, VELOCITY, gripper_low=0.0, gripper_high=GRIPPER)
        self._connected = False
        self._aimed: np.ndarray | None = None  # joints last sent
        self._solved: tuple[bytes, np.ndarray | None] = (b"", None)  # a pose and its joints: asked for, then sent

    def connect(self) -> None:
        self.world.start()
        self._connected = True

    def state(self) -> ArmState:
        self._require("read")
        seen = self.world.at(self.world.clock.time())
        return ArmState(seen.time, seen.pose.copy(), seen.opening, seen.joints.copy(), seen.velocities[ARM].copy())

    def command(self, command: ArmCommand) -> None:
        """A pose that no joints reach is logged, and the arm stays on its way to the one before."""
        self._require("commanded")
        near = self._aimed if self._aimed is not None else self.world.at(self.world.clock.time()).joints
        joints = self.joints_for(command.pose, near)
        if joints is None or not np.isfinite([command.time, command.gripper]).all():
            log.warning("the simulated arm cannot reach position %s; it goes on as before", command.pose[:3, 3])
            return
        self._aimed = joints
        self.world.aim(command.time, joints, float(np.clip(command.gripper, 0.0, GRIPPER)))

    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        key = pose.tobytes()
        if key != self._solved[0] or self._solved[1] is None:
            self._solved = key, self._kinematics.joints_for(pose, near)
        return self._solved[1]

    def stop(self) -> None:
        if self._connected:
            self._aimed = None
            self.world.brake()

    def release(self) -> None:
        self._require("released")
        self._aimed = None
        self.world.let_go()

    def close(self) -> None:
        self._connected = False

    def _require(self, done: str) -> None:
        if not self._connected:
            raise RobotError(f"the simulated arm cannot be {done}: it is not connected; call connect() first")


class SimCamera(Camera):
    """One camera of the scene: "wrist" sees the fingers as on UMI's gripper, "side" the whole table.

    A frame is drawn when it is asked for, by a thread that does nothing else: a graphics context belongs to its thread.
    `size` is (height, width) in pixels, `rate` frames per second, `latency` seconds from the light to the receipt.
    """

    def __init__(self, world: World, view: str, size: Sequence[int], rate: float, latency: float) -> None:
        if view not in VIEWS:
            raise ValueError(f"view={view!r}: the simulated table's cameras are {', '.join(VIEWS)}")
        if rate <= 0 or latency < 0:
            raise ValueError(f"rate={rate}, latency={latency}: expected a positive rate and a latency of 0 or more")
        self.world, self.view, self.size, self.rate, self.latency = world, view, tuple(size), rate, latency
        self._thread: ThreadPoolExecutor | None = None
        self._newest: Frame | None = None

    def connect(self) -> None:
        if self._thread is not None:
            return
        self.world.start()
        self._tick = math.floor(self.world.clock.time() * self.rate)  # of the newest frame; frame n is of n / rate
        self._thread = ThreadPoolExecutor(1, f"camera {self.view}")
        try:
            self._thread.submit(self._prepare).result()
        except Exception as error:  # of whichever library draws
            self._thread.shutdown()
            self._thread = None
            raise RobotError(f"the simulated camera {self.view!r} cannot draw: {error}") from error

    def latest(self) -> Frame | None:
        if self._thread is None:
            raise RobotError(f"the simulated camera {self.view!r} is not connected; call connect() first")
        tick = math.floor((self.world.clock.time() - self.latency) * self.rate + 1e-6)
        if tick > self._tick:
            self._tick, seen = tick, self.world.at(tick / self.rate)
            self._newest = Frame(seen.time, self._thread.submit(self._draw, seen).result())
        return self._newest

    def close(self) -> None:
        if self._thread is not None:
            self._thread.submit(self._renderer.close).result()
            self._thread.shutdown()
            self._thread = None

    def _prepare(self) -> None:
        self._data = mujoco.MjData(self.world.model)
        self._renderer = mujoco.Renderer(self.world.model, *self.size, max_geom=MOST_SHAPES)

    def _draw(self, seen: Snapshot) -> np.ndarray:
        """uint8 (H, W, 3)."""
        self._data.qpos[:] = seen.positions
        mujoco.mj_kinematics(self.world.model, self._data)
        mujoco.mj_camlight(self.world.model, self._data)
        self._renderer.update_scene(self._data, self.view)
        return self._renderer.render()


class SimSetup(Setup):
    """The simulated arm, not yet connected; `setup.arm.world` is its world.

    Args:
        cameras: views, "wrist" or "side", in the order of the policy's observations.
        size, rate, latency: of the cameras, see `SimCamera`.
        cup, saucer: (x, y) on the table, metres in the frame of the arm's base.
        clock: a `ManualClock` for a run as fast as it can be computed; None is real time.

    Raises:
        ImportError: MuJoCo is not installed, or cannot draw; says what is missing.
        ValueError: no such camera.
    """

    def __init__(
        self, cameras: Sequence[str] = ("wrist",), size: Sequence[int] = (224, 224), rate: float = 30.0,
        latency: float = 0.08, cup: Sequence[float] = Table.cup, saucer: Sequence[float] = Table.saucer,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        world = World(clock, Table(tuple(cup), tuple(saucer)))
        super().__init__(SimArm(world), tuple(SimCamera(world, view, size, rate, latency) for view in cameras))
