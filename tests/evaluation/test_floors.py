"""Floors: operations against a count by hand, and weights that are read once or at every step."""

from typing import Any

import pytest
import torch

from unified_video_action.compat.old_checkpoints import UVA
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.evaluation.floors import counting, floors, reading_rate
from unified_video_action.policy.build import build_policy

DIM, WIDTH = 32, 16
CONFIG: dict[str, Any] = {
    "task": {
        "shape_meta": {
            "obs": {"image": {"shape": [3, 48, 48], "type": "rgb"}, "agent_pos": {"shape": [2], "type": "low_dim"}},
            "action": {"shape": [2]},
        },
        "horizon": {"history": 4, "future": 2, "stride": 4, "actions": 8},
    },
    "model": {
        "transformer": {"dim": DIM, "encoder_depth": 1, "decoder_depth": 1, "heads": 2},
        "video_head": {"width": WIDTH, "depth": 1},
        "action_head": {"width": WIDTH, "depth": 1, "pool": 2},
    },
    "vae": {"_target_": "unified_video_action.vae.tiny.TAEF2", "weights": "random", "image_size": 32},
    "policy": {"_target_": UVA, "action_steps": 8, "sampler": "ddim3", "video_sampler": "ddim3"},
}


@pytest.fixture
def policy():
    return build_policy(CONFIG, Normalizer.identity({"action": 2, "agent_pos": 2}))


def test_the_work_of_a_head_is_what_its_sizes_say(policy) -> None:
    with torch.no_grad(), counting(policy) as parts:
        frames = policy.encode_frames(torch.zeros(1, 4, 3, 48, 48, dtype=torch.uint8))
        policy.predict_action_and_video({"image": frames, "agent_pos": torch.zeros(1, 4, 2)})
    assert policy.model.replay is None
    head = parts["video diffusion"]
    rows, token, steps = policy.model.spec.tokens, policy.codec.latent_shape.channels, 3
    products = token * WIDTH + 2 * WIDTH**2 + 3 * WIDTH**2 + 2 * WIDTH**2 + WIDTH * 2 * token + DIM * WIDTH
    assert head.operations >= 2 * rows * steps * (products - DIM * WIDTH)
    assert head.operations <= 2 * rows * steps * (products + 256 * WIDTH + WIDTH**2)
    net, codec = policy.model.video_heads[0].net, set(policy.codec.modules())
    assert head.uses[net.input_proj] == head.uses[net.blocks[0].mlp[0]] == steps
    assert parts["VAE encode"].uses.keys() <= codec and not parts["transformer"].uses.keys() & codec
    assert parts["transformer"].operations > 0


def test_a_floor_is_the_larger_of_arithmetic_and_reading(policy) -> None:
    plans = floors(policy, (48, 48))
    assert set(plans) == {"policy, 4 new frames", "policy, 2 new frames", "policy and video"}
    for parts in plans.values():
        assert parts["total"]["floor"] == pytest.approx(
            sum(part["floor"] for name, part in parts.items() if name != "total")
        )
        for name, part in parts.items():
            assert name == "total" or part["floor"] == max(part["compute"], part["weights"]) > 0
    whole, part = (plans[f"policy, {new} new frames"]["VAE encode"]["giga"] for new in (4, 2))
    assert part == pytest.approx(whole / 2)
    assert set(plans["policy and video"]) - set(plans["policy, 4 new frames"]) == {"video diffusion", "VAE decode"}


def test_more_environments_take_more_arithmetic(policy) -> None:
    one, three = (floors(policy, (48, 48), batch=batch)["policy and video"]["transformer"] for batch in (1, 3))
    assert three["giga"] == pytest.approx(3 * one["giga"], rel=0.1)


def test_memory_is_read_at_some_rate() -> None:
    assert 1e8 < reading_rate(torch.device("cpu"), 2**22) < 1e13
