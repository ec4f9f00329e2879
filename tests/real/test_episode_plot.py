"""Video, grid and plot of a recorded episode show what is in it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.loading import load_script
from unified_video_action.dataset.formats.umi import archives
from unified_video_action.poses import pose_matrix
from unified_video_action.real.robots.archive import Recording
from unified_video_action.real.robots.episode_plot import CLIP, COMMANDED, MEASURED, STOP, plot_poses, video_frames
from unified_video_action.real.robots.interface import ArmCommand, ArmState, Frame
from unified_video_action.real.robots.recorder import EpisodeRecorder

BEGAN = 50.0


def record(recorder: EpisodeRecorder, frames: bool = True) -> None:
    for tick in range(300):
        now = BEGAN + tick / 100
        commanded, measured = (
            pose_matrix(np.array([0.3, 0.1 * np.sin(2 * (time - BEGAN)), 0.2]), np.eye(3)) for time in (now, now - 0.1)
        )
        recorder.state(ArmState(now, measured, 0.05, np.zeros(6), np.zeros(6)))
        recorder.command(ArmCommand(now, commanded, 0.04), now)
        if frames and tick % 10 == 0:
            recorder.frame(0, Frame(now, np.full((40, 60, 3), [tick * 255 // 300, 0, 128], np.uint8)))
    recorder.event(BEGAN + 1.0, "clip", "table: 0.01 m too low")
    recorder.plan(BEGAN + 0.2, BEGAN + 0.4, np.zeros((16, 10)))
    recorder.event(BEGAN + 2.5, "stop", "no plan in time")


def test_an_episode_is_drawn_also_after_a_crash(tmp_path: Path) -> None:
    path, look, script = tmp_path / "one.zarr.zip", tmp_path / "look", load_script("plot_episode")
    with EpisodeRecorder(path, rate=10, attributes={"instruction": "cup $on saucer"}) as recorder:
        record(recorder)
    script.main([str(path), "--output", str(look)])
    assert sorted(each.name for each in look.iterdir()) == ["one.grid.png", "one.mp4", "one.plot.png"]
    recording = Recording.open(path)
    panels = {panel.get_title("left"): panel for panel in plot_poses(recording).axes}
    lines = {line.get_color(): line.get_xydata() for line in panels["y, metres"].lines}
    times = np.linspace(0.2, 2.8, 50)
    commanded, measured = (np.interp(times, *lines[colour].T) for colour in (COMMANDED, MEASURED))
    np.testing.assert_allclose(commanded, 0.1 * np.sin(2 * times), atol=1e-4)
    np.testing.assert_allclose(measured, 0.1 * np.sin(2 * (times - 0.1)), atol=1e-4)
    assert lines[STOP][0, 0] == pytest.approx(2.5) and lines[CLIP][0, 0] == pytest.approx(1.0)
    np.testing.assert_allclose(panels["plans come after, ms"].lines[0].get_xydata(), [[0.4, 200]])
    frames = list(video_frames(recording, height=80))
    assert len(frames) == 30 and frames[15][40, 60, 0] == pytest.approx(150 * 255 / 300, abs=3)

    recorder = EpisodeRecorder(tmp_path / "blind.zarr.zip")
    recorder.__enter__()
    record(recorder, frames=False)
    recorder._ending.set()  # as after a crash: what was written is there, no archive is
    recorder._thread.join()
    recorder._lock.close()
    (tmp_path / "again.zarr.zip.no_rows").touch()  # as after a crash before its recording was removed
    shutil.copytree(recorder.folder, tmp_path / "again.recording")
    script.main(["--recover", str(tmp_path)])
    assert [file.name for file in script.look(tmp_path / "blind.zarr.zip.no_rows", look)] == ["blind.plot.png"]
    assert archives(str(tmp_path)) == [str(path)]
    (tmp_path / "wrong.zarr.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="no recorded episode"):
        Recording.open(tmp_path / "wrong.zarr.zip")
