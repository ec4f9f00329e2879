"""An arm, a camera and a policy without physics, and a control loop whose time the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import yaml

from unified_video_action.inference.continuation import Continuation
from unified_video_action.instantiate import build_dataclass
from unified_video_action.poses import EndEffectorSpec, pose_matrix
from unified_video_action.real.control.limits import SafetyLimits
from unified_video_action.real.control.loop import Control
from unified_video_action.real.control.trajectory import turn_of, turned
from unified_video_action.real.control.watchdog import LoopSettings, Phase
from unified_video_action.real.planner import ObservationEntry, PlannerError, PolicyDescription
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
from unified_video_action.real.robots.recorder import EpisodeRecorder
from unified_video_action.spec import Horizon

ROBOTS = Path(__file__).parents[2] / "config" / "real"
HOME = pose_matrix(np.array([0.35, 0.0, 0.2]), np.eye(3))
SIZE = 16  # of the pictures
END_EFFECTOR = EndEffectorSpec(
    states={"effector_position": "position", "effector_rotation": "rotation_6d", "opening": "gripper"}
)
LIMITS = {
    "workspace_low": [0.1, -0.3, 0.0],
    "workspace_high": [0.55, 0.3, 0.45],
    "table_height": 0.05,
    "linear_speed": 0.5,
    "linear_acceleration": 2.0,
    "angular_speed": 1.5,
    "angular_acceleration": 6.0,
    "joint_acceleration": 15.0,
}


def until(condition: Callable[[], bool], what: str = "it did not happen") -> None:
    end = time.monotonic() + 240  # this computer may be busy
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class ManualTime:
    """Seconds that pass only in `sleep`."""

    def __init__(self, now: float = 100.0) -> None:
        self.seconds = now

    def __call__(self) -> float:
        return self.seconds

    time = __call__  # as the simulated arm's clock

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class FakeArm(Arm):
    """Follows its commands some ticks late. Its joints, cylinder coordinates and a turn, race near the axis."""

    limits = ArmLimits(
        joints_low=np.array([-2.5, 0.05, -0.1, -3.0, -3.0, -3.0]),
        joints_high=np.array([2.5, 0.6, 0.6, 3.0, 3.0, 3.0]),
        joint_velocity=np.array([2.0, 1.0, 1.0, 3.0, 3.0, 3.0]),
        gripper_low=0.0,
        gripper_high=0.085,
    )

    rate, delay = 200.0, 4  # ticks a second, and by how many of them it is late

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.pose, self.gripper = HOME.copy(), 0.05
        self.sent: list[ArmCommand] = []
        self.calls: list[str] = []
        self.jump: np.ndarray | None = None  # metres by which the reported pose is wrong
        self.lost = self.deaf = self.frozen = self.blocked = False
        self._since = 0  # the command after which it was last stopped
        self._frozen_at = 0.0
        self._been: list[tuple[float, np.ndarray]] = []

    def connect(self) -> None:
        self.calls.append("connect")

    def state(self) -> ArmState:
        if self.lost:
            raise RobotError("the fake arm is lost")
        if not self.frozen:
            self._frozen_at = self._now()
            self._been.append((self._frozen_at, self.pose))
        pose = self.pose.copy()
        if self.jump is not None:
            pose[:3, 3] += self.jump
        return ArmState(self._frozen_at, pose, self.gripper, cylinder(self.pose), np.zeros(6))

    def at(self, time: float) -> np.ndarray:
        """Its pose (4, 4) then."""
        return next((pose for when, pose in reversed(self._been) if when <= time), HOME)

    def command(self, command: ArmCommand) -> None:
        if self.lost or self.deaf:
            raise RobotError("the fake arm takes no command")
        self.sent.append(command)
        if not self.blocked:
            late = self.sent[max(len(self.sent) - 1 - self.delay, self._since)]
            self.pose, self.gripper = late.pose, late.gripper

    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        joints = cylinder(pose)
        inside = (joints >= self.limits.joints_low).all() and (joints <= self.limits.joints_high).all()
        return joints if inside else None

    def stop(self) -> None:
        self._since = len(self.sent)
        self.calls.append("stop")

    def release(self) -> None:
        if self.lost:
            raise RobotError("the fake arm is lost")
        self.calls.append("release")

    def close(self) -> None:
        self.calls.append("close")


def cylinder(pose: np.ndarray) -> np.ndarray:
    """Joints (6,) of `FakeArm` at a pose."""
    x, y, z = pose[:3, 3]
    return np.array([np.arctan2(y, x), np.hypot(x, y), z, *turn_of(pose[:3, :3])])


class FakeCamera(Camera):
    """A picture at even times, whose first pixel is its number."""

    latency = 0.02

    def __init__(self, now: Callable[[], float] = time.monotonic, rate: float = 30.0, size: int = SIZE) -> None:
        self._now, self._rate, self._size = now, rate, size
        self.dead_since: float | None = None
        self._newest: Frame | None = None

    def connect(self) -> None: ...

    def latest(self) -> Frame | None:
        now = self._now() if self.dead_since is None else min(self._now(), self.dead_since)
        number = int((now - self.latency) * self._rate)
        if self._newest is None or number / self._rate > self._newest.time:
            image = np.full((self._size, self._size, 3), 128, np.uint8)
            image[0, 0, 0] = number % 256
            self._newest = Frame(number / self._rate, image)
        return self._newest

    def close(self) -> None: ...


def description(steps: int = 4, step_seconds: float | None = 0.1, **changes: object) -> PolicyDescription:
    fields = {
        "name": "fake",
        "observations": {
            "wrist": ObservationEntry("rgb", (SIZE, SIZE, 3), steps),
            "effector_position": ObservationEntry("low_dim", (3,), steps),
            "effector_rotation": ObservationEntry("low_dim", (6,), steps),
            "opening": ObservationEntry("low_dim", (1,), steps),
        },
        "horizon": Horizon(history=steps, actions=16),
        "action_dim": 10,
        "action_steps": 16,
        "follows_text": False,
        "step_seconds": step_seconds,
        "end_effector": END_EFFECTOR,
        "continues": True,
    }
    return PolicyDescription(**(fields | changes))


class FakePlanner:
    """Leads the end effector along a path in time. It cannot see: `where` is its pose and time at the newest frame."""

    def __init__(self, where: Callable[[], tuple[np.ndarray, float]], **changes: object) -> None:
        self.description = description(**changes)
        self.where, self.path = where, circle
        self.error: Exception | None = None
        self.think: Callable[[], None] = lambda: None
        self.spoil: Callable[[np.ndarray], np.ndarray] = lambda actions: actions
        self.resets = self.plans = 0
        self.continuation: Continuation | None = None

    def reset(self, seed: int = 0, text: str | None = None) -> None:
        if isinstance(self.error, PlannerError):
            raise self.error
        self.resets += 1

    def plan(self, observation: Mapping[str, np.ndarray], going_on: Continuation | None = None) -> np.ndarray:
        self.continuation = going_on
        if self.error is not None:
            raise self.error
        base, seen = self.where()
        self.think()
        self.plans += 1
        times = seen + self.description.step_seconds * np.array(self.description.horizon.action_offsets)
        poses = np.stack([self.path(time) for time in times])
        return self.spoil(self.description.end_effector.actions(poses, np.full(len(times), 0.04), base))

    def close(self) -> None: ...


class AtOnce(Executor):
    """The policy answers within a tick."""

    def submit(self, call: Callable, /, *args: object) -> Future:
        future: Future = Future()
        call(*args)
        future.set_result(None)
        return future


class Later(Executor):
    """The policy answers when the test says so. Its thread and the test's never run at the same time."""

    def __init__(self, planner: FakePlanner) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._asked, self._may_answer = Event(), Event()
        self.future: Future | None = None
        planner.think = self._think

    def submit(self, call: Callable, /, *args: object) -> Future:
        self._asked.clear()
        self._may_answer.clear()
        self.future = self._pool.submit(call, *args)
        self.future.add_done_callback(lambda _: self._asked.set())
        self._asked.wait()
        return self.future

    def answer(self) -> None:
        self._may_answer.set()
        self.future.result()

    def _think(self) -> None:
        self._asked.set()
        self._may_answer.wait()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._may_answer.set()
        self._pool.shutdown()


