"""The rollout loop: one episode per seed, each a function of its seed alone."""

import numpy as np
import pytest

from tests.env_runner import toy
from tests.env_runner.toy_policy import ToySession
from unified_video_action.env_runner.rollout import load_observations, rollout, save_observations
from unified_video_action.env_runner.simulators import EnvProcesses

OPTIONS = {"max_steps": 30, "action_steps": 8, "metrics": ("coverage",)}


def run(seeds, n_envs: int, session=None, env=toy.ToyEnv, **options):
    with EnvProcesses(env, n_envs) as envs:
        return rollout(session or ToySession(slots=n_envs), envs, seeds, **{**OPTIONS, **options})


def test_the_session_sees_every_step(tmp_path):
    session, kept = ToySession(slots=1), {}
    run([4], 1, session, max_steps=11, on_end=lambda e, seen: kept.update({e.seed: seen}), keep_observations=True)
    assert session.seen[0] == len(kept[4]) == 12
    start, _ = toy.ToyEnv().reset(seed=4)
    np.testing.assert_array_equal(kept[4][0]["position"], start["position"])
    assert kept[4][-1]["position"] != start["position"]
    save_observations(tmp_path / "4.npz", kept[4])
    for one, other in zip(load_observations(tmp_path / "4.npz"), kept[4], strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["position"], other["position"])


def test_bad_plans_and_environments_stop_the_run():
    session = ToySession(slots=1)
    session.plan = lambda slots: np.full((1, 16, 1), np.nan)
    with pytest.raises(RuntimeError, match="not finite: seed 4, step 0"):
        run([4], 1, session)
    with pytest.raises(ValueError, match="info has no 'score'; it has is_success"):
        run([4], 1, env=toy.ForgetfulEnv)
