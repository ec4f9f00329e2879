"""Demonstrations in HDF5 files: order, frames, workers, and files that are not as they should be."""

import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="h5py is missing; install it with: make sims")

from unified_video_action.dataset.hdf5_store import Hdf5Store  # noqa: E402
from unified_video_action.dataset.zarr_store import StoreError  # noqa: E402

LENGTHS = {"demo_10": 7, "demo_2": 5, "demo_1": 40}  # as a file lists them, not in order
IMAGE, ACTIONS = "obs/front_image", "actions"


def write(path: Path, compression: str | None = None, chunks: tuple | None = None) -> dict[str, np.ndarray]:
    """A file of three demonstrations; returns demo -> frames (T, 6, 8, 3) as stored."""
    rng, frames = np.random.default_rng(0), {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = "{}"
        for demo, length in LENGTHS.items():
            frames[demo] = rng.integers(256, size=(length, 6, 8, 3), dtype=np.uint8)
            data.create_dataset(f"{demo}/{IMAGE}", data=frames[demo], compression=compression, chunks=chunks)
            data[f"{demo}/{ACTIONS}"] = np.full((length, 7), int(demo[5:]), np.float64)
    return frames


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "demos.hdf5")
    return tmp_path / "demos.hdf5"


def change(path: Path, name: str, values: np.ndarray | None) -> None:
    """Replace one dataset; None deletes it."""
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


def test_demonstrations_come_in_the_order_of_their_numbers(file: Path) -> None:
    store = Hdf5Store(file, images=[IMAGE], vectors=[ACTIONS])
    assert store.demos == ("demo_1", "demo_2", "demo_10")
    assert store.episode_ends.tolist() == [40, 45, 52] and len(store) == 52
    assert store.vectors[ACTIONS].dtype == np.float32
    assert store.vectors[ACTIONS][[0, 39, 40, 45], 0].tolist() == [1, 1, 2, 10]
    assert store.attributes == {"env_args": "{}"}


@pytest.mark.parametrize(("compression", "chunks"), [(None, None), ("gzip", (4, 6, 4, 1))])
def test_frames_at_any_rows_in_any_order(tmp_path: Path, compression, chunks) -> None:
    stored = write(tmp_path / "demos.hdf5", compression, chunks)
    everything = np.concatenate([stored[demo] for demo in ("demo_1", "demo_2", "demo_10")])
    store = Hdf5Store(tmp_path / "demos.hdf5", images=[IMAGE], vectors=[])
    rows = np.array([[51, 0, 0, 4], [41, 39, 8, 12]])
    assert store.frame_shape(IMAGE) == (6, 8)
    np.testing.assert_array_equal(store.frames(IMAGE, rows), everything[rows])
    np.testing.assert_array_equal(store.frames(IMAGE, np.arange(52)), everything)


def test_flipped_frames_are_turned_upright_and_have_another_fingerprint(file: Path) -> None:
    plain, flipped = (Hdf5Store(file, [IMAGE], [], flipped) for flipped in (False, True))
    rows = np.array([3, 44])
    np.testing.assert_array_equal(flipped.frames(IMAGE, rows), plain.frames(IMAGE, rows)[:, ::-1])
    assert plain.fingerprint() != flipped.fingerprint()


def test_the_fingerprint_is_that_of_the_frames(file: Path) -> None:
    before = Hdf5Store(file, [IMAGE], []).fingerprint()
    change(file, f"data/demo_2/{ACTIONS}", np.zeros((5, 7)))
    assert Hdf5Store(file, [IMAGE], []).fingerprint() == before
    with h5py.File(file, "a") as opened:
        opened[f"data/demo_2/{IMAGE}"][3, 0, 0, 0] ^= 1
    assert Hdf5Store(file, [IMAGE], []).fingerprint() != before


def test_every_frame_counts_and_much_of_them_is_read_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write(tmp_path / "demos.hdf5")
    file, found = tmp_path / "demos.hdf5", set()
    for small in (2**20, 10):
        found.add(Hdf5Store(file, [IMAGE], []).fingerprint(small))
    copy = shutil.copyfile(file, tmp_path / "copy.hdf5")
    found.add(Hdf5Store(copy, [IMAGE], []).fingerprint(10))
    assert len(found) == 1 and len(list((tmp_path / "home/unified_video_action/fingerprints").iterdir())) == 2
    store = Hdf5Store(file, [IMAGE], [])
    monkeypatch.setattr(store, "_read", None)
    assert store.fingerprint(10) in found
    with h5py.File(file, "a") as opened:
        opened[f"data/demo_1/{IMAGE}"][37, 2, 3, 1] ^= 1
    assert Hdf5Store(file, [IMAGE], []).fingerprint(10) not in found


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_the_same_frames(file: Path, method: str) -> None:
    store = Hdf5Store(file, [IMAGE], [])
    mine = store.frames(IMAGE, np.arange(52))  # the file is open here when the process is forked
    with multiprocessing.get_context(method).Pool(1) as pool:
        theirs = pool.apply(store.frames, (IMAGE, np.arange(52)))
    np.testing.assert_array_equal(theirs, mine)
    np.testing.assert_array_equal(store.frames(IMAGE, np.arange(52)), mine)
    assert len(pickle.dumps(store)) < 5000  # no frames in it


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (f"data/demo_2/{IMAGE}", None, f"data/demo_2/{IMAGE} is missing"),
        (f"data/demo_2/{IMAGE}", np.zeros((5, 6, 9, 3), np.uint8), "expected uint8 .5, 6, 8, 3."),
        (f"data/demo_2/{IMAGE}", np.zeros((5, 6, 8, 3), np.float32), "is float32"),
        (f"data/demo_2/{ACTIONS}", np.zeros((4, 7)), "expected one length"),
        (f"data/demo_2/{ACTIONS}", np.zeros((5, 6)), r"expected numbers \(T, 7\)"),
        (f"data/demo_2/{ACTIONS}", np.full((5, 7), np.nan), r"demo_2/actions\[0, 0\] = nan"),
        (f"data/demo_2/{ACTIONS}", np.full((5, 7), -1e30), r"demo_2/actions\[0, 0\] = -1e\+30 is larger"),
        ("data", None, "holds nothing, expected data/<demonstration>"),
    ],
)
def test_what_is_wrong_is_named(file: Path, name: str, values: np.ndarray | None, message: str) -> None:
    change(file, name, values)
    with pytest.raises(StoreError, match=message) as error:
        Hdf5Store(file, [IMAGE], [ACTIONS])
    assert str(file) in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.hdf5: no such file"):
        Hdf5Store(tmp_path / "missing.hdf5", [], [])
    (tmp_path / "text.hdf5").write_text("not an HDF5 file")
    with pytest.raises(StoreError, match="not a readable HDF5 file"):
        Hdf5Store(tmp_path / "text.hdf5", [], [])
    (tmp_path / "text.hdf5").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(
        StoreError, match="text.hdf5: is a Git LFS pointer, not the HDF5 file itself; run `git lfs pull`"
    ):
        Hdf5Store(tmp_path / "text.hdf5", [], [])
    with pytest.raises(FileNotFoundError, match="is a folder, expected an HDF5 file"):
        Hdf5Store(tmp_path, [], [])
    with pytest.raises(StoreError, match="download it"):
        Hdf5Store("https://example.com/demos.hdf5", [], [])
