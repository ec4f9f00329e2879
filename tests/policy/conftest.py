import copy

import numpy as np
import pytest
import torch

from tests.scripts.conftest import CONFIG
from unified_video_action.compat.checkpoint_files import UVA
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.policy.build import build_policy
from unified_video_action.vae.base import FrameCodec, Moments


class MeanCodec(FrameCodec):
    """Latents are 8x8 averages of the colours, plus a constant channel."""

    name, channels, downsample = "mean", 4, 8

    def __init__(self, weights: str | None = None, image_size: int = 32, posterior: str = "mean") -> None:
        super().__init__(image_size, posterior)
        self.freeze()

    def encode_images(self, images):
        mean = torch.nn.functional.avg_pool2d(images, 8)
        mean = torch.cat([mean, torch.ones_like(mean[:, :1])], dim=1)
        return Moments(mean, torch.full_like(mean, -30.0))

    def decode_images(self, z):
        return torch.nn.functional.interpolate(z[:, :3], scale_factor=8)


def encoders():
    return {"codec": MeanCodec(), "text": None}


def config(**policy):
    made = copy.deepcopy({name: CONFIG[name] for name in ("task", "model")})
    made["task"] = {"shape_meta": made["task"]["shape_meta"], "horizon": {}}
    made["task"]["shape_meta"]["obs"]["image"]["shape"] = [3, 32, 32]
    return {**made, "vae": {}, "policy": {"_target_": UVA, "sampler": "ddim4", "video_sampler": "ancestral4", **policy}}


@pytest.fixture
def normalizer():
    corners = np.array([[0.0, 0.0], [512.0, 512.0]])
    return Normalizer.limits({"action": corners, "agent_pos": corners})


@pytest.fixture
def make_policy(normalizer):
    def make(**options):
        torch.manual_seed(0)
        policy = build_policy(config(**options), normalizer, encoders())
        for parameter in policy.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        return policy.eval()

    return make


@pytest.fixture
def obs():
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "agent_pos": torch.rand(3, 1, 2, generator=generator) * 512,
    }


@pytest.fixture
def batch(obs):
    return {
        "history": {"image": obs["image"]},
        "future": {"image": obs["image"].flip(1)},
        "low_dim": {"agent_pos": obs["agent_pos"]},
        "action": torch.rand(3, 16, 2) * 512,
        "action_is_pad": torch.zeros(3, 16, dtype=torch.bool),
        "frame_is_pad": torch.zeros(3, 4, dtype=torch.bool),
        "has_action": torch.tensor([True, True, False]),
        "index": torch.arange(3),
        "seed": torch.arange(3),
    }
