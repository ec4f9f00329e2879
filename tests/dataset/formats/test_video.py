"""Video files: every frame by its time, folders of them, and files that are not as they should be."""

import json
import os
import pickle
from pathlib import Path

import av
import numpy as np
import pytest

from tests.dataset.recordings import numbered_frames, psnr, read_numbers, write_video
from unified_video_action.dataset.formats import video_folder
from unified_video_action.dataset.formats.video_folder import VideoFiles, VideoFolderSource, read_header
from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.store import StoreError

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


def encode(path: Path, frames: np.ndarray, times=None, **options) -> None:
    """Write frames at `times`, in tenths of a second, to be shown turned if `rotation` says so."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if "rotation" in options:
            stream.set_display_rotation(options["rotation"])
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1", "mpeg4"])
def test_every_frame_is_the_one_that_was_encoded(tmp_path, codec):
    path = tmp_path / "a.mp4"
    write_video(path, FRAMES, codec=codec)
    through = read(VideoFiles(), path, range(60))
    assert psnr(through, FRAMES) > 28 and np.array_equal(read_numbers(through), np.arange(60))
    assert read_header(path).frames == 60 and read_header(path).size == (48, 64) and read_header(path).rate == 10
    files = VideoFiles()
    np.testing.assert_allclose(files.times(path), np.arange(60) / 10, atol=1e-6)
    for numbers in (np.random.default_rng(0).permutation(60), [59], [0], [7, 7, 3, 59, 3], range(30, 60, 4)):
        assert np.array_equal(read(files, path, list(numbers)), through[list(numbers)])


def test_broken_files_and_times_without_a_frame_are_named(tmp_path, video):
    with pytest.raises(StoreError, match=r"a.mp4: no frame at 1.0500 s, the next one is at 1.1000 s"):
        read(VideoFiles(), video, [10.5])
    with pytest.raises(StoreError, match=r"a.mp4: ends before 6.000 s"):
        read(VideoFiles(), video, [60])
    with pytest.raises(StoreError, match="frames of 48 x 64, expected 48 x 48"):
        VideoFiles().read(video, np.zeros(1), 0.01, np.empty((1, 48, 48, 3), np.uint8))
    cut, turned = tmp_path / "cut.mp4", tmp_path / "turned.mp4"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])  # whose index was at the end
    for action in (read_header, VideoFiles().times, lambda path: read(VideoFiles(), path, [0])):
        with pytest.raises(StoreError, match=r"cut.mp4: not a readable video .*truncated"):
            action(cut)
    encode(turned, FRAMES[:3], rotation=90)
    with pytest.raises(StoreError, match="turned by .*90"):
        read(VideoFiles(), turned, [0])
    first = tmp_path / "first.mp4"  # an index at the beginning, and too few frames
    with av.open(str(video)) as old, av.open(str(first), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    first.write_bytes(first.read_bytes()[: first.stat().st_size * 2 // 3])
    assert read_header(first).frames == 60
    for action in (VideoFiles().times, lambda path: read(VideoFiles(), path, [58])):
        with pytest.raises(StoreError, match=r"first.mp4: .*(truncated|fetch it again)"):
            action(first)


def test_fit_crops_about_the_centre_or_stretches():
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, 20:60] = 200  # what a square crop keeps
    assert Fit.parse(20, True, "x")(frame).shape == (20, 20, 3) and (Fit.parse(20, True, "x")(frame) == 200).all()
    stretched = Fit.parse([20, 30], False, "x")(frame)
    assert stretched.shape == (20, 30, 3) and 0.4 < (stretched == 200).mean() < 0.6
    assert Fit.parse(None, True, "x")(frame) is frame and Fit.parse(None, True, "x").shape((40, 80)) == (40, 80)
    for wrong in (0, [20], "96", True):
        with pytest.raises(ValueError, match="x: image_size="):
            Fit.parse(wrong, True, "x")


# -- folders -----------------------------------------------------------------------------------------------------------

WANTED = Wanted(cameras=("image",), low_dim=(), action_dim=2)
CLIPS = {"a.mp4": numbered_frames(range(20)), "b.mp4": numbered_frames(range(100, 131)),
         "c.mp4": numbered_frames(range(200, 224))}  # fmt: skip
SHOWN = np.concatenate([np.arange(20), np.arange(100, 131), np.arange(200, 224)])


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, frames in CLIPS.items():
        write_video(tmp_path / "videos" / name, frames)
    (tmp_path / "videos" / "notes.txt").write_text("not a video")
    return tmp_path / "videos"


def open_table(folder: Path, **options):
    (table,) = VideoFolderSource(str(folder), **options).tables(WANTED)
    return table


def test_every_file_is_an_episode_without_actions(folder, monkeypatch):
    with monkeypatch.context() as patch:  # opening reads headers only
        patch.setattr(video_folder, "_frame_times", lambda path: pytest.fail(f"reads {path}"))
        patch.setattr(video_folder, "_Decoder", lambda path: pytest.fail(f"decodes {path}"))
        table = open_table(folder, instruction="pour the tea")
    store = table.store
    assert store.episode_ends.tolist() == [20, 51, 75] and table.action is None and table.low_dim == {}
    frames = table.stored_frames("image", np.arange(75))  # (75, 3, H, W)
    assert np.array_equal(read_numbers(np.moveaxis(frames, 1, -1)), SHOWN)
    assert table.instructions == ("pour the tea",) * 3
    some = np.array([[60, 3], [21, 74]])
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert np.array_equal(copy.frames("image", some)[..., 0], frames[some][:, :, 0])
    before = store.fingerprint()
    write_video(folder / "c.mp4", CLIPS["c.mp4"][::-1])
    assert open_table(folder).store.fingerprint() != before


def test_fewer_frames_by_stride_or_by_rate(folder):
    by_stride = open_table(folder, stride=4).store
    assert by_stride.episode_ends.tolist() == [5, 13, 19]
    assert read_numbers(by_stride.frames("image", np.arange(13))).tolist() == [*range(0, 20, 4), *range(100, 131, 4)]
    by_rate = open_table(folder, fps=4).store  # of 10
    assert by_rate.episode_ends.tolist() == [8, 21, 31]
    shown = read_numbers(by_rate.frames("image", np.arange(8)))
    assert np.abs(shown - np.arange(8) * 2.5).max() <= 0.5
    assert open_table(folder, fps=10).store.episode_ends.tolist() == [20, 51, 75]
    locations = {open_table(folder, **options).store.location for options in ({}, {"stride": 4}, {"fps": 4})}
    assert len(locations) == 3  # caches of their own
    encode(folder / "a.mp4", CLIPS["a.mp4"], [*range(10), *range(10, 50, 4)])  # a rate that changes
    assert read_numbers(open_table(folder).store.frames("image", np.arange(20))).tolist() == list(range(20))
    store = open_table(folder, fps=2).store
    with pytest.raises(StoreError, match=r"a.mp4: its frames do not follow each other at .* give stride"):
        store.frames("image", np.arange(store.episode_ends[0]))


def test_captions_and_what_is_wrong_are_named(folder, tmp_path):
    captions = folder / "captions.json"
    captions.write_text(json.dumps({"a.mp4": "one", "b.mp4": "two", "c.mp4": "three"}))
    assert open_table(folder, captions=True).instructions == ("one", "two", "three")
    captions.write_text(json.dumps({"a.mp4": "one", "b": "two", "c.mp4": 3}))
    for options, message in (
        ({"captions": True}, r"captions.json: has no text for b.mp4, c.mp4; expected \{"),
        ({"instruction": "a", "captions": True}, "are both set"),
        ({"stride": 0}, "stride=0"),
        ({"fps": 4, "stride": 2}, "goes without stride"),
        ({"fps": 25}, "a.mp4, b.mp4, c.mp4 have fewer than fps=25"),
        ({"camera": "top"}, r"\(camera=top\), but the task reads image"),
    ):
        with pytest.raises(ValueError, match=message):
            open_table(folder, **options)
    with pytest.raises(FileNotFoundError, match=r"holds no \*.mp4 but videos; give a folder that holds such files"):
        open_table(tmp_path)
    write_video(folder / "b.mp4", numbered_frames(range(9), (64, 64)))
    with pytest.raises(StoreError, match=r"b.mp4 differ in size from a.mp4 \(48 x 64\); set image_size"):
        open_table(folder)
    store = open_table(folder, image_size=32).store
    assert store.frame_shape("image") == (32, 32) and store.frames("image", np.array([0, 25])).shape == (2, 32, 32, 3)
    os.truncate(folder / "b.mp4", 500)
    with pytest.raises(StoreError, match=r"b.mp4: not a readable video"):
        open_table(folder)
