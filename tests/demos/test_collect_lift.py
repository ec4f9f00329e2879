"""scripts/collect_lift.py as a user runs it: robomimic reads what it writes, and bad calls die clearly."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.lift_demos import LIFT, SIZE, lift_images, lift_steps, read_demo  # noqa: F401
from tests.loading import load_script

pytest.importorskip("robosuite", reason=LIFT)

import h5py


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("collect_lift")


def test_the_file_is_in_robomimics_layout(lift_images) -> None:  # noqa: F811
    with h5py.File(lift_images) as file:
        data = file["data"]
        arguments = json.loads(data.attrs["env_args"])
        assert arguments["env_name"] == "Lift" and arguments["type"] == 1 and arguments["env_version"] == "1.4.1"
        kwargs = arguments["env_kwargs"]
        assert kwargs["controller_configs"]["control_delta"] is False and kwargs["camera_heights"] == SIZE
        assert set(data) == {"demo_0", "demo_1"}
        lengths = {name: demo.attrs["num_samples"] for name, demo in data.items()}
        assert data.attrs["total"] == sum(lengths.values())
        for name, demo in data.items():
            assert demo.attrs["model_file"].startswith("<mujoco")
            assert demo["actions"].shape == (lengths[name], 7)
            assert demo["states"].shape == (lengths[name], 32)
            assert demo["obs/agentview_image"].shape == (lengths[name], SIZE, SIZE, 3)
            assert demo["obs/object"].shape == (lengths[name], 10)
            assert demo["rewards"][-1] == demo["dones"][-1] == 1 and demo["rewards"][0] == demo["dones"][0] == 0
    assert [path.name for path in lift_images.parent.glob(f"*{lift_images.name}*")] == [lift_images.name]


def test_robomimic_reads_it(lift_images, monkeypatch) -> None:  # noqa: F811
    pytest.importorskip("robomimic", reason="robomimic is not installed; add the simulators with: make sims")
    monkeypatch.setitem(sys.modules, "mujoco_py", ModuleType("mujoco_py"))  # imported there, and not used
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_modality_mapping_from_dict({"rgb": ["agentview_image"], "low_dim": ["robot0_eef_pos"]})
    keys = {"obs_keys": ("agentview_image", "robot0_eef_pos"), "dataset_keys": ("actions", "rewards", "dones")}
    dataset = SequenceDataset(str(lift_images), seq_length=2, hdf5_cache_mode=None, load_next_obs=False, **keys)
    demo = read_demo(lift_images)
    assert dataset.n_demos == 2
    np.testing.assert_array_equal(dataset[5]["actions"], demo["actions"][5:7])
    np.testing.assert_array_equal(dataset[5]["obs"]["robot0_eef_pos"], demo["obs/robot0_eef_pos"][5:7])


def test_the_result_does_not_depend_on_the_number_of_processes(script, lift_steps, tmp_path) -> None:  # noqa: F811
    output = tmp_path / "again.hdf5"
    script.main(["-n", "2", "--output", str(output), "--low-dim", "--delta", "--workers", "2"])
    for demo in ("demo_0", "demo_1"):
        again, before = read_demo(output, demo), read_demo(lift_steps, demo)
        assert again.keys() == before.keys() and "obs/agentview_image" not in again
        assert all(np.array_equal(again[name], before[name]) for name in again)
    assert np.abs(before["actions"]).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"-n": "0"}, "--episodes and --workers must be at least 1"),
        ({"--image-size": "3"}, "image_size=3: expected at least 8 pixels"),
        ({"--drift": "1"}, "drift=1.0: expected 0 to 0.01 metres"),
    ],
)
def test_bad_calls_are_refused(script, tmp_path: Path, capsys, changes: dict, message: str) -> None:
    options = {"-n": "1", "--output": str(tmp_path / "demos.hdf5"), **changes}
    with pytest.raises(SystemExit):
        script.main([word for pair in options.items() for word in pair])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_left_alone(script, lift_images, capsys) -> None:  # noqa: F811
    before = lift_images.read_bytes()
    with pytest.raises(SystemExit):
        script.main(["-n", "1", "--output", str(lift_images)])
    assert "exists already; choose another --output" in capsys.readouterr().err
    assert lift_images.read_bytes() == before


def test_an_expert_that_never_succeeds_leaves_nothing(script, tmp_path) -> None:
    class Failing:
        arguments = {"env_name": "Lift"}

        def __call__(self, attempt: int) -> None:
            return None

    with pytest.raises(RuntimeError, match="succeeded in only 0 of 22 attempts"):
        script.collect(Failing(), 1, tmp_path / "demos.hdf5", workers=1)
    assert not list(tmp_path.iterdir())
