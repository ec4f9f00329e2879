"""An arm, a camera and a policy without physics, whose time a test moves by hand or lets run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unified_video_action.inference.continuation import Continuation
from unified_video_action.instantiate import build_dataclass
from unified_video_action.poses import HandSpec, pose_matrix
from unified_video_action.real.limits import SafetyLimits
from unified_video_action.real.loop import Control, Phase
from unified_video_action.real.planner import ObservationEntry, Planner, PlannerError, PolicyDescription
from unified_video_action.real.robot import Arm, ArmCommand, ArmLimits, ArmState, Camera, Frame, RobotError, Setup
from unified_video_action.real.trajectory import turn_of, turned
from unified_video_action.real.watchdog import LoopSettings
from unified_video_action.spec import Horizon

HOME = pose_matrix(np.array([0.35, 0.0, 0.2]), np.eye(3))
SIZE = 16  # of the pictures
HAND = HandSpec(states={"hand_position": "position", "hand_rotation": "rotation_6d", "opening": "gripper"})


class ManualTime:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 100.0) -> None:
        self.seconds = now

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class FakeArm(Arm):
    """Goes where it is told, some ticks late. Its joints, cylinder coordinates and a turn, race near the axis."""

    limits = ArmLimits(
        joints_low=np.array([-2.5, 0.05, -0.1, -3.0, -3.0, -3.0]),
        joints_high=np.array([2.5, 0.6, 0.6, 3.0, 3.0, 3.0]),
        joint_velocity=np.array([2.0, 1.0, 1.0, 3.0, 3.0, 3.0]),
        gripper_low=0.0,
        gripper_high=0.085,
    )

    def __init__(self, now: Callable[[], float] = time.monotonic, rate: float = 200.0, delay: int = 4) -> None:
        self.rate, self._now, self._delay = rate, now, delay
        self.pose, self.gripper = HOME.copy(), 0.05
        self.sent: list[ArmCommand] = []
        self.calls: list[str] = []
        self.jump: np.ndarray | None = None  # metres by which the reported pose is wrong
        self.lost = self.frozen = self.blocked = False
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
        """Where it was (4, 4)."""
        return next((pose for when, pose in reversed(self._been) if when <= time), HOME)

    def command(self, command: ArmCommand) -> None:
        if self.lost:
            raise RobotError("the fake arm is lost")
        self.sent.append(command)
        if self.blocked:
            return
        late = self.sent[max(len(self.sent) - 1 - self._delay, self._since)]
        self.pose, self.gripper = late.pose, late.gripper

    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        joints = cylinder(pose)
        inside = (joints >= self.limits.joints_low).all() and (joints <= self.limits.joints_high).all()
        return joints if inside else None

    def stop(self) -> None:
        self._since = len(self.sent)
        self.calls.append("stop")

    def release(self) -> None:
        self.calls.append("release")

    def close(self) -> None:
        self.calls.append("close")


def cylinder(pose: np.ndarray) -> np.ndarray:
    """Joints (6,) of `FakeArm` at a pose."""
    x, y, z = pose[:3, 3]
    return np.array([np.arctan2(y, x), np.hypot(x, y), z, *turn_of(pose[:3, :3])])


class FakeCamera(Camera):
    """A picture at even times, whose first pixel tells its number."""

    latency = 0.02

    def __init__(self, now: Callable[[], float] = time.monotonic, rate: float = 30.0, size: int = SIZE) -> None:
        self._now, self._rate, self._size = now, rate, size
        self.dead_since: float | None = None
        self.dropped: Callable[[int], bool] = lambda number: False
        self._newest: Frame | None = None

    def connect(self) -> None: ...

    def latest(self) -> Frame | None:
        now = self._now() if self.dead_since is None else min(self._now(), self.dead_since)
        number = int((now - self.latency) * self._rate)
        if not self.dropped(number) and (self._newest is None or number / self._rate > self._newest.time):
            image = np.full((self._size, self._size, 3), 128, np.uint8)
            image[0, 0, 0] = number % 256
            self._newest = Frame(number / self._rate, image)
        return self._newest

    def close(self) -> None: ...


def description(steps: int = 4, step_seconds: float = 0.1, actions: int = 16, **changes: object) -> PolicyDescription:
    fields = {
        "name": "fake",
        "observations": {
            "wrist": ObservationEntry("rgb", (SIZE, SIZE, 3), steps),
            "hand_position": ObservationEntry("low_dim", (3,), steps),
            "hand_rotation": ObservationEntry("low_dim", (6,), steps),
            "opening": ObservationEntry("low_dim", (1,), steps),
        },
        "horizon": Horizon(history=steps, actions=actions),
        "action_dim": 10,
        "action_steps": actions,
        "follows_text": False,
        "step_seconds": step_seconds,
        "hand": HAND,
        "continues": True,
    }
    return PolicyDescription(**(fields | changes))


class FakePlanner(Planner):
    """Leads the hand along a path in time. It cannot see: a test tells it where the hand was at the newest frame."""

    def __init__(
        self,
        where: Callable[[], tuple[np.ndarray, float]],
        now: Callable[[], float] = time.monotonic,
        path: Callable[[float], np.ndarray] | None = None,
        **changes: object,
    ) -> None:
        self.description = description(**changes)
        self.where, self._now, self.path = where, now, path or circle
        self.delay = 0.0
        self.sleep: Callable[[float], None] = time.sleep
        self.error: Exception | None = None
        self.spoil: Callable[[np.ndarray], np.ndarray] = lambda actions: actions
        self.resets = self.plans = 0
        self.going_on: list[Continuation | None] = []
        self.observations: list[Mapping[str, np.ndarray]] = []

    def reset(self, seed: int = 0, text: str | None = None) -> None:
        if isinstance(self.error, PlannerError):
            raise self.error
        self.resets += 1

    def plan(self, observation: Mapping[str, np.ndarray], going_on: Continuation | None = None) -> np.ndarray:
        self.observations = [*self.observations[-20:], observation]
        self.going_on = [*self.going_on[-20:], going_on]
        if self.error is not None:
            raise self.error
        (base, seen), delay = self.where(), self.delay
        if delay:
            self.sleep(delay)
        self.plans += 1
        times = seen + self.description.step_seconds * np.array(self.description.horizon.action_offsets)
        poses = np.stack([self.path(time) for time in times])
        return self.spoil(self.description.hand.actions(poses, np.full(len(times), 0.04), base))

    def close(self) -> None: ...


@dataclass
class Bench:
    """A control loop with fakes, whose time a test moves."""

    control: Control
    arm: Any  # FakeArm or SimArm
    camera: Any
    planner: FakePlanner
    time: ManualTime
    limits: SafetyLimits
    sent: list[ArmCommand]
    reached: list[ArmState]

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Tick, look at the camera and plan, one after the other as time passes."""
        control, every = self.control, 1.0 / self.arm.rate
        for _ in range(round(seconds * self.arm.rate)):
            self.time.sleep(every)
            control.observer.look(0)
            control.tick(self.time())
            if not control.planning.ready:
                control.planning.warm_up()
            elif control.planning.active and self.time() >= self.next_plan and control.planning.fault is None:
                self.next_plan = self.time() + 0.125
                control.planning.step()
            if until():
                return

    next_plan: float = 0.0

    def start(self) -> None:
        self.run(0.1)
        self.control.requests.put("start")
        self.run(0.02)
        assert self.control.phase is Phase.RUNNING

    def faults(self) -> list[str]:
        """Of all that was sent."""
        return command_faults(self.sent, self.limits)


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


