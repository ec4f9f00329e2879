"""Reading stores in every published form, and refusing damaged ones with file, array and index."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import zarr
from zarr.core.dtype import VariableLengthBytes

from tests.dataset.recordings import numbered_frames, psnr, read_numbers
from unified_video_action.dataset import replay_buffer
from unified_video_action.dataset.jpeg import Jpeg2kCodec, JpegCodec, encode_jpeg, register_jpeg
from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.dataset.zarr_store import StoreError

ROWS = np.array([[0, 17], [80, 149]])


def open_buffer(path):
    return ReplayBuffer(path, images=["img"], vectors=["action", "state"])


def stored(path):
    """What is in a store, read by zarr alone."""
    root = zarr.open_group(path, mode="r")
    return {name: root[f"data/{name}"][:] for name in ("img", "action", "state")}


def zipped(folder, archive, prefix=""):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{prefix}{path.relative_to(folder)}")
    return archive


def same_as(buffer, arrays):
    return (
        np.array_equal(buffer.frames("img", ROWS), arrays["img"][ROWS])
        and np.array_equal(buffer.vectors["action"], arrays["action"])
        and np.array_equal(buffer.vectors["state"], arrays["state"])
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("image_dtype", ["uint8", "float32"])
def test_both_formats_and_image_types(make_store, zarr_format, image_dtype):
    path = make_store(zarr_format=zarr_format, image_dtype=image_dtype)
    buffer = open_buffer(path)
    assert same_as(buffer, stored(path))
    assert buffer.frames("img", ROWS).dtype == np.uint8
    assert buffer.episode_ends.tolist() == [40, 73, 125, 150] and len(buffer) == 150
    assert [buffer.locate(row) for row in (0, 39, 40, 149)] == [(0, 0), (0, 39), (1, 0), (3, 24)]


def test_a_sharded_store_is_read(make_store):
    path = make_store(zarr_format=3)
    frames = stored(path)["img"]
    zarr.open_group(path)["data"].create_array(
        "img", data=frames, chunks=(8, 96, 96, 3), shards=(32, 96, 96, 3), overwrite=True
    )
    assert same_as(open_buffer(path), stored(path))


@pytest.mark.parametrize("prefix", ["", "pusht/pusht_cchi_v7_replay.zarr/"])
def test_zips_with_the_store_at_the_root_or_nested(pusht_store, tmp_path, prefix):
    assert same_as(open_buffer(zipped(pusht_store, tmp_path / "demos.zip", prefix)), stored(pusht_store))


def test_a_folder_that_contains_the_store(pusht_store, tmp_path):
    shutil.copytree(pusht_store, tmp_path / "outer" / "inner" / "store.zarr")
    assert same_as(open_buffer(tmp_path / "outer"), stored(pusht_store))


def test_fsspec_urls(pusht_store, tmp_path, file_server):
    shutil.copytree(pusht_store, tmp_path / "store.zarr")
    zipped(pusht_store, tmp_path / "demos.zip", "a/b.zarr/")
    fsspec.filesystem("memory").put(str(pusht_store), "/uva_test_store.zarr", recursive=True)
    for url in (
        f"file://{tmp_path}/store.zarr",
        f"{file_server.url}/store.zarr",
        f"{file_server.url}/demos.zip",
        "memory://uva_test_store.zarr",
    ):
        assert same_as(open_buffer(url), stored(pusht_store)), url


def test_variables_in_paths(pusht_store, monkeypatch):
    monkeypatch.setenv("UVA_TEST_DATA", str(pusht_store.parent))
    assert len(open_buffer("${UVA_TEST_DATA}/pusht.zarr")) == 150
    with pytest.raises(FileNotFoundError, match="UVA_NOWHERE is not set"):
        open_buffer("${UVA_NOWHERE}/pusht.zarr")


def test_frames_in_memory_are_bounded(make_store, monkeypatch):
    path = make_store(chunk=10)
    monkeypatch.setattr(replay_buffer, "FRAMES_IN_MEMORY", 3 * 10 * 96 * 96 * 3)
    buffer = open_buffer(path)
    for row in range(150):
        buffer.frames("img", np.array([row]))
    assert len(buffer._decoded) == 3


def test_a_chunk_is_decoded_once_for_neighbouring_frames(make_store, monkeypatch):
    buffer, reads = open_buffer(make_store(chunk=50)), []
    original = buffer._read
    monkeypatch.setattr(buffer, "_read", lambda *key: reads.append(key) or original(*key))
    for row in range(0, 40, 4):
        buffer.frames("img", np.arange(row, row + 4))
    assert reads == [("data/img", 0, 50)]


def test_a_pickled_buffer_opens_the_store_anew(pusht_store):
    buffer = open_buffer(pusht_store)
    buffer.frames("img", ROWS)
    data = pickle.dumps(buffer)
    assert len(data) < 20_000  # numbers, no frames
    assert same_as(pickle.loads(data), stored(pusht_store))  # noqa: S301 - as a worker process does


def test_the_fingerprint_follows_the_frames_not_the_place(make_store, tmp_path):
    path = make_store()
    shutil.copytree(path, tmp_path / "moved.zarr")
    before = open_buffer(path).fingerprint()
    assert open_buffer(tmp_path / "moved.zarr").fingerprint() == before
    zarr.open_group(path)["data/img"][77, 5, 5, 0] = 1
    assert open_buffer(path).fingerprint() != before


# -- faults ------------------------------------------------------------------------------------------------------------


def damage(path, name, value):
    """Replace an array of a store."""
    group, _, leaf = name.rpartition("/")
    chunks = tuple(max(1, size) for size in value.shape)
    zarr.open_group(path)[group].create_array(leaf, data=value, chunks=chunks, overwrite=True)


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


FAULTS = {
    "ends beyond data": (
        "meta/episode_ends",
        lambda a: with_value(a, 3, 200),
        r"meta/episode_ends\[3\] = 200.*\(150, 96",
    ),
    "ends short of data": ("meta/episode_ends", lambda a: a[:3], r"meta/episode_ends\[2\] = 125.*\(150, 96"),
    "ends not increasing": ("meta/episode_ends", lambda a: with_value(a, 2, 73), r"meta/episode_ends\[2\] = 73"),
    "ends start at zero": ("meta/episode_ends", lambda a: with_value(a, 0, 0), r"meta/episode_ends\[0\] = 0"),
    "ends are floats": ("meta/episode_ends", lambda a: a.astype(float), r"meta/episode_ends is float64"),
    "no episodes": ("meta/episode_ends", lambda a: np.zeros((0,), np.int64), r"meta/episode_ends is int64 \(0,\)"),
    "NaN action": ("data/action", lambda a: with_value(a, (41, 1), np.nan), r"data/action\[41, 1\] = nan"),
    "huge action": (
        "data/action",
        lambda a: with_value(a, (41, 1), 1e30),
        r"data/action\[41, 1\] = 1.*e\+30 is larger",
    ),
    "infinite state": ("data/state", lambda a: with_value(a, (149, 4), np.inf), r"data/state\[149, 4\] = inf"),
    "flat action": ("data/action", lambda a: a[:, 0], r"data/action is float32 \(150,\)"),
    "short action": ("data/action", lambda a: a[:149], r"data/action has shape \(149, 2\)"),
    "text state": ("data/state", lambda a: a.astype(complex), r"data/state is complex128"),
    "integer image": ("data/img", lambda a: a.astype(np.int32), r"data/img is int32"),
    "grey image": ("data/img", lambda a: a[..., 0], r"data/img is uint8 \(150, 96, 96\)"),
    "short image": ("data/img", lambda a: a[:120], r"data/img has shape \(120,"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_inconsistent_stores_are_refused_on_opening(make_store, fault):
    path = make_store(chunk=64)
    name, change, message = FAULTS[fault]
    damage(path, name, change(zarr.open_group(path, mode="r")[name][:]))
    with pytest.raises(StoreError, match=f"store.zarr.*{message}"):
        open_buffer(path)


@pytest.mark.parametrize("value", [0.5, 256.0, -1.0, np.nan])
def test_pixels_that_are_no_whole_numbers_are_refused_on_reading(make_store, value):
    path = make_store(image_dtype="float32")
    zarr.open_group(path)["data/img"][33, 1, 2, 0] = value
    buffer = open_buffer(path)
    buffer.frames("img", np.array([0, 31]))
    with pytest.raises(StoreError, match=rf"store.zarr.*data/img\[33\] holds {value}"):
        buffer.frames("img", np.array([32]))


@pytest.mark.parametrize(("name", "chunk"), [("img", "3.0.0.0"), ("action", "2.0")])
def test_a_missing_chunk_is_refused_on_opening(make_store, name, chunk):
    path = make_store()
    (path / "data" / name / chunk).unlink()
    with pytest.raises(StoreError, match=rf"data/{name} lacks chunk .*rows from {16 * int(chunk[0])}"):
        open_buffer(path)


def test_a_chunk_lost_after_opening_is_not_read_as_black(make_store):
    path = make_store()
    buffer = open_buffer(path)
    (path / "data" / "img" / "3.0.0.0").unlink()
    with pytest.raises(StoreError, match="lacks chunk"):
        buffer.frames("img", np.array([50]))


def test_unreadable_chunks_are_named(make_store):
    path = make_store()
    (path / "data" / "img" / "2.0.0.0").write_bytes(b"noise" * 50)
    buffer = open_buffer(path)
    assert buffer.frames("img", np.array([0])).shape == (1, 96, 96, 3)
    with pytest.raises(StoreError, match=r"data/img\[32:48\] cannot be read"):
        buffer.frames("img", np.array([40]))
    (path / "data" / "state" / "5.0").write_bytes(b"noise" * 50)
    with pytest.raises(StoreError, match=r"data/state\[80:96\] cannot be read"):
        open_buffer(path)


def test_a_missing_array_is_named(make_store):
    path = make_store()
    shutil.rmtree(path / "data" / "state")
    with pytest.raises(StoreError, match="data/state is missing; data has action, img"):
        open_buffer(path)
    shutil.rmtree(path / "data")
    with pytest.raises(StoreError, match="data/img is missing; data has nothing"):
        open_buffer(path)


def test_a_truncated_zip_is_refused(pusht_store, tmp_path):
    archive = zipped(pusht_store, tmp_path / "demos.zip")
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(StoreError, match="demos.zip: not a readable zip"):
        open_buffer(archive)


def test_a_zip_with_a_flipped_byte_is_refused_on_reading(pusht_store, tmp_path):
    archive = zipped(pusht_store, tmp_path / "demos.zip")
    with zipfile.ZipFile(archive) as file:
        place = file.getinfo("data/img/4.0.0.0").header_offset + 200
    content = bytearray(archive.read_bytes())
    content[place] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(StoreError, match=r"demos.zip: data/img\[64:80\] cannot be read"):
        open_buffer(archive).frames("img", np.array([70]))


def test_what_is_no_store_is_refused(tmp_path, pusht_store):
    with pytest.raises(FileNotFoundError, match="nothing.zarr"):
        open_buffer(tmp_path / "nothing.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no array meta/episode_ends.*it has nothing"):
        open_buffer(tmp_path / "empty")
    shutil.copytree(pusht_store / "data", tmp_path / "part.zarr" / "data")
    for path in (tmp_path / "part.zarr", zipped(tmp_path / "part.zarr", tmp_path / "part.zip")):
        with pytest.raises(StoreError, match="no array meta/episode_ends.*it has data$"):
            open_buffer(path)
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(StoreError, match="text.zip: not a readable zip"):
        open_buffer(tmp_path / "text.zip")
    (tmp_path / "text.zip").write_text("<html>")
    with pytest.raises(StoreError, match="text.zip: is a web page, not a zip"):
        open_buffer(tmp_path / "text.zip")
    for name in ("a.zarr", ".a.zarr.partial-7"):  # what a collector leaves that was killed
        shutil.copytree(pusht_store, tmp_path / "one" / name)
    assert open_buffer(tmp_path / "one").n_episodes == open_buffer(pusht_store).n_episodes
    for name in ("a.zarr", "b.zarr"):
        shutil.copytree(pusht_store, tmp_path / "two" / name)
    with pytest.raises(StoreError, match="several episode stores .a.zarr, b.zarr."):
        open_buffer(tmp_path / "two")


def test_chunks_too_large_to_read_by_window_are_refused(make_store, monkeypatch):
    monkeypatch.setattr(replay_buffer, "LARGEST_CHUNK", 10 * 96 * 96 * 3)
    with pytest.raises(StoreError, match="chunks of 16 frames .* too large"):
        open_buffer(make_store())


# -- the published archive ---------------------------------------------------------------------------------------------


def test_the_published_archive_and_its_uint8_copy_agree(pusht_zip):
    buffer = open_buffer(pusht_zip)
    assert (len(buffer), buffer.n_episodes, buffer.frame_shape("img")) == (25_650, 206, (96, 96))
    copy = pusht_zip.parent / "pusht_cchi_v7_replay_uint8.zarr.zip"
    if not copy.is_file():
        pytest.skip(f"{copy} is missing")
    other, rows = open_buffer(copy), np.array([0, 1, 161, 12_345, 25_649])
    assert np.array_equal(buffer.frames("img", rows), other.frames("img", rows))
    assert np.array_equal(buffer.vectors["state"], other.vectors["state"])
    assert np.array_equal(buffer.vectors["action"], other.vectors["action"])


# -- pictures that are stored as JPEG ----------------------------------------------------------------------------------


SHOWN = numbered_frames(range(40), (48, 64))


@pytest.fixture
def jpeg_store(make_store) -> Path:
    """data/img: chunks compressed as imagecodecs_jpeg; data/other: as jpeg; data/bytes: encoded pictures."""
    register_jpeg()
    path = make_store(lengths=(15, 25))
    data = zarr.open_group(str(path), mode="r+", zarr_format=2)["data"]
    del data["img"]
    data.create_array("img", data=SHOWN, chunks=(1, 48, 64, 3), compressors=JpegCodec(90))
    data.create_array("other", data=SHOWN, chunks=(1, 48, 64, 3), compressors=JpegCodec(90))
    data.create_array("bytes", shape=(40,), chunks=(7,), dtype=VariableLengthBytes())
    data["bytes"][:] = np.array([encode_jpeg(frame, 90) for frame in SHOWN], object)
    edit_metadata(path, "other", id="jpeg")
    return path


@pytest.mark.parametrize("name", ["img", "other", "bytes"])
def test_jpeg_frames_are_read_like_others(jpeg_store, name):
    buffer = ReplayBuffer(jpeg_store, [name], ["action"])
    frames = buffer.frames(name, np.arange(40))
    assert buffer.frame_shape(name) == (48, 64) and np.array_equal(read_numbers(frames), np.arange(40))
    assert psnr(frames, SHOWN) > 28  # in this order of colours
    rows = np.array([[39, 0], [7, 7]])
    for copy in (buffer, pickle.loads(pickle.dumps(buffer))):  # noqa: S301
        assert np.array_equal(copy.frames(name, rows), frames[rows])
    assert buffer.fingerprint() == ReplayBuffer(jpeg_store, [name], []).fingerprint()


def test_a_zip_of_jpeg_frames(jpeg_store, tmp_path):
    archive = zipped(jpeg_store, tmp_path / "demos.zip")
    assert read_numbers(ReplayBuffer(archive, ["img"], []).frames("img", np.array([17]))) == [17]


def test_jpeg_frames_are_decoded_by_the_worker_that_reads_them(jpeg_store, monkeypatch):
    buffer = ReplayBuffer(jpeg_store, ["bytes"], [])
    here = os.getpid()

    def decode(encoded, where):
        return np.full((48, 64, 3), os.getpid() != here, np.uint8)

    monkeypatch.setattr(replay_buffer, "decode_image", decode)  # which a forked worker inherits
    rows = [torch.tensor([3]), torch.tensor([30])]

    class Rows(torch.utils.data.Dataset):
        def __getitem__(self, index):
            return buffer.frames("bytes", rows[index].numpy())

        def __len__(self):
            return len(rows)

    loader = torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context="fork")
    assert [int(frames.min()) for frames in loader] == [1, 1]
    assert buffer.frames("bytes", np.array([3])).max() == 0


def test_written_by_imagecodecs(jpeg_store):
    """Its metadata names every parameter; what we cannot honour is an error, not wrong pictures."""
    unset = dict.fromkeys(["bitspersample", "tables", "header", "colorspace_data", "subsampling", "optimize"])
    edit_metadata(jpeg_store, "img", **unset)
    assert read_numbers(ReplayBuffer(jpeg_store, ["img"], []).frames("img", np.array([5]))) == [5]
    edit_metadata(jpeg_store, "img", tables="AAAA")
    with pytest.raises(StoreError, match="with their own tables cannot be read"):
        ReplayBuffer(jpeg_store, ["img"], [])


def test_damaged_pictures_are_named(jpeg_store):
    chunk = jpeg_store / "data" / "img" / "9.0.0.0"
    chunk.write_bytes(b"no picture at all")
    with pytest.raises(StoreError, match=r"data/img\[9:10\] cannot be read .*no readable JPEG or PNG"):
        ReplayBuffer(jpeg_store, ["img"], []).frames("img", np.array([9]))
    data = zarr.open_group(str(jpeg_store), mode="r+", zarr_format=2)["data"]
    data["bytes"][20:22] = np.array([b"", encode_jpeg(SHOWN[0, :32])], object)
    buffer = ReplayBuffer(jpeg_store, ["bytes"], [])
    with pytest.raises(StoreError, match=r"data/bytes\[20\]: 0 bytes that are no readable JPEG"):
        buffer.frames("bytes", np.array([20]))
    with pytest.raises(StoreError, match=r"data/bytes\[21\] is a picture of \(32, 64\), the first one of \(48, 64\)"):
        buffer.frames("bytes", np.array([21]))


def test_the_jpeg_codec_takes_single_frames_only():
    with pytest.raises(ValueError, match=r"chunks of one RGB frame, uint8 \(1, H, W, 3\); got uint8 \(2, 48, 64, 3\)"):
        JpegCodec().encode(SHOWN[:2])


def test_jpeg_2000_of_the_papers_code(make_store):
    """Its metadata names every parameter of imagecodecs, most of them unset."""
    register_jpeg()
    path = make_store(lengths=(15, 25))
    data = zarr.open_group(str(path), mode="r+", zarr_format=2)["data"]
    names = ["bitspersample", "codecformat", "colorspace", "numthreads", "resolutions", "reversible", "tile", "verbose"]
    for name, level in (("img", 50), ("lossless", 0)):
        data.create_array(name, data=SHOWN, chunks=(1, 48, 64, 3), compressors=Jpeg2kCodec(level), overwrite=True)
        edit_metadata(path, name, **dict.fromkeys(names), level=level or None)
    buffer, rows = ReplayBuffer(path, ["img", "lossless"], []), np.array([[39, 0], [7, 7]])
    assert psnr(buffer.frames("img", np.arange(40)), SHOWN) > 40
    assert np.array_equal(buffer.frames("lossless", rows), SHOWN[rows])
    (path / "data/img/9.0.0.0").write_bytes(b"no picture at all")
    with pytest.raises(StoreError, match=r"data/img\[9:10\] cannot be read .*no readable JPEG 2000"):
        ReplayBuffer(path, ["img"], []).frames("img", np.array([9]))
    edit_metadata(path, "img", bitspersample=12)
    with pytest.raises(StoreError, match="JPEG 2000 chunks of 12 bits cannot be read"):
        ReplayBuffer(path, ["img"], [])


def edit_metadata(store: Path, name: str, **compressor) -> None:
    path = store / "data" / name / ".zarray"
    metadata = json.loads(path.read_text())
    metadata["compressor"] |= compressor
    path.write_text(json.dumps(metadata))
