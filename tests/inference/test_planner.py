"""A planner executes the best of several plans, and an episode depends on its own seed alone."""

import numpy as np
import pytest
import torch

from tests.inference.test_session import inputs_without_memory, make_policy, observations  # noqa: F401
from unified_video_action.env.plan_score import Imagined, PlanScore
from unified_video_action.inference import planner as planner_module
from unified_video_action.inference.planner import Planner
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.config import PlannerConfig


class Rightmost(PlanScore):
    """Likes plans that end far to the right; remembers what it was shown."""

    def __init__(self, *needs: str, bad: float = 0.0) -> None:
        self.needs, self.bad, self.seen = frozenset(needs or ("states",)), bad, []

    def __call__(self, imagined: Imagined) -> np.ndarray:
        self.seen.append(imagined)
        scores = imagined.actions[:, -1, 0].astype(np.float64)
        scores[-1] += self.bad
        return scores


def plans(session: PolicySession, seen: list[dict], seeds: list[int], times: int = 3) -> np.ndarray:
    """(times, slots, A, D) plans of all slots, eight observations apart; slot s begins at observation s."""
    for slot, seed in enumerate(seeds):
        session.reset(slot, seed, **({"text": torch.ones(5)} if session.policy.model.spec.text_dim else {}))
    made = []
    for _ in range(times):
        for step in range(8):
            for slot, seed in enumerate(seeds):
                session.observe(seen[seed + 8 * len(made) + step], slot)
        made.append(session.plan())
    return np.stack(made)


@pytest.fixture
def policy():
    return make_policy(auxiliary_dim=6)


def test_the_best_plan_is_executed(policy, observations) -> None:  # noqa: F811
    score = Rightmost("states", "frames")
    session = PolicySession(policy, slots=2, planner=Planner(score, candidates=5))
    made = plans(session, observations, [3, 4], times=2)
    for plan, imagined in zip(made, score.seen, strict=True):
        actions = imagined.actions.reshape(2, 5, 16, 2)
        np.testing.assert_array_equal(plan, actions[range(2), actions[:, :, -1, 0].argmax(axis=1)])
        assert np.ptp(actions[:, :, -1, 0], axis=1).min() > 1  # the plans differ
        assert imagined.states.shape == (10, 4, 6)
        assert imagined.frames.shape == (10, 4, 3, 32, 32) and imagined.frames.dtype == np.uint8
    assert len(session.plan_seconds) == 2


def test_a_small_difference_leaves_the_policys_first_plan() -> None:
    score = Rightmost()
    score.margin = 0.5
    scores = np.array([[1.0, 1.4, 0.0], [1.0, 1.4, 1.6], [2.0, 1.0, 1.9]])
    np.testing.assert_array_equal(Planner(score, candidates=3).choose(scores), [0, 2, 0])
    np.testing.assert_array_equal(Planner(Rightmost(), candidates=3).choose(scores), [1, 2, 0])


def test_states_are_those_of_forward_dynamics(policy, observations) -> None:  # noqa: F811
    score = Rightmost()
    plans(PolicySession(policy, planner=Planner(score, candidates=3)), observations, [0], times=1)
    inputs, (imagined,) = inputs_without_memory(policy, observations[:8]), score.seen
    for actions, states in zip(imagined.actions, imagined.states, strict=True):
        expected = policy.predict_states(inputs, torch.from_numpy(actions[None]))[0, 4:]
        np.testing.assert_allclose(states, expected, atol=1e-4)
    now = policy.predict_states(inputs, torch.from_numpy(imagined.actions[:1]))[0, 3]
    np.testing.assert_allclose(imagined.now[0], now, atol=1e-4)
    np.testing.assert_array_equal(imagined.newest, observations[7]["image"][None])
    assert np.ptp(imagined.states, axis=0).max() > 1e-3 and imagined.frames is None


