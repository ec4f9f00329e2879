"""What several tests of the data path share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from unified_video_action.vae.base import FrameCodec, Moments


class ToyCodec(FrameCodec):
    """Block means of the image; with `noisy` it has a posterior."""

    name, channels, downsample = "toy", 3, 8

    def __init__(self, gain: float = 1.0, image_size: int = 96, posterior: str = "mean", noisy: bool = False) -> None:
        super().__init__(image_size, posterior, scale=0.5, shift=[0.1, 0.2, 0.3])
        self.gain = torch.nn.Parameter(torch.tensor(gain))
        self.noisy = noisy
        self.encoded = 0  # frames so far
        self.freeze()

    def encode_images(self, images: torch.Tensor) -> Moments:
        self.encoded += len(images)
        mean = avg_pool2d(images, 8) * self.gain
        return Moments(mean, torch.full_like(mean, -2.0 if self.noisy else -30.0))

    def decode_images(self, z: torch.Tensor) -> torch.Tensor:
        return interpolate(z / self.gain, scale_factor=8)


@pytest.fixture
def toy_codec() -> Callable[..., ToyCodec]:
    """The class of a tiny codec: (3, 96, 96) -> (3, 12, 12)."""
    return ToyCodec
