"""Demonstrations in HDF5 files: order, frames, workers, kinds of actions, and files that are not as they should be."""

import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

h5py = pytest.importorskip("h5py", reason="h5py is missing; install it with: make sims")

from tests.lift_demos import LIFT, SIZE, lift_images, read_demo  # noqa: E402, F401
from unified_video_action.dataset.build import build_dataset  # noqa: E402
from unified_video_action.dataset.formats.hdf5 import Hdf5Store, LiberoSource, RobomimicSource  # noqa: E402
from unified_video_action.dataset.mixture import MixtureDataset, Wanted  # noqa: E402
from unified_video_action.dataset.store import StoreError  # noqa: E402
from unified_video_action.rotations import from_pose_actions  # noqa: E402
from unified_video_action.spec import Horizon  # noqa: E402

LENGTHS = {"demo_10": 7, "demo_2": 5, "demo_1": 40}  # as a file lists them, not in order
IMAGE, ACTIONS = "obs/front_image", "actions"
WANTED = Wanted(("front_image",), ("robot0_eef_pos",), 10)


def write(path: Path, chunks: tuple | None = None) -> np.ndarray:
    """A file of three demonstrations; returns their frames (52, 6, 8, 3) in the order of their numbers."""
    rng, frames = np.random.default_rng(0), {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = "{}"
        for demo, length in LENGTHS.items():
            frames[demo] = rng.integers(256, size=(length, 6, 8, 3), dtype=np.uint8)
            compression = chunks and "gzip"
            data.create_dataset(f"{demo}/{IMAGE}", data=frames[demo], compression=compression, chunks=chunks)
            data[f"{demo}/{ACTIONS}"] = np.full((length, 7), int(demo[5:]), np.float64)
    return np.concatenate([frames[demo] for demo in ("demo_1", "demo_2", "demo_10")])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "demos.hdf5")
    return tmp_path / "demos.hdf5"


@pytest.mark.parametrize("chunks", [None, (4, 6, 4, 1)])
def test_demonstrations_come_in_the_order_of_their_numbers_and_frames_in_any(tmp_path: Path, chunks) -> None:
    everything = write(tmp_path / "demos.hdf5", chunks)
    store = Hdf5Store(tmp_path / "demos.hdf5", [IMAGE], [ACTIONS])
    assert store.demos == ("demo_1", "demo_2", "demo_10") and store.attributes == {"env_args": "{}"}
    assert store.episode_ends.tolist() == [40, 45, 52] and len(store) == 52 and store.frame_shape(IMAGE) == (6, 8)
    assert store.vectors[ACTIONS].dtype == np.float32
    assert store.vectors[ACTIONS][[0, 39, 40, 45], 0].tolist() == [1, 1, 2, 10]
    for rows in (np.array([[51, 0, 0, 4], [41, 39, 8, 12]]), np.arange(52)):
        np.testing.assert_array_equal(store.frames(IMAGE, rows), everything[rows])


def test_the_fingerprint_is_that_of_all_frames_and_many_are_read_once(file: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    copy = shutil.copyfile(file, tmp_path / "copy.hdf5")
    found = {Hdf5Store(path, [IMAGE], []).fingerprint(small) for path in (file, copy) for small in (2**20, 10)}
    assert len(found) == 1 and len(list((tmp_path / "home/unified_video_action/fingerprints").iterdir())) == 2
    store = Hdf5Store(file, [IMAGE], [])
    monkeypatch.setattr(store, "_slice", None)
    assert store.fingerprint(10) in found
    change(file, f"data/demo_2/{ACTIONS}", np.zeros((5, 7)))
    assert Hdf5Store(file, [IMAGE], []).fingerprint() in found
    with h5py.File(file, "a") as opened:
        opened[f"data/demo_1/{IMAGE}"][37, 2, 3, 1] ^= 1
    assert {Hdf5Store(file, [IMAGE], []).fingerprint(small) for small in (2**20, 10)}.isdisjoint(found)


def test_processes_read_the_same_frames(file: Path) -> None:
    store = Hdf5Store(file, [IMAGE], [])
    mine = store.frames(IMAGE, np.arange(52))  # the file is open here when the process is forked
    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.apply(store.frames, (IMAGE, np.arange(52)))
    np.testing.assert_array_equal(theirs, mine)
    np.testing.assert_array_equal(store.frames(IMAGE, np.arange(52)), mine)
    copy = pickle.dumps(store)
    np.testing.assert_array_equal(pickle.loads(copy).frames(IMAGE, np.arange(52)), mine)  # noqa: S301
    assert len(copy) < 5000  # no frames in it


def change(path: Path, name: str, values: np.ndarray | None) -> None:
    """Replace one dataset; None deletes it."""
    with h5py.File(path, "a") as opened:
        del opened[name]
        if values is not None:
            opened[name] = values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (f"data/demo_2/{IMAGE}", None, f"data/demo_2/{IMAGE} is missing; beside it there is nothing"),
        (f"data/demo_2/{IMAGE}", np.zeros((5, 6, 9, 3), np.uint8), "expected uint8 .5, 6, 8, 3."),
        (f"data/demo_2/{ACTIONS}", np.zeros((4, 7)), "expected one length"),
        (f"data/demo_2/{ACTIONS}", np.full((5, 7), np.nan), r"demo_2/actions\[0, 0\] = nan"),
        ("data", None, "holds nothing, expected data/<demonstration>"),
    ],
)
def test_what_is_wrong_is_named(file: Path, name: str, values: np.ndarray | None, message: str) -> None:
    change(file, name, values)
    with pytest.raises(StoreError, match=message) as error:
        Hdf5Store(file, [IMAGE], [ACTIONS])
    assert str(file) in str(error.value)
    file.write_text("not an HDF5 file")
    with pytest.raises(StoreError, match="demos.hdf5: not a readable HDF5 file"):
        Hdf5Store(file, [], [])


