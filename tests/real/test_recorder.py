"""What was recorded is what was given, in training's layout; nothing waits for it, and a crash loses little."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from time import sleep

import msgpack
import numpy as np
import pytest
import zarr
from scipy.spatial.transform import Rotation
from zarr.storage import ZipStore

from unified_video_action.dataset.formats.pictures import JpegCodec, register_pictures
from unified_video_action.dataset.formats.umi import UmiStore
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.poses import distance, from_vector, pose_matrix
from unified_video_action.real.robots import recorder as module
from unified_video_action.real.robots.archive import RECORDS, finish_recording
from unified_video_action.real.robots.interface import ArmCommand, ArmState, Frame
from unified_video_action.real.robots.recorder import EpisodeRecorder

SIZE = (24, 32)
BEGAN = 100.0


def pose_at(time: float) -> np.ndarray:
    """Where the end effector is at a time: it moves and turns evenly."""
    turn = Rotation.from_rotvec([0.3 * (time - BEGAN), 2.8, 0.1]).as_matrix()
    return pose_matrix(np.array([0.3 + 0.1 * (time - BEGAN), 0.02, 0.2]), turn)


def state_at(time: float) -> ArmState:
    return ArmState(time, pose_at(time), 0.08 - 0.01 * (time - BEGAN), np.full(6, time), np.full(6, -time))


def picture(number: int) -> np.ndarray:
    """Its brightness is its number."""
    return np.full((*SIZE, 3), number % 256, np.uint8)


def record(recorder: EpisodeRecorder, seconds: float, skip: tuple[float, float] = (0.0, 0.0)) -> None:
    """States at 100 Hz, frames at 20 Hz between them, none taken within `skip`."""
    for tick in range(round(100 * seconds) + 1):
        now = BEGAN + tick / 100
        recorder.state(state_at(now))
        recorder.command(ArmCommand(now + 0.01, pose_at(now + 0.01), 0.05), sent=now)
        if tick % 5 == 2 and not skip[0] < now - BEGAN < skip[1]:
            recorder.frame(0, Frame(now + 0.003, picture(tick)))
            recorder.frame(0, Frame(now + 0.003, picture(tick)))  # seen again by the loop


def opened(path: Path) -> zarr.Group:
    register_pictures()
    return zarr.open_group(ZipStore(path, mode="r"), mode="r")


@pytest.mark.parametrize("codec", ["jpeg", "jpegxl"])
def test_what_was_recorded_is_what_was_given(tmp_path: Path, codec: str) -> None:
    plan = np.arange(12.0).reshape(4, 3)
    path, about = tmp_path / "one.zarr.zip", {"instruction": "cup"}
    with EpisodeRecorder(path, rate=20, codec=codec, attributes=about) as recorder:
        record(recorder, 2.0)
        recorder.plan(BEGAN + 0.5, BEGAN + 0.7, plan)
        recorder.plan(BEGAN + 1.0, BEGAN + 1.3, 2 * plan)
        recorder.event(BEGAN + 1.0, "clip", "table")
        recorder.event(BEGAN + 2.0, "stop", "Ctrl-C")
    assert os.listdir(tmp_path) == ["one.zarr.zip"] and recorder.lost == {}
    root = opened(path)
    data = {name: array[...] for name, array in root["data"].arrays()}
    rows = len(data["robot0_eef_pos"])
    assert rows == 40 and root["meta/episode_ends"][...].tolist() == [rows]
    shapes = {name: (values.shape[1:], values.dtype.name) for name, values in data.items()}
    assert shapes == {
        "camera0_rgb": ((*SIZE, 3), "uint8"),
        "robot0_eef_pos": ((3,), "float32"),
        "robot0_eef_rot_axis_angle": ((3,), "float32"),
        "robot0_gripper_width": ((1,), "float32"),
        "robot0_demo_start_pose": ((6,), "float64"),
        "robot0_demo_end_pose": ((6,), "float64"),
    }
    assert root["data/camera0_rgb"].chunks == (1, *SIZE, 3)
    assert root["data/camera0_rgb"].metadata.zarr_format == 2
    times = root["recording/row_time"][...]
    assert times == pytest.approx(BEGAN + 0.023 + 0.05 * np.arange(rows))
    vectors = np.concatenate([data["robot0_eef_pos"], data["robot0_eef_rot_axis_angle"]], axis=1)
    for row in (0, 7, rows - 1):  # the end effector when the frame was taken, between two states
        apart = distance(from_vector(vectors[row]), pose_at(times[row]))
        assert max(apart) < 1e-5
        assert data["robot0_gripper_width"][row, 0] == pytest.approx(0.08 - 0.01 * (times[row] - BEGAN), abs=1e-6)
        assert np.abs(data["camera0_rgb"][row].astype(int) - (2 + 5 * row)).max() <= 1
    assert data["robot0_demo_start_pose"] == pytest.approx(np.repeat(vectors[:1], rows, 0), abs=1e-6)
    assert data["robot0_demo_end_pose"] == pytest.approx(np.repeat(vectors[-1:], rows, 0), abs=1e-6)

    kept = {name: array[...] for name, array in root["recording"].arrays()}
    assert (kept["state_time"] == BEGAN + np.arange(201) / 100).all()
    assert (kept["state_pose"][57] == pose_at(kept["state_time"][57])).all()
    assert (kept["state_joints"][57] == kept["state_time"][57]).all()
    assert (kept["state_joint_velocities"][57] == -kept["state_time"][57]).all()
    assert (kept["command_pose"][3] == pose_at(kept["command_time"][3])).all()
    assert kept["command_time"] - kept["command_sent"] == pytest.approx(0.01)
    assert (kept["plan_actions"] == [plan, 2 * plan]).all()
    assert kept["plan_received"] - kept["plan_observed"] == pytest.approx([0.2, 0.3])
    events = root["recording"].attrs["events"]
    assert [(event["kind"], event["text"]) for event in events] == [("clip", "table"), ("stop", "Ctrl-C")]
    assert root.attrs["instruction"] == "cup"
    buffer = ReplayBuffer(path, ["camera0_rgb"], ["robot0_eef_pos"])
    assert buffer.episode_ends.tolist() == [40]
    assert np.abs(buffer.frames("camera0_rgb", np.array([3]))[0].astype(int) - 17).max() <= 1


def test_missing_frames_are_shown_again_and_two_cameras_meet_in_time(tmp_path: Path) -> None:
    with EpisodeRecorder(tmp_path / "two.zarr.zip", cameras=2, rate=20, patient=True) as recorder:
        record(recorder, 2.0, skip=(0.5, 1.0))
        for tick in range(120):
            recorder.frame(1, Frame(BEGAN + tick / 60, picture(tick)))
    root = opened(tmp_path / "two.zarr.zip")
    times, position = root["recording/row_time"][...], root["data/robot0_eef_pos"][...]
    assert len(times) == 40, "rows are even in time"
    assert len(np.unique(times)) == 30
    assert position[:, 0] == pytest.approx(0.3 + 0.1 * (times - BEGAN), abs=1e-5)
    other = root["data/camera1_rgb"][:, 0, 0, 0].astype(float)
    assert np.abs(other / 60 - (times - BEGAN)).max() < 0.5 / 60 + 1 / 60


def test_only_motions_are_trained_on_and_each_is_an_episode(tmp_path: Path) -> None:
    path, idle = tmp_path / "two.zarr.zip", tmp_path / "idle.zarr.zip"
    with EpisodeRecorder(path, rate=20, patient=True, only_motions=True) as recorder:
        kinds = {0.5: "start", 0.8: "clip", 1.5: "stop", 1.7: "stop", 1.8: "release", 2.5: "start"}
        for seconds, kind in kinds.items():
            recorder.event(BEGAN + seconds, kind, "")
        record(recorder, 4.0)
    times, ends = opened(path)["recording/row_time"][...] - BEGAN, opened(path)["meta/episode_ends"][...]
    assert ends.tolist() == [20, 50]
    for part, (began, ended) in zip(np.split(times, ends[:1]), ((0.5, 1.5), (2.5, 4.0))):
        assert began <= part[0] < began + 0.06 and ended - 0.06 < part[-1] <= ended
    assert opened(path)["recording/state_time"].shape == (401,)
    store = UmiStore(path, ["camera0_rgb"])
    starts = store.vectors["robot0_demo_start_pose"][:, 0]
    assert starts == pytest.approx(np.repeat(0.3 + 0.1 * times[[0, 20]], [20, 30]), abs=1e-6)
    (first,) = store.frames("camera0_rgb", ends[:1])  # of the second motion
    assert np.abs(first.astype(int) - 252).max() <= 1
    with EpisodeRecorder(idle, patient=True, only_motions=True) as recorder:
        record(recorder, 1.0)  # nobody started
    assert [each.name for each in tmp_path.glob("idle*")] == ["idle.zarr.zip.no_rows"]


def test_states_that_are_no_numbers_and_odd_chunks_are_kept_from_training_and_an_error_is_recorded(tmp_path) -> None:
    recorder = EpisodeRecorder(tmp_path / "nan.zarr.zip", rate=20)
    with pytest.raises(RuntimeError, match="policy"), recorder:
        record(recorder, 1.0)
        broken = state_at(BEGAN + 0.505)
        broken.pose[:3, 3] = np.nan
        recorder.state(broken)
        recorder.plan(BEGAN, BEGAN, np.full((4, 3), np.nan))
        recorder.plan(BEGAN, BEGAN, np.zeros((2, 3)))
        raise RuntimeError("the policy failed")
    root = opened(tmp_path / "nan.zarr.zip")
    assert np.isnan(root["recording/state_pose"][...]).any()
    assert np.isfinite(root["data/robot0_eef_pos"][...]).all()
    assert root["recording/plan_actions"].shape == (1, 4, 3)
    (event,) = [each for each in root["recording"].attrs["events"] if each["kind"] == "error"]
    assert "the policy failed" in event["text"]


def test_it_never_waits_and_counts_what_it_loses(tmp_path: Path, monkeypatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(JpegCodec, "encode", lambda self, buf: release.wait() and b"x")
    with EpisodeRecorder(tmp_path / "slow.zarr.zip") as recorder:
        for tick in range(module.FRAMES_WAITING + 50):
            recorder.frame(0, Frame(BEGAN + tick, picture(0)))
        release.set()
    lost = recorder.lost["frames"]
    assert 50 >= lost >= 50 - module.FRAMES_AT_ONCE  # as many as did not fit, less those that the writer had taken
    path = next(tmp_path.iterdir())
    assert json.loads(opened(path)["recording"].attrs["events"][0]["text"]) == {"frames": lost}


def test_a_full_disk_stops_the_recording_but_not_the_loop(tmp_path: Path, monkeypatch, caplog) -> None:
    def full(self, *args) -> None:
        raise OSError("no space left on device")

    with EpisodeRecorder(tmp_path / "full.zarr.zip") as recorder:
        recorder.state(state_at(BEGAN))
        monkeypatch.setattr(JpegCodec, "encode", full)
        record(recorder, 0.5)
    assert "nothing is recorded any more: no space left" in caplog.text and not recorder.output.exists()


def test_nothing_is_recorded_over(tmp_path: Path) -> None:
    (tmp_path / "one.zarr.zip").touch()
    with pytest.raises(FileExistsError, match="never recorded over"):
        EpisodeRecorder(tmp_path / "one.zarr.zip")


def test_a_robots_process_needs_neither_torch_nor_a_simulator() -> None:
    names = ("robots.recorder", "robots.episode_plot", "robots.arx5", "control.running", "serving.server")
    imports = ", ".join(f"unified_video_action.real.{name}" for name in names)
    code = f"import sys, {imports}; assert not {{'torch', 'mujoco', 'arx5_interface'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def crash(path: Path) -> None:
    recorder = EpisodeRecorder(path, rate=20)
    recorder.__enter__()
    record(recorder, 2.0)
    recorder.event(BEGAN, "clip", "table")
    sleep(600)


def test_a_crash_loses_at_most_the_last_second(tmp_path: Path) -> None:
    folder = tmp_path / "crashed.recording"
    written = folder / RECORDS
    process = multiprocessing.get_context("fork").Process(target=crash, args=(tmp_path / "crashed.zarr.zip",))
    process.start()
    try:
        while not written.exists() or b"clip" not in written.read_bytes() or written.read_bytes().count(b"frame") < 40:
            assert process.is_alive()
            sleep(0.05)
        with pytest.raises(ValueError, match="being recorded now"):
            finish_recording(folder)
    finally:
        process.kill()
        process.join()
    whole = msgpack.packb(["frame", 0, BEGAN + 3, SIZE, b"half of a frame"])
    with open(folder / RECORDS, "ab") as file:  # a record whose writing was interrupted
        file.write(whole[:-5])
    path = finish_recording(folder)
    assert path == tmp_path / "crashed.zarr.zip" and os.listdir(tmp_path) == [path.name]
    archive = opened(path)
    assert archive["data/camera0_rgb"].shape[0] == 40 and archive["recording/state_time"].shape == (201,)
    assert np.abs(archive["data/camera0_rgb"][39].astype(int) - (2 + 5 * 39)).max() <= 1
    assert [event["kind"] for event in archive["recording"].attrs["events"]] == ["clip"]
