"""PushT-M: a goal for every seed, on the table, in the picture; its mirror image; its configurations."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from unified_video_action.dataset.pusht import mirror_frames, mirror_state
from unified_video_action.env.pusht.disturbances import DISTURBANCES, GOAL
from unified_video_action.env.pusht.env import PushTEnv, render_states
from unified_video_action.env.pusht.geometry import OUTLINE, to_table
from unified_video_action.env.pusht.table import WALL_HIGH, WALL_LOW
from unified_video_action.env.pusht_m.env import PushTMEnv, goal_of


def test_every_seed_has_a_goal_on_the_table() -> None:
    corners = np.stack([to_table(OUTLINE, goal_of(seed)) for seed in range(400)])  # (N, 8, 2)
    assert corners.min() > WALL_LOW + 2 and corners.max() < WALL_HIGH - 2
    assert (np.ptp(corners.mean(1), axis=0) > 200).all()  # all over the table


def test_starts_are_pushts_and_the_goal_is_the_seeds_scored_and_shown() -> None:
    env, plain = PushTMEnv(), PushTEnv(observe_image=False)
    check_env(PushTMEnv(), skip_render_check=True)
    for seed in (0, 1, 100000):
        _, info = env.reset(seed=seed)
        np.testing.assert_array_equal(info["state"], plain.reset(seed=seed)[1]["state"])
        goal = goal_of(seed)
        np.testing.assert_array_equal(info["goal_pose"], goal)
        _, info = env.reset(seed=seed, options={"state": [20.0, 20.0, *goal]})
        assert info["is_success"] and info["coverage"] == pytest.approx(1)
        corner = 60.0 if goal[:2].sum() > 512 else 452.0
        image = env.reset(seed=seed, options={"state": [corner, corner, corner, corner, 0.0]})[0]["image"]
        rows, columns = np.nonzero((image == GOAL).all(axis=-1))
        drawn = (np.array([columns.mean(), rows.mean()]) + 0.5) * 512 / 96
        centre = to_table(np.array([0.0, 3600 * 15 + 2700 * 75]) / 6300, goal)  # of the bar's and the stem's areas
        assert np.abs(drawn - centre).max() < 5
    assert not np.array_equal(env.reset()[1]["goal_pose"], env.reset()[1]["goal_pose"])
    given = (200.0, 300.0, 1.0)
    np.testing.assert_array_equal(env.reset(seed=0, options={"goal": given})[1]["goal_pose"], given)


def test_the_mirror_image_shows_the_mirrored_goal() -> None:
    """The `mirror` option of the dataset knows no goals, and needs none."""
    goal, rng = goal_of(3), np.random.default_rng(0)
    states = np.concatenate([rng.uniform(50, 450, (8, 4)), rng.uniform(0, 6, (8, 1))], axis=1)
    mirrored_goal = mirror_state(np.array([[0, 0, *goal]]))[0, 2:]
    mirrored = np.moveaxis(mirror_frames(np.moveaxis(render_states(states, goal), -1, -3)), -3, -1).astype(int)
    rendered, elsewhere = (render_states(mirror_state(states), each).astype(int) for each in (mirrored_goal, goal))
    assert np.abs(mirrored - rendered).mean() < 0.9  # edges are drawn half a pixel apart
    assert np.abs(mirrored - elsewhere).mean() > 2


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
