"""Visual disturbances of PushT: they change pictures, by the seed, and nothing else."""

import numpy as np
import pytest

from unified_video_action.env.pusht.disturbances import AGENT, BLOCK, DISTURBANCES, GOAL, TABLE
from unified_video_action.env.pusht.env import PushTEnv
from unified_video_action.env.pusht_m.env import PushTMEnv

SIZE = 512  # the size at which the simulator draws: no blended edges
AWAY = [400.0, 60.0, 400.0, 150.0, 0.0]  # the T does not hide the goal


def picture(seed: int = 0, env: type = PushTEnv, **options) -> np.ndarray:
    return env(SIZE, **options).reset(seed=seed, options={"state": AWAY})[0]["image"].astype(int)


def shows(image: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """Where an image has exactly this colour: (H, W) bool."""
    return (image == colour).all(axis=-1)


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return picture()


@pytest.mark.parametrize("env", [PushTEnv, PushTMEnv])
@pytest.mark.parametrize("kind", DISTURBANCES)
def test_pictures_differ_and_the_play_does_not(env: type, kind: str) -> None:
    both = [env(), env(disturbance=kind)]
    seen = [each.reset(seed=5) for each in both]
    for action in np.random.default_rng(0).uniform(100, 400, (12, 2)):
        assert (seen[0][0]["image"] != seen[1][0]["image"]).any()
        np.testing.assert_array_equal(seen[0][0]["agent_pos"], seen[1][0]["agent_pos"])
        np.testing.assert_array_equal(seen[0][-1]["state"], seen[1][-1]["state"])
        assert seen[0][-1]["score"] == seen[1][-1]["score"]
        seen = [each.step(action) for each in both]


@pytest.mark.parametrize("seed", range(3))
def test_each_disturbance_changes_what_it_names(plain: np.ndarray, seed: int) -> None:
    table, goal, block, agent = (shows(plain, colour) for colour in (TABLE, GOAL, BLOCK, AGENT))
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
    covered = (objects[table] != TABLE).any(axis=-1).mean()
    assert 0.01 < covered < 0.15


def test_strength_is_how_far_it_goes(plain: np.ndarray) -> None:
    changes = {}
    for kind in DISTURBANCES:
        weak, strong = (np.abs(picture(3, disturbance=kind, disturbance_strength=s) - plain) for s in (0.25, 1.0))
        changes[kind] = weak.mean() / strong.mean()
    assert all(0.02 < change < 0.6 for change in changes.values()), changes
    few, many = (picture(3, disturbance="objects", disturbance_strength=s) for s in (0.25, 1.0))
    assert len(np.unique(many.reshape(-1, 3), axis=0)) - len(np.unique(few.reshape(-1, 3), axis=0)) >= 4  # colours


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_the_seed_decides(kind: str) -> None:
    env = PushTEnv(disturbance=kind)
    start = {"state": AWAY}
    first, second = (env.reset(seed=seed, options=start)[0]["image"] for seed in (0, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(PushTEnv(disturbance=kind).reset(seed=0, options=start)[0]["image"], first)
    np.testing.assert_array_equal(env.reset(seed=0, options=start)[0]["image"], first)
    np.testing.assert_array_equal(env.step(np.array(AWAY[:2], np.float32))[0]["image"], first)  # all the episode long
    assert (env.reset(options=start)[0]["image"] != first).any()  # drawn from the env's own generator


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disturbance": "fog"}, "disturbance must be one of background, objects, goal, or null, got 'fog'"),
        ({"disturbance": "goal", "disturbance_strength": 0}, "disturbance_strength must be above 0 and at most 1"),
        ({"disturbance": "goal", "disturbance_strength": 1.5}, "disturbance_strength must be above 0 and at most 1"),
    ],
)
def test_bad_values_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PushTEnv(**options)
