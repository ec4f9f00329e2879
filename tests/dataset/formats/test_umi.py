"""Archives of hand-held grippers: layout, lazy reading of JPEG XL and JPEG, folders of archives, masks, errors."""

import json
import zipfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch

from tests.dataset.recordings import numbered_frames, read_numbers, write_umi
from unified_video_action.dataset.formats import umi
from unified_video_action.dataset.formats.pictures import JpegXlCodec
from unified_video_action.dataset.formats.umi import UmiSource, UmiStore
from unified_video_action.dataset.frame_fit import LEFT_MIRROR, FrameMask
from unified_video_action.dataset.mixture import MixtureDataset, Wanted
from unified_video_action.dataset.store import StoreError
from unified_video_action.dataset.transforms import END_EFFECTOR_STATES, START_POSE
from unified_video_action.spec import Horizon

CAMERA = "camera0_rgb"
WANTED = Wanted((CAMERA,), END_EFFECTOR_STATES, 10)
ENDS = [20, 33, 60]
SHOWN = numbered_frames(range(60), (48, 48))
POSES = np.random.default_rng(0).normal(0, 0.3, (60, 6))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Three episodes as a zip of JPEG XL frames that tell their row."""
    start = np.repeat(POSES[[3, 20, 33]], np.diff([0, *ENDS]), axis=0)
    path = tmp_path_factory.mktemp("umi") / "cups.zarr.zip"
    return write_umi(path, SHOWN, POSES, ends=ENDS, robot0_demo_start_pose=start)


def test_the_layout_is_the_published_one(archive) -> None:
    with zipfile.ZipFile(archive) as content:
        metadata = json.loads(content.read(f"data/{CAMERA}/.zarray"))
    assert metadata["chunks"] == [1, 48, 48, 3] and metadata["compressor"]["id"] == "imagecodecs_jpegxl"
    (table,) = UmiSource(str(archive)).tables(WANTED)
    assert table.store.episode_ends.tolist() == ENDS and table.store.n_episodes == 3
    assert np.allclose(table.low_dim["pose"], POSES, atol=1e-6) and table.low_dim["gripper"].shape == (60, 1)
    assert np.allclose(table.low_dim[START_POSE][[0, 19, 20, 59]], POSES[[3, 3, 20, 33]], atol=1e-6)
    assert np.allclose(table.action[:, :3], POSES[:, :3], atol=1e-6) and table.action.shape == (60, 10)
    assert table.instructions is None
    assert UmiSource(str(archive), instruction="place the cup").tables(WANTED)[0].instructions == ("place the cup",) * 3


def test_archives_that_imagecodecs_wrote(tmp_path) -> None:
    """It passes chunks on with their leading axis; lossless frames come back as they were."""
    path = write_umi(tmp_path / "a.zarr", SHOWN, POSES, codec=JpegXlCodec(lossless=True))
    (path / "data" / CAMERA / "5.0.0.0").write_bytes(imagecodecs.jpegxl_encode(SHOWN[44:45], level=99))
    frames = UmiStore(path, [CAMERA]).frames(CAMERA, np.array([[4, 5], [6, 6]]))
    assert read_numbers(frames[0]).tolist() == [4, 44] and np.array_equal(frames[1], SHOWN[[6, 6]])


def test_only_the_frames_that_a_window_needs_are_decoded(archive, monkeypatch) -> None:
    calls, decode = [], JpegXlCodec.decode
    monkeypatch.setattr(JpegXlCodec, "decode", lambda self, buf, out=None: calls.append(1) or decode(self, buf, out))
    dataset = MixtureDataset(UmiSource(str(archive)), WANTED, Horizon(), 0, pad_before=None, pad_after=None)
    dataset.fit_normalizer(), dataset.low_dim_dims()
    assert not calls, "poses and sizes need no frames"
    dataset[(40, 0)]  # of the episode from 33: rows 33, 33, 36, 40, 44 ... 56, of which one is shown twice
    assert len(calls) == 7


def test_a_folder_of_archives_is_one_recording(tmp_path, monkeypatch) -> None:
    for number, (start, end) in enumerate(zip([0, *ENDS], ENDS)):
        suffix = ".zarr" if number == 1 else ".zarr.zip"
        write_umi(tmp_path / "run" / f"episode_{number}{suffix}", SHOWN[start:end], POSES[start:end])
    (tmp_path / "run" / "._episode_0.zarr.zip").write_bytes(b"Mac OS X")
    (tmp_path / "run" / "episode_0.zarr.zip.camera0_rgb.toy_48.latents").mkdir()
    monkeypatch.setattr(umi, "MOST_OPEN", 1)
    (table,) = UmiSource(str(tmp_path / "run")).tables(WANTED)
    assert table.store.episode_ends.tolist() == ENDS
    rows = np.array([59, 0, 20, 19, 33, 32])
    assert np.array_equal(read_numbers(table.store.frames(CAMERA, rows)), rows)
    opened = [len(each._arrays) > 0 for each in table.store._archives]
    assert sum(opened) == 1, "the others are closed"
    assert np.allclose(table.low_dim["pose"], POSES, atol=1e-6)
    # Without demo_start_pose, an episode began with its first pose.
    assert np.allclose(table.low_dim[START_POSE][[0, 19, 20, 59]], POSES[[0, 0, 20, 33]], atol=1e-6)
    before = table.store.fingerprint()
    write_umi(tmp_path / "run" / "episode_3.zarr.zip", SHOWN[:5], POSES[:5])
    assert UmiStore(tmp_path / "run", [CAMERA]).fingerprint() != before


# -- how frames are shown ----------------------------------------------------------------------------------------------


def test_mirrors_are_blackened_where_they_are() -> None:
    grey = np.full((224, 224, 3), 100, np.uint8)
    shown = FrameMask()(grey)
    assert (grey == 100).all(), "the frame given stays as it is"
    centre = np.mean(LEFT_MIRROR, axis=0)  # inside, as the polygon is convex but for a corner
    for x, y in [centre, (1 - centre[0], centre[1]), (0.01, 0.7), (0.99, 0.7)]:
        assert (shown[round(y * 224), min(round(x * 224), 223)] == 0).all(), (x, y)
    for x, y in [(0.5, 0.5), (0.5, 0.95), (0.02, 0.5), (0.02, 0.9), (0.2, 0.7)]:
        assert (shown[round(y * 224), round(x * 224)] == 100).all(), (x, y)
    right_half = FrameMask.parse([[[0.5, 0], [1, 0], [1, 1], [0.5, 1]]], "here")(np.full((10, 20, 3), 200, np.uint8))
    assert (right_half[:, :9] == 200).all() and (right_half[:, 11:] == 0).all()


def test_a_mask_holds_for_decoded_and_cached_frames_and_latents(archive, tmp_path, toy_codec) -> None:
    def dataset(mask: str | None) -> MixtureDataset:
        source = UmiSource(str(archive), mask=mask, image_size=96)
        return MixtureDataset(source, WANTED, Horizon(), 0.3, pad_before=None, pad_after=None)

    masked, plain = dataset("mirrors"), dataset(None)
    item = [(3, 0), (25, 1)]
    decoded = masked.__getitems__(item)["future"][CAMERA]
    assert decoded.shape[-2:] == (96, 96)
    assert (decoded[..., 67, 4] == 0).all() and (plain.__getitems__(item)["future"][CAMERA][..., 67, 4] > 0).any()
    masked.use_frames(tmp_path, cached=True, progress=False)
    plain.use_frames(tmp_path, cached=True, progress=False)
    assert torch.equal(masked.__getitems__(item)["future"][CAMERA], decoded)
    assert torch.equal(masked.validation().__getitems__([(0, 0)])["future"][CAMERA][..., 67, 4], torch.zeros(1, 4, 3))
    codec = toy_codec()
    for each in (plain, masked):
        each.use_latents(each.latents(codec, tmp_path, progress=False))
    latents, expected = masked.__getitems__(item)["future"][CAMERA], codec.encode(decoded)
    assert torch.allclose(latents, expected, atol=2e-3)
    assert not torch.allclose(plain.__getitems__(item)["future"][CAMERA], expected, atol=2e-3)
    assert len(list(tmp_path.glob("*.latents"))) == len(list(tmp_path.glob("*.frames"))) == 2


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_is_missing_or_of_another_shape_is_named(tmp_path) -> None:
    write_umi(tmp_path / "run" / "a.zarr", SHOWN, POSES)
    write_umi(tmp_path / "run" / "b.zarr", SHOWN[:, ::2, ::2], POSES)
    with pytest.raises(StoreError, match=r"b.zarr: camera0_rgb has frames of \(24, 24\).*set image_size"):
        UmiStore(tmp_path / "run", [CAMERA])
    (table,) = UmiSource(str(tmp_path / "run"), image_size=32).tables(WANTED)
    assert table.store.frames(CAMERA, np.array([0, 119])).shape == (2, 32, 32, 3)
    path = write_umi(tmp_path / "two.zarr", SHOWN, POSES, robot1_eef_pos=np.zeros((60, 3), np.float32))
    with pytest.raises(StoreError, match=r"two.zarr: has data/robot1_eef_pos, so it is of two arms; only one arm"):
        UmiStore(path, [CAMERA])
    path = write_umi(tmp_path / "a.zarr", SHOWN, POSES, robot0_demo_start_pose=np.zeros((60, 3)))
    with pytest.raises(StoreError, match=r"robot0_demo_start_pose is float64 \(60, 3\), expected numbers \(N, 6\)"):
        UmiStore(path, [CAMERA])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: an empty folder; expected archives"):
        UmiStore(tmp_path / "empty", [CAMERA])


@pytest.mark.parametrize(
    ("wanted", "options", "message"),
    [
        (Wanted((CAMERA,), END_EFFECTOR_STATES, 7), {}, "actions of 10 numbers, but task.shape_meta.action has 7"),
        (Wanted((CAMERA,), ("robot0_eef_pos",), 10), {}, "the task reads 'robot0_eef_pos', .*task.end_effector.states"),
        (WANTED, {"mask": "cups"}, "mask='cups'"),
        (WANTED, {"mask": [[[0, 0], [1, 1]]]}, "polygons of three corners"),
    ],
)
def test_what_cannot_be_given_is_refused(archive, wanted, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureDataset(UmiSource(str(archive), **options), wanted, Horizon(), 0)
