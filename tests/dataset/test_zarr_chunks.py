"""Chunks that a writer left out, chunks that are lost, and fingerprints of all of them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.dataset.zarr_store import StoreError

ENDS = np.array([40, 73, 150])  # no multiple of CHUNK but the first
CHUNK = 8


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "img": rng.integers(1, 256, (150, 4, 6, 3), dtype=np.uint8),
        "action": rng.uniform(1, 2, (150, 4)).astype(np.float32),
    }


def write(path: Path, data: dict[str, np.ndarray], zarr_format: int = 2, chunk=CHUNK, empty: bool = False, **chunks):
    """A store as zarr 3 writes it unless told otherwise: without chunks that hold zeros alone, but with `empty`."""
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, values in data.items():
        array = root.create_array(
            f"data/{name}",
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunks.get(name, (chunk, *values.shape[1:])),
            compressors=None,
            config={"write_empty_chunks": empty},
        )
        array[...] = values
    root.create_array("meta/episode_ends", data=ENDS, chunks=ENDS.shape)
    return path


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    buffer = ReplayBuffer(path, ["img"], ["action"])
    return buffer.frames("img", np.arange(150)), buffer.vectors["action"]


def zeroed(name: str, *ranges: tuple[int, int]) -> dict[str, np.ndarray]:
    data = arrays()
    for start, stop in ranges:
        data[name][start:stop] = 0
    return data


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("name", "start", "stop", "rows"),
    [
        ("img", 0, 16, "0 to 15"),  # dark before the light goes on, just where a chunk ends
        ("action", 0, 40, "0 to 39"),  # a whole episode of zeros, the first
        ("action", 0, 55, "0 to 47"),  # further, but it fades out within a chunk
        ("action", 76, 131, "80 to 127"),  # in the middle of an episode: both rows beside it are zeros
        ("action", 70, 90, "72 to 87"),  # over the end of an episode
    ],
)
def test_chunks_left_out_are_read_as_zeros_with_a_warning(tmp_path, caplog, zarr_format, name, start, stop, rows):
    data = zeroed(name, (start, stop))
    img, action = read(write(tmp_path / "store.zarr", data, zarr_format))
    assert np.array_equal(img, data["img"]) and np.array_equal(action, data["action"])
    assert f"data/{name} has no chunk for rows {rows}; they are read as 0" in caplog.text
    assert len(caplog.records) == 1  # on opening, not at every read


def test_a_column_that_never_changes_is_read(tmp_path):
    data = arrays()
    data["action"][:, 2:] = 0
    path = write(tmp_path / "store.zarr", data, action=(50, 2))
    assert not (path / "data/action/0.1").exists()
    assert np.array_equal(read(path)[1], data["action"])


def unlinked(path: Path, *names: str) -> Path:
    for name in names:
        (path / "data" / name).unlink()
    return path


LOST = {
    "frames, at the start of an episode": (["img/5.0.0.0"], r"img lacks chunk \(5, 0, 0, 0\) \(rows from 40, 8 of"),
    "the last frames": (["img/18.0.0.0"], r"\(rows from 144, 6 of them\).*reach the array's end"),
    "actions": (["action/3.0"], r"action lacks chunk \(3, 0\) \(rows from 24, 8 of them\).*but row 23 beside them"),
    "more than an episode from the start": ([f"action/{n}.0" for n in range(6)], "rows from 0, 48 .*but row 48"),
    "everything": ([f"action/{n}.0" for n in range(19)], "rows from 0, 150 of them"),
}


@pytest.mark.parametrize("case", LOST)
def test_lost_chunks_are_named(tmp_path, case):
    names, message = LOST[case]
    path = unlinked(write(tmp_path / "store.zarr", arrays()), *names)
    with pytest.raises(StoreError, match=rf"store\.zarr: data/.*{message}"):
        read(path)


def test_a_whole_episode_in_the_middle_is_taken_for_lost(tmp_path):
    """Nothing beside it is of the same episode."""
    path = write(tmp_path / "store.zarr", zeroed("action", (40, 73)), action=(1, 4))
    with pytest.raises(StoreError, match="no row beside them is of the same episode"):
        read(path)


def test_beside_a_stored_chunk_of_zeros_a_missing_one_is_lost(tmp_path):
    """Such a writer leaves nothing out."""
    path = unlinked(write(tmp_path / "store.zarr", zeroed("action", (80, 112)), empty=True), "action/11.0")
    with pytest.raises(StoreError, match="action lacks chunk"):
        read(path)


def test_without_a_fill_value_nothing_is_made_up(tmp_path):
    path = write(tmp_path / "store.zarr", zeroed("img", (0, 16)))
    metadata = path / "data/img/.zarray"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "fill_value": None}))
    with pytest.raises(StoreError, match="its metadata has no fill value"):
        read(path)


def test_a_chunk_lost_after_opening_is_refused(tmp_path):
    path = write(tmp_path / "store.zarr", zeroed("img", (0, 16)))
    buffer = ReplayBuffer(path, ["img"], [])
    assert not buffer.frames("img", np.array([3])).any()
    unlinked(path, "img/6.0.0.0")
    with pytest.raises(StoreError, match="img lacks chunk"):
        buffer.frames("img", np.array([50]))


def test_the_message_says_how_to_store_zeros(tmp_path):
    data = zeroed("action", (40, 73))
    path = write(tmp_path / "store.zarr", data, action=(1, 2))
    for _ in range(2):  # each column
        with pytest.raises(StoreError, match="if these rows do hold 0.0, store them") as error:
            read(path)
        _, code = str(error.value).split("python -c ")
        subprocess.run([sys.executable, "-c", *shlex.split(code)], check=True)
    assert np.array_equal(read(path)[1], data["action"])


# -- fingerprints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache, and whatever is larger than 1000 bytes counts as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ReplayBuffer.fingerprint, "__defaults__", (1000,))
    return tmp_path / "home/unified_video_action/fingerprints"


def fingerprint(path: Path) -> str:
    return ReplayBuffer(path, ["img"], []).fingerprint()


def flip(path: Path) -> None:
    """Change a byte of a file and nothing else of it, not even its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def many_chunks(path: Path) -> Path:
    frames = np.random.default_rng(1).integers(1, 256, (1790, 2, 2, 3), dtype=np.uint8)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.create_array("data/img", data=frames, chunks=(1, 2, 2, 3), compressors=None)
    root.create_array("meta/episode_ends", data=np.array([1790]))
    return path