def bench(settings: Mapping[str, object] | None = None, limits: Mapping[str, object] | None = None, **changes) -> Bench:
    clock = ManualTime()
    arm, camera = FakeArm(clock), FakeCamera(clock)
    planner = FakePlanner(lambda: (arm.at(seen()), seen()), clock, **changes)
    planner.sleep = clock.sleep
    bounds = SafetyLimits(**(LIMITS | dict(limits or {})))
    control = Control(
        Setup(arm, (camera,)), planner, bounds, LoopSettings(**(settings or {})), now=clock, sleep=clock.sleep
    )

    def seen() -> float:
        return control.observer.newest_frames()[0]

    return Bench(control, arm, camera, planner, clock, bounds, arm.sent, [])


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
    for place in np.split(np.arange(len(times)), breaks):
        found += stream_faults(times[place], poses[place], limits)
    return found


def stream_faults(times: np.ndarray, poses: np.ndarray, limits: SafetyLimits, slack: float = 1e-3) -> list[str]:
    """What a stream of poses (n, 4, 4) at times (n,) breaks of the limits, judged by itself."""
    positions = poses[:, :3, 3]
    found = []
    low, high = np.array(limits.workspace_low), np.array(limits.workspace_high)
    if (positions < low - 1e-6).any() or (positions > high + 1e-6).any():
        found.append(f"workspace {positions.min(0)} {positions.max(0)}")
    if (positions[:, 2] < limits.table_height - 1e-6).any():
        found.append(f"table {positions[:, 2].min()}")
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


