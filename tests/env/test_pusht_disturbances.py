"""Visual disturbances of PushT: they change pictures, by the seed, and nothing else."""

import numpy as np
import pytest

from unified_video_action.env.pusht.disturbances import AGENT, BLOCK, DISTURBANCES, GOAL, TABLE
from unified_video_action.env.pusht.env import PushTEnv
from unified_video_action.env.pusht_m.env import PushTMEnv

START = {"state": [400.0, 60.0, 400.0, 150.0, 0.0]}  # the T does not hide the goal


def picture(seed: int = 0, **options) -> np.ndarray:
    """At the size at which the simulator draws: no blended edges."""
    return PushTEnv(512, **options).reset(seed=seed, options=START)[0]["image"].astype(int)


@pytest.mark.parametrize("env", [PushTEnv, PushTMEnv])
@pytest.mark.parametrize("kind", DISTURBANCES)
def test_pictures_differ_and_the_play_does_not(env: type, kind: str) -> None:
    both = [env(), env(disturbance=kind)]
    seen = [each.reset(seed=5) for each in both]
    for action in np.random.default_rng(0).uniform(100, 400, (8, 2)):
        assert (seen[0][0]["image"] != seen[1][0]["image"]).any()
        np.testing.assert_array_equal(seen[0][-1]["state"], seen[1][-1]["state"])
        assert seen[0][-1]["score"] == seen[1][-1]["score"]
        seen = [each.step(action) for each in both]


@pytest.mark.parametrize("seed", range(2))
def test_each_disturbance_changes_what_it_names(seed: int) -> None:
    plain = picture()
    table, goal, block, agent = ((plain == colour).all(axis=-1) for colour in (TABLE, GOAL, BLOCK, AGENT))
    assert min(table.sum(), goal.sum(), block.sum(), agent.sum()) > 300

    background = picture(seed, disturbance="background")
    (colour,) = np.unique(background[table], axis=0)
    assert min(np.linalg.norm(colour - other) for other in (GOAL, BLOCK, AGENT)) > 79
    np.testing.assert_array_equal(background[~table], plain[~table])

    other_goal = picture(seed, disturbance="goal")
    (colour,) = np.unique(other_goal[goal], axis=0)
    assert np.linalg.norm(colour - GOAL) > 119
    np.testing.assert_array_equal(other_goal[~goal], plain[~goal])

    objects = picture(seed, disturbance="objects")
    np.testing.assert_array_equal(objects[~table], plain[~table])  # they lie under everything
    assert 0.01 < (objects[table] != TABLE).any(axis=-1).mean() < 0.15


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_the_seed_decides_and_strength_is_how_far_it_goes(kind: str) -> None:
    env = PushTEnv(disturbance=kind)
    first, second = (env.reset(seed=seed, options=START)[0]["image"] for seed in (0, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(env.reset(seed=0, options=START)[0]["image"], first)
    np.testing.assert_array_equal(env.step(np.array([400.0, 60.0]))[0]["image"], first)  # all the episode long
    assert (env.reset(options=START)[0]["image"] != first).any()  # drawn from the env's own generator
    plain = picture()
    weak, strong = (np.abs(picture(3, disturbance=kind, disturbance_strength=s) - plain).mean() for s in (0.25, 1.0))
    assert 0.02 < weak / strong < 0.6
