"""kl-f16 as an acting policy runs it, against the plain forward pass and against diffusers' own."""

import copy
from collections.abc import Callable

import pytest
import torch

from unified_video_action.vae import kl_acting
from unified_video_action.vae.kl import AutoencoderKL
from unified_video_action.vae.pusht_tiny import PushTTiny

ROUNDING = 1e-4  # of the latents' deviation


@pytest.fixture(scope="module")
def make() -> Callable[[int], AutoencoderKL]:
    codec = AutoencoderKL("random")
    generator = torch.Generator().manual_seed(0)
    for module in codec.network.encoder.modules():  # norms of a fresh network neither scale nor shift
        if isinstance(module, torch.nn.GroupNorm):
            module.weight.normal_(1, 0.3, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)

    def sized(image_size: int) -> AutoencoderKL:
        sized = copy.copy(codec)
        sized.image_size = image_size
        return sized

    return sized


def frames(count: int, size: int) -> torch.Tensor:
    return torch.randint(256, (1, count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [16, 48, 80, 128])  # 48 and 80 have levels whose sides are no multiples of 4
def test_moments_equal_the_plain_ones(make: Callable[[int], AutoencoderKL], size: int) -> None:
    codec = make(size)
    fast, pictures = codec.for_acting(), frames(2, size)
    expected = codec.moments(pictures)
    for _ in range(2):  # the second time in used memory
        made = fast.moments(pictures)
        for name in ("mean", "logvar"):
            difference = getattr(made, name) - getattr(expected, name)
            assert difference.abs().max() < ROUNDING * getattr(expected, name).std()
    assert expected.mean.std() > 0.05
    images = pictures[0].float() / 127.5 - 1
    theirs = codec.network.encode(images).latent_dist.parameters
    assert (fast.parameters_of(images) - theirs).abs().max() < ROUNDING * theirs.std()


def test_large_levels_take_the_fast_way(make: Callable[[int], AutoencoderKL], monkeypatch: pytest.MonkeyPatch) -> None:
    fast, asked = make(128).for_acting(), []
    pays = kl_acting.pays
    monkeypatch.setattr(kl_acting, "pays", lambda conv, *size: asked.append((size, pays(conv, *size))) or asked[-1][1])
    fast.parameters_of(torch.zeros(1, 3, 128, 128))
    assert asked == 2 * [((128, 128), True)] + 2 * [((64, 64), True)] + 2 * [((32, 32), True)] + 2 * [((16, 16), False)]


def test_it_shares_the_weights_and_leaves_the_codec_alone(make: Callable[[int], AutoencoderKL]) -> None:
    codec = make(48)
    before = set(vars(codec))
    fast = codec.for_acting()
    assert fast.network is codec.network and set(vars(codec)) == before
    assert torch.equal(fast.scale, codec.scale) and fast.latent_shape == codec.latent_shape
    assert set(fast.state_dict()) == set(codec.state_dict())


def test_other_codecs_stay_as_they_are() -> None:
    codec = PushTTiny()
    assert codec.for_acting() is codec
