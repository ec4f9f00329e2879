"""The project's own codec for 96 px frames of the pushing table: principal components of 16 x 16 pixel patches.

A frame of that table is a few flat shapes on white, so 128 linear components of a patch hold it to 35 dB: one matrix
product each way, no network to run, and weights that `scripts/train_codec.py` finds in closed form on scripted
demonstrations. They are part of the package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from unified_video_action.vae.base import FrameCodec, Moments, untrained

NAME = Path(__file__).stem  # one name for this file, its weights and its configuration
PACKAGED_WEIGHTS = Path(__file__).parent / "weights" / f"{NAME}.safetensors"
CHANNELS, PATCH = 128, 16
CERTAIN = -30.0  # log-variance of a posterior without spread


class PushTTiny(FrameCodec):
    """Linear codec: (3, S, S) <-> (128, S/16, S/16), a channel for each component of a patch, the strongest first.

    Scale is part of the weights. It divides a component by the square root of its deviation, and all of them by one
    number that makes the latents' variance 1: halfway between the components as they are, of which the weakest would
    hardly be seen, and components of equal strength, most of which would be noise to a model that predicts them.

    Args:
        weights: a safetensors file; None takes the one in the package; "random" is random orthogonal
            components, the same every time.
        image_size: side of the square images that are encoded, in pixels; fitted for 96.
        posterior: "mean" or "sample", which are the same here.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: weights with tensors that are missing, extra or misshapen.
    """

    name = NAME
    channels = CHANNELS
    downsample = PATCH

    def __init__(self, weights: str | None = None, image_size: int = 96, posterior: str = "mean") -> None:
        super().__init__(image_size, posterior)
        values = 3 * PATCH**2
        self.register_buffer("scale", self.scale, persistent=True)  # (128, 1, 1)
        self.register_buffer("centre", torch.zeros(values))  # mean patch, channel first
        with untrained():
            components = torch.linalg.qr(torch.randn(values, CHANNELS))[0].T  # (128, 768)
        self.register_buffer("components", components.contiguous())
        if weights != "random":
            self.load(weights, PACKAGED_WEIGHTS)
        self.freeze()

    def encode_images(self, images: Tensor) -> Moments:
        patches = unfold(images, PATCH, stride=PATCH).transpose(1, 2)  # (N, h*w, 768)
        mean = (patches - self.centre) @ self.components.T  # (N, h*w, 128)
        side = images.shape[-1] // PATCH
        mean = mean.transpose(1, 2).unflatten(2, (side, side))  # (N, 128, h, w)
        return Moments(mean, torch.full_like(mean, CERTAIN))

    def decode_images(self, z: Tensor) -> Tensor:
        patches = z.flatten(2).transpose(1, 2) @ self.components + self.centre  # (N, h*w, 768)
        return fold(patches.transpose(1, 2), z.shape[-1] * PATCH, PATCH, stride=PATCH)  # (N, 3, S, S)
