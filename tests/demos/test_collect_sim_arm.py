"""The scripted expert puts the cup onto the saucer, and its demonstrations are data to train on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("unified_video_action.demos.sim_arm.engine", reason="needs `make sims`", exc_type=ImportError)

from unified_video_action.demos.sim_arm.collect import Collector

from tests.loading import load_script
from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.demos.sim_arm import collect
from unified_video_action.demos.sim_arm.expert import Course, Waypoint, cup_onto_saucer, random_table
from unified_video_action.demos.sim_arm.scene import GRIPPER
from unified_video_action.poses import distance, pose_matrix
from unified_video_action.real.robots.episode_plot import Recording

ARRAYS = ["robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("collect_sim_arm")


@pytest.fixture(scope="module")
def folder(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations") / "sim_arm"
    script.main(["-n", "2", "--output", str(folder), "--size", "64", "--rate", "10", "--workers", "1", "--seed", "3"])
    return folder


def test_the_expert_succeeds() -> None:
    attempts = [Collector(None)(seed) for seed in range(4)]
    assert all(attempt.success for attempt in attempts)
    assert all(0.002 < attempt.lag < 0.02 and 6 < attempt.seconds < 11 for attempt in attempts)


def test_success_is_the_cup_on_the_saucer(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_grip(*args) -> Course:
        course = cup_onto_saucer(*args)
        return Course(tuple(Waypoint(way.pose, GRIPPER, way.seconds) for way in course.waypoints))

    monkeypatch.setattr(collect, "cup_onto_saucer", without_grip)
    assert not Collector(None)(0).success


def test_episodes_are_data_to_train_on(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["00003.zarr.zip", "00004.zarr.zip"]
    buffer = ReplayBuffer(folder / "00003.zarr.zip", ["camera0_rgb"], ARRAYS)
    rows = int(buffer.episode_ends[-1])
    assert 60 < rows < 110
    recording = Recording.open(folder / "00003.zarr.zip")
    assert recording.instruction == "put the cup on the saucer" and recording.rate == 10
    width = recording.arrays["state_gripper"]
    assert width.max() > 0.08 and 0.045 < width.min() < 0.055, "it grips more tightly than the cup is wide"
    assert len(np.unique(recording.row_time)) == rows
    first, last = (recording.frames[0][row].astype(int) for row in (0, rows - 1))
    assert first.std() > 15 and np.abs(first - last).mean() > 5
    moved = np.ptp(recording.arrays["state_pose"][:, :3, 3], axis=0)
    assert moved[1] > 0.1 and moved[2] > 0.05


def test_everything_follows_from_the_seed(folder: Path, tmp_path: Path) -> None:
    again = Collector(tmp_path, ("wrist",), 64, 10.0)(3)
    one, other = Recording.open(folder / "00003.zarr.zip"), Recording.open(again.path)
    assert (one.arrays["state_pose"] == other.arrays["state_pose"]).all()
    assert (one.frames[0][...] == other.frames[0][...]).all()
    another = Recording.open(folder / "00004.zarr.zip")
    assert (another.arrays["state_pose"][0] != one.arrays["state_pose"][0]).any()


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "stands_on_saucer", lambda table, seen: False)
    monkeypatch.setattr(Course, "seconds", 0.5)
    attempt = Collector(tmp_path, ("wrist",), 32, 10.0)(0)
    assert not attempt.success and attempt.path is None and not list(tmp_path.iterdir())


def test_a_course_is_gentle_and_ends_where_it_should() -> None:
    start = pose_matrix(np.array([0.35, 0, 0.2]), np.eye(3))
    course = cup_onto_saucer(random_table(np.random.default_rng(0)), start, np.random.default_rng(1))
    times = np.arange(0, course.seconds + 0.02, 0.01)
    positions = np.array([course.at(time)[0][:3, 3] for time in times])
    speeds = np.linalg.norm(np.diff(positions, axis=0), axis=1) / 0.01
    assert speeds.max() < 0.6 and np.abs(np.diff(speeds)).max() / 0.01 < 4
    assert distance(course.at(-1.0)[0], start)[0] == 0
    for waypoint, end in zip(course.waypoints[1:], np.cumsum([way.seconds for way in course.waypoints[1:]])):
        pose, opening = course.at(end - 1e-9)
        assert max(distance(pose, waypoint.pose)) < 1e-6 and opening == pytest.approx(waypoint.gripper)


def test_mistakes_end_with_a_message(script: ModuleType, folder: Path, capsys) -> None:
    for arguments, said in (
        (["-n", "1", "--output", str(folder)], "exists"),
        (["-n", "0", "--measure"], "at least 1"),
        (["-n", "1"], "either --output or --measure"),
        (["-n", "1", "--output", str(folder / "new"), "--cameras", "ceiling"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert said in capsys.readouterr().err
