"""scripts/render_robomimic.py on real files of steps: the same episodes, with frames and absolute actions."""

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.lift_demos import LIFT, lift_steps, read_demo  # noqa: F401
from tests.loading import load_script

pytest.importorskip("robosuite", reason=LIFT)

import h5py

from unified_video_action.dataset.formats.hdf5 import RobomimicSource
from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.store import StoreError
from unified_video_action.env.robomimic.env import Simulator, environment_arguments

WANTED = Wanted(("agentview_image", "robot0_eye_in_hand_image"), ("robot0_eef_pos",), 10)
SIZE, KEPT = 32, 20  # pixels; steps of the demonstration that is cut


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("render_robomimic")


@pytest.fixture(scope="module")
def source(lift_steps, tmp_path_factory) -> Path:  # noqa: F811
    """Two demonstrations: the first is cut off before the cube is lifted, so that its replay cannot succeed."""
    path = shutil.copy(lift_steps, tmp_path_factory.mktemp("source") / "low_dim.hdf5")
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        demo.attrs["num_samples"] = KEPT
        for name in ("states", "actions", "rewards", "dones", "obs/robot0_eef_pos"):
            values = demo[name][:KEPT]
            del demo[name]
            demo[name] = values
        assert not demo["rewards"][:].any()
    return Path(path)


@pytest.fixture(scope="module")
def rendered(script, source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("rendered") / "new" / "image_abs.hdf5"
    options = ["--absolute", "--image-size", str(SIZE), "--samples", "0", "--workers", "1"]
    script.main([str(source), "--output", str(output), *options])
    return output


def test_steps_become_the_poses_that_they_lead_to(source, rendered) -> None:
    for name in ("demo_0", "demo_1"):
        before, after = read_demo(source, name), read_demo(rendered, name)
        np.testing.assert_array_equal(after["states"], before["states"])
        np.testing.assert_array_equal(after["rewards"], before["rewards"])
        # The controller's arithmetic: a step is a share of 5 cm from the end effector, and of half a radian.
        goal = before["obs/robot0_eef_pos"] + 0.05 * before["actions"][:, :3]
        np.testing.assert_allclose(after["actions"][:, :3], goal, atol=1e-6)
        np.testing.assert_array_equal(after["actions"][:, 6], before["actions"][:, 6])
        np.testing.assert_allclose(after["obs/robot0_eef_pos"], before["obs/robot0_eef_pos"], atol=1e-6)
    simulator = Simulator(environment_arguments("Lift", absolute=True))
    simulator.restore(after["states"][0], after["model"])
    effector, turned = simulator.end_effector_pose()[1], Rotation.from_rotvec(0.5 * before["actions"][0, 3:6])
    difference = Rotation.from_rotvec(after["actions"][0, 3:6]).inv() * turned * Rotation.from_matrix(effector)
    assert difference.magnitude() < 1e-6
    for state, action in zip(after["states"], after["actions"], strict=True):  # and lead through the same states
        np.testing.assert_allclose(simulator.state, state, atol=1e-3)
        simulator.step(action)
    assert simulator.is_success
    simulator.close()


def test_the_file_can_be_trained_on(source, rendered) -> None:
    with pytest.raises(StoreError, match=f"render_robomimic.py {source} --absolute"):
        RobomimicSource(str(source)).tables(Wanted((), ("robot0_eef_pos",), 10))
    (table,) = RobomimicSource(str(rendered)).tables(WANTED)
    assert table.store.n_episodes == 2 and table.store.frame_shape("obs/agentview_image") == (SIZE, SIZE)
    frames = table.stored_frames("agentview_image", np.array([0, len(table) - 1])).astype(int)
    assert np.abs(frames[0] - frames[1]).mean() > 1 and frames.mean() > 100
    with h5py.File(rendered) as file:
        arguments = json.loads(file["data"].attrs["env_args"])
    assert arguments["env_kwargs"]["controller_configs"]["control_delta"] is False
    assert arguments["env_kwargs"]["camera_names"] == ["agentview", "robot0_eye_in_hand"]


def test_what_does_not_succeed_again_is_dropped(script, source, tmp_path, caplog) -> None:
    output = tmp_path / "kept.hdf5"
    options = ["--absolute", "--require-success", "--cameras", "agentview", "--image-size", "16", "--samples", "0"]
    with caplog.at_level("INFO"):
        script.main([str(source), "--output", str(output), *options, "--own-model", "--workers", "2"])
    assert "succeeded in 1 of 2 demonstrations" in caplog.text and "dropped: demo_0" in caplog.text
    with h5py.File(output) as file:
        assert list(file["data"]) == ["demo_0"] and file["data"].attrs["total"] == file["data/demo_0/actions"].shape[0]
    np.testing.assert_array_equal(read_demo(output)["states"], read_demo(source, "demo_1")["states"])
    assert [path.name for path in tmp_path.iterdir()] == ["kept.hdf5"]


def without_environment(file) -> None:
    del file["data"].attrs["env_args"]


def with_another_model(file) -> None:
    file["data/demo_0"].attrs["model_file"] = "<mujoco><nonsense/></mujoco>"


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda file: None, ["--require-success"], "--require-success needs --absolute"),
        (lambda file: None, ["--cameras", "moonview", "-n", "1"], "data/demo_0: camera 'moonview': Lift has"),
        (without_environment, [], "damaged.hdf5.* has no attribute env_args"),
        (with_another_model, ["-n", "1"], "cannot load the recorded model"),
    ],
)
def test_mistakes_leave_nothing(script, source, tmp_path, capsys, damage, options: list[str], message: str) -> None:
    damaged = shutil.copy(source, tmp_path / "damaged.hdf5")
    with h5py.File(damaged, "a") as file:
        damage(file)
    with pytest.raises(SystemExit):
        script.main([str(damaged), "--output", str(tmp_path / "out.hdf5"), "--workers", "1", *options])
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.hdf5"]
