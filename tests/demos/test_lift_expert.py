"""The scripted expert of Lift: what it records succeeds again, and robomimic reads it."""

import json
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest

from tests.lift_demos import CAMERAS, LIFT, SIZE, lift_images, lift_steps, read_demo  # noqa: F401

pytest.importorskip("robosuite", reason=LIFT)

import h5py

from unified_video_action.demos.lift import Collector
from unified_video_action.env.robomimic.action_kind import ActionKind, kind_of_actions
from unified_video_action.env.robomimic.env import Simulator, environment_arguments


@pytest.fixture(scope="module")
def collector() -> Collector:
    collector = Collector(seed=5, image_size=0)
    yield collector
    collector.simulator.close()


def test_the_expert_lifts_the_cube_wherever_it_lies(collector) -> None:
    episodes = [collector(attempt).episode for attempt in range(3)]
    assert all(episode is not None and episode.success.any() for episode in episodes)
    lengths = {len(episode.actions) for episode in episodes}
    assert min(lengths) > 20 and max(lengths) < 70
    starts = np.array([episode.obs["cube_pos"][0] for episode in episodes])
    assert np.ptp(starts[:, :2], axis=0).max() > 0.01
    for episode in episodes:
        effector = episode.obs["robot0_eef_pos"]
        assert kind_of_actions(episode.actions, effector, np.array([len(effector)]), None) is ActionKind.POSES
        ahead = np.linalg.norm(episode.actions[:, :3] - episode.obs["robot0_eef_pos"], axis=1)
        assert ahead.max() < 0.0501  # what a relative action could say as well
        assert set(episode.actions[:, 6]) == {-1.0, 1.0}


def test_an_attempt_is_the_same_in_any_order_and_process(collector) -> None:
    copy = pickle.loads(pickle.dumps(collector))  # noqa: S301
    assert "simulator" not in vars(copy)
    first = copy(1).episode
    copy.simulator.close()
    collector(0)
    again = collector(1).episode
    np.testing.assert_array_equal(first.states, again.states)
    np.testing.assert_array_equal(first.actions, again.actions)
    assert first.model == again.model


def test_recorded_actions_lead_through_the_recorded_states(lift_images) -> None:  # noqa: F811
    demo = read_demo(lift_images, "demo_1")
    simulator = Simulator(environment_arguments("Lift", absolute=True), samples=0)
    simulator.restore(demo["states"][0], demo["model"])
    for state, action, reward in zip(demo["states"], demo["actions"], demo["rewards"], strict=True):
        np.testing.assert_allclose(simulator.state, state, atol=1e-4)
        simulator.step(action)
        assert simulator.is_success == bool(reward)
    assert simulator.is_success
    simulator.show(demo["states"][20])  # frames are those of the states
    for camera in CAMERAS:
        stored = demo[f"obs/{camera}_image"][20].astype(int)
        assert np.abs(stored - simulator.frame(camera, SIZE)).mean() < 0.1
    fresh = Simulator(environment_arguments("Lift", absolute=True))
    for one in (simulator, fresh):  # back to robosuite's own model
        one.reset(3)
        one.step(demo["actions"][0])
    np.testing.assert_array_equal(simulator.state, fresh.state)
    assert simulator.model_xml() == fresh.model_xml()
    simulator.close()
    fresh.close()


def test_robomimic_reads_it(lift_images, monkeypatch) -> None:  # noqa: F811
    with h5py.File(lift_images) as file:
        data = file["data"]
        arguments = json.loads(data.attrs["env_args"])
        assert arguments["env_name"] == "Lift" and arguments["type"] == 1 and arguments["env_version"] == "1.4.1"
        kwargs = arguments["env_kwargs"]
        assert kwargs["controller_configs"]["control_delta"] is False and kwargs["camera_heights"] == SIZE
        assert data.attrs["total"] == sum(demo.attrs["num_samples"] for demo in data.values())
        for demo in data.values():
            assert demo["rewards"][-1] == demo["dones"][-1] == 1 and demo["rewards"][0] == demo["dones"][0] == 0
    assert [path.name for path in lift_images.parent.glob(f"*{lift_images.name}*")] == [lift_images.name]
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
