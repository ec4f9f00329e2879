"""Plans from whole histories, and plans that go on from the one under way."""

from pathlib import Path

import numpy as np
import pytest

from tests.inference.test_session import make_policy, read_episode
from unified_video_action.inference.continuation import Continuation
from unified_video_action.inference.session import PolicySession

OFFSETS = (-12, -8, -4, 0)


@pytest.fixture
def observations(pusht_store: Path) -> list[dict[str, np.ndarray]]:
    return read_episode(pusht_store)


def history(observations: list[dict], now: int) -> list[dict]:
    return [observations[max(now + offset, 0)] for offset in OFFSETS]


def test_a_recalled_history_plans_as_an_observed_one(observations: list[dict]) -> None:
    policy = make_policy(cameras=2)
    observing, recalling = PolicySession(policy), PolicySession(policy)
    for session in (observing, recalling):
        session.reset(seed=2)
    for now in range(0, 24, 8):
        for step in range(max(now - 7, 0), now + 1):
            observing.observe(observations[step])
        recalling.recall(history(observations, now))
        np.testing.assert_allclose(recalling.plan(), observing.plan(), atol=1e-3)


def test_a_plan_goes_on_from_the_one_before(observations: list[dict]) -> None:
    session = PolicySession(make_policy(), slots=2)
    for slot in range(2):
        session.reset(slot, seed=1)
        session.recall(history(observations, 12), slot)
    before = np.float32([[100.0, 200.0], [110.0, 210.0], [120.0, 220.0]])
    going_on = Continuation(before, np.array([1.0, 1.0, 0.5]))
    kept, free = session.plan(going_on={0: going_on})
    np.testing.assert_allclose(kept[:2], before[:2], atol=1e-3)
    assert np.abs(kept[2] - before[2]).max() < np.abs(free[2] - before[2]).max()
    np.testing.assert_allclose(kept[3:], free[3:], atol=1e-3)  # this head's actions know nothing of each other
    again = session.plan()
    assert np.abs(again[0, :2] - before[:2]).max() > 1  # once only


def test_bad_input_is_named(observations: list[dict]) -> None:
    session = PolicySession(make_policy())
    with pytest.raises(RuntimeError, match="reset"):
        session.recall(history(observations, 0))
    session.reset()
    with pytest.raises(ValueError, match="3 observations: the policy reads 4"):
        session.recall(observations[:3])
    with pytest.raises(ValueError, match="'image' is missing"):
        session.recall([{}] * 4)
    session.recall(history(observations, 0))
    for actions, weights, message in (
        (np.zeros((17, 2)), np.zeros(17), r"\(17, 2\), a chunk has 16 of 2"),
        (np.full((2, 2), np.nan), np.zeros(2), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            session.plan(going_on={0: Continuation(actions, weights)})
