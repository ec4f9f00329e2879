"""OpenCV's cameras, played from files; and the measurement of their latency on made frames."""

import shutil
import time
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from tests.loading import load_script
from tests.real.fakes import until
from unified_video_action.real.robots import camera as module
from unified_video_action.real.robots.camera import VideoCamera
from unified_video_action.real.robots.interface import RobotError

WIDE = (72, 128)  # height, width
FPS = 30


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds; the left, middle and right of each frame are red, green and blue, and it grows brighter."""
    path = tmp_path_factory.mktemp("video") / "wide.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, WIDE[::-1])
    for number in range(60):
        frame = np.zeros((*WIDE, 3), np.uint8)
        shade = 100 + 2 * number
        frame[:, :28, 2], frame[:, 28:100, 1], frame[:, 100:, 0] = shade, shade, shade
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_FRAME", 60.0)  # this computer may be busy


def test_frames_are_the_square_middle_in_rgb_masked_and_the_newest(video: Path) -> None:
    with VideoCamera(str(video), latency=0.05, size=(36, 36)) as camera:
        first = camera.latest()
        assert first.image.shape == (36, 36, 3) and first.image.dtype == np.uint8
        assert first.image[..., 1].min() > 80 and first.image[..., [0, 2]].max() < 60, "only the green middle"
        assert first.time <= time.monotonic() - 0.05
        until(lambda: abs(camera.latest().image[..., 1].mean() - first.image[..., 1].mean()) > 20)
    with VideoCamera(str(video), size=WIDE) as camera:
        image = camera.latest().image
    assert image[36, 10, 0] > 80 and image[36, 10, 2] < 60 and image[36, 120, 2] > 80 and image[36, 120, 0] < 60
    left_half = [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]
    with VideoCamera(str(video), size=(36, 36), mask=left_half) as camera:  # as recordings were
        image = camera.latest().image
    assert image[:, :16].max() == 0 and image[:, 20:, 1].min() > 80
    with pytest.raises(ValueError, match="camera 0: .*size="):
        VideoCamera(0, size=(0, 5))


def test_a_camera_that_is_lost_is_opened_again(video: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(module, "RETRY", 0.1)
    path = tmp_path / "plugged.avi"
    shutil.copy(video, path)
    with VideoCamera(str(path)) as camera:
        path.unlink()  # it ends after two seconds, and cannot be opened any more
        until(lambda: caplog.text.count("cannot be opened") >= 2)
        last = camera.latest()
        assert "no frame comes any more" in caplog.text
        assert camera.latest() is last, "its last frame grows old"
        shutil.copy(video, path)
        until(lambda: camera.latest().time > last.time)


def test_what_the_camera_does_not_give_is_said(video: Path) -> None:
    for asked in ({"capture": (720, 1280)}, {"fps": 60}, {"fourcc": "YUYV"}):
        with pytest.raises(RobotError, match=f"{next(iter(asked))}=.* was asked for, it gives"):
            VideoCamera(str(video), **asked).connect()
    with VideoCamera(str(video), capture=WIDE, fps=FPS, fourcc="MJPG") as camera:
        assert camera.latest() is not None


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("measure_camera_latency")


def flashing(latency: float, exposure: float, fps: float, noise: float = 3.0) -> tuple[list, np.ndarray, np.ndarray]:
    """What a camera of a latency sees of a window: changes, times of receipt, frames with a bright border."""
    rng = np.random.default_rng(0)
    changes = (10 + np.cumsum(rng.uniform(0.12, 0.45, 60))).tolist()
    times = np.arange(10, changes[-1], 1 / fps) + rng.uniform(0, 0.002)
    frames = np.zeros((len(times), 16, 16, 3))
    for index, received in enumerate(times):
        light = np.linspace(received - latency - exposure / 2, received - latency + exposure / 2, 50)
        bright = (np.searchsorted(changes, light, side="right") % 2).mean()
        frames[index] = 200
        frames[index, 4:-4, 4:-4] = 20 + 180 * bright
    frames += rng.normal(0, noise, frames.shape)
    return changes, times, np.clip(frames, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("latency, exposure, fps", [(0.125, 0.01, 60), (0.31, 0.002, 30), (0.2, 0.03, 20)])
def test_the_latency_is_found(script: ModuleType, latency: float, exposure: float, fps: float) -> None:
    changes, times, frames = flashing(latency, exposure, fps)
    found = script.measure(changes, times, np.array([script.brightness(frame) for frame in frames]))
    assert found.latency == pytest.approx(latency, abs=0.006) and found.agreement > 0.9
    with pytest.raises(ValueError, match="fill its view"):  # a camera that sees something else
        script.measure(changes, times, np.random.default_rng(1).uniform(0, 255, len(times)))
