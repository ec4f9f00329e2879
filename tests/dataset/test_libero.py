"""LIBERO's converted demonstrations as a source: tasks, instructions, cameras, states, actions."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="h5py is not installed; add the simulators with: make sims")
import h5py

from unified_video_action.dataset.libero import LiberoSource
from unified_video_action.dataset.mixture import MixtureDataset, Wanted
from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.rotations import from_pose_actions
from unified_video_action.spec import Horizon

WANTED = Wanted(cameras=("agentview_rgb", "eye_in_hand_rgb"), low_dim=("gripper_qpos", "ee_pos"), action_dim=10)
TASKS = {"stack the cups": (40, 36), "close the drawer": (50,)}


def write(path: Path, instruction: str, lengths: tuple[int, ...], seed: int, **attributes) -> Path:
    """Episodes in the layout of the converted files; positions say which task and step they are of."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"control_mode": "absolute", "instruction": instruction} | attributes)
        for episode, length in enumerate(lengths):
            actions = random.uniform(-1, 1, (length, 7))
            actions[:, 0], actions[:, 6] = seed + np.arange(length) / 100, np.sign(actions[:, 6])
            group = data.create_group(f"demo_{episode * 5}")  # some numbers are missing, where replays failed
            group["actions"] = actions
            group["obs/ee_pos"] = actions[:, :3].astype(np.float32)
            group["obs/gripper_qpos"] = random.uniform(0, 0.04, (length, 2)).astype(np.float32)
            for camera in WANTED.cameras:
                frames = random.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
                group.create_dataset(f"obs/{camera}", data=frames, chunks=(8, 16, 16, 3), compression="gzip")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (instruction, lengths) in enumerate(TASKS.items()):
        write(tmp_path / f"{'ba'[seed]}.hdf5", instruction, lengths, seed)
    (tmp_path / "report.json").write_text("[]")
    return tmp_path


def test_a_folder_is_a_table_for_each_task(folder: Path):
    drawer, cups = LiberoSource(str(folder)).tables(WANTED)  # a.hdf5, b.hdf5
    assert drawer.instructions == ("close the drawer",) and cups.instructions == ("stack the cups",) * 2
    assert cups.store.episode_ends.tolist() == [40, 76] and set(cups.low_dim) == set(WANTED.low_dim)
    with h5py.File(folder / "b.hdf5") as file:
        stored, frames = file["data/demo_5/actions"][:], file["data/demo_5/obs/eye_in_hand_rgb"][3]
    np.testing.assert_allclose(from_pose_actions(cups.action[40:]), stored, atol=1e-5)
    np.testing.assert_array_equal(cups.stored_frames("eye_in_hand_rgb", np.array([43]))[0], np.moveaxis(frames, -1, 0))
    np.testing.assert_allclose(cups.low_dim["ee_pos"][:, 0], cups.action[:, 0])
    assert cups.weight is None
    weighted = LiberoSource(str(folder), weight=2.0).tables(WANTED)
    assert [table.weight for table in weighted] == pytest.approx([2 * 50 / 126, 2 * 76 / 126])
    video = LiberoSource(str(folder / "a.hdf5"), has_action=False).tables(WANTED)
    assert len(video) == 1 and video[0].action is None


def test_samples_carry_their_tasks_instruction_and_raw_rotations(folder: Path):
    import torch

    raw = {"action": list(range(3, 10))}
    dataset = MixtureDataset(LiberoSource(str(folder)), WANTED, Horizon(), val_ratio=0.0, raw_dims=raw)
    assert dataset.instructions == ("close the drawer", "stack the cups")
    dataset.use_text(torch.tensor([[0.0], [1.0]]))
    batch = dataset.__getitems__([(index, 0) for index in range(len(dataset))])
    task = batch["action"][..., 0].floor()  # 1: the drawer, 0: the cups
    assert (batch["text"][:, 0] == 1 - task[:, 0]).all() and 0 < task.mean() < 1
    fields = dataset.fit_normalizer().fields()["action"]
    np.testing.assert_array_equal(fields["scale"][3:], 1)
    np.testing.assert_array_equal(fields["offset"][3:], 0)
    assert fields["scale"][0] == pytest.approx(2 / 1.49, rel=1e-3)


def test_what_cannot_be_read_is_named(folder: Path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        LiberoSource(str(folder / "nowhere")).tables(WANTED)
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: holds no \*\.hdf5 but nothing"):
        LiberoSource(str(folder / "empty")).tables(WANTED)
    with pytest.raises(ValueError, match="given as 10 numbers"):
        LiberoSource(str(folder)).tables(Wanted(cameras=("agentview_rgb",), low_dim=(), action_dim=7))
    with pytest.raises(StoreError, match="obs/joint_pos is missing"):
        LiberoSource(str(folder)).tables(Wanted(cameras=("agentview_rgb",), low_dim=("joint_pos",), action_dim=10))
    (folder / "._a.hdf5").write_bytes(b"Mac OS X")
    (folder / "a.hdf5").rename(folder / "a.HDF5")
    assert [Path(table.store.location).name for table in LiberoSource(str(folder)).tables(WANTED)] == [
        "a.HDF5",
        "b.hdf5",
    ]
    write(folder / "c.hdf5", "fold", (20,), 0, control_mode="relative")
    with pytest.raises(StoreError, match=r"c\.hdf5: as LIBERO publishes it.*python scripts/replay_libero\.py"):
        LiberoSource(str(folder)).tables(WANTED)
