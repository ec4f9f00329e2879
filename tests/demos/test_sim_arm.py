"""The simulated arm moves as a real one does, and its scripted expert's demonstrations are data to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("unified_video_action.demos.sim_arm.world", reason="needs `make sims`", exc_type=ImportError)

from tests.loading import load_script
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.demos.sim_arm import expert
from unified_video_action.demos.sim_arm.expert import Collector, Course, cup_onto_saucer
from unified_video_action.demos.sim_arm.robot import SimArm, SimSetup
from unified_video_action.demos.sim_arm.world import GRIPPER, ManualClock, World
from unified_video_action.poses import distance
from unified_video_action.real.robots.archive import Recording
from unified_video_action.real.robots.interface import ArmCommand, Setup

TICK = 0.005
SIZE, RATE, LATENCY = 96, 30.0, 0.08


@pytest.fixture
def arm() -> Iterator[SimArm]:
    with SimArm(World(ManualClock())) as arm:
        yield arm


def drive(arm: SimArm, seconds: float, goal: Callable[[float], np.ndarray]) -> list:
    """Command `goal(seconds since now)` at 200 Hz; the states in between."""
    clock, states = arm.world.clock, []
    began = clock.time()
    while clock.time() - began < seconds:
        due = clock.time() + TICK
        arm.command(ArmCommand(due, goal(due - began), GRIPPER))
        clock.sleep(TICK)
        states.append(arm.state())
    return states


def shifted(pose: np.ndarray, *by: float) -> np.ndarray:
    moved = pose.copy()
    moved[:3, 3] += by
    return moved


def test_follows_a_slow_sine_with_a_lag(arm: SimArm) -> None:
    home = arm.state().pose

    def goal(seconds: float) -> np.ndarray:
        angle = 2 * np.pi * 0.25 * seconds
        return shifted(home, 0, 0.08 * np.sin(angle), 0.04 * (1 - np.cos(angle)))

    began = arm.world.clock.time()
    states = drive(arm, 4.0, goal)
    after = [state for state in states if state.time - began > 1]
    late = np.array([distance(state.pose, goal(state.time - began)) for state in after])
    assert late[:, 0].max() < 0.015 and np.degrees(late[:, 1].max()) < 3
    assert late[:, 0].mean() > 0.003, "it teleports"
    there = np.array([distance(state.pose, goal(state.time - began - 0.06)) for state in after])
    assert there[:, 0].max() < 0.005, "it is 60 ms late, and otherwise right"
    assert 0 <= arm.world.clock.time() - states[-1].time <= 0.005


def test_joints_keep_within_their_limits_whatever_is_commanded(arm: SimArm) -> None:
    rng, home = np.random.default_rng(1), arm.state().pose
    goals = [shifted(home, *rng.uniform([-0.15, -0.25, -0.05], [0.08, 0.25, 0.15])) for _ in range(8)]
    states = drive(arm, 4.0, lambda seconds: goals[int(seconds / 0.5) % 8])  # jumps
    velocities = np.array([state.joint_velocities for state in states])
    joints = np.array([state.joints for state in states])
    assert np.abs(velocities).max() > 1, "it hardly moves"
    assert (
        np.abs(velocities) < 1.2 * arm.limits.joint_velocity
    ).all()  # of commands exactly; measured ones overshoot a little
    assert (joints > arm.limits.joints_low - 0.01).all() and (joints < arm.limits.joints_high + 0.01).all()
    steps = np.linalg.norm(np.diff([state.pose[:3, 3] for state in states], axis=0), axis=1)
    assert steps.max() < 0.02, "it teleports"


def test_stop_comes_to_rest_and_holds(arm: SimArm) -> None:
    home = arm.state().pose
    states = drive(arm, 0.5, lambda seconds: shifted(home, 0, 0.8 * seconds**2, 0))
    assert np.linalg.norm(states[-1].pose[:3, 3] - states[-2].pose[:3, 3]) / TICK > 0.5  # metres per second
    arm.stop()
    arm.world.clock.sleep(0.4)
    rest = arm.state()
    assert np.abs(rest.joint_velocities).max() < 0.02
    assert np.linalg.norm(rest.pose[:3, 3] - states[-1].pose[:3, 3]) < 0.10
    arm.world.clock.sleep(2)
    assert distance(arm.state().pose, rest.pose)[0] < 0.001
    arm.command(ArmCommand(arm.world.clock.time() + 1, home, GRIPPER))  # and goes on where it stands
    arm.world.clock.sleep(1.5)
    assert distance(arm.state().pose, home)[0] < 0.002


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = SimSetup(("wrist", "side"), (SIZE, SIZE), RATE, LATENCY, clock=ManualClock())
    with made.arm, made.cameras[0], made.cameras[1]:
        yield made


# -- the expert --------------------------------------------------------------------------------------------------------

OPTIONS = ["--task", "sim_arm", "--size", "64", "--rate", "10", "--workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations") / "sim_arm"
    load_script("collect_demos").main([*OPTIONS, "-n", "2", "--output", str(folder), "--seed", "3"])
    return folder


def test_the_expert_succeeds_only_if_the_cup_is_on_the_saucer(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector().measuring()
    attempt = collector(0)
    assert attempt.success and attempt.episode is None
    assert 2 < attempt.measures["lag_mm"] < 20 and 6 < attempt.measures["seconds"] < 11

    def without_grip(*args) -> Course:
        way = cup_onto_saucer(*args).waypoints
        return Course(dataclasses.replace(way, grippers=np.full(len(way.times), GRIPPER)))

    monkeypatch.setattr(expert, "cup_onto_saucer", without_grip)
    assert not collector(0).success


def test_episodes_are_data_to_train_on_and_follow_from_their_seed(folder: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["00003.zarr.zip", "00004.zarr.zip"]
    arrays = ["robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width"]
    buffer = ReplayBuffer(folder / "00003.zarr.zip", ["camera0_rgb"], arrays)
    rows = int(buffer.episode_ends[-1])
    assert 60 < rows < 110
    recording = Recording.open(folder / "00003.zarr.zip")
    assert recording.instruction == "put the cup on the saucer" and recording.rate == 10
    width = recording.arrays["state_gripper"]
    assert width.max() > 0.08 and 0.045 < width.min() < 0.055, "it grips more tightly than the cup is wide"
    assert len(np.unique(recording.row_time)) == rows
    first, last = (recording.frames[0][row].astype(int) for row in (0, rows - 1))
    assert first.std() > 15 and np.abs(first - last).mean() > 5

    name, archive = Collector(seed=2, size=64, rate=10.0)(1).episode
    (tmp_path / name).write_bytes(archive)
    same, other = Recording.open(tmp_path / "00003.zarr.zip"), Recording.open(folder / "00004.zarr.zip")
    assert (recording.arrays["state_pose"] == same.arrays["state_pose"]).all()
    assert (recording.frames[0][...] == same.frames[0][...]).all()
    assert (other.arrays["state_pose"][0] != recording.arrays["state_pose"][0]).any()
