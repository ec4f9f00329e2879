"""Zarr stores in every published form; damaged ones are refused with file, array and index."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import fsspec
import imagecodecs
import numcodecs
import numpy as np
import pytest
import torch
import zarr
from zarr.core.dtype import VariableLengthBytes

from tests.dataset.recordings import numbered_frames, psnr, read_numbers
from unified_video_action.dataset.formats import zarr as module
from unified_video_action.dataset.formats.pictures import Jpeg2kCodec, JpegCodec, JpegXlCodec, register_pictures
from unified_video_action.dataset.formats.zarr import ReplayBuffer, ZarrSource
from unified_video_action.dataset.mixture import MixtureDataset, Wanted
from unified_video_action.dataset.store import StoreError
from unified_video_action.spec import Horizon

ROWS = np.array([[0, 17], [80, 149]])


def open_buffer(path):
    return ReplayBuffer(path, images=["img"], vectors=["action", "state"])


def stored(path):
    """What is in a store, read by zarr alone."""
    root = zarr.open_group(path, mode="r")
    return {name: root[f"data/{name}"][:] for name in ("img", "action", "state")}


def zipped(folder, archive, prefix="", date=(2000, 1, 1, 0, 0, 0)):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.writestr(zipfile.ZipInfo(f"{prefix}{path.relative_to(folder)}", date), path.read_bytes())
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
    assert same_as(buffer, stored(path)) and buffer.frames("img", ROWS).dtype == np.uint8
    assert buffer.episode_ends.tolist() == [40, 73, 125, 150] and len(buffer) == 150
    copy = pickle.dumps(buffer)
    assert len(copy) < 20_000 and same_as(pickle.loads(copy), stored(path))  # noqa: S301 - as a worker process does
    if zarr_format == 3:
        layout = {"chunks": (8, 96, 96, 3), "shards": (32, 96, 96, 3)}
        zarr.open_group(path)["data"].create_array("img", data=stored(path)["img"], **layout, overwrite=True)
        assert same_as(open_buffer(path), stored(path))


def test_stores_nested_in_folders_and_zips(pusht_store, tmp_path):
    for prefix in ("", "pusht/pusht_cchi_v7_replay.zarr/"):
        assert same_as(open_buffer(zipped(pusht_store, tmp_path / "demos.zip", prefix)), stored(pusht_store))
    for name in ("a.zarr", ".a.zarr.partial-7"):  # what a collector leaves that was killed
        shutil.copytree(pusht_store, tmp_path / "outer" / "inner" / name)
    assert same_as(open_buffer(tmp_path / "outer"), stored(pusht_store))
    shutil.copytree(pusht_store, tmp_path / "outer" / "inner" / "b.zarr")
    with pytest.raises(StoreError, match="several episode stores .inner/a.zarr, inner/b.zarr."):
        open_buffer(tmp_path / "outer")


def test_places_without_a_store_are_named(tmp_path, monkeypatch, pusht_store):
    monkeypatch.setenv("UVA_NOWHERE", str(pusht_store.parent))
    assert len(open_buffer(f"${{UVA_NOWHERE}}/{pusht_store.name}")) == 150
    with pytest.raises(FileNotFoundError, match="nothing.zarr"):
        open_buffer(tmp_path / "nothing.zarr")
    shutil.copytree(pusht_store / "data", tmp_path / "part.zarr" / "data")
    for path in (tmp_path / "part.zarr", zipped(tmp_path / "part.zarr", tmp_path / "part.zip")):
        with pytest.raises(StoreError, match="no array meta/episode_ends.*it has data$"):
            open_buffer(path)
    (tmp_path / "text.zip").write_text("<html>")
    with pytest.raises(StoreError, match="text.zip: is a web page, not a zip"):
        open_buffer(tmp_path / "text.zip")


@pytest.fixture
def urls(pusht_store, tmp_path, file_server):
    """A store by several protocols; the first two are folders."""
    shutil.copytree(pusht_store, tmp_path / "store.zarr")
    zipped(pusht_store, tmp_path / "demos.zip", "a/b.zarr/")
    fsspec.filesystem("memory").put(str(pusht_store), "/uva_test_store.zarr", recursive=True)
    folders = ["memory://uva_test_store.zarr", f"{file_server.url}/store.zarr", f"file://{tmp_path}/store.zarr"]
    yield [*folders, f"{file_server.url}/demos.zip"]
    fsspec.filesystem("memory").rm("/uva_test_store.zarr", recursive=True)


@pytest.mark.parametrize("small", [2**28, 0])
def test_stores_at_urls_and_their_fingerprints(urls, small, tmp_path):
    """By their contents, or where they are large by size and time; with and without a listing."""
    if small:
        assert all(same_as(open_buffer(url), stored(tmp_path / "store.zarr")) for url in urls)
        with pytest.raises(StoreError, match="data/top is missing; a store at a URL cannot list"):
            ReplayBuffer(urls[0], ["top"], [])
    before = [open_buffer(url).fingerprint(small) for url in urls]
    assert before == [open_buffer(url).fingerprint(small) for url in urls]
    flip(tmp_path / "store.zarr/data/img/7.0.0.0", older=True)
    memory = fsspec.filesystem("memory")
    content = bytearray(memory.cat("/uva_test_store.zarr/data/img/7.0.0.0"))
    content[100] ^= 1
    memory.pipe("/uva_test_store.zarr/data/img/7.0.0.0", bytes(content))
    after = [open_buffer(url).fingerprint(small) for url in urls]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, True, True, False]


# -- faults ------------------------------------------------------------------------------------------------------------


def with_value(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


ENDS, IMG, ACTION = "meta/episode_ends", "data/img", "data/action"
FAULTS = [
    (ENDS, with_value(3, 200), r"meta/episode_ends\[3\] = 200.*\(150, 96"),
    (ENDS, with_value(2, 73), r"meta/episode_ends\[2\] = 73"),
    (ENDS, lambda a: a.astype(float), r"meta/episode_ends is float64"),
    (ACTION, with_value((41, 1), np.nan), r"data/action\[41, 1\] = nan"),
    (ACTION, lambda a: a[:, 0], r"data/action is float32 \(150,\)"),
    (ACTION, lambda a: a[:149], r"data/action has shape \(149, 2\)"),
    (IMG, lambda a: a.astype(np.int32), r"data/img is int32"),
    (IMG, lambda a: a[..., 0], r"data/img is uint8 \(150, 96, 96\)"),
]


@pytest.mark.parametrize(("name", "change", "message"), FAULTS)
def test_inconsistent_stores_are_refused_on_opening(make_store, name, change, message):
    path = make_store(chunk=64)
    value = change(zarr.open_group(path, mode="r")[name][:])
    chunks = tuple(max(1, size) for size in value.shape)
    zarr.open_group(path).create_array(name, data=value, chunks=chunks, overwrite=True)
    with pytest.raises(StoreError, match=f"store.zarr.*{message}"):
        open_buffer(path)


def test_damaged_chunks_and_pixels_are_named(make_store, monkeypatch):
    path = make_store(image_dtype="float32")
    zarr.open_group(path)["data/img"][0, 1, 2, 0] = 0.5
    (path / "data/img/2.0.0.0").write_bytes(b"noise" * 50)
    buffer = open_buffer(path)
    for row, message in ((0, r"\[0\] holds 0.5"), (40, r"\[32:48\] cannot be read")):
        with pytest.raises(StoreError, match=f"store.zarr.*data/img{message}"):
            buffer.frames("img", np.array([row]))
    assert buffer.frames("img", np.array([17])).shape == (1, 96, 96, 3)
    (path / "data/state/5.0").write_bytes(b"noise" * 50)
    with pytest.raises(StoreError, match=r"data/state\[80:96\] cannot be read"):
        open_buffer(path)
    shutil.rmtree(path / "data/state")
    with pytest.raises(StoreError, match="data/state is missing; data has action, img"):
        open_buffer(path)
    monkeypatch.setattr(module, "LARGEST_CHUNK", 10 * 96 * 96 * 3)
    with pytest.raises(StoreError, match="chunks of 16 frames .* too large"):
        open_buffer(path)


def test_damaged_zips_are_refused(pusht_store, tmp_path):
    archive = zipped(pusht_store, tmp_path / "demos.zip")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-5000])
    with pytest.raises(StoreError, match="demos.zip: not a readable zip"):
        open_buffer(archive)
    archive.write_bytes(whole)
    with zipfile.ZipFile(archive) as file:
        offset = file.getinfo("data/img/4.0.0.0").header_offset + 200
    archive.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
    with pytest.raises(StoreError, match=r"demos.zip: data/img\[64:80\] cannot be read"):
        open_buffer(archive).frames("img", np.array([70]))


# -- chunks that a writer left out, or that are lost -------------------------------------------------------------------


def numbers(zeros: str = "action", start: int = 0, stop: int = 0) -> dict[str, np.ndarray]:
    """Frames and actions, some rows of the array `zeros` 0."""
    rng = np.random.default_rng(0)
    data = {
        "img": rng.integers(1, 256, (150, 4, 6, 3), dtype=np.uint8),
        "action": rng.uniform(1, 2, (150, 4)).astype(np.float32),
    }
    data[zeros][start:stop] = 0
    return data


def write(path: Path, data: dict[str, np.ndarray], zarr_format: int = 2, empty: bool = False, **chunks):
    """A store as zarr 3 writes it by default: without chunks that hold zeros alone, but with `empty`."""
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, values in data.items():
        size = chunks.get(name, (8, *values.shape[1:]))
        config = {"write_empty_chunks": empty}
        root.create_array(f"data/{name}", data=values, chunks=size, compressors=None, config=config)
    root.create_array("meta/episode_ends", data=np.array([40, 73, 150]))  # only the first ends with a chunk
    return path


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    buffer = ReplayBuffer(path, ["img"], ["action"])
    return buffer.frames("img", np.arange(150)), buffer.vectors["action"]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("name", "start", "stop", "rows"),
    [
        ("img", 0, 16, "0 to 15"),  # dark before the light goes on, just where a chunk ends
        ("action", 0, 55, "0 to 47"),  # further, but it fades out within a chunk
        ("action", 76, 131, "80 to 127"),  # in the middle of an episode: both rows beside it are zeros
        ("action", 70, 90, "72 to 87"),  # over the end of an episode
    ],
)
def test_chunks_left_out_are_read_as_zeros_with_a_warning(tmp_path, caplog, zarr_format, name, start, stop, rows):
    data = numbers(name, start, stop)
    img, action = read(write(tmp_path / "store.zarr", data, zarr_format))
    assert np.array_equal(img, data["img"]) and np.array_equal(action, data["action"])
    assert f"data/{name} has no chunk for rows {rows}; they are read as 0" in caplog.text
    assert len(caplog.records) == 1  # on opening, not at every read


def test_a_column_that_never_changes_is_read(tmp_path):
    data = numbers()
    data["action"][:, 2:] = 0
    path = write(tmp_path / "store.zarr", data, action=(50, 2))
    assert not (path / "data/action/0.1").exists() and np.array_equal(read(path)[1], data["action"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img/5.0.0.0"], r"img lacks chunk \(5, 0, 0, 0\) \(rows from 40, 8 of"),
        (["img/18.0.0.0"], r"\(rows from 144, 6 of them\).*reach the array's end"),
        (["action/3.0"], r"action lacks chunk \(3, 0\) \(rows from 24, 8 of them\).*: row 23 beside them"),
        ([f"action/{n}.0" for n in range(19)], "rows from 0, 150 of them"),  # everything
    ],
)
def test_lost_chunks_are_named(tmp_path, names, message):
    path = write(tmp_path / "store.zarr", numbers())
    buffer = ReplayBuffer(path, ["img"], [])
    for name in names:
        (path / "data" / name).unlink()
    with pytest.raises(StoreError, match=rf"store\.zarr: data/.*{message}"):
        read(path)
    if names[0].startswith("img"):  # lost after opening, too
        with pytest.raises(StoreError, match="img lacks chunk"):
            buffer.frames("img", np.arange(150))


def test_chunks_that_nothing_vouches_for_are_taken_for_lost(tmp_path):
    path = write(tmp_path / "a.zarr", numbers("action", 40, 73), action=(1, 4))  # a whole episode in the middle
    with pytest.raises(StoreError, match="no row beside them is of the same episode"):
        read(path)
    path = write(tmp_path / "b.zarr", numbers("action", 80, 112), empty=True)  # this writer leaves nothing out
    (path / "data/action/11.0").unlink()
    with pytest.raises(StoreError, match="action lacks chunk"):
        read(path)
    metadata = write(tmp_path / "c.zarr", numbers("img", 0, 16)) / "data/img/.zarray"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "fill_value": None}))
    with pytest.raises(StoreError, match="its metadata has no fill value"):
        read(tmp_path / "c.zarr")


# -- fingerprints ------------------------------------------------------------------------------------------------------


def flip(path: Path, older: bool = False) -> None:
    """Change a byte of a file and not its size."""
    content, times = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if older:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**10))


def fingerprint(path: Path, small: int = 2**28) -> str:
    return ReplayBuffer(path, ["img"], []).fingerprint(small)


def test_it_follows_every_chunk_and_not_the_place(tmp_path):
    path = write(tmp_path / "store.zarr", numbers(), img=(1, 4, 6, 3))
    shutil.copytree(path, tmp_path / "moved.zarr")
    before = fingerprint(path)
    assert fingerprint(tmp_path / "moved.zarr") == before
    for number in (3, 103):
        flip(path / f"data/img/{number}.0.0.0")
        assert fingerprint(path) != before
        flip(path / f"data/img/{number}.0.0.0")
    archives = [zipped(path, tmp_path / f"{year}.zip", date=(year, 1, 1, 0, 0, 0)) for year in (2000, 2001)]
    flip(path / "data/img/103.0.0.0")
    found = [fingerprint(archive, 0) for archive in (*archives, zipped(path, tmp_path / "c.zip"))]
    assert found[0] == found[1] != found[2]


def test_large_stores_are_read_when_names_sizes_or_times_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = tmp_path / "home/unified_video_action/fingerprints"
    path = write(tmp_path / "store.zarr", numbers())
    before, copy = fingerprint(path, 1000), tmp_path / "elsewhere/store.zarr"
    shutil.copytree(path, copy, copy_function=shutil.copyfile)  # new times
    assert fingerprint(copy, 1000) == before
    flip(path / "data/img/7.0.0.0")
    assert fingerprint(path, 1000) != before and len(list(cache.iterdir())) == 3
    for file in copy.glob("data/img/[0-9]*"):
        times = file.stat()
        file.write_bytes(b"x" * times.st_size)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(copy, 1000) == before  # remembered, not read
    for file in cache.iterdir():
        file.write_text("cut sho")
    assert fingerprint(copy, 1000) != before  # what cannot be what was written is not believed


# -- pictures ----------------------------------------------------------------------------------------------------------


SHOWN = numbered_frames(range(40), (48, 64))
UNSET = (  # what writers note in an array's metadata; "newer" is not known here
    *("bitspersample", "codecformat", "colorspace", "decodingspeed", "keeporientation", "newer", "numthreads"),
    *("planar", "resolutions", "reversible", "tile"),
)


@pytest.fixture
def picture_store(make_store) -> Path:
    """data/img: chunks of imagecodecs_jpeg; data/other: of jpeg; data/j2k, data/lossless: JPEG 2000; data/bytes."""
    register_pictures()
    path = make_store(lengths=(15, 25))
    data = zarr.open_group(str(path), mode="r+", zarr_format=2)["data"]
    jpeg, j2k, lossless = JpegCodec(90), Jpeg2kCodec(level=50), Jpeg2kCodec(level=0)
    codecs = {"img": jpeg, "other": jpeg, "j2k": j2k, "lossless": lossless, "xl": JpegXlCodec()}
    for name, codec in codecs.items():
        data.create_array(name, data=SHOWN, chunks=(1, 48, 64, 3), compressors=codec, overwrite=True)
        file = path / "data" / name / ".zarray"
        metadata = json.loads(file.read_text())
        metadata["compressor"] |= dict.fromkeys(UNSET)
        metadata["compressor"]["id"] = "jpeg" if name == "other" else metadata["compressor"]["id"]
        file.write_text(json.dumps(metadata))
    data.create_array("bytes", shape=(40,), chunks=(7,), dtype=VariableLengthBytes())
    data["bytes"][:] = np.array([imagecodecs.jpeg8_encode(frame, 90) for frame in SHOWN], object)
    return path


@pytest.mark.parametrize("name", ["img", "other", "bytes", "j2k", "lossless", "xl"])
def test_pictures_are_read_like_other_frames(picture_store, name, tmp_path):
    buffer = ReplayBuffer(picture_store, [name], ["action"])
    frames = buffer.frames(name, np.arange(40))
    assert buffer.frame_shape(name) == (48, 64) and np.array_equal(read_numbers(frames), np.arange(40))
    assert psnr(frames, SHOWN) > (40 if name in ("j2k", "lossless") else 28)  # in this order of colours
    rows = np.array([[39, 0], [7, 7]])
    archive = ReplayBuffer(zipped(picture_store, tmp_path / "demos.zip"), [name], [])
    for copy in (buffer, pickle.loads(pickle.dumps(buffer)), archive):  # noqa: S301
        assert np.array_equal(copy.frames(name, rows), frames[rows])
    assert buffer.fingerprint() == ReplayBuffer(picture_store, [name], []).fingerprint()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("part", ["compressor", "filters"])
def test_chunks_that_are_pickles_are_not_read(picture_store, tmp_path, monkeypatch, part):
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)  # as older versions do
    marker, file = tmp_path / "marker", picture_store / "data/bytes/.zarray"
    (picture_store / "data/bytes/0").write_bytes(pickle.dumps(Touch(marker)))
    metadata, codec = json.loads(file.read_text()), {"id": "pickle"}
    file.write_text(json.dumps(metadata | {part: codec if part == "compressor" else [*metadata["filters"], codec]}))
    with pytest.raises(StoreError, match="data/bytes is stored as pickles, which run .* it is not opened"):
        ReplayBuffer(picture_store, ["bytes"], [])
    assert not marker.exists()


def test_damaged_pictures_are_named(picture_store):
    (picture_store / "data/j2k/9.0.0.0").write_bytes(b"no picture at all")
    with pytest.raises(StoreError, match=r"data/j2k\[9:10\] cannot be read"):
        ReplayBuffer(picture_store, ["j2k"], []).frames("j2k", np.array([9]))
    data = zarr.open_group(str(picture_store), mode="r+", zarr_format=2)["data"]
    data["bytes"][20:22] = np.array([b"", imagecodecs.jpeg8_encode(SHOWN[0, :32])], object)
    buffer = ReplayBuffer(picture_store, ["bytes"], [])
    faults = {20: ": 0 bytes that are not readable JPEG", 21: r" is a picture of \(32, 64\), the first one"}
    for row, fault in faults.items():
        with pytest.raises(StoreError, match=rf"data/bytes\[{row}\]{fault}"):
            buffer.frames("bytes", np.array([row]))


# -- any store as a source ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Two episodes with two cameras of 12 x 16, states, actions and executed ones."""
    path, rng = tmp_path_factory.mktemp("store") / "demos.zarr", np.random.default_rng(0)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name in ("front", "side"):
        root.create_array(f"data/{name}", data=rng.integers(0, 256, (55, 12, 16, 3), np.uint8), chunks=(8, 12, 16, 3))
    root.create_array("data/robot", data=rng.normal(size=(55, 5)))
    for name in ("command", "executed"):
        root.create_array(f"data/{name}", data=rng.normal(size=(55, 3)).astype(np.float32))
    root.create_array("meta/episode_ends", data=np.array([30, 55]))
    return path


