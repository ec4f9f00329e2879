"""robomimic's files as a source: real ones of Lift, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from tests.lift_demos import LIFT, SIZE, lift_images, read_demo  # noqa: F401

pytest.importorskip("h5py", reason=LIFT)
pytest.importorskip("robosuite", reason=LIFT)

import h5py

from unified_video_action.dataset.build import build_dataset
from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.robomimic import RobomimicSource
from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.rotations import from_pose_actions

CONFIG = Path(__file__).parents[2] / "config"
STATES = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
WANTED = Wanted(("agentview_image", "robot0_eye_in_hand_image"), STATES, 10)


def changed(path: Path, folder: Path, name: str, values: np.ndarray) -> Path:
    """A copy of a file with another data/demo_<i>/<name> in every demonstration."""
    copy = shutil.copy(path, folder / "changed.hdf5")
    with h5py.File(copy, "a") as file:
        for demo in file["data"].values():
            del demo[name]
            demo[name] = values[: demo.attrs["num_samples"]]
    return copy


def test_a_table_holds_what_the_file_does(lift_images) -> None:  # noqa: F811
    (table,) = RobomimicSource(str(lift_images), weight=2.0).tables(WANTED)
    demos = [read_demo(lift_images, f"demo_{number}") for number in range(2)]
    assert table.store.n_episodes == 2 and len(table) == sum(len(demo["actions"]) for demo in demos)
    assert table.action.shape == (len(table), 10) and table.action.dtype == np.float32 and table.weight == 2.0
    stored = np.concatenate([demo["actions"] for demo in demos])
    back = from_pose_actions(table.action)
    np.testing.assert_allclose(back[:, [0, 1, 2, 6]], stored[:, [0, 1, 2, 6]], atol=1e-6)
    turns = np.linalg.norm(back[:, 3:6] - stored[:, 3:6], axis=1)
    opposite = np.linalg.norm(back[:, 3:6] + stored[:, 3:6], axis=1)  # near half a turn both name one rotation
    assert (np.minimum(turns, opposite) < 0.01).all()
    for name in STATES:
        whole = np.concatenate([demo[f"obs/{name}"] for demo in demos])
        np.testing.assert_allclose(table.low_dim[name], whole, atol=1e-6)
    frames = np.concatenate([demo["obs/robot0_eye_in_hand_image"] for demo in demos])
    rows = np.array([[0, 60], [len(table) - 1, 3]])
    seen = table.stored_frames("robot0_eye_in_hand_image", rows)
    assert seen.shape == (2, 2, 3, SIZE, SIZE)
    np.testing.assert_array_equal(np.moveaxis(seen, -3, -1), frames[rows])


def test_a_video_without_actions(lift_images, tmp_path) -> None:  # noqa: F811
    steps = changed(lift_images, tmp_path, "actions", np.zeros((100, 7)))
    (table,) = RobomimicSource(str(steps), has_action=False).tables(Wanted(WANTED.cameras, (), 10))
    assert table.action is None and table.low_dim == {}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("actions", np.random.default_rng(0).uniform(-1, 1, (100, 7)), "--absolute --output NEW.hdf5"),
        ("actions", np.zeros((100, 14)), "actions have 14 numbers, expected 7"),
        ("obs/robot0_eef_quat", np.full((100, 4), np.inf), "is not a number"),
    ],
)
def test_files_that_do_not_fit_are_refused(lift_images, tmp_path, name, values, message) -> None:  # noqa: F811
    path = changed(lift_images, tmp_path, name, values)
    with pytest.raises(StoreError, match=message) as error:
        RobomimicSource(str(path)).tables(WANTED)
    assert str(path) in str(error.value)


def test_what_no_file_has_is_refused(lift_images) -> None:  # noqa: F811
    with pytest.raises(StoreError, match="obs/sideview_image is missing; beside it there is agentview_image"):
        RobomimicSource(str(lift_images)).tables(Wanted(("sideview_image",), (), 10))
    with pytest.raises(ValueError, match="given as 10 numbers"):
        RobomimicSource(str(lift_images)).tables(Wanted(WANTED.cameras, (), 7))


def test_published_files_are_told_by_their_actions(lift_images, tmp_path) -> None:  # noqa: F811
    """Their env_args still name the controller of the recording, which took steps."""
    copy = shutil.copy(lift_images, tmp_path / "image_abs.hdf5")
    with h5py.File(copy, "a") as file:
        text = file["data"].attrs["env_args"]
        assert '"control_delta": false' in text
        file["data"].attrs["env_args"] = text.replace('"control_delta": false', '"control_delta": true')
    assert RobomimicSource(str(copy)).tables(WANTED)[0].action is not None


def test_windows_of_the_configuration(lift_images) -> None:  # noqa: F811
    sizes = [f"task.shape_meta.obs.{name}.shape=[3,{SIZE},{SIZE}]" for name in WANTED.cameras]
    place = [f"task.dataset.sources.path={lift_images}", "task.dataset.val_ratio=0.4"]
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        dataset = build_dataset(compose("uva_lift", [*sizes, *place]))
    dataset.use_frames()
    sample = dataset[(0, 0)]
    assert {name: tuple(video.shape) for name, video in sample["history"].items()} == {
        name: (4, 3, SIZE, SIZE) for name in WANTED.cameras
    }
    assert sample["action"].shape == (16, 10)
    assert {name: tuple(value.shape) for name, value in sample["low_dim"].items()} == {
        "robot0_eef_pos": (1, 3),
        "robot0_eef_quat": (1, 4),
        "robot0_gripper_qpos": (1, 2),
    }
    fields = dataset.fit_normalizer().fields()
    assert (fields["action"]["scale"][3:] == 1).all() and (fields["action"]["offset"][3:] == 0).all()
    assert (fields["action"]["scale"][:3] > 2).all()  # positions lie within decimetres
    assert (fields["robot0_eef_quat"]["scale"] == 1).all() and (fields["robot0_gripper_qpos"]["scale"] > 2).all()
