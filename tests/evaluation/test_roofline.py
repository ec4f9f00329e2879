"""Roofline: operations against a count by hand, and weights that are read once or at every step."""

import pytest
import torch

from tests.scripts.conftest import CONFIG
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.evaluation.roofline import counting
from unified_video_action.policy.build import build_policy

STEPS = 2  # of CONFIG's samplers


@pytest.fixture(scope="module")
def policy():
    return build_policy(CONFIG, Normalizer.identity({"action": 2, "agent_pos": 2}))


def test_the_work_of_a_head_is_what_its_sizes_say(policy) -> None:
    with torch.no_grad(), counting(policy) as parts:
        frames = policy.encode_frames(torch.zeros(1, 4, 3, 96, 96, dtype=torch.uint8))
        policy.predict_action_and_video({"image": frames, "agent_pos": torch.zeros(1, 1, 2)})
    assert policy.model.replay is None
    head, net, codec = parts["video diffusion"], policy.model.video_heads[0].net, set(policy.codec.modules())
    rows, token, width = policy.model.spec.tokens, policy.model.spec.token_dim, CONFIG["model"]["video_head"]["width"]
    dim = CONFIG["model"]["transformer"]["dim"]
    products = token * width + 2 * width**2 + 3 * width**2 + 2 * width**2 + width * 2 * token
    assert head.operations >= 2 * rows * STEPS * products
    assert head.operations <= 2 * rows * STEPS * (products + dim * width + 256 * width + width**2)
    assert head.uses[net.input_proj] == head.uses[net.blocks[0].mlp[0]] == STEPS
    assert parts["VAE encode"].uses.keys() <= codec and not parts["transformer"].uses.keys() & codec
    assert parts["transformer"].operations > 0
