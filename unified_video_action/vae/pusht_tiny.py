"""The project's own codec for 96 px frames of the pushing table: 8x downsampling, 16 channels, 1.5 M parameters.

Both directions are a linear map between an 8 x 8 patch and its latent cell (principal components, before training) plus
a small residual network, which works at a quarter and at an eighth of the resolution, so that it is quick on a CPU.
`scripts/train_codec.py` trains it on scripted demonstrations; the weights are part of the package.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from unified_video_action.compat.tensors import load_exactly, read_safetensors
from unified_video_action.vae.base import FrameCodec, Moments

NAME = Path(__file__).stem  # one name for this file, its weights and its configuration
PACKAGED_WEIGHTS = Path(__file__).parent / "weights" / f"{NAME}.safetensors"
CHANNELS, PATCH = 16, 8
NOISE = 0.1  # standard deviation of the posterior, in scaled latents


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), the identity before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class Encoder(nn.Module):
    """Images (N, 3, S, S) in [-1, 1] -> latents (N, 16, S/8, S/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3, CHANNELS, PATCH, stride=PATCH)
        self.network = nn.Sequential(
            nn.PixelUnshuffle(4),  # (N, 48, S/4, S/4)
            nn.Conv2d(48, 48, 3, padding=1),
            Residual(48),
            nn.Conv2d(48, 128, 4, stride=2, padding=1),  # (N, 128, S/8, S/8)
            Residual(128),
            nn.ReLU(),
            nn.Conv2d(128, CHANNELS, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images) + self.network(images)


class Decoder(nn.Module):
    """Scaled latents (N, 16, h, w) -> images (N, 3, 8h, 8w) in about [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ConvTranspose2d(CHANNELS, 3, PATCH, stride=PATCH)
        self.network = nn.Sequential(
            nn.Conv2d(CHANNELS, 128, 3, padding=1),
            Residual(128),
            Residual(128),
            nn.ReLU(),
            nn.Conv2d(128, 256, 3, padding=1),
            nn.PixelShuffle(2),  # (N, 64, 2h, 2w)
            Residual(64),
            nn.ReLU(),
            nn.Conv2d(64, 48, 3, padding=1),
            nn.PixelShuffle(4),  # (N, 3, 8h, 8w)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + self.network(z)


class PushTTiny(FrameCodec):
    """Tiny autoencoder: (3, S, S) <-> (16, S/8, S/8), with a posterior of fixed width around the mean.

    Its scale and shift are part of the weights: they give every channel zero mean and unit deviation over scripted
    demonstrations. Posterior "sample" adds noise of deviation 0.1 to scaled latents, which the decoder is trained for.

    Args:
        weights: a safetensors file; None takes the one in the package; "random" leaves the network as initialised.
        image_size: side of the square images that are encoded, in pixels; trained for 96.
        posterior: "mean" or "sample".

    Raises:
        FileNotFoundError: no such weights.
        ValueError: weights with tensors that are missing, extra or misshapen.
    """

    name = NAME
    channels = CHANNELS
    downsample = PATCH

    def __init__(self, weights: str | None = None, image_size: int = 96, posterior: str = "mean") -> None:
        super().__init__(image_size, posterior)
        for statistic in ("scale", "shift"):
            self.register_buffer(statistic, getattr(self, statistic), persistent=True)
        self.encoder = Encoder()
        self.decoder = Decoder()
        if weights != "random":
            path = Path(weights) if weights else PACKAGED_WEIGHTS
            if not path.is_file():
                raise FileNotFoundError(
                    f"no weights for the {self.name} codec: {path} does not exist; give a file that "
                    f"scripts/train_codec.py wrote as vae.weights=PATH, or null for the packaged ones"
                )
            load_exactly(self, read_safetensors(path), str(path))
        self.to(memory_format=torch.channels_last)
        self.freeze()

    def encode_images(self, images: Tensor) -> Moments:
        mean = self.encoder(images)
        logvar = 2 * (math.log(NOISE) - torch.log(self.scale))  # (16, 1, 1)
        return Moments(mean, logvar.expand_as(mean))

    def decode_images(self, z: Tensor) -> Tensor:
        return self.decoder((z - self.shift) * self.scale)
