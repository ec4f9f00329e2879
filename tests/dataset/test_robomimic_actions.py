"""Files in robomimic's layout that no simulator has to make: kinds of actions, and what raw files lack."""

from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="h5py is missing; install it with: make sims")

from unified_video_action.dataset.mixture import Wanted  # noqa: E402
from unified_video_action.dataset.robomimic import RobomimicSource  # noqa: E402
from unified_video_action.dataset.zarr_store import StoreError  # noqa: E402

WANTED = Wanted(("front_image",), ("robot0_eef_pos",), 10)
STEPS = 40


def write(path: Path, change, frames: bool = True) -> Path:
    """Two demonstrations of a hand near (0.2, 0, 0.15); `change(hand)` gives positions of the actions."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(2):
            demo = file.create_group(f"data/demo_{number}")
            hand = np.cumsum(rng.normal(size=(STEPS, 3)) * 0.004, axis=0) + [0.2, 0, 0.15]
            demo["obs/robot0_eef_pos"] = hand
            demo["actions"] = np.concatenate([change(hand), np.zeros((STEPS, 4))], axis=1)
            if frames:
                demo["obs/front_image"] = rng.integers(256, size=(STEPS, 6, 8, 3), dtype=np.uint8)
    return path


def steps(hand: np.ndarray) -> np.ndarray:
    return np.diff(hand, axis=0, append=hand[-1:])


def test_poses_are_read(tmp_path):
    path = write(tmp_path / "demos.hdf5", lambda hand: hand + steps(hand))
    (table,) = RobomimicSource(str(path)).tables(WANTED)
    assert np.allclose(table.action[:-1, :3][: STEPS - 1], table.low_dim["robot0_eef_pos"][1:STEPS], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (steps, "its actions are steps.*render_robomimic.py .*demos.hdf5 --absolute --output NEW.hdf5"),
        (lambda hand: hand + [0.56, 0, -0.9], r"another frame than obs/robot0_eef_pos, \[0.56, 0.0, -0.9\] m from it"),
        (lambda hand: np.random.default_rng(1).normal(size=hand.shape), "follow neither obs/robot0_eef_pos nor its"),
    ],
)
def test_other_actions_are_refused_or_taken_on_ones_word(tmp_path, change, message):
    path = write(tmp_path / "demos.hdf5", change)
    with pytest.raises(StoreError, match=f"demos.hdf5: .*{message}") as error:
        RobomimicSource(str(path)).tables(WANTED)
    assert ("are steps" in str(error.value)) == (change is steps)
    (table,) = RobomimicSource(str(path), poses=True).tables(WANTED)
    with h5py.File(path) as file:
        assert np.allclose(table.action[:STEPS, :3], file["data/demo_0/actions"][:, :3])


def test_a_file_without_frames_says_how_to_draw_them(tmp_path):
    path = write(tmp_path / "low_dim.hdf5", steps, frames=False)
    message = "front_image is missing; beside it there is robot0_eef_pos.*render_robomimic.py .*low_dim.hdf5 --absolute"
    with pytest.raises(StoreError, match=message):
        RobomimicSource(str(path)).tables(WANTED)
