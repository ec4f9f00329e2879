import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.dataset.recordings import numbered_frames, psnr, read_numbers, write_video
from unified_video_action.dataset.mixture import MixtureDataset, Wanted
from unified_video_action.dataset.video_folder import VideoFolderSource
from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.spec import Horizon

WANTED = Wanted(cameras=("image",), low_dim=(), action_dim=2)
LENGTHS = {"a.mp4": 20, "b.mp4": 31, "c.mp4": 24}
FRAMES = {"a.mp4": numbered_frames(range(20)), "b.mp4": numbered_frames(range(100, 131)),
          "c.mp4": numbered_frames(range(200, 224))}  # fmt: skip
SHOWN = np.concatenate([np.arange(20), np.arange(100, 131), np.arange(200, 224)])


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, frames in FRAMES.items():
        write_video(tmp_path / "videos" / name, frames)
    (tmp_path / "videos" / "notes.txt").write_text("not a video")
    return tmp_path / "videos"


def open_table(folder: Path, **options):
    (table,) = VideoFolderSource(str(folder), **options).tables(WANTED)
    return table


def test_every_file_is_an_episode_without_actions(folder):
    table = open_table(folder, instruction="pour the tea")
    store = table.store
    assert store.episode_ends.tolist() == [20, 51, 75] and table.action is None and table.low_dim == {}
    frames = table.stored_frames("image", np.arange(75))  # (75, 3, H, W)
    assert np.array_equal(read_numbers(np.moveaxis(frames, 1, -1)), SHOWN)
    assert psnr(np.moveaxis(frames, 1, -1), np.concatenate(list(FRAMES.values()))) > 28
    assert table.instructions == ("pour the tea",) * 3
    some = np.array([[60, 3], [21, 74]])
    assert np.array_equal(pickle.loads(pickle.dumps(store)).frames("image", some)[..., 0], frames[some][:, :, 0])  # noqa: S301


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


def test_a_rate_that_changes_inside_a_file_cannot_be_sampled_by_time(folder):
    import av

    path = folder / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, picture in enumerate(FRAMES["a.mp4"]):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = number if number < 10 else 10 + 4 * (number - 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert read_numbers(open_table(folder).store.frames("image", np.arange(20))).tolist() == list(range(20))
    store = open_table(folder, fps=2).store
    with pytest.raises(StoreError, match=r"a.mp4: its frames do not follow each other at .* give stride"):
        store.frames("image", np.arange(store.episode_ends[0]))


def test_captions(folder):
    (folder / "captions.json").write_text(json.dumps({"a.mp4": "one", "b.mp4": "two", "c.mp4": "three"}))
    assert open_table(folder, captions=True).instructions == ("one", "two", "three")
    assert open_table(folder).instructions is None
    (folder / "captions.json").write_text(json.dumps({"a.mp4": "one", "b": "two", "c.mp4": 3}))
    with pytest.raises(StoreError, match=r"captions.json: has no text for b.mp4, c.mp4; expected \{"):
        open_table(folder, captions=True)
    (folder / "captions.json").write_text("<html>")
    with pytest.raises(StoreError, match="captions.json: is a web page, not a JSON file"):
        open_table(folder, captions=True)
    (folder / "captions.json").unlink()
    with pytest.raises(FileNotFoundError, match="captions.json"):
        open_table(folder, captions=True)


def test_files_of_other_sizes_are_named_or_resized(folder):
    write_video(folder / "b.mp4", numbered_frames(range(9), (64, 64)))
    with pytest.raises(StoreError, match=r"b.mp4 differ in size from a.mp4 \(48 x 64\); set image_size"):
        open_table(folder)
    store = open_table(folder, image_size=32).store
    assert store.frame_shape("image") == (32, 32) and store.frames("image", np.array([0, 25])).shape == (2, 32, 32, 3)


def test_the_fingerprint_follows_the_files(folder):
    before = open_table(folder).store.fingerprint()
    assert open_table(folder).store.fingerprint() == before
    write_video(folder / "c.mp4", FRAMES["c.mp4"][::-1])
    assert open_table(folder).store.fingerprint() != before


def test_opening_reads_headers_only(folder, monkeypatch):
    from unified_video_action.dataset import video_frames

    monkeypatch.setattr(video_frames, "_frame_times", lambda path: pytest.fail(f"reads {path}"))
    monkeypatch.setattr(video_frames, "_Decoder", lambda path: pytest.fail(f"decodes {path}"))
    assert len(open_table(folder).store) == 75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0"),
        ({"fps": 4, "stride": 2}, "goes without stride"),
        ({"fps": 25}, "a.mp4, b.mp4, c.mp4 have fewer than fps=25"),
        ({"instruction": "a", "captions": True}, "are both set"),
        ({"weight": -1}, "weight=-1"),
        ({"camera": "top"}, r"\(camera=top\) .* but the task reads image"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_bad_options_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        open_table(folder, **options)


def test_missing_and_broken_files_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="has no path"):
        VideoFolderSource(None)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_table(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no \*.mp4 but videos; give a folder that holds such files"):
        open_table(tmp_path)
    with pytest.raises(ValueError, match="but the task reads image, state"):
        VideoFolderSource(str(folder)).tables(Wanted(("image",), ("state",), 2))
    os.truncate(folder / "b.mp4", 500)
    with pytest.raises(StoreError, match=r"b.mp4: not a readable video"):
        open_table(folder)


def test_upper_case_is_read_and_hidden_files_are_not(folder, caplog):
    (folder / "b.mp4").rename(folder / "GX010089.MP4")
    (folder / "._a.mp4").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (folder / "d.mkv").write_bytes(b"")
    with caplog.at_level("INFO"):
        store = open_table(folder).store
    assert [path.name for path in store.files] == ["GX010089.MP4", "a.mp4", "c.mp4"]
    assert store.episode_ends.tolist() == [31, 51, 75]
    assert "3 files are read; left out: ._a.mp4, d.mkv, notes.txt" in caplog.text
    for path in store.files:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*.mp4 but ._a.mp4, d.mkv, notes.txt; .*ffmpeg -i FILE NEW.mp4"):
        open_table(folder)


def test_samples_are_video_to_learn_from(folder, tmp_path, toy_codec):
    source = VideoFolderSource(str(folder), image_size=96)
    dataset = MixtureDataset({"videos": source}, WANTED, Horizon(2, 2, stride=2, actions=4), 0.0, pad_after=2)
    dataset.use_latents(dataset.latents(toy_codec(), tmp_path / "cache", progress=False))
    sample = dataset[(5, 0)]
    assert sample["future"]["image"].shape == (2, 3, 12, 12)
    assert not sample["has_action"] and sample["action_is_pad"].all()
