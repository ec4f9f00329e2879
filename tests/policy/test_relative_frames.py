"""Frames relative to the newest one, plans before frames, and modes that were not trained."""

import pytest
import torch

from tests.policy.conftest import config, encoders
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.build import build_policy
from unified_video_action.policy.uva_transform import CHANGE


def noise(seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(3)]


@pytest.fixture
def relative(normalizer):
    def make(**options):
        torch.manual_seed(0)
        scale = {"scale": torch.tensor([2.5]), "offset": torch.zeros(1)}
        fields = Normalizer({**normalizer.fields(), CHANGE + "image": scale})
        policy = build_policy(config(relative_frames=True, video_sampler="ddim4", **options), fields, encoders())
        return policy.eval()

    return make


def test_training_sees_scaled_changes(relative, batch):
    policy = relative()
    future = policy.transform.training_inputs(batch).future
    latents = policy.encode(batch["future"]["image"]) - policy.encode(batch["history"]["image"])[:, -1:]
    torch.testing.assert_close(future[:, 0], 2.5 * latents)


def test_inverse_dynamics_sees_what_forward_dynamics_made(relative, obs, monkeypatch):
    policy, made = relative(), []
    sample = policy.model.sample

    def kept(*args, **options):
        generated = sample(*args, **options)
        made.append(generated.frames)
        return generated

    monkeypatch.setattr(policy.model, "sample", kept)
    imagined = policy.predict_forward_dynamics(obs, torch.zeros(3, 16, 2), noise())["latents"]
    assert (imagined - made[0]).abs().max() > 0.1
    torch.testing.assert_close(
        policy.transform.future({"image": imagined[:, 0]}, policy.encode(obs["image"]).unsqueeze(1)), made[0]
    )


def test_a_mode_that_was_not_trained_is_refused_by_name(normalizer, obs):
    settings = config()
    settings["model"]["mode_mix"] = {"quotas": {"policy": 1.0, "policy_and_video": 1.0, "forward_dynamics": 0.0}}
    policy = build_policy(settings, normalizer, encoders())
    policy.predict_video(obs, noise())  # the same inputs as the policy with its video
    with pytest.raises(ValueError, match="not trained in the mode forward_dynamics.*quotas.forward_dynamics above 0"):
        policy.predict_forward_dynamics(obs, torch.zeros(3, 16, 2), noise())
    with pytest.raises(ValueError, match="inverse_dynamics"):
        policy.predict_inverse_dynamics(obs, {"image": obs["image"]}, generator=noise())
    for name in TASK_MODES:
        build_policy(config(), normalizer, encoders()).require_trained(name)
    settings["policy"]["plan_first"] = True  # frames of a plan by forward dynamics, which it cannot do
    assert policy.imagines and not build_policy(settings, normalizer, encoders()).imagines
