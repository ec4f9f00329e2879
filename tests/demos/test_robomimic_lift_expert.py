"""The scripted expert of Lift: what it records succeeds again, and bad settings are named."""

import pickle

import numpy as np
import pytest

from tests.lift_demos import CAMERAS, LIFT, SIZE, lift_images, read_demo  # noqa: F401

pytest.importorskip("robosuite", reason=LIFT)

from unified_video_action.env.robomimic.lift_expert import Variety

from unified_video_action.env.robomimic.action_kind import ActionKind, kind_of_actions
from unified_video_action.env.robomimic.collect import Collector
from unified_video_action.env.robomimic.simulator import Simulator, environment_arguments


@pytest.fixture(scope="module")
def collector() -> Collector:
    collector = Collector(seed=5, image_size=0)
    yield collector
    collector.simulator.close()


def test_the_expert_lifts_the_cube_wherever_it_lies(collector) -> None:
    episodes = [collector(attempt) for attempt in range(4)]
    assert all(episode is not None and episode.success.any() for episode in episodes)
    lengths = {len(episode.actions) for episode in episodes}
    assert min(lengths) > 20 and max(lengths) < 70
    starts = np.array([episode.obs["cube_pos"][0] for episode in episodes])
    assert np.ptp(starts[:, :2], axis=0).max() > 0.01
    for episode in episodes:
        hand = episode.obs["robot0_eef_pos"]
        assert kind_of_actions(episode.actions, hand, np.array([len(hand)]), None) is ActionKind.POSES
        ahead = np.linalg.norm(episode.actions[:, :3] - episode.obs["robot0_eef_pos"], axis=1)
        assert ahead.max() < 0.0501  # what a relative action could say as well
        assert set(episode.actions[:, 6]) == {-1.0, 1.0}


def test_an_attempt_is_the_same_in_any_order_and_process(collector) -> None:
    copy = pickle.loads(pickle.dumps(collector))  # noqa: S301
    assert "simulator" not in vars(copy)
    first = copy(1)
    copy.simulator.close()
    collector(0)
    again = collector(1)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 4}, "image_size=4: expected at least 8 pixels, or 0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"extra_steps": -1}, "extra_steps=-1"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Collector(**arguments)


def test_bad_variety_is_named() -> None:
    with pytest.raises(ValueError, match="drift=0.1: expected 0 to 0.01 metres"):
        Variety(drift=0.1)
    with pytest.raises(ValueError, match="slowest=0: expected a share"):
        Variety(slowest=0)
