import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.dataset.recordings import numbered_frames, psnr, read_numbers, write_video
from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.dataset.video_frames import VideoFiles, read_header
from unified_video_action.dataset.zarr_store import StoreError

FRAMES = numbered_frames(range(60))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    write_video(path, FRAMES)
    return path


def read(files: VideoFiles, path: Path, numbers, tolerance: float = 0.02) -> np.ndarray:
    frames = np.empty((len(numbers), *FRAMES.shape[1:]), np.uint8)
    files.read(path, np.asarray(numbers) / 10, tolerance, frames)
    return frames


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1", "mpeg4"])
def test_every_frame_is_the_one_that_was_encoded(tmp_path, codec):
    path = tmp_path / "a.mp4"
    write_video(path, FRAMES, codec=codec)
    frames = read(VideoFiles(), path, range(60))
    assert psnr(frames, FRAMES) > 28 and np.array_equal(read_numbers(frames), np.arange(60))
    assert read_header(path).frames == 60 and read_header(path).size == (48, 64) and read_header(path).rate == 10
    np.testing.assert_allclose(VideoFiles().times(path), np.arange(60) / 10, atol=1e-6)


def test_any_order_gives_what_reading_through_gives(video):
    through = read(VideoFiles(), video, range(60))
    files = VideoFiles()
    for numbers in (np.random.default_rng(0).permutation(60), [59], [0], [7, 7, 3, 59, 3], range(30, 60, 4)):
        assert np.array_equal(read(files, video, list(numbers)), through[list(numbers)])


def test_reading_in_order_decodes_each_frame_once(video, monkeypatch):
    from unified_video_action.dataset import video_frames

    seeks = []
    seek = video_frames._Decoder._seek
    monkeypatch.setattr(video_frames._Decoder, "_seek", lambda self, time: (seeks.append(time), seek(self, time)))
    files = VideoFiles()
    for start in range(0, 60, 15):
        read(files, video, range(start, start + 15))
    assert len(seeks) == 1
    read(files, video, [2])  # back
    read(files, video, [50])  # far ahead: rather from the key frame before it
    assert len(seeks) == 3


def test_few_files_are_open_and_a_copy_opens_its_own(tmp_path, video):
    paths = [tmp_path / f"{number}.mp4" for number in range(9)]
    for path in paths:
        os.link(video, path)
    files = VideoFiles(most_open=3)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for path in [*paths, *paths]:
        assert read_numbers(read(files, path, [5])) == [5]
    assert len(files._decoders) == 3
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    copy = pickle.loads(pickle.dumps(files))  # noqa: S301
    assert not copy._decoders and read_numbers(read(copy, paths[0], [9])) == [9]


def test_times_that_no_frame_has_are_errors(video):
    with pytest.raises(StoreError, match=r"a.mp4: no frame at 1.0500 s, the next one is at 1.1000 s"):
        read(VideoFiles(), video, [10.5])
    with pytest.raises(StoreError, match=r"a.mp4: ends before 6.000 s"):
        read(VideoFiles(), video, [60])


def test_broken_files_are_named(tmp_path, video):
    with pytest.raises(FileNotFoundError, match="b.mp4"):
        read(VideoFiles(), tmp_path / "b.mp4", [0])
    cut = tmp_path / "cut.mp4"  # its index is at the end
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    for action in (read_header, VideoFiles().times, lambda path: read(VideoFiles(), path, [0])):
        with pytest.raises(StoreError, match=r"cut.mp4: not a readable video .*truncated"):
            action(cut)
    first = tmp_path / "first.mp4"  # an index at the beginning, and too few frames
    remux(video, first)
    first.write_bytes(first.read_bytes()[: first.stat().st_size * 2 // 3])
    assert read_header(first).frames == 60
    for action in (VideoFiles().times, lambda path: read(VideoFiles(), path, [58])):
        with pytest.raises(StoreError, match=r"first.mp4: .*(truncated|fetch it again)"):
            action(first)


def test_videos_that_are_to_be_turned_are_refused(tmp_path, video):
    import av

    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(90)
        for frame in FRAMES[:3]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    with pytest.raises(StoreError, match="turned by .*90"):
        read(VideoFiles(), path, [0])


def test_frames_of_another_size_than_expected_are_errors(video):
    with pytest.raises(StoreError, match="frames of 48 x 64, expected 48 x 48"):
        VideoFiles().read(video, np.zeros(1), 0.01, np.empty((1, 48, 48, 3), np.uint8))


def test_fit_crops_about_the_centre_or_stretches():
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, 20:60] = 200  # what a square crop keeps
    assert Fit.parse(20, True, "x")(frame).shape == (20, 20, 3) and (Fit.parse(20, True, "x")(frame) == 200).all()
    stretched = Fit.parse([20, 30], False, "x")(frame)
    assert stretched.shape == (20, 30, 3) and 0.4 < (stretched == 200).mean() < 0.6
    assert Fit.parse(None, True, "x")(frame) is frame and Fit.parse(None, True, "x").shape((40, 80)) == (40, 80)
    assert Fit.parse([160, 160], True, "x")(frame).shape == (160, 160, 3)
    for wrong in (0, -3, [20], [20, 0], "96", True):
        with pytest.raises(ValueError, match="x: image_size="):
            Fit.parse(wrong, True, "x")


def remux(source: Path, target: Path) -> None:
    """Copy a video, with the index first."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