def test_another_policy_may_imagine(policy, observations) -> None:  # noqa: F811
    """It sees other cameras; the plans stay the acting policy's."""
    acting, score = make_policy(cameras=2), Rightmost()
    session = PolicySession(acting, planner=Planner(score, 3), world=policy)
    made = plans(session, observations, [0], times=1)
    inputs, (imagined,) = inputs_without_memory(policy, observations[:8]), score.seen
    for actions, states in zip(imagined.actions, imagined.states, strict=True):
        expected = policy.predict_states(inputs, torch.from_numpy(actions[None]))[0, 4:]
        np.testing.assert_allclose(states, expected, atol=1e-4)
    np.testing.assert_array_equal(made[0, 0], imagined.actions[imagined.actions[:, -1, 0].argmax()])
    with pytest.raises(ValueError, match="recall: a policy that plans in another one's world"):
        session.recall(observations[:4])
    with pytest.raises(ValueError, match="world: it needs a planner"):
        PolicySession(acting, world=policy)


def test_getting_ready_on_a_gpu_needs_nothing_of_the_other_policy(observations) -> None:  # noqa: F811
    world, score = make_policy(cameras=2, auxiliary_dim=6), Rightmost()
    session = PolicySession(make_policy(), slots=2, planner=Planner(score, 3), world=world)
    session._warm_up()  # as on a CUDA device; it has no frame of the world's second camera
    assert not score.seen and not session.plan_seconds
    plans(session, observations, [0, 1], times=1)
    assert len(score.seen) == 1


@pytest.mark.parametrize(
    "options, needs", [({}, "frames"), ({"text_dim": 5}, "states"), ({"history_actions": True}, "frames")]
)
def test_one_candidate_is_the_policy_without_a_planner(observations, options, needs) -> None:  # noqa: F811
    policy = make_policy(auxiliary_dim=6, **options)
    alone = plans(PolicySession(policy, slots=2), observations, [1, 2])
    made = plans(PolicySession(policy, slots=2, planner=Planner(Rightmost(needs), 1)), observations, [1, 2])
    np.testing.assert_array_equal(made, alone)


@pytest.mark.parametrize("needs", ["states", "frames"])
def test_an_episode_depends_on_its_seed_alone(policy, observations, needs, monkeypatch) -> None:  # noqa: F811
    class Brightest(Rightmost):  # takes in what is imagined, its noise too
        def __call__(self, imagined: Imagined) -> np.ndarray:
            shown = imagined.states if needs == "states" else imagined.frames
            self.seen.append(shown.reshape(len(shown), -1).mean(axis=1, dtype=np.float64))
            return self.seen[-1]

    beside, alone = Brightest(needs), Brightest(needs)
    three = plans(PolicySession(policy, slots=3, planner=Planner(beside, 4)), observations, [5, 6, 7])
    monkeypatch.setattr(planner_module, "MOST_ROWS", 3)  # nor on how plans share a forward pass
    session = PolicySession(policy, planner=Planner(alone, 4))
    one = plans(session, observations, [6])
    np.testing.assert_allclose(one[:, 0], three[:, 1], atol=1e-3)
    for whole, own in zip(beside.seen, alone.seen, strict=True):
        np.testing.assert_allclose(whole[4:8], own, rtol=1e-3)


class Short(Rightmost):
    def __call__(self, imagined: Imagined) -> np.ndarray:
        return super().__call__(imagined)[1:]


def test_bad_input_is_named(policy, observations) -> None:  # noqa: F811
    def run(score: PlanScore, policy=policy) -> np.ndarray:
        return plans(PolicySession(policy, planner=Planner(score, 3)), observations, [0], times=1)

    cases = {
        r"candidates must be at least 1, got 0": lambda: Planner(Rightmost(), 0),
        r"Rightmost needs frames": lambda: Planner(Rightmost("frames"), simulate=dict),
        r"UVAConfig' is refused; a class derived from .*PlanScore is needed here": lambda: Planner.build(
            PlannerConfig({"_target_": "unified_video_action.policy.config.UVAConfig"})
        ),
        r"Short gave scores of shape \(2,\) for 3 plans": lambda: run(Short()),
        r"score Rightmost is not finite: nan for seed 0 in slot 0": lambda: run(Rightmost(bad=np.nan)),
        r"task.shape_meta.auxiliary_dim": lambda: run(Rightmost(), make_policy()),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
