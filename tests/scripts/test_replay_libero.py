"""scripts/replay_libero.py on files in the published layout, recorded in the simulator."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.libero_recording import (  # noqa: F401
    LIBERO,
    TASK,
    libero_cache,
    record,
    solved_state,
    write_published,
)

pytest.importorskip("libero", reason=LIBERO)
import h5py

from scripts import replay_libero as script
from unified_video_action.dataset.formats.hdf5 import LiberoSource
from unified_video_action.dataset.mixture import Wanted
from unified_video_action.env.libero.env import LiberoEnv
from unified_video_action.env.libero.replay import absolute_actions, play, read_recording
from unified_video_action.rotations import axis_angle_to_6d

WANTED = Wanted(cameras=("agentview_rgb", "eye_in_hand_rgb"), low_dim=("ee_pos",), action_dim=10)
STEPS = 12


@pytest.fixture(scope="module")
def env(libero_cache):  # noqa: F811
    env = LiberoEnv(tasks=[TASK], image_size=64, observe_images=False, cache_dir=libero_cache)
    yield env
    env.close()


@pytest.fixture(scope="module")
def recordings(env) -> list[dict]:
    """One that does not solve the task, one that does; fixtures stand elsewhere in each."""
    env.reset(seed=0)
    unsolved = record(env._scene, STEPS, seed=0)
    env.reset(seed=1)
    return [unsolved, record(env._scene, STEPS, solved_state(env._scene), seed=1)]


@pytest.fixture(scope="module")
def published(env, recordings, tmp_path_factory) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / "pots_demo.hdf5", env.tasks[0], recordings)


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    """A published file that a test may damage."""
    return Path(shutil.copy(published, tmp_path / "copied_demo.hdf5"))


@pytest.mark.parametrize("number", [0, 1])
def test_absolute_actions_move_the_hand_as_the_relative_ones_did(env, recordings, published, number: int):
    recording = read_recording(published, f"demo_{number}", env._scene)
    actions = absolute_actions(env._scene, recording)
    assert actions.shape == (STEPS, 7) and np.array_equal(actions[:, 6], recording.actions[:, 6])
    seen, solved = play(env._scene, recording, actions, image_size=0)
    positions = recordings[number]["positions"]  # after each action
    assert np.ptp(positions, axis=0).max() > 0.03
    np.testing.assert_allclose(seen["ee_pos"][1:], positions[:-1], atol=1e-3)
    assert solved == bool(number)
    ((body, (position, _)),) = recording.fixtures.items()
    model = env._scene._env.sim.model
    np.testing.assert_allclose(model.body_pos[model.body_name2id(body)], position)
    other = read_recording(published, f"demo_{1 - number}", env._scene).fixtures[body][0]
    assert np.abs(position - other).max() > 1e-4


def test_a_folder_is_converted_once_and_only_what_solves_its_task(published, libero_cache, tmp_path):  # noqa: F811
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(published, source)
    with h5py.File(source / "other.hdf5", "w") as file:
        file.create_group("data")
    arguments = [str(source), "--output", str(output), "--image-size", "64", "--cache-dir", libero_cache]
    with pytest.raises(SystemExit, match="some files could not be converted"):
        script.main(arguments)
    assert sorted(path.name for path in output.iterdir()) == ["pots_demo.hdf5", "report.json"]
    other, pots = sorted(json.loads((output / "report.json").read_text()), key=lambda outcome: outcome["file"])
    assert "no attributes bddl_file_name" in other["error"] and other["kept"] == 0
    assert pots == {"file": "pots_demo.hdf5", "kept": 1, "unsolved": ["demo_0"], "steps": STEPS, "error": None}

    (table,) = LiberoSource(str(output)).tables(WANTED)
    assert table.instructions == ("put both moka pots on the stove",) and table.action.shape == (STEPS, 10)
    frames = table.stored_frames("agentview_rgb", np.arange(STEPS))
    assert frames.shape == (STEPS, 3, 64, 64) and frames.std() > 20
    assert (frames[0] != frames[-1]).any()
    assert (frames != table.stored_frames("eye_in_hand_rgb", np.arange(STEPS))).any()
    np.testing.assert_allclose(np.linalg.norm(table.action[:, 3:6], axis=1), 1, atol=1e-5)
    with h5py.File(output / "pots_demo.hdf5") as file:
        actions = file["data/demo_1/actions"][:]
        np.testing.assert_allclose(table.action[:, 3:9], axis_angle_to_6d(actions[:, 3:6]), atol=1e-6)
        assert file["data/demo_1"].attrs["solved"]

    (source / "other.hdf5").unlink()
    before = (output / "pots_demo.hdf5").stat().st_mtime_ns
    script.main(arguments)
    assert (output / "pots_demo.hdf5").stat().st_mtime_ns == before


def damage(path: Path, what: str) -> None:
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        if what == "absolute":
            demo["actions"][0, 0] = 1.5
        elif what == "length":
            states = demo["states"][1:]
            del demo["states"]
            demo["states"] = states
        elif what == "fixture":
            demo.attrs["model_file"] = "<mujoco/>"
        elif what == "task":
            file["data"].attrs["bddl_file_name"] = "somewhere/fold_the_shirt.bddl"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("absolute", r"actions reach 1\.5; relative ones lie in"),
        ("length", r"actions \(12, 7\) and states \(11, 47\)"),
        ("fixture", "its model_file has no flat_stove_1_main"),
        ("task", "LIBERO has no task 'fold_the_shirt'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(env, copied, what: str, message: str):
    damage(copied, what)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unified_video_action.env.libero.scene.Scene", lambda *_: env._scene)
        patch.setattr(env._scene, "close", lambda: None)
        target = copied.with_name("target.hdf5")
        outcome = script.convert(copied, target, script.Settings(0, True, None), env.assets, env.cache)
    assert outcome.kept == 0 and "copied_demo.hdf5" in outcome.error or what == "task"
    assert re.search(message, outcome.error)
    assert list(copied.parent.iterdir()) == [copied]