class SimTime(ManualTime):
    """That of a simulation which stands still unless told to go on."""

    def __init__(self) -> None:
        from unified_video_action.real.sim.clock import ManualClock

        self.clock = ManualClock()

    def __call__(self) -> float:
        return self.clock.time()

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)


SIM = Path(__file__).parents[2] / "config" / "real" / "sim.yaml"


def watched(arm: Arm, sent: list[ArmCommand], reached: list[ArmState]) -> None:
    """Have everything that an arm is told and says be kept."""
    command, state = arm.command, arm.state

    def keeping_command(given: ArmCommand) -> None:
        command(given)
        sent.append(given)

    def keeping_state() -> ArmState:
        reached.append(state())
        return reached[-1]

    arm.command, arm.state = keeping_command, keeping_state


def reached_faults(states: Sequence[ArmState], limits: SafetyLimits, slack: float = 0.005, share: float = 1.3) -> list:
    """What a simulated arm, which follows its commands softly, went beyond: `slack` metres, and a share of speed."""
    times, poses = np.array([state.time for state in states]), np.array([state.pose for state in states])
    places, found = poses[:, :3, 3], []
    low = np.array([*limits.workspace_low[:2], max(limits.workspace_low[2], limits.table_height)])
    if (places < low - slack).any() or (places > np.array(limits.workspace_high) + slack).any():
        found.append(f"workspace {places.min(0)} {places.max(0)}")
    later = np.searchsorted(times, times + 0.02)
    known = later < len(times)
    first, last = np.flatnonzero(known), later[known]
    speeds = np.linalg.norm(places[last] - places[first], axis=1) / (times[last] - times[first])
    if speeds.max(initial=0.0) > limits.linear_speed * share:
        found.append(f"speed {speeds.max()}")
    return found


def sim_bench(settings: Mapping[str, object] | None = None, **changes: object) -> Bench:
    """The simulated arm with its configuration, connected; its time is moved by the test."""
    from unified_video_action.real.sim.setup import SimSetup

    clock = SimTime()
    setup = SimSetup(size=(64, 64), clock=clock.clock)
    setup.arm.connect()
    setup.cameras[0].connect()
    clock.sleep(0.5)
    robot = yaml.safe_load(SIM.read_text())
    limits = SafetyLimits.read(robot["safety"])
    loop = build_dataclass(LoopSettings, robot["loop"] | dict(settings or {}), "loop")
    home = setup.arm.state().pose
    planner = FakePlanner(
        lambda: (setup.arm.world.at(seen()).pose, seen()), clock, lambda time: circle(time, home=home), **changes
    )
    control = Control(setup, planner, limits, loop, now=clock, sleep=clock.sleep)

    def seen() -> float:
        return control.observer.newest_frames()[0]

    sent: list[ArmCommand] = []
    reached: list[ArmState] = []
    watched(setup.arm, sent, reached)
    return Bench(control, setup.arm, setup.cameras[0], planner, clock, limits, sent, reached)