# -- robomimic ---------------------------------------------------------------------------------------------------------


def robomimic(path: Path, given, steps: int = 40) -> Path:
    """Two demonstrations of an end effector near (0.2, 0, 0.15); `given` makes positions of the actions."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as opened:
        for number in range(2):
            demo = opened.create_group(f"data/demo_{number}")
            effector = np.cumsum(rng.normal(size=(steps, 3)) * 0.004, axis=0) + [0.2, 0, 0.15]
            demo["obs/robot0_eef_pos"] = effector
            demo["actions"] = np.concatenate([given(effector), np.zeros((steps, 4))], axis=1)
            demo["obs/front_image"] = rng.integers(256, size=(steps, 6, 8, 3), dtype=np.uint8)
    return path


def deltas(effector: np.ndarray) -> np.ndarray:
    return np.diff(effector, axis=0, append=effector[-1:])


def test_poses_are_read(tmp_path) -> None:
    path = robomimic(tmp_path / "demos.hdf5", lambda effector: effector + deltas(effector))
    (table,) = RobomimicSource(str(path)).tables(WANTED)
    assert np.allclose(table.action[:39, :3], table.low_dim["robot0_eef_pos"][1:40], atol=1e-6)
    with pytest.raises(StoreError, match="actions of 10 numbers, but task.shape_meta.action has 7"):
        MixtureDataset(RobomimicSource(str(path)), Wanted(WANTED.cameras, (), 7), Horizon(2, 2, 2, 4), 0.0)
    (table,) = RobomimicSource(str(path), has_action=False).tables(Wanted(WANTED.cameras, (), 7))
    assert table.action is None and table.low_dim == {}
    change(path, "data/demo_0/actions", np.zeros((40, 14)))
    change(path, "data/demo_1/actions", np.zeros((40, 14)))
    with pytest.raises(StoreError, match=r"actions is float64 \(40, 14\), expected numbers \(N, 7\)"):
        RobomimicSource(str(path)).tables(WANTED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (deltas, "its actions are steps.*render_robomimic.py .*demos.hdf5 --absolute --output NEW.hdf5"),
        (lambda effector: effector + [0.56, 0, -0.9], r"another frame than obs/robot0_eef_pos, \[0.56, 0.0, -0.9\] m"),
        (lambda effector: np.random.default_rng(1).normal(size=effector.shape), "follow neither obs/robot0_eef_pos"),
    ],
)
def test_other_actions_are_refused_or_taken_on_ones_word(tmp_path, given, message) -> None:
    path = robomimic(tmp_path / "demos.hdf5", given)
    with pytest.raises(StoreError, match=f"demos.hdf5: .*{message}") as error:
        RobomimicSource(str(path)).tables(WANTED)
    assert ("are steps" in str(error.value)) == (given is deltas)
    (table,) = RobomimicSource(str(path), poses=True).tables(WANTED)
    with h5py.File(path) as opened:
        assert np.allclose(table.action[:40, :3], opened["data/demo_0/actions"][:, :3])


def test_real_files_make_windows_of_the_configuration(lift_images, tmp_path) -> None:  # noqa: F811
    pytest.importorskip("robosuite", reason=LIFT)
    path = shutil.copy(lift_images, tmp_path / "image_abs.hdf5")
    with h5py.File(path, "a") as opened:  # published files still name the controller of the recording: of steps
        text = opened["data"].attrs["env_args"]
        assert '"control_delta": false' in text
        opened["data"].attrs["env_args"] = text.replace('"control_delta": false', '"control_delta": true')
    cameras = ("agentview_image", "robot0_eye_in_hand_image")
    sizes = [f"task.shape_meta.obs.{name}.shape=[3,{SIZE},{SIZE}]" for name in cameras]
    source = [f"task.dataset.sources.path={path}", "task.dataset.val_ratio=0.4"]
    with initialize_config_dir(str(Path(__file__).parents[3] / "config"), version_base="1.3"):
        dataset = build_dataset(compose("uva_lift", [*sizes, *source]))
    (table,), demos = dataset.tables, [read_demo(lift_images, f"demo_{number}") for number in range(2)]
    stored, back = np.concatenate([demo["actions"] for demo in demos]), from_pose_actions(table.action)
    np.testing.assert_allclose(back[:, [0, 1, 2, 6]], stored[:, [0, 1, 2, 6]], atol=1e-6)
    turns = np.linalg.norm(back[:, 3:6] - stored[:, 3:6], axis=1)
    opposite = np.linalg.norm(back[:, 3:6] + stored[:, 3:6], axis=1)  # near half a turn both name one rotation
    assert (np.minimum(turns, opposite) < 0.01).all()
    frames, rows = np.concatenate([demo["obs/robot0_eye_in_hand_image"] for demo in demos]), np.array([[0, 60], [3, 9]])
    shown = table.stored_frames("robot0_eye_in_hand_image", rows)
    np.testing.assert_array_equal(np.moveaxis(shown, -3, -1), frames[rows])
    fields = dataset.fit_normalizer().fields()
    assert (fields["action"]["scale"][3:] == 1).all() and (fields["action"]["offset"][3:] == 0).all()
    assert (fields["action"]["scale"][:3] > 2).all()  # positions lie within decimetres
    assert (fields["robot0_eef_quat"]["scale"] == 1).all() and (fields["robot0_gripper_qpos"]["scale"] > 2).all()


# -- LIBERO ------------------------------------------------------------------------------------------------------------

LIBERO = Wanted(("agentview_rgb", "eye_in_hand_rgb"), ("gripper_qpos", "ee_pos"), 10)


def libero(path: Path, instruction: str, lengths: tuple[int, ...], seed: int, **attributes) -> Path:
    """Episodes in the layout of the converted files; positions say which task and step they are of."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as opened:
        data = opened.create_group("data")
        data.attrs.update({"control_mode": "absolute", "instruction": instruction} | attributes)
        for episode, length in enumerate(lengths):
            actions = random.uniform(-1, 1, (length, 7))
            actions[:, 0], actions[:, 6] = seed + np.arange(length) / 100, np.sign(actions[:, 6])
            group = data.create_group(f"demo_{episode * 5}")  # some numbers are missing, where replays failed
            group["actions"], group["obs/ee_pos"] = actions, actions[:, :3].astype(np.float32)
            group["obs/gripper_qpos"] = random.uniform(0, 0.04, (length, 2)).astype(np.float32)
            for camera in LIBERO.cameras:
                group[f"obs/{camera}"] = random.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    libero(tmp_path / "b.hdf5", "stack the cups", (40, 36), 0)
    libero(tmp_path / "a.HDF5", "close the drawer", (50,), 1)
    (tmp_path / "report.json").write_text("[]")
    (tmp_path / "._a.hdf5").write_bytes(b"Mac OS X")
    return tmp_path