def test_any_changed_chunk_changes_it(tmp_path):
    path = many_chunks(tmp_path / "store.zarr")
    before = fingerprint(path)
    for number in (3, 1003):  # neither of which is among few, evenly spaced ones
        flip(path / f"data/img/{number}.0.0.0")
        assert fingerprint(path) != before
        flip(path / f"data/img/{number}.0.0.0")


def test_large_stores_are_read_when_names_sizes_or_times_change(tmp_path, cache):
    path = write(tmp_path / "store.zarr", arrays())
    before, copy = fingerprint(path), tmp_path / "elsewhere/store.zarr"
    assert len(list(cache.iterdir())) == 1

    shutil.copytree(path, copy, copy_function=shutil.copyfile)  # new times
    assert fingerprint(copy) == before
    flip(path / "data/img/7.0.0.0")
    assert fingerprint(path) != before
    assert len(list(cache.iterdir())) == 3

    files = [entry for entry in copy.rglob("*") if entry.is_file()]
    for file in files:
        if file.parent.name == "img" and not file.name.startswith("."):
            times = file.stat()
            file.write_bytes(b"x" * times.st_size)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(copy) == before  # remembered, not read
    for file in cache.iterdir():
        file.write_text("cut sho")
    assert fingerprint(copy) != before  # what cannot be what was written is not believed


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, cache, caplog):
    path = write(tmp_path / "store.zarr", arrays())
    expected = fingerprint(path)
    shutil.rmtree(cache)
    cache.write_text("a file, where a folder should be")
    assert fingerprint(path) == expected and "will be read again" in caplog.text


def test_zips_are_known_by_their_checksums(tmp_path, cache):
    path, found = many_chunks(tmp_path / "store.zarr"), []
    for change in ("nothing", "times", "a chunk"):
        if change == "a chunk":
            flip(path / "data/img/1003.0.0.0")
        with zipfile.ZipFile(tmp_path / f"{change}.zip", "w") as archive:
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    info = zipfile.ZipInfo(str(file.relative_to(path)), (2000 + len(found), 1, 1, 0, 0, 0))
                    archive.writestr(info, file.read_bytes())
        found.append(fingerprint(tmp_path / f"{change}.zip"))
    assert found[0] == found[1] != found[2]
    assert not cache.exists()  # nothing had to be read
