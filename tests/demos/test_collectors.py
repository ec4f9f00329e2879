"""What every collector of a store promises: repeatable attempts, disturbances that are not recorded, named mistakes."""

from importlib.util import find_spec

import numpy as np
import pytest

from unified_video_action.demos.collecting import Collector, load_collector
from unified_video_action.env.pusht.env import PushTEnv

NEEDS_PYBULLET = pytest.mark.skipif(find_spec("pybullet") is None, reason="pybullet is not installed: make sims")
BLOCKS = pytest.param("block_push", {"image_size": 24}, marks=NEEDS_PYBULLET)


def made(task: str, **options: object) -> Collector:
    return load_collector(task)(**options)


@pytest.mark.parametrize(("task", "options"), [("pusht", {"goal": "random"}), BLOCKS])
def test_an_attempt_is_the_same_in_any_order(task: str, options: dict) -> None:
    first, again = made(task, seed=4, **options), made(task, seed=4, **options)
    again(1)
    attempt = first(0)
    arrays, meta = attempt.episode
    assert attempt.success and {len(values) for values in arrays.values()} == {attempt.measures["steps"]}
    assert attempt.measures.get("coverage", 1) > 0.95
    for name, values in again(0).episode[0].items():
        np.testing.assert_array_equal(values, arrays[name])
    other, other_meta = first(1).episode
    assert not np.array_equal(other["state"][0], arrays["state"][0])
    if task == "pusht":
        assert not np.array_equal(meta["goal"], other_meta["goal"])
    late = made(task, max_steps=3, **options)(0)
    assert not late.success and late.episode is None


def test_a_disturbance_is_done_but_not_recorded() -> None:
    attempt = made("pusht", seed=3, action_noise=0.0, mistakes=0.0, disturbance=6.0)(0)
    assert attempt.success
    state, action = attempt.episode[0]["state"], attempt.episode[0]["action"]
    env = PushTEnv(observe_image=False)
    env.reset(options={"state": state[0]})
    replayed = np.array([env.step(each)[-1]["state"] for each in action[:20]])
    apart = np.abs(replayed[:, :2] - state[1:21, :2]).max(axis=1)
    assert 1 < apart.max() < 60, "what was recorded is what was done, or has nothing to do with it"


@NEEDS_PYBULLET
def test_a_disturbed_effector_strays_from_its_actions() -> None:
    plain, pushed = (made("block_push", image_size=24, action_noise=0, disturbance=drift)(0) for drift in (0, 0.004))
    straying = [
        np.abs(each.episode[0]["action"][4:12] - each.episode[0]["effector"][5:13]).mean() for each in (plain, pushed)
    ]
    assert pushed.success and straying[0] < 1e-3 < straying[1]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("pusht", {"goal": "sideways"}, "goal must be one of fixed, random, got 'sideways'"),
        ("pusht", {"mistakes": 1.0}, "mistakes must be below 1"),
        ("pusht", {"disturbance": -1}, "disturbance=-1"),
        pytest.param("block_push", {"image_size": 95}, "image_size must be the frames' height", marks=NEEDS_PYBULLET),
        pytest.param("block_push", {"max_steps": 0}, "max_steps must be at least 1", marks=NEEDS_PYBULLET),
        pytest.param("block_push", {"action_noise": -0.1}, "action_noise must be >= 0 metres", marks=NEEDS_PYBULLET),
        pytest.param("block_push", {"disturbance": float("nan")}, "disturbance must be >= 0", marks=NEEDS_PYBULLET),
    ],
)
def test_bad_options_are_refused(task: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(task, **options)
