"""Plans are ranked by how near the wanted block comes to the wanted square, and tried as they then happen."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="pybullet is not installed; add the simulators with: make sims")

from scripts.guide_demonstrator import succeeds
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.demos.block_push import ScriptedExpert
from unified_video_action.env.block_push.env import BlockPushEnv
from unified_video_action.env.block_push.layout import HIGH, LOW, PAIRS, state_targets
from unified_video_action.env.block_push.score import PairScore
from unified_video_action.env.plan_score import Imagined
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.inference.planner import Planner
from unified_video_action.policy.diffusion_policy import DiffusionConfig, DiffusionPolicy
from unified_video_action.spec import Camera, Horizon, TaskSpec

RED, GREEN = (0.28, 0.2), (0.52, 0.2)  # squares


@pytest.fixture
def env():
    made = BlockPushEnv(observe_image=False)
    yield made
    made.close()


def scores(wanted: str, *lasts: tuple) -> np.ndarray:
    """Of plans that end with effector, red and green block there."""
    states = np.array([[(9.0,) * 10, (*np.ravel(last), *RED, *GREEN)] for last in lasts])  # (n, 2, 10)
    return PairScore(wanted)(Imagined(np.zeros((len(lasts), 16, 2)), states))


def test_the_nearer_the_wanted_block_the_better():
    far, away = (0.3, -0.4), (0.4, -0.3)
    on_red, on_green = (far, RED, away), (far, GREEN, away)
    near_red = (far, (0.28, 0.1), away)
    assert list(scores("red_in_red", on_green, near_red, on_red).argsort()) == [0, 1, 2]
    assert list(scores("red_in_green", on_red, near_red, on_green).argsort()) == [0, 1, 2]
    np.testing.assert_allclose(scores("green_in_red", on_red, on_green), scores("green_in_red", on_red)[0])
    blocks = (0.28, 0.0), (0.4, -0.3)  # which have not moved yet: then the effector counts
    behind, beside, before = (((0.28, y), *blocks) for y in (-0.05, 0.0, 0.06))
    assert list(scores("red_in_red", before, beside, behind).argsort()) == [0, 1, 2]


def test_trying_actions_tells_what_happens_and_leaves_the_episode(env):
    env.reset(seed=3)
    expert, plan = ScriptedExpert(0), []
    with env.scene.kept():
        for _ in range(40):
            plan.append(expert.act(env.scene.state))
            env.move(plan[-1])
    plan = np.array(plan)
    tried = env.try_actions(np.stack([plan[::-1], plan]), (8, 40))
    states = [env.step(action)[4]["state"] for action in plan]
    np.testing.assert_array_equal(tried[1], state_targets(np.stack([states[7], states[39]])))
    assert np.linalg.norm(states[39] - states[0]) > 0.05 and not np.allclose(tried[0], tried[1])


def test_a_policy_that_imagines_nothing_is_guided_by_the_simulator():
    class Seen(PairScore):
        states: list = []

        def __call__(self, imagined):
            self.states.append(imagined.states)
            return super().__call__(imagined)

    task = TaskSpec(Horizon(1, 0, 1), (Camera("image", (24, 32), True),), 2, {"effector": 2}, 1)
    table = np.array([LOW, HIGH])
    config = DiffusionConfig(encoder="test_resnet", stages=1, crop=None, widths=(8, 16), step_embed=8, sampler="ddim2")
    policy = DiffusionPolicy(task, Normalizer.limits({"action": table, "effector": table}), config)
    env = {"_target_": "unified_video_action.env.block_push.env.BlockPushEnv", "image_size": 24}
    runner = EnvRunner(env, n_episodes=1, n_envs=1, max_steps=12)
    score = Seen("red_in_red")
    runner.run(policy, planner=Planner(score, candidates=3), try_in_simulator=True, progress=False)
    assert [states.shape for states in score.states] == [(3, 1, 10)] * 2  # where each of three plans ends, twice
    assert np.ptp(score.states[0][:, 0, :2], axis=0).max() > 0.01


def test_the_wanted_pair_alone_is_success(env):
    wanting = BlockPushEnv(observe_image=False, wanted="red_in_green")
    away = (0.4, -0.2)
    for blocks, score, ends in [((RED, GREEN), 0, True), ((GREEN, away), 1, True), ((RED, away), 0, False)]:
        state = np.array([0.3, -0.4, *blocks[0], 0, *blocks[1], 0, *RED, 0, *GREEN, 0])
        wanting.reset(options={"state": state})
        _, reward, terminated, _, info = wanting.step(np.array([0.3, -0.4]))
        assert reward == score and info["is_success"] is bool(score) and terminated is ends
    wanting.close()


def test_a_demonstrator_whose_plans_are_chosen_does_what_is_wanted():
    policy = SimpleNamespace(task=SimpleNamespace(horizon=Horizon()))
    assert [succeeds(policy, wanted, 200_000, "simulator", 8) for wanted in PAIRS] == [True] * 4
    assert [succeeds(policy, wanted, 200_000, None, 8) for wanted in PAIRS] != [True] * 4
