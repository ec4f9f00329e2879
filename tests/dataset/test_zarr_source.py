"""A store's arrays get their parts from the configuration."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from unified_video_action.dataset.build import build_dataset
from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.zarr_source import ZarrSource
from unified_video_action.dataset.zarr_store import StoreError

ENDS = [30, 55]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Two episodes with two cameras of 12 x 16, states and actions."""
    path, rng = tmp_path_factory.mktemp("store") / "demos.zarr", np.random.default_rng(0)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    arrays = {
        "front": rng.integers(0, 256, (ENDS[-1], 12, 16, 3), np.uint8),
        "hand": rng.integers(0, 256, (ENDS[-1], 12, 16, 3), np.uint8),
        "robot": rng.normal(size=(ENDS[-1], 5)),
        "command": rng.normal(size=(ENDS[-1], 3)).astype(np.float32),
    }
    for name, values in arrays.items():
        root.create_array(f"data/{name}", data=values, chunks=(8, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=np.array(ENDS))
    return path


def source(store: Path, **changes) -> ZarrSource:
    given = {
        "cameras": {"image": "front", "wrist": "hand"},
        "low_dim": {"joints": "robot", "position": {"array": "robot", "columns": [3, 0]}},
        "action": "command",
    }
    return ZarrSource(str(store), **given | changes)


def test_arrays_play_their_parts(store):
    root = zarr.open_group(store, mode="r")
    (table,) = source(store, weight=2.0).tables(Wanted(("wrist", "image"), ("position", "joints"), 3))
    rows = np.array([0, 31, 54])
    np.testing.assert_array_equal(table.store.frames(table.cameras["image"], rows), root["data/front"][:][rows])
    np.testing.assert_array_equal(table.store.frames(table.cameras["wrist"], rows), root["data/hand"][:][rows])
    np.testing.assert_allclose(table.low_dim["joints"], root["data/robot"][:], rtol=1e-6)
    np.testing.assert_allclose(table.low_dim["position"], root["data/robot"][:][:, [3, 0]], rtol=1e-6)
    np.testing.assert_array_equal(table.action, root["data/command"][:])
    assert table.weight == 2.0 and len(table) == ENDS[-1] and table.auxiliary is None


def test_what_is_not_wanted_is_not_read(store):
    asked = source(store, cameras={"image": "front", "wrist": "missing"}, low_dim={"joints": "missing too"})
    (table,) = asked.tables(Wanted(("image",), (), 3))
    assert table.cameras == {"image": "front"} and table.low_dim == {}
    (video,) = source(store, action=None).tables(Wanted(("image",), (), 7))
    assert video.action is None


def test_a_configuration_makes_samples_of_frames_that_are_not_square(store):
    task = {
        "shape_meta": {
            "obs": {"image": {"shape": [3, 12, 16], "type": "rgb"}, "position": {"shape": [2], "type": "low_dim"}},
            "action": {"shape": [2]},
        },
        "horizon": {},
        "dataset": {
            "_target_": "unified_video_action.dataset.mixture.MixtureDataset",
            "sources": {
                "_target_": "unified_video_action.dataset.zarr_source.ZarrSource",
                "path": str(store),
                "cameras": {"image": "front"},
                "low_dim": {"position": {"array": "robot", "columns": [0, 1]}},
                "action": {"array": "command", "columns": [0, 2]},
            },
            "val_ratio": 0.0,
        },
    }
    dataset = build_dataset({"task": task})
    sample = dataset[(0, 0)]
    assert sample["history"]["image"].shape == (4, 3, 12, 16) and sample["action"].shape == (16, 2)
    expected = zarr.open_group(store, mode="r")["data/command"][:][:, [0, 2]]
    first = np.flatnonzero((expected == sample["action"][0].numpy()).all(axis=1))
    assert len(first) == 1
    np.testing.assert_array_equal(sample["action"], expected[first[0] : first[0] + 16])


@pytest.mark.parametrize(
    ("changes", "wanted", "message"),
    [
        ({}, Wanted(("top",), (), 3), "shape_meta.obs has top, for which the source's cameras names no array"),
        ({}, Wanted(("image",), ("force",), 3), "there are joints, position"),
        ({}, Wanted(("image",), (), 3, auxiliary=True), "has no auxiliary targets"),
        ({}, Wanted(("image",), (), 2), "actions of 3 numbers, task.shape_meta.action has 2"),
        ({"cameras": {"image": "top"}}, Wanted(("image",), (), 3), "the array data/top is missing"),
        ({"cameras": {"image": "robot"}}, Wanted(("image",), (), 3), "data/robot is float64"),
        ({"action": "front"}, Wanted(("image",), (), 3), r"expected numbers \(N, D\)"),
        ({"action": {"array": "command", "columns": [0, 3]}}, Wanted(("image",), (), 2), "has 3 columns, not number 3"),
    ],
)
def test_what_does_not_fit_is_named(store, changes, wanted, message):
    with pytest.raises((ValueError, StoreError), match=message) as caught:
        source(store, **changes).tables(wanted)
    assert str(store) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0}, "weight=0 must be positive"),
        ({"cameras": "front"}, "cameras='front' must map names to arrays"),
        ({"low_dim": {"joints": ["robot"]}}, "joints=.* must be an array's name or"),
        ({"action": {"array": "command"}}, "action=.* must be an array's name or"),
        ({"action": {"array": "command", "columns": [-1]}}, "action=.* must be an array's name or"),
    ],
)
def test_bad_mappings_are_refused(store, changes, message):
    with pytest.raises(ValueError, match=message):
        source(store, **changes)


def test_a_missing_store_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.zarr"):
        source(tmp_path / "nowhere.zarr").tables(Wanted(("image",), (), 3))
