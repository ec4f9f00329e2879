"""A linear codec for frames of the pushing table: principal components of its patches.

A frame of that table is a few flat shapes on white, so 128 linear components of a patch hold it to 35 dB.
`scripts/train_codec.py` finds them in closed form.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unified_video_action.vae.patch_mlp import VALUES, PatchCodec

CHANNELS = 128


class PushTTiny(PatchCodec):
    """(3, S, S) <-> (128, S/16, S/16), a channel for each component of a patch, the strongest first.

    Scale is part of the weights. It divides a component by the square root of its deviation, and all of them by one
    number that makes the latents' variance 1: halfway between the components as they are, of which the weakest would
    hardly be seen, and components of equal strength, most of which would be noise to a model that predicts them.
    Random weights are random orthogonal components.
    """

    name = Path(__file__).stem  # one name for this file, its weights and its configuration
    channels = CHANNELS

    def _build(self) -> None:
        self.register_buffer("scale", self.scale, persistent=True)  # (128, 1, 1)
        self.register_buffer("centre", torch.zeros(VALUES))  # mean patch, channel first
        components = torch.linalg.qr(torch.randn(VALUES, CHANNELS))[0].T  # (128, 768)
        self.register_buffer("components", components.contiguous())

    def encoder(self, patches: Tensor) -> Tensor:
        return (patches - self.centre) @ self.components.T

    def decoder(self, z: Tensor) -> Tensor:
        return z @ self.components + self.centre
