"""The scripted expert of the simulated arm: its demonstrations are data to train on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("unified_video_action.demos.sim_arm.world", reason="needs `make sims`", exc_type=ImportError)

from tests.loading import load_script
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.demos.sim_arm import expert
from unified_video_action.demos.sim_arm.expert import Collector, Course, cup_onto_saucer
from unified_video_action.demos.sim_arm.world import GRIPPER
from unified_video_action.real.robots.archive import Recording

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
