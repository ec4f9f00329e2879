"""scripts/transform_demos.py: what it writes is the human demonstrations, elsewhere on the table, with their goals."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.loading import load_script
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.env.pusht.env import DEFAULT_GOAL, PushTEnv, render_states
from unified_video_action.env.pusht.geometry import OUTLINE, to_table
from unified_video_action.env.pusht.table import WALL_HIGH, WALL_LOW
from unified_video_action.env.pusht_m.motion import (
    COVERAGE_LOST,
    KEPT,
    OFF_TABLE,
    Motion,
    Mover,
    Recording,
)

OPTIONS = ("--episodes", "2", "--seed", "1")


@pytest.fixture(scope="module")
def script():
    return load_script("transform_demos")


@pytest.fixture(scope="module")
def moved(script, pusht_zip: Path, tmp_path_factory) -> Path:
    """Two copies of each of the first two human demonstrations."""
    output = tmp_path_factory.mktemp("moved") / "new" / "human.zarr.zip"
    script.main(["--input", str(pusht_zip), "--output", str(output), *OPTIONS, "--workers", "1"])
    assert [path.name for path in output.parent.iterdir()] == [output.name]  # nothing partial left behind
    return output


def episodes(path: Path) -> list[dict]:
    """Arrays and meta entries of every episode."""
    buffer = ReplayBuffer(path, images=["img"], vectors=["action", "state"])
    with zarr.storage.ZipStore(path, mode="r") as store:
        meta = {name: array[:] for name, array in zarr.open_group(store, mode="r")["meta"].arrays()}
    return [
        {name: values[start:end] for name, values in buffer.vectors.items()}
        | {"img": buffer.frames("img", np.arange(start, end))}
        | {name: values[row] for name, values in meta.items()}
        for row, (start, end) in enumerate(zip(buffer.episode_starts, buffer.episode_ends, strict=True))
    ]


def test_copies_are_their_sources_moved_with_the_goal(script, moved: Path, pusht_zip: Path) -> None:
    sources = script.recordings(str(pusht_zip), 2)
    copies = episodes(moved)
    assert [copy["source_episode"] for copy in copies] == [0, 0, 1, 1]
    assert len({copy["motion"].tobytes() for copy in copies}) == 4
    for copy in copies:
        source, (mirrored, angle, *shift) = sources[copy["source_episode"]], copy["motion"]
        motion = Motion(bool(mirrored), angle, tuple(shift))
        np.testing.assert_allclose(copy["goal"], motion.poses(np.array(DEFAULT_GOAL)), atol=1e-9)
        np.testing.assert_allclose(copy["action"], motion.points(source.actions), atol=1e-4)
        expected = motion.states(source.states)
        np.testing.assert_allclose(copy["state"][:, :4], expected[:, :4], atol=0.05)  # physics, played again
        outlines = np.stack([to_table(OUTLINE, pose) for pose in [*copy["state"][:, 2:], copy["goal"]]])
        assert outlines.min() > WALL_LOW and outlines.max() < WALL_HIGH
        assert 0 <= copy["action"].min() and copy["action"].max() <= 512


def test_copies_are_physics_and_pictures_of_the_simulator(moved: Path) -> None:
    copy = episodes(moved)[1]
    env = PushTEnv(goal=copy["goal"], observe_image=False)
    env.reset(options={"state": copy["state"][0]})
    infos = [env.step(action)[-1] for action in copy["action"]]
    np.testing.assert_allclose([info["state"][:4] for info in infos[:-1]], copy["state"][1:, :4], atol=1e-4)
    assert max(info["coverage"] for info in infos) > 0.8
    drawn = render_states(copy["state"].astype(np.float64), copy["goal"])
    assert np.abs(copy["img"].astype(int) - drawn).mean() < 0.05  # states are stored as float32


def test_the_result_does_not_depend_on_the_number_of_processes(script, moved: Path, pusht_zip: Path, tmp_path: Path):
    output = tmp_path / "again.zarr.zip"
    script.main(["--input", str(pusht_zip), "--output", str(output), *OPTIONS, "--workers", "2"])
    assert output.read_bytes() == moved.read_bytes()


def test_what_does_not_fit_or_covers_less_is_dropped() -> None:
    length = 6
    on_goal = np.tile([100.0, 100.0, *DEFAULT_GOAL], (length, 1))
    stay = Recording(0, on_goal, np.full((length, 2), 100.0, np.float32))
    assert [outcome for outcome, _ in Mover(copies=3)(stay)] == [KEPT] * 3

    corners = np.array([[0, 0], [512, 512], [0, 512], [512, 0], [0, 0], [0, 0]], np.float32)
    assert Mover(copies=1)(Recording(0, on_goal, corners)) == [(OFF_TABLE, None)]  # nothing but right angles would fit

    claimed = on_goal.copy()
    claimed[:3, 2:4] += 40  # the recording says that the T comes to the goal, but nothing pushes it there
    assert Mover(copies=1)(Recording(0, claimed, stay.actions)) == [(COVERAGE_LOST, None)]
