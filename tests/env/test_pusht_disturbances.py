"""Visual disturbances of PushT: they change pictures, by the seed, and nothing else."""

import numpy as np
import pytest

from unified_video_action.env.pusht.disturbances import DISTURBANCES
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