def source(store: Path, **changes) -> ZarrSource:
    low_dim = {"joints": "robot", "position": {"array": "robot", "columns": [3, 0]}}
    given = {"cameras": {"image": "front", "wrist": "side"}, "low_dim": low_dim, "action": "command"}
    return ZarrSource(str(store), **given | changes)


def test_arrays_play_their_parts_and_others_are_not_read(store):
    data, rows = zarr.open_group(store, mode="r")["data"], np.array([0, 31, 54])
    wanted, chosen = Wanted(("wrist", "image"), ("position", "joints"), 2), {"array": "command", "columns": [2, 0]}
    (table,) = source(store, action=chosen).tables(wanted)
    for camera, array in {"image": "front", "wrist": "side"}.items():
        np.testing.assert_array_equal(table.store.frames(table.cameras[camera], rows), data[array][:][rows])
    np.testing.assert_allclose(table.low_dim["joints"], data["robot"][:], rtol=1e-6)
    np.testing.assert_allclose(table.low_dim["position"], data["robot"][:][:, [3, 0]], rtol=1e-6)
    np.testing.assert_array_equal(table.action, data["command"][:][:, [2, 0]])
    np.testing.assert_array_equal(table.executed, data["executed"][:][:, [2, 0]])
    assert len(table) == 55 and table.auxiliary is None
    asked = source(store, cameras={"image": "front", "wrist": "no"}, low_dim={"joints": "no"}, action=None)
    (table,) = asked.tables(Wanted(("image",), (), 3))
    assert table.cameras == {"image": "front"} and table.low_dim == {} and table.action is table.executed is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": {"top": "front"}}, "the task reads 'image', but its cameras are top"),
        ({"cameras": {"image": "top"}}, "the array data/top is missing"),
        ({"cameras": {"image": "robot"}}, "data/robot is float64"),
        ({"action": {"array": "command", "columns": [0]}}, "actions of 1 numbers, but task.shape_meta.action has 3"),
        ({"action": {"array": "command", "columns": [0, 3]}}, "has 3 columns, not number 3"),
        ({"weight": 0}, "weight=0 must be positive"),
        ({"action": {"array": "command"}}, "action=.* must be an array's name or"),
    ],
)
def test_what_does_not_fit_is_named(store, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        MixtureDataset(source(store, **changes), Wanted(("image",), (), 3), Horizon(2, 2, 2, 4), 0.0)
    assert str(store) in str(caught.value)


def test_two_cameras_of_one_store_may_be_two_sources(store, tmp_path, toy_codec):
    def dataset_of(sources):
        wanted, every = Wanted(("image",), (), 3), {"pad_before": None, "pad_after": None}
        return MixtureDataset(sources, wanted, Horizon(2, 2, 2, 4), 0.0, **every)

    sources = [source(store, cameras={"image": name}, low_dim={}) for name in ("front", "side")]
    dataset = dataset_of(sources)
    items, codec = [(3, 0), (len(dataset) - 9, 0)], toy_codec(image_size=16)
    frames = dataset.__getitems__(items)["history"]["image"]
    data = zarr.open_group(store, mode="r")["data"]
    assert np.array_equal(frames[0], np.moveaxis(data["front"][:][[1, 3]], -1, 1))
    dataset.use_frames(tmp_path, cached=True, progress=False)
    assert torch.equal(dataset.__getitems__(items)["history"]["image"], frames)
    dataset.use_latents(dataset.latents(codec, tmp_path, progress=False))
    assert torch.allclose(dataset.__getitems__(items)["history"]["image"], codec.encode(frames), atol=2e-3)
    folder = tmp_path / "alone"  # a cache of one camera has the task's name, and its key says which camera it is
    dataset_of(sources[0]).use_frames(folder, cached=True, progress=False)
    assert [path.name.split(".", 2)[2] for path in folder.glob("*.frames")] == ["image.frames"]
    with pytest.raises(StoreError, match="built for another source"):
        dataset_of(sources[1]).use_frames(folder, cached=True, progress=False)


def test_every_camera_has_noise_of_its_own(store, tmp_path, toy_codec):
    latents, codec = [], toy_codec(image_size=16, posterior="sample", noisy=True)
    for names in (("image",), ("image", "wrist")):
        shown = source(store, cameras=dict.fromkeys(names, "front"), low_dim={})
        dataset = MixtureDataset(shown, Wanted(names, (), 3), Horizon(2, 2, 2, 4), 0.0, pad_after=None)
        dataset.use_latents(dataset.latents(codec, tmp_path, progress=False))
        latents.append(dataset.__getitems__([(3, 0), (4, 1)])["future"])
    assert torch.equal(latents[0]["image"], latents[1]["image"]), "the first one's is that of a single camera"
    assert not torch.isclose(latents[1]["image"], latents[1]["wrist"]).all(dim=-1).any()
