"""Which codec the engine encodes with."""

import pytest
import torch

from tests.inference.test_engine import make_policy, make_sample
from tests.model.conftest import PLAIN
from unified_video_action.inference.engine import Engine
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy
from unified_video_action.vae.kl import AutoencoderKL
from unified_video_action.vae.kl_acting import ActingAutoencoderKL


@pytest.fixture
def policy() -> UnifiedVideoActionPolicy:
    plain = make_policy(make_sample(PLAIN))
    codec = AutoencoderKL("random", image_size=64)
    return UnifiedVideoActionPolicy(plain.model, codec, plain.normalizer, plain.observations, plain.config).eval()


def test_frames_are_encoded_as_the_policy_encodes_them(policy: UnifiedVideoActionPolicy) -> None:
    engine = Engine(policy)
    assert isinstance(engine.codec, ActingAutoencoderKL) and type(policy.codec) is AutoencoderKL
    frames = torch.randint(256, (1, 2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = policy.codec.moments(frames)
    assert (engine.encode(frames).mean - expected.mean).abs().max() < 1e-4 * expected.mean.std()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_has_products_of_its_own(policy: UnifiedVideoActionPolicy, precision: str) -> None:
    assert Engine(policy, precision=precision).codec is policy.codec