@dataclass
class Bench:
    """A control loop with an arm, a camera and a policy, whose time a test moves."""

    control: Control
    arm: Any  # FakeArm or SimArm
    camera: Any
    planner: FakePlanner
    time: Any
    limits: SafetyLimits
    sent: list[ArmCommand]
    measured: list[ArmState]

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Tick and look at the camera as time passes."""
        for _ in range(round(seconds * self.arm.rate)):
            self.time.sleep(1.0 / self.arm.rate)
            self.control.observer.look(0)
            self.control.tick(self.time.time())
            if until():
                return

    def ask(self, request: str, seconds: float = 0.05) -> None:
        self.control.requests.put(request)
        self.run(seconds)

    def start(self, seconds: float = 0.02) -> None:
        self.run(0.15)
        self.ask("start", seconds)
        assert self.control.phase is Phase.RUNNING and not self.control.statistics.stops

    def faults(self) -> list[str]:
        """Of all that was sent."""
        return command_faults(self.sent, self.limits)


def bench(settings: Mapping[str, object] | None = None, limits: Mapping[str, object] | None = None, **changes) -> Bench:
    """With FakeArm, connected and ready."""
    clock = ManualTime()
    arm, camera = FakeArm(clock), FakeCamera(clock)
    loop, bounds = LoopSettings(**(settings or {})), SafetyLimits(**(LIMITS | dict(limits or {})))
    planner = FakePlanner(lambda: (arm.at(camera.latest().time), camera.latest().time), **changes)
    control = Control(Setup(arm, (camera,)), planner, bounds, loop, None, clock, clock.sleep)
    control.planning.executor = AtOnce()
    return Bench(control, arm, camera, planner, clock, bounds, arm.sent, [])


def sim_bench(settings: Mapping[str, object] | None = None, recorder: EpisodeRecorder | None = None) -> Bench:
    """With the simulated arm and its configuration, connected."""
    from unified_video_action.demos.sim_arm.robot import SimSetup
    from unified_video_action.demos.sim_arm.world import ManualClock

    clock = ManualClock()
    setup = SimSetup(size=(64, 64), clock=clock)
    arm, camera = setup.arm, setup.cameras[0]
    arm.connect()
    camera.connect()
    clock.sleep(0.5)
    robot = yaml.safe_load((ROBOTS / "sim.yaml").read_text())
    limits = build_dataclass(SafetyLimits, robot["safety"], "safety")
    loop = build_dataclass(LoopSettings, robot["loop"] | dict(settings or {}), "loop")
    home, sent, measured = arm.state().pose, [], []
    planner = FakePlanner(lambda: (arm.world.at(camera.latest().time).pose, camera.latest().time))
    planner.path = lambda time: circle(time, home=home)
    command, state = arm.command, arm.state
    arm.command = lambda given: (command(given), sent.append(given))
    arm.state = lambda: (measured.append(state()), measured[-1])[1]
    control = Control(setup, planner, limits, loop, recorder, clock.time, clock.sleep)
    control.planning.executor = AtOnce()
    return Bench(control, arm, camera, planner, clock, limits, sent, measured)


def circle(time: float, radius: float = 0.05, period: float = 4.0, home: np.ndarray = HOME) -> np.ndarray:
    """A pose (4, 4) on the way round `home`."""
    angle = 2 * np.pi * time / period
    pose = home.copy()
    pose[:3, 3] += radius * np.array([np.cos(angle), np.sin(angle), 0.3 * np.sin(angle)])
    pose[:3, :3] = turned(0.2 * np.array([np.sin(angle), 0.0, np.cos(angle)])) @ home[:3, :3]
    return pose


def command_faults(commands: Sequence[ArmCommand], limits: SafetyLimits, longest: float = 0.022) -> list[str]:
    """As `stream_faults`, of each stretch without a gap of more than `longest` seconds, in which the arm stops."""
    times, poses = np.array([each.time for each in commands]), np.array([each.pose for each in commands])
    breaks = np.flatnonzero(np.diff(times) > longest) + 1
    found = []
    for part in np.split(np.arange(len(times)), breaks):
        found += stream_faults(times[part], poses[part], limits)
    return found


def stream_faults(times: np.ndarray, poses: np.ndarray, limits: SafetyLimits, slack: float = 1e-3) -> list[str]:
    """The limits that a stream of poses (n, 4, 4) at times (n,) breaks, judged by themselves."""
    positions = poses[:, :3, 3]
    found = []
    low = np.array([*limits.workspace_low[:2], max(limits.workspace_low[2], limits.table_height)])
    if (positions < low - 1e-6).any() or (positions > np.array(limits.workspace_high) + 1e-6).any():
        found.append(f"workspace {positions.min(0)} {positions.max(0)}")
    if len(times) < 3:
        return found
    gaps = np.diff(times)[:, None]
    velocity = np.diff(positions, axis=0) / gaps
    spin = np.stack([turn_of(after[:3, :3] @ before[:3, :3].T) for before, after in zip(poses, poses[1:])]) / gaps
    middle = (times[1:] + times[:-1]) / 2
    for name, rates, most, change in (
        ("linear", velocity, limits.linear_speed, limits.linear_acceleration),
        ("angular", spin, limits.angular_speed, limits.angular_acceleration),
    ):
        fastest = np.linalg.norm(rates, axis=1).max()
        strongest = (np.linalg.norm(np.diff(rates, axis=0), axis=1) / np.diff(middle)).max()
        if fastest > most * (1 + slack):
            found.append(f"{name} speed {fastest}")
        if strongest > change * (1 + slack):
            found.append(f"{name} acceleration {strongest}")
    return found
