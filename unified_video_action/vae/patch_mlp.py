"""Compact codecs for frames of the pushing table: every 16 x 16 patch is coded by itself.

A patch of such a frame holds a few flat shapes, so few numbers hold it, and where nothing moves latents do not change.
`scripts/train_codec.py` trains the codecs on demonstrations; the weights are part of the package.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from unified_video_action.compat.tensors import load_exactly, read_safetensors
from unified_video_action.vae.base import FrameCodec, Moments, untrained

PATCH = 16  # pixels along a patch's side
VALUES = 3 * PATCH**2
CERTAIN = -30.0  # log-variance of a posterior without spread
CHANNELS, WIDTH = 32, 512  # of the MLP codec
SCALE = 2.0  # most of a table is empty: so the latents of whole frames have a variance of about 1


class PatchCodec(FrameCodec):
    """(3, S, S) <-> (channels, S/16, S/16), a cell for each patch, without a posterior: a sample is the mean."""

    downsample = PATCH
    initial_scale: float | Sequence[float] = 1.0

    def __init__(self, weights: str | None = None, image_size: int = 96, posterior: str = "mean") -> None:
        super().__init__(image_size, posterior, self.initial_scale)
        with untrained():
            self._build()
        if weights != "random":
            path = Path(weights) if weights else packaged_weights(self.name)
            if not path.is_file():
                raise FileNotFoundError(
                    f"no weights for the {self.name} codec: {path} does not exist; give a file that "
                    f"scripts/train_codec.py wrote as vae.weights=PATH, or null for the packaged ones"
                )
            load_exactly(self, read_safetensors(path), str(path))
        self.freeze()

    @abstractmethod
    def _build(self) -> None:
        """Make `encoder`, (..., 768) with channels first -> (..., channels), and `decoder`, its inverse."""

    def encode_images(self, images: Tensor) -> Moments:
        patches = rearrange(images, "n c (h p) (w q) -> n h w (c p q)", p=PATCH, q=PATCH)
        mean = rearrange(self.encoder(patches), "n h w c -> n c h w")
        return Moments(mean, torch.full_like(mean, CERTAIN))

    def decode_images(self, z: Tensor) -> Tensor:
        patches = self.decoder(rearrange(z, "n c h w -> n h w c"))
        return rearrange(patches, "n h w (c p q) -> n c (h p) (w q)", p=PATCH, q=PATCH)


class PatchMLP(PatchCodec):
    """A small network each way: 32 numbers a patch, a small part of a transformer's width."""

    name = "patch_mlp"
    channels = CHANNELS
    initial_scale = SCALE

    def _build(self) -> None:
        self.encoder, self.decoder = _network(VALUES, CHANNELS), _network(CHANNELS, VALUES)

    def named_weights(self) -> dict[str, Tensor]:
        """In half precision, to which training has rounded them."""
        return {name: tensor.half() for name, tensor in self.state_dict().items()}


def packaged_weights(name: str) -> Path:
    """File of the weights that come with the package."""
    return Path(__file__).parent / "weights" / f"{name}.safetensors"


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, outputs)
    )