def test_a_folder_is_a_table_for_each_task(folder: Path) -> None:
    drawer, cups = LiberoSource(str(folder)).tables(LIBERO)
    assert drawer.instructions == ("close the drawer",) and cups.instructions == ("stack the cups",) * 2
    assert cups.store.episode_ends.tolist() == [40, 76] and set(cups.low_dim) == set(LIBERO.low_dim)
    with h5py.File(folder / "b.hdf5") as opened:
        stored, frames = opened["data/demo_5/actions"][:], opened["data/demo_5/obs/eye_in_hand_rgb"][3]
    np.testing.assert_allclose(from_pose_actions(cups.action[40:]), stored, atol=1e-5)
    np.testing.assert_array_equal(cups.stored_frames("eye_in_hand_rgb", np.array([43]))[0], np.moveaxis(frames, -1, 0))
    np.testing.assert_allclose(cups.low_dim["ee_pos"][:, 0], cups.action[:, 0])
    weighted = MixtureDataset(LiberoSource(str(folder), weight=2.0), LIBERO, Horizon(), val_ratio=0.0)
    assert [table.weight for table in weighted.tables] == pytest.approx([2 * 50 / 126, 2 * 76 / 126])
    (video,) = LiberoSource(str(folder / "a.HDF5"), has_action=False).tables(LIBERO)
    assert video.action is None
    dataset = MixtureDataset(LiberoSource(str(folder)), LIBERO, Horizon(), val_ratio=0.0)
    assert dataset.instructions == ("close the drawer", "stack the cups")
    dataset.use_text(torch.tensor([[0.0], [1.0]]))
    batch = dataset.__getitems__([(index, 0) for index in range(len(dataset))])
    task = batch["action"][..., 0].floor()  # 1: the drawer, 0: the cups
    assert (batch["text"][:, 0] == 1 - task[:, 0]).all() and 0 < task.mean() < 1
    libero(folder / "c.hdf5", "fold", (20,), 0, control_mode="relative")
    with pytest.raises(StoreError, match=r"c\.hdf5: as LIBERO publishes it.*python scripts/replay_libero\.py"):
        LiberoSource(str(folder)).tables(LIBERO)
