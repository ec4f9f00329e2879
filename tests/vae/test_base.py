"""The interface that every codec shares, on a codec small enough to check by hand."""

import pytest
import torch
from torch import Tensor, nn

from unified_video_action.spec import LatentShape
from unified_video_action.vae.base import FrameCodec, Moments, resize


class Averages(FrameCodec):
    """Means of 4 x 4 pixel blocks."""

    name = "averages"
    channels = 3
    downsample = 4
    frames_per_pass = 2

    def __init__(self, image_size: int = 8, posterior: str = "mean", logvar: float = 0.0) -> None:
        super().__init__(image_size, posterior, scale=2.0, shift=[0.0, 0.5, 1.0])
        self.gain = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)
        self.logvar = logvar
        self.freeze()

    def encode_images(self, images: Tensor) -> Moments:
        mean = nn.functional.avg_pool2d(self.dropout(images) * self.gain, 4)
        return Moments(mean, torch.full_like(mean, self.logvar))

    def decode_images(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(0, 256, (3, 2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_latents_are_shifted_and_scaled_means(frames: Tensor) -> None:
    codec = Averages()
    assert codec.latent_shape == LatentShape(3, 2, 2)
    latents = codec.encode(frames)
    assert latents.shape == (3, 2, 3, 2, 2)
    block = frames[1, 1, 2, 4:, :4].float().mean() / 127.5 - 1
    torch.testing.assert_close(latents[1, 1, 2, 1, 0], (block - 1.0) * 2)


def test_frames_are_resized_without_antialias(frames: Tensor) -> None:
    codec = Averages(image_size=4)
    as_float = frames.float() / 127.5 - 1
    halved = resize(as_float.flatten(0, 1), 4)
    torch.testing.assert_close(halved[0, 0, 0, 0], as_float[0, 0, 0, :2, :2].mean())  # antialias would reach further
    torch.testing.assert_close(codec.moments(frames).mean.flatten(0, 1), nn.functional.avg_pool2d(halved, 4))


def test_a_sample_has_the_posterior_deviation_and_follows_its_generators(frames: Tensor) -> None:
    codec = Averages(posterior="sample", logvar=-2.0)
    moments = codec.moments(frames)

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    drawn = codec.latents(moments, generators(0, 1, 2))
    assert torch.equal(drawn[1:2], codec.latents(Moments(moments.mean[1:2], moments.logvar[1:2]), generators(1)))
    many = Moments(torch.zeros(1, 1, 3, 100, 100), torch.full((1, 1, 3, 100, 100), -2.0))
    noise = codec.latents(many, torch.Generator().manual_seed(0)) / 2 + codec.shift
    assert noise.std() == pytest.approx(torch.exp(torch.tensor(-1.0)).item(), rel=0.02)


def test_a_codec_stays_frozen(frames: Tensor) -> None:
    codec = Averages()
    before = codec.encode(frames)
    nn.Sequential(codec).train()
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert torch.equal(codec.encode(frames), before)
    assert not before.requires_grad


def test_key_follows_weights_and_image_size_only() -> None:
    key = Averages().key()
    assert key == Averages(posterior="sample").key()
    assert key != Averages(image_size=16).key()
    changed = Averages()
    changed.gain.data += 1e-6
    assert key != changed.key()


def test_bad_frames_and_latents_are_named(frames: Tensor) -> None:
    codec = Averages()
    with pytest.raises(ValueError, match=r"\(3, 2, 8, 8, 3\): expected \(B, T, 3, H, W\)"):
        codec.encode(frames.movedim(2, -1))
    with pytest.raises(ValueError, match="torch.int64"):
        codec.encode(frames.long())
    with pytest.raises(ValueError, match=r"expected \(B, T, 3, 2, 2\)"):
        codec.decode(torch.zeros(1, 1, 3, 4, 4))
