"""The scripted expert puts the cup onto the saucer, and its demonstrations are data to train on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("unified_video_action.demos.sim_arm.world", reason="needs `make sims`", exc_type=ImportError)

from tests.loading import load_script
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.demos.sim_arm import expert
from unified_video_action.demos.sim_arm.expert import Collector, Course, cup_onto_saucer, random_table
from unified_video_action.demos.sim_arm.world import GRIPPER
from unified_video_action.poses import distance, pose_matrix
from unified_video_action.real.robots.archive import Recording

ARRAYS = ["robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width"]


OPTIONS = ["--task", "sim_arm", "--size", "64", "--rate", "10", "--workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations") / "sim_arm"
    load_script("collect_demos").main([*OPTIONS, "-n", "2", "--output", str(folder), "--seed", "3"])
    return folder


def test_the_expert_succeeds_only_if_the_cup_is_on_the_saucer(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector().measuring()
    for seed in range(3):
        attempt = collector(seed)
        assert attempt.success and attempt.episode is None
        assert 2 < attempt.measures["lag_mm"] < 20 and 6 < attempt.measures["seconds"] < 11

    def without_grip(*args) -> Course:
        way = cup_onto_saucer(*args).waypoints
        return Course(dataclasses.replace(way, grippers=np.full(len(way.times), GRIPPER)))

    monkeypatch.setattr(expert, "cup_onto_saucer", without_grip)
    assert not collector(0).success


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
    name, archive = Collector(seed=2, size=64, rate=10.0)(1).episode
    (tmp_path / name).write_bytes(archive)
    one, other = Recording.open(folder / "00003.zarr.zip"), Recording.open(tmp_path / "00003.zarr.zip")
    assert (one.arrays["state_pose"] == other.arrays["state_pose"]).all()
    assert (one.frames[0][...] == other.frames[0][...]).all()
    another = Recording.open(folder / "00004.zarr.zip")
    assert (another.arrays["state_pose"][0] != one.arrays["state_pose"][0]).any()


def test_a_course_is_gentle_and_ends_where_it_should() -> None:
    start = pose_matrix(np.array([0.35, 0, 0.2]), np.eye(3))
    course = cup_onto_saucer(random_table(np.random.default_rng(0)), start, np.random.default_rng(1))
    times = np.arange(0, course.seconds + 0.02, 0.01)
    positions = np.array([course.at(time)[0][:3, 3] for time in times])
    speeds = np.linalg.norm(np.diff(positions, axis=0), axis=1) / 0.01
    assert speeds.max() < 0.6 and np.abs(np.diff(speeds)).max() / 0.01 < 4
    assert distance(course.at(-1.0)[0], start)[0] == 0
    way = course.waypoints
    for time, pose, gripper in zip(way.times, way.poses, way.grippers):
        assert max(distance(course.at(time - 1e-9)[0], pose)) < 1e-6 and course.at(time)[1] == pytest.approx(gripper)


def test_mistakes_end_with_a_message(folder: Path, capsys) -> None:
    for arguments, message in (
        (["-n", "1", "--output", str(folder)], "exists already"),
        (["-n", "1", "--output", str(folder / "new"), "--cameras", "ceiling"], "cameras=('ceiling',)"),
    ):
        with pytest.raises(SystemExit):
            load_script("collect_demos").main([*OPTIONS, *arguments])
        assert message in capsys.readouterr().err
