"""TAEF2: a tiny pretrained autoencoder (1.3 M parameters each way, 8x downsampling, 32 channels), MIT licensed.

Weights: madebyollin/taef2 on the Hugging Face hub.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from unified_video_action.compat.tensors import load_exactly, read_safetensors
from unified_video_action.vae.base import FrameCodec, Moments, find_weights, untrained

REPOSITORY, FILE = "madebyollin/taef2", "taef2.safetensors"
HUB_NAME = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.")
WIDTH, CHANNELS, POOLED = 64, 32, 256
LOGVAR = -30.0  # no posterior: a sample is the mean, within 3e-7

# Mean and deviation of each channel over 256 PushT frames at 96 px, so that scaled latents have about unit deviation.
# fmt: off
MEAN = (
    -0.03, -0.09, 0.52, 1.06, -0.36, -0.49, 0.19, 0.23, -0.87, 0.18, 0.05, -0.02, -0.01, -0.04, 0.42, 0.30,
    -0.11, 0.06, -0.01, 0.45, 0.12, -0.05, -0.02, -0.44, -0.16, -0.21, -0.12, 0.21, 0.14, -0.29, 0.05, 0.17,
)
DEVIATION = (
    0.60, 0.81, 0.40, 0.53, 0.49, 0.74, 0.79, 0.53, 0.55, 0.60, 0.55, 0.43, 0.73, 0.41, 0.71, 0.82,
    0.68, 0.77, 0.57, 0.72, 0.37, 0.48, 0.53, 0.46, 0.63, 0.39, 0.76, 0.60, 0.70, 0.62, 0.62, 0.85,
)
# fmt: on


def conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Block(nn.Module):
    """relu(convs(x) + x); at the lowest resolution x is first refined by a normalised bottleneck."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH))
        self.pool = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, POOLED, 1, bias=False),
                nn.GroupNorm(4, POOLED),
                nn.ReLU(),
                nn.Conv2d(POOLED, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Bound(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def build_encoder() -> nn.Sequential:
    """Images (N, 3, S, S) in [0, 1] -> latents (N, 32, S/8, S/8)."""
    layers: list[nn.Module] = [conv(3, WIDTH), Block()]
    for level in range(3):
        layers += [conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(pooled=level == 2) for _ in range(3))]
    return nn.Sequential(*layers, conv(WIDTH, CHANNELS))


def build_decoder() -> nn.Sequential:
    """Latents (N, 32, S/8, S/8) -> images (N, 3, S, S) in about [0, 1]."""
    layers: list[nn.Module] = [Bound(), conv(CHANNELS, WIDTH), nn.ReLU()]
    for level in range(3):
        layers += [Block(pooled=level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(), conv(WIDTH, 3))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights named `encoder.<index>...` and `decoder.<index>...`, from a folder of two files or from one file."""

    def our_name(hub: re.Match[str]) -> str:
        part, index = hub.groups()
        return f"{part}.{int(index) + (part == 'decoder')}."  # the hub does not count the bound before the decoder

    if path.is_file():
        return {HUB_NAME.sub(our_name, name): x for name, x in read_safetensors(path).items()}
    parts = {part: path / f"taef2_{part}.safetensors" for part in ("encoder", "decoder")}
    return {f"{part}.{name}": x for part, file in parts.items() for name, x in read_safetensors(file).items()}


def find_or_download(weights: str | None) -> Path:
    """Raises FileNotFoundError where the weights are neither here nor on the hub, from which they come once."""
    from huggingface_hub import hf_hub_download

    try:
        return find_weights("taef2", weights, "taef2", FILE)
    except FileNotFoundError as missing:
        if weights:
            raise
        try:
            return Path(hf_hub_download(REPOSITORY, FILE))
        except (OSError, ValueError) as error:  # offline, no such file, or a read-only cache
            raise missing from error


class TAEF2(FrameCodec):
    """(3, S, S) <-> (32, S/8, S/8), without a posterior: a sample is the mean.
    `weights` are one safetensors file (as on the hub), or a folder of taef2_encoder and taef2_decoder.safetensors.
    """

    name = "taef2"
    channels = CHANNELS
    downsample = 8

    def __init__(self, weights: str | None = None, image_size: int = 96, posterior: str = "mean") -> None:
        super().__init__(image_size, posterior, scale=[1 / deviation for deviation in DEVIATION], shift=MEAN)
        with untrained():
            self.encoder, self.decoder = build_encoder(), build_decoder()
        if weights != "random":
            path = find_or_download(weights)
            load_exactly(self, read_weights(path), str(path))
        self.freeze()

    def encode_images(self, images: Tensor) -> Moments:
        mean = self.encoder(images / 2 + 0.5)
        return Moments(mean, torch.full_like(mean, LOGVAR))

    def decode_images(self, z: Tensor) -> Tensor:
        return self.decoder(z) * 2 - 1
