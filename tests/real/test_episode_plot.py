"""Film, sheet and plot of a recorded episode show what is in it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from PIL import Image

from tests.loading import load_script
from unified_video_action.poses import pose_matrix
from unified_video_action.real import episode_plot
from unified_video_action.real.robots.episode_plot import Recording, draw_plot, draw_sheet, film_frames
from unified_video_action.real.robots.interface import ArmCommand, ArmState, Frame
from unified_video_action.real.robots.recorder import EpisodeRecorder

BEGAN, SECONDS = 50.0, 3.0


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("plot_episode")


def record(recorder: EpisodeRecorder, frames: bool = True) -> None:
    for tick in range(round(100 * SECONDS)):
        now = BEGAN + tick / 100
        told, reached = (
            pose_matrix(np.array([0.3, 0.1 * np.sin(2 * (time - BEGAN)), 0.2]), np.eye(3)) for time in (now, now - 0.1)
        )
        recorder.state(ArmState(now, reached, 0.05, np.zeros(6), np.zeros(6)))
        recorder.command(ArmCommand(now, told, 0.04), now)
        if frames and tick % 5 == 0:
            recorder.frame(0, Frame(now, np.full((40, 60, 3), [tick * 255 // 300, 0, 128], np.uint8)))
        if 100 < tick < 120:
            recorder.event(now, "clip", "table: 0.01 m too low")
    recorder.plan(BEGAN + 0.2, BEGAN + 0.4, np.zeros((16, 10)))
    recorder.event(BEGAN + 2.5, "stop", "no plan in time")


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("episode") / "one.zarr.zip"
    with EpisodeRecorder(path, rate=20, attributes={"instruction": "cup on saucer"}) as recorder:
        record(recorder)
    return path


def near(image: np.ndarray, colour: str, within: int = 12) -> np.ndarray:
    """(H, W): which pixels have a colour such as #d3322f."""
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return (np.abs(image.astype(int) - wanted) <= within).all(-1)


def test_the_plot_shows_curves_stops_and_clips(episode: Path) -> None:
    recording = Recording.open(episode)
    assert recording.seconds == pytest.approx(2.99) and recording.instruction == "cup on saucer"
    image = np.asarray(draw_plot(recording))
    left, right = episode_plot.LEFT, episode_plot.PANEL[0] - 8
    panel = image[64 + episode_plot.PANEL[1] : 64 + 2 * episode_plot.PANEL[1], : episode_plot.PANEL[0]]  # y over time

    told, reached = (np.argwhere(near(panel, colour, 40)) for colour in (episode_plot.TOLD, episode_plot.REACHED))
    crossing = (panel.shape[0] - episode_plot.BOTTOM + 22) / 2
    top_told, top_reached = (points[points[:, 0] < crossing][:, 1].mean() for points in (told, reached))
    late = (top_reached - top_told) / (right - left) * recording.seconds
    assert late == pytest.approx(0.1, abs=0.04), "what was reached lies 0.1 s to the right of what was told"

    stop = np.argwhere(near(panel, episode_plot.STOP))[:, 1]
    assert np.median(stop) == pytest.approx(left + (right - left) * 2.5 / recording.seconds, abs=3)
    floor = panel.shape[0] - episode_plot.BOTTOM
    clips = np.argwhere(near(panel[floor - 6 : floor - 1], episode_plot.CLIP, 60))[:, 1]
    assert clips.min() == pytest.approx(left + (right - left) * 1.01 / recording.seconds, abs=8)
    assert clips.max() == pytest.approx(left + (right - left) * 1.19 / recording.seconds, abs=8)
    assert near(image[-40:], episode_plot.STOP, 40).any(), "the stop is named at the bottom"


def test_the_sheet_shows_frames_in_their_order(episode: Path) -> None:
    sheet = np.asarray(draw_sheet(Recording.open(episode), columns=4, rows=2))
    reds = [sheet[100 + row * 248, 100 + column * 340, 0] for row in range(2) for column in range(4)]
    assert reds[0] < 10 and reds[-1] > 240 and (np.diff(np.array(reds, int)) > 20).all()


def test_the_film_shows_every_row(episode: Path) -> None:
    recording = Recording.open(episode)
    frames = list(film_frames(recording, height=80))
    assert len(frames) == len(recording.row_time) == 60
    assert {frame.shape for frame in frames} == {(138, 120, 3)}
    assert frames[30][40, 60, 0] == pytest.approx(150 * 255 / 300, abs=3)
    done = [near(frame[-12:], episode_plot.TOLD, 60).any(0).sum() for frame in frames]
    assert done[5] < done[25] < done[45] < done[59] and done[59] > 100, "the bar at the bottom goes on"
    assert not near(frames[40][80:], episode_plot.STOP).all(1).any()


def test_the_script_draws_all_and_finishes_what_a_crash_left(
    episode: Path, script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script.main([str(episode), "--output", str(tmp_path / "look")])
    names = sorted(path.name for path in (tmp_path / "look").iterdir())
    assert names == ["one.mp4", "one.plot.png", "one.sheet.png"]
    assert Image.open(tmp_path / "look" / "one.plot.png").size[0] > 1000
    with av.open(str(tmp_path / "look" / "one.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 60

    recorder = EpisodeRecorder(tmp_path / "two.zarr.zip", rate=20)
    recorder.__enter__()
    record(recorder)
    recorder._ending.set()  # as after a crash: what was written is there, no archive is
    recorder._thread.join()
    recorder._lock.close()
    script.main(["--recover", str(tmp_path)])
    assert len(Recording.open(tmp_path / "two.zarr.zip").row_time) == 60
    with pytest.raises(SystemExit):
        script.main(["--recover", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main([])


def test_an_episode_without_frames_still_has_a_plot(script: ModuleType, tmp_path: Path) -> None:
    with EpisodeRecorder(tmp_path / "blind.zarr.zip") as recorder:
        record(recorder, frames=False)
    files = script.look(tmp_path / "blind.no_rows.zip", tmp_path)
    assert [file.name for file in files] == ["blind.plot.png"]
    with pytest.raises(ValueError, match="no frames"):
        draw_sheet(Recording.open(tmp_path / "blind.no_rows.zip"))


def test_an_empty_episode_still_has_a_plot(script: ModuleType, tmp_path: Path) -> None:
    with EpisodeRecorder(tmp_path / "none.zarr.zip") as recorder:
        recorder.event(BEGAN, "stop", "no arm")
    assert script.look(tmp_path / "none.no_rows.zip", tmp_path)[0].exists()


def test_what_is_no_episode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recording.open(tmp_path / "nothing.zarr.zip")
    (tmp_path / "wrong.zarr.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="no recorded episode"):
        Recording.open(tmp_path / "wrong.zarr.zip")
