"""The scripted expert of PushT: its picture of the table, its way round the T, and that it brings the T to the goal."""

import numpy as np
import pytest

from unified_video_action.demos.pusht import ScriptedExpert
from unified_video_action.env.pusht.env import DEFAULT_GOAL, PushTEnv
from unified_video_action.env.pusht.geometry import random_goal
from unified_video_action.env.pusht.table import Table


def play(seed: int, goal=DEFAULT_GOAL, **variety: float) -> tuple[bool, list[np.ndarray]]:
    env = PushTEnv(goal=goal, observe_image=False)
    expert = ScriptedExpert(goal, seed, **variety)
    _, info = env.reset(seed=seed)
    actions = []
    for _ in range(300):
        actions.append(expert.act(info["state"]))
        info = env.step(actions[-1])[-1]
        if info["is_success"]:
            break
    return info["is_success"], actions


def test_the_copy_of_the_table_moves_as_the_environment() -> None:
    env, table = PushTEnv(observe_image=False), Table()
    agent, pose = (100.0, 100.0), (250.0, 250.0, 0.5)
    env.reset(options={"state": [*agent, *pose]})
    table.place(agent, pose)
    for action in np.repeat(np.random.default_rng(0).uniform(150, 350, (12, 2)), 5, axis=0):
        state = env.step(action)[-1]["state"]
        table.move(action)
        np.testing.assert_allclose([*table.agent, *table.pose[:2]], state[:4], atol=1e-9)
    assert np.abs(state[2:4] - pose[:2]).max() > 20  # the T was pushed


@pytest.mark.parametrize("seed", [0, 14, 53, 100000])
def test_the_expert_succeeds(seed: int) -> None:
    assert play(seed)[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_expert_succeeds_with_any_goal(seed: int) -> None:
    assert play(seed, random_goal(np.random.default_rng(seed)))[0]
