"""Coverage of many poses equals the simulator's, and plans are ranked by it."""

import numpy as np
import pytest

from unified_video_action.demos.pusht_planner import GoalDistance
from unified_video_action.env.plan_score import Imagined
from unified_video_action.env.pusht.env import DEFAULT_GOAL, PushTEnv, render_states
from unified_video_action.env.pusht.geometry import block_poses, coverage, distance, moved, state_targets
from unified_video_action.env.pusht.score import LOST, CoverageScore, FrameCoverageScore

GOAL = np.array(DEFAULT_GOAL)
NO_ACTIONS = np.zeros((3, 16, 2))


@pytest.fixture
def states() -> np.ndarray:
    """(60, 5), most of them near the goal."""
    rng = np.random.default_rng(0)
    near = GOAL + rng.normal(0, [30, 30, 0.5], (50, 3))
    far = rng.uniform([100, 100, -9], [412, 412, 9], (10, 3))
    return np.concatenate([rng.uniform(0, 512, (60, 2)), np.concatenate([near, far])], axis=1)


@pytest.mark.parametrize("goal", [DEFAULT_GOAL, (150.0, 340.0, -2.0)])
def test_coverage_equals_the_simulators(states: np.ndarray, goal: tuple) -> None:
    env = PushTEnv(goal=goal, observe_image=False)
    env.reset(seed=0)
    found = coverage(states[:, 2:].reshape(6, 10, 3), np.array(goal))
    np.testing.assert_allclose(found.ravel(), [env.coverage_at(state) for state in states], atol=1e-9)
    assert (found > 0.2).any() and coverage(np.array(goal), np.array(goal)) == pytest.approx(1)


def test_distance_and_poses_of_many(states: np.ndarray) -> None:
    expected = [GoalDistance(DEFAULT_GOAL)(tuple(state[2:])) for state in states]
    np.testing.assert_allclose(distance(states[:, 2:], GOAL), expected)
    poses = block_poses(state_targets(states))
    np.testing.assert_allclose(poses[:, :2], states[:, 2:4])
    np.testing.assert_allclose(np.exp(1j * poses[:, 2]), np.exp(1j * states[:, 4]))


def future(*poses: tuple) -> np.ndarray:
    """Targets (1, F, 6) of one plan that takes the T, relative to the goal, to these poses."""
    return state_targets(np.array([[[60.0, 60.0, *(GOAL + pose)] for pose in poses]]))


def test_plans_are_ranked_by_what_comes_of_them() -> None:
    wide, near, on = (200, 0, 0), (130, 130, 0), (0, 0, 0)
    states = np.concatenate([future(on, wide), future(wide, near), future(near, on)])
    last, first, best = (CoverageScore(at)(Imagined(NO_ACTIONS, states)) for at in (-1, 0, "best"))
    assert list(last.argsort()) == [0, 1, 2] and last[2] == pytest.approx(1)
    assert list(first.argsort()) == [1, 2, 0]
    np.testing.assert_array_equal(best, np.maximum(last, first))
    np.testing.assert_allclose(CoverageScore("mean")(Imagined(NO_ACTIONS, states)), (last + first) / 2)
    assert last[0] < last[1] < 0  # neither covers anything: the nearer one is better
    assert list(CoverageScore(shaping=0)(Imagined(NO_ACTIONS, states))[:2]) == [0, 0]


def test_frames_are_scored_by_the_t_in_them() -> None:
    poses = np.array([(0, 0, 0), (25, 10, 0.4), (60, -40, -1)]) + GOAL
    states = np.concatenate([np.tile([60.0, 60.0], (3, 1)), poses], axis=1)
    frames = np.moveaxis(render_states(states), -1, 1)[:, None]  # (3, 1, 3, 96, 96)
    expected = CoverageScore()(Imagined(NO_ACTIONS, state_targets(states)[:, None]))
    np.testing.assert_allclose(FrameCoverageScore()(Imagined(NO_ACTIONS, frames=frames)), expected, atol=0.1)
    empty = np.full_like(frames, 255)
    assert (FrameCoverageScore()(Imagined(NO_ACTIONS, frames=empty)) == LOST).all()


def test_below_the_floor_plans_are_worth_the_same() -> None:
    states = np.concatenate([future(pose, pose) for pose in ((300, 0, 0), (0, 0, 1), (10, 0, 0), (5, 0, 0))])
    covers = CoverageScore("mean", shaping=0)(Imagined(NO_ACTIONS, states))
    assert 0 == covers[0] < covers[1] < 0.7 < covers[2] < covers[3]  # the second one lies askew
    floored = CoverageScore("mean", shaping=0, floor=0.7)(Imagined(NO_ACTIONS, states))
    np.testing.assert_array_equal(floored, [0.7, 0.7, *covers[2:]])


def test_motion_is_taken_from_the_states_and_the_place_from_the_newest_frame() -> None:
    """A model that sees the T 12 px and 0.2 off knows a plan that brings it home, and one that leaves it."""
    start, off = np.array([60.0, 60.0, 200, 230, 0.3]), np.array([0.0, 0.0, 8, -9, 0.2])
    home = np.array([60.0, 60.0, *GOAL])
    there, wrong = start[None, 2:], (start + off)[None, 2:]
    np.testing.assert_allclose(moved(moved(home[None, 2:], there, wrong), wrong, there), home[None, 2:])
    imagined = moved(home[None, 2:], there, wrong)  # where this model expects the T
    states = state_targets(np.concatenate([np.tile([60.0, 60.0], (2, 1)), [imagined[0], wrong[0]]], axis=1))[:, None]
    now = state_targets(np.tile(start + off, (2, 1)))
    seen = Imagined(NO_ACTIONS[:2], states, now=now, newest=render_states(start[None]))
    plain, corrected = (CoverageScore(shaping=0, correct=correct)(seen) for correct in (False, True))
    assert plain[0] < 0.8 and corrected[0] > 0.97 and corrected[1] == pytest.approx(coverage(there, GOAL)[0], abs=0.03)
    empty = Imagined(NO_ACTIONS[:2], states, now=now, newest=np.full((1, 96, 96, 3), 255, np.uint8))
    np.testing.assert_array_equal(CoverageScore(shaping=0, correct=True)(empty), plain)  # no T is seen there


def test_bad_input_is_named() -> None:
    for message, options in {
        "at must be the index of a future frame, best or mean, got 'first'": {"at": "first"},
        "shaping must be >= 0, got -1": {"shaping": -1},
        "floor must be >= 0, got -0.5": {"floor": -0.5},
        "margin must be >= 0, got nan": {"margin": float("nan")},
        "goal must be 3 finite numbers": {"goal": (1, 2)},
    }.items():
        with pytest.raises(ValueError, match=message):
            CoverageScore(**options)
    with pytest.raises(ValueError, match="at=4: there are 2 future frames"):
        CoverageScore(at=4)(Imagined(NO_ACTIONS, future((0, 0, 0), (0, 0, 0))))
    lost = future((0, 0, 0)) * np.nan
    assert np.isnan(CoverageScore()(Imagined(NO_ACTIONS, lost))).all()  # for the planner to refuse
