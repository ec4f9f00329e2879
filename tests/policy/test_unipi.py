import pytest
import torch

from unified_video_action.policy.unipi import UniPiPolicy


def noise(seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(3)]


@pytest.fixture
def policy(make_policy):
    made = make_policy()
    made.__class__ = UniPiPolicy
    return made


def test_it_does_what_its_video_shows(policy, obs):
    planned = policy.predict_action(obs, noise())
    source = noise()
    video = policy.predict_video(obs, source)["latents"]
    shown = policy.predict_inverse_dynamics(obs, {"image": video[:, 0]}, generator=source)
    assert torch.equal(planned["action_pred"], shown["action_pred"]) and planned["action"].shape == (3, 8, 2)


def test_each_plan_has_a_video_of_its_own(policy, obs):
    plans = policy.predict_action(obs, torch.Generator().manual_seed(0), chunks=2)["action_pred"].unflatten(0, (3, 2))
    assert plans.shape == (3, 2, 16, 2) and not torch.allclose(plans[:, 0], plans[:, 1])
